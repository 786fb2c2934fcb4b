"""Documentation packages of a Debian-family system, fetched and unpacked into the cache without root.

The system's package lists are used if it has any; container images often have none, and then lists are fetched into the
cache. A package that was unpacked once is used from then on, without asking apt again, so that the data set does not
change unexpectedly. A package is unpacked beside its final place and then renamed, so that a folder that exists is
complete.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tmkd.core.console import progress
from tmkd.core.errors import FetchError
from tmkd.core.files import cache_folder, read_json, write_json
from tmkd.data.builtin.catalogue import SOURCES, Source, source

logger = logging.getLogger(__name__)

_OTHER_WAYS = (
    "Two other ways to data: a hub data set (data.hub: ID, with train: SPLIT), or files of your own "
    "(data.train: FILE, JSONL, CSV, TSV or Parquet)."
)
_NEEDED = ("apt-get", "apt-cache", "dpkg-deb")
_APT_SECONDS = 600


@dataclass(frozen=True)
class Package:
    """An unpacked package.

    Attributes:
        source: its entry in the catalogue.
        name: its real name, such as python3.11-doc.
        version: its version.
        root: the folder it is unpacked in.
    """

    source: Source
    name: str
    version: str
    root: Path

    def files(self) -> list[Path]:
        """The files to read, sorted."""
        return self.source.paths(self.root)


def fetch(names: Sequence[str] | None = None) -> list[Package]:
    """Get packages from the cache, and fetch those that it lacks.

    A package that the distribution's release does not have is left out; the log says so.

    Args:
        names: names of the catalogue; all of it unless given.

    Returns:
        The packages, in the catalogue's order.

    Raises:
        DataError: the catalogue does not have a name.
        FetchError: there is no apt or no network, or none of the packages found has a FAQ.
    """
    wanted = list(SOURCES) if names is None else [one for one in SOURCES if one in {source(name) for name in names}]
    if not any(one.faq for one in wanted):
        raise FetchError(f"none of {', '.join(names or ())} has questions; name one of: {_faq_names()}")
    found = {one.name: package for one in wanted if (package := _cached(one)) is not None}
    absent = [one for one in wanted if one.name not in found and not _absence_note(one).exists()]
    if absent:
        found.update({package.source.name: package for package in _fetch(absent, anything=bool(found))})
    packages = [found[one.name] for one in wanted if one.name in found]
    if not any(package.source.faq for package in packages):
        raise FetchError(f"this release has none of the FAQ packages ({_faq_names()}). {_OTHER_WAYS}")
    return packages


def _faq_names() -> str:
    return ", ".join(one.name for one in SOURCES if one.faq)


def _absence_note(wanted: Source) -> Path:
    """The file that records that the release has no such package; while it exists, apt is not asked again."""
    return cache_folder("debian-docs", "packages") / f"{wanted.name}.absent"


def _cached(wanted: Source) -> Package | None:
    record = cache_folder("debian-docs", "packages") / f"{wanted.name}.json"
    try:
        fields = read_json(record)
        package = Package(wanted, fields["name"], fields["version"], record.parent / fields["folder"])
    except (OSError, ValueError, KeyError):
        return None
    return package if package.root.is_dir() else None


def _fetch(wanted: Sequence[Source], anything: bool) -> list[Package]:
    """Fetch absent packages. Without apt, those that are in the cache already have to suffice."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        if anything and any(_cached(one) for one in SOURCES if one.faq):
            logger.info(
                f"debian-docs: no {missing[0]} here; continuing without {', '.join(one.name for one in wanted)}"
            )
            return []
        raise FetchError(
            f"the data set debian-docs is made from Debian's documentation packages, and there is no {missing[0]} "
            f"on this machine. {_OTHER_WAYS}"
        )
    apt = _Apt()
    packages = []
    with progress("documentation", len(wanted), "packages") as bar:
        for one in wanted:
            resolved = apt.resolve(one)
            if resolved is None:
                note = _absence_note(one)
                note.touch()
                logger.info(
                    f"debian-docs: this release has no {one.name}; continuing without it (delete {note} to ask again)"
                )
            else:
                packages.append(_unpack(one, *resolved, apt))
            bar.advance(1, one.name)
    return packages


def _unpack(wanted: Source, name: str, version: str, apt: _Apt) -> Package:
    base = cache_folder("debian-docs", "packages")
    folder = f"{name}_{version.replace(':', '%')}"
    with tempfile.TemporaryDirectory(dir=base, prefix=".unpacking-") as temporary:
        archive = apt.download(name, version, Path(temporary))
        root = Path(temporary) / "root"
        _run(["dpkg-deb", "-x", str(archive), str(root)], f"unpack {archive.name}")
        kept = wanted.paths(root)
        if not kept:
            raise FetchError(
                f"{name} {version} holds none of the files {', '.join(wanted.files)}; its layout has changed"
            )
        place = Path(temporary) / "kept"
        for path in kept:  # other languages and pictures are most of the package
            target = place / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        final = base / folder
        if not final.is_dir():
            os.replace(place, final)
    write_json(base / f"{wanted.name}.json", {"name": name, "version": version, "folder": folder})
    return Package(wanted, name, version, final)


class _Apt:
    """apt's tools, first with the system's package lists, then with lists of our own in the cache."""

    def __init__(self) -> None:
        self._options: list[str] = []
        self._own = False
        self._names: list[str] = []
        if not self._known():
            self._update()

    def resolve(self, wanted: Source) -> tuple[str, str] | None:
        """Name and version of a real package, the highest of several; None if fresh lists have none, either."""
        found = self._lookup(wanted)
        if found is None and not self._own:
            self._update()
            found = self._lookup(wanted)
        return found

    def _lookup(self, wanted: Source) -> tuple[str, str] | None:
        names = [name for name in self._names if re.fullmatch(wanted.pattern, name)]
        for name in sorted(names, key=_numbers, reverse=True):
            policy = _run(["apt-cache", *self._options, "policy", name], f"look up {name}")
            candidate = re.search(r"^\s+Candidate:\s+(\S+)", policy, re.MULTILINE)
            if candidate and candidate.group(1) != "(none)":
                return name, candidate.group(1)
        return None

    def download(self, name: str, version: str, folder: Path) -> Path:
        """Download the package's archive. If the system's lists are out of date, try once more with fresh lists."""
        try:
            self._get(name, version, folder)
        except FetchError:
            if self._own:
                raise
            self._update()
            self._get(name, None, folder)
        archives = sorted(folder.glob("*.deb"))
        if not archives:
            raise FetchError(f"apt-get download {name} left no file; see whether `apt-get download {name}` works here")
        return archives[0]

    def _get(self, name: str, version: str | None, folder: Path) -> None:
        target = f"{name}={version}" if version else name
        command = ["apt-get", *self._options, "-q", "-o", "APT::Sandbox::User=root", "download", target]
        _run(command, f"download {name}", folder)

    def _known(self) -> bool:
        self._names = _run(["apt-cache", *self._options, "pkgnames"], "list the packages").split()
        return any(re.fullmatch(one.pattern, name) for name in self._names for one in SOURCES if one.faq)

    def _update(self) -> None:
        logger.info("debian-docs: fetching package lists into the cache (the system has none, or old ones)")
        base = cache_folder("debian-docs", "apt")
        for part in ("state/lists/partial", "cache/archives/partial"):
            (base / part).mkdir(parents=True, exist_ok=True)
        self._own = True
        self._options = [
            *("-o", f"Dir::State={base / 'state'}", "-o", f"Dir::Cache={base / 'cache'}"),
            *(
                "-o",
                f"Dir::State::lists={base / 'state/lists'}",
                "-o",
                f"Dir::Cache::archives={base / 'cache/archives'}",
            ),
            *("-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "APT::Sandbox::User=root"),
        ]
        _run(["apt-get", *self._options, "-q", "update"], "fetch the package lists")
        if not self._known():
            raise FetchError(f"the package lists that apt-get can fetch name no documentation package. {_OTHER_WAYS}")


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _run(command: Sequence[str], purpose: str, folder: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_APT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"could not {purpose}: {error}. {_OTHER_WAYS}", what=purpose) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-1:]
        raise FetchError(f"could not {purpose}: {' '.join(lines) or f'exit status {done.returncode}'}. {_OTHER_WAYS}")
    return done.stdout
