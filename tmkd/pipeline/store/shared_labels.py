"""Label stores at a shared address (`--labels s3://bucket/folder`), as `<kind>-<fingerprint>/` like in a workspace.

A workspace's step is a local copy of such a store: training reads it, and everything is read from it but once. A store
is finished there when it has its step.json, which is written last. Whoever writes it holds its lease.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tmkd.core.console import progress
from tmkd.core.errors import LabelError, TmkdError
from tmkd.core.files import sha256_of, write_durably
from tmkd.core.lease import Lease, leased
from tmkd.core.places import Place
from tmkd.pipeline.store.fingerprint import STEP_VERSIONS
from tmkd.pipeline.store.label_store import MANIFEST, parsed_manifest

logger = logging.getLogger(__name__)

STEP = "step.json"
_PART = re.compile(r"part-[0-9a-f-]+\.parquet")
_TEMPORARY = re.compile(r"\.(part-|manifest|step).*\.tmp")  # half a file of a shared disk
_AT_ONCE = 8  # parts that are sent or fetched side by side
_TRIES = 8  # how often a store is looked at whose parts another process merges meanwhile


class SharedStore:
    """One label store at an address. A `Mirror` that is fetched from and never written to.

    Args:
        place: the store's folder.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def step(self) -> dict[str, Any] | None:
        """What its step.json says; None where the store is not finished, or the file not whole."""
        try:
            return dict(json.loads(self.place.read(STEP) or b""))
        except (ValueError, TypeError):
            return None

    def rows(self) -> int:
        """How many labels the finished store has; 0 where it is not finished.

        Raises:
            LabelError: the manifest there is damaged.
        """
        manifest = self._manifest() if self.step() is not None else None
        return sum(part["rows"] for part in manifest["parts"]) if manifest else 0

    def fetch(self, folder: Path) -> dict[str, Any] | None:
        """See `Mirror`. A part that is damaged there is fetched as it is: whoever reads the folder leaves it out.

        Raises:
            LabelError: the manifest there is damaged.
            PlaceError: the address cannot be read.
            NoRoomError: the disk of the folder is full.
        """
        for _ in range(_TRIES):
            manifest = self._manifest()
            parts = manifest["parts"] if manifest else []
            if all(self._fetched(folder, parts)) or manifest == self._manifest():
                break
        return manifest

    def _manifest(self) -> dict[str, Any] | None:
        content = self.place.read(MANIFEST)
        if content is None:
            return None
        found = parsed_manifest(content)
        if found is None or not all(_PART.fullmatch(part["file"]) for part in found["parts"]):
            raise LabelError(
                f"{self.place}/{MANIFEST} is damaged; `tmkd labels repair --labels "
                f"{self.place.address.rpartition('/')[0]}` drops these labels, so that they are made again"
            )
        return found

    def _fetched(self, folder: Path, parts: Collection[Mapping[str, Any]]) -> list[bool]:
        """Fetch the parts that a folder lacks; says of each whether it was there."""
        left = [part for part in parts if not _has(folder / part["file"], part["sha256"])]

        def one(part: Mapping[str, Any]) -> bool:
            content = self.place.read(part["file"])
            if content is not None:
                write_durably(folder / part["file"], content)
            return content is not None

        if not left:
            return []
        logger.info(f"{len(left):,} parts come from {self.place}")
        found = []
        with progress("fetch labels", len(left), "parts") as bar, ThreadPoolExecutor(_AT_ONCE) as pool:
            for there in pool.map(one, left):
                found.append(there)
                bar.advance(1)
        return found

    def commit(self, parts: Mapping[str, bytes], manifest: bytes) -> None:
        """Nothing: this is not its writer."""

    def remove(self, names: Collection[str]) -> None:
        """Nothing: this is not its writer."""

    @contextmanager
    def writing(self, busy: Callable[[str], TmkdError], *, wait: bool) -> Iterator[SharedWriter]:
        """Hold the store's lease, and give its writer; arguments and errors as of `tmkd.core.lease.leased`."""
        with leased(self.place, busy, wait=wait) as lease:
            yield SharedWriter(self.place, lease)


class SharedWriter(SharedStore):
    """A shared store that this process writes. A `Mirror`.

    Args:
        place: the store's folder.
        lease: on it.
    """

    def __init__(self, place: Place, lease: Lease) -> None:
        super().__init__(place)
        self._lease = lease

    def fetch(self, folder: Path) -> dict[str, Any] | None:
        """See `SharedStore`. Removes parts that the manifest does not name: a process was killed meanwhile."""
        manifest = super().fetch(folder)
        named = {part["file"] for part in manifest["parts"]} if manifest else set()
        strays = [name for name in self.place.names() if _PART.fullmatch(name) or _TEMPORARY.fullmatch(name)]
        self.remove([name for name in strays if name not in named])
        return manifest

    def commit(self, parts: Mapping[str, bytes], manifest: bytes) -> None:
        """See `Mirror`.

        Raises:
            PlaceError: the address cannot be written, or another process has taken over the lease. What the manifest
                named before stays.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self.place.write, parts, parts.values()))
        self._lease.check()
        self.place.write(MANIFEST, manifest)

    def remove(self, names: Collection[str]) -> None:
        """See `Mirror`."""
        for name in names:
            self.place.remove(name)

    def finish(self, step: Mapping[str, Any]) -> None:
        """Say that the store has all labels.

        Args:
            step: the content of its step.json.
        """
        self._lease.check()
        self.place.write(STEP, (json.dumps(step, indent=2) + "\n").encode())


def shared_steps(root: Place, kind: str) -> Iterator[tuple[SharedStore, Any]]:
    """The finished stores of a kind in its current version at an address, and what each depends on."""
    for name in root.names():
        if name.startswith(f"{kind}-"):
            store = SharedStore(root / name)
            step = store.step()
            if step and step.get("version") == STEP_VERSIONS[kind] and "depends_on" in step:
                yield store, step["depends_on"]


def _has(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest
