"""Files and folders: the cache, hashes, and writing that never leaves an incomplete file or folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tmkd.core.errors import NoRoomError, TmkdError
from tmkd.core.machine import has_ended

Quoting = Literal["auto", "none", "csv"]
"""What a quote in a CSV or TSV file means: text (`none`), a quoted cell (`csv`), or what the file shows (`auto`)."""


def cache_folder(*parts: str) -> Path:
    """A folder for downloads and built data: `$TMKD_CACHE`, else `$XDG_CACHE_HOME/tmkd`, else `~/.cache/tmkd`."""
    root = os.environ.get("TMKD_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tmkd"
    folder = base.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest_of(content: Any) -> str:
    """12 hex digits of a SHA-256 over JSON-like content; the order of a mapping's keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def changed_at(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def same_file(first: str | Path, second: str | Path) -> bool:
    """Whether two paths are one file, there or not: by links too."""
    one, other = Path(first), Path(second)
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, RuntimeError, ValueError):  # one is not there, or no path at all
        return False


def sha256_of(path: Path) -> str:
    """The file's SHA-256, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path, needed: int | Callable[[], int] | None = None) -> Iterator[Path]:
    """Replace a file as a whole: gives a temporary path to write to, which is renamed at the end of the block.

    Makes the folder. Readers see either the old file or the complete new one. If the block fails or the process is
    killed, the old file stays.

    Args:
        path: the file.
        needed: bytes that the block writes, where they are known, or what counts them; for the message of a full disk.

    Raises:
        NoRoomError: the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with disk_errors(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # the reason why the block failed is the one to tell
                temporary.unlink(missing_ok=True)  # it exists only if the block failed


_TEMPORARY = re.compile(r"(.+)\.([1-9]\d{0,6})\.tmp")  # a name that `replacing` gives: the file's, and the process
_LONG = 86_400  # seconds


def remove_temporary(folder: Path) -> None:
    """Remove what processes that were killed in `replacing` left in a folder and below. No other may write there."""
    for path in folder.rglob("*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def remove_temporary_of(path: Path) -> None:
    """Remove what processes that were killed in `replacing` left beside a file.

    It stays for a day, and while this machine has a process of that number: another machine may write into the folder.
    """
    with suppress(OSError):
        for left in path.parent.glob("*.tmp"):
            name = _TEMPORARY.fullmatch(left.name)
            if name and name[1] == path.name and has_ended(int(name[2])) and time.time() - left.stat().st_mtime > _LONG:
                left.unlink()


def write_durably(path: Path, content: bytes) -> None:
    """Write a file as a whole (`replacing`), which is on the disk when this returns."""
    with replacing(path, len(content)) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole (`replacing`)."""
    content = text.encode("utf-8")
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as a whole (`replacing`)."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, as `write_json` writes one."""
    return json.loads(path.read_text(encoding="utf-8"))


def keys_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ, for `object_pairs_hook` of `json.loads`, which keeps the last of two alone.

    Raises:
        ValueError: A key stands twice.
    """
    found = dict(members)
    if len(found) < len(members):
        twice = ", ".join(map(repr, named_twice([name for name, _ in members])))
        raise ValueError(f"a key stands twice: {twice}; rename one of the two")
    return found


def named_twice(names: Sequence[str]) -> list[str]:
    """The names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def swap_in(fresh: Path, target: Path) -> None:
    """Rename a finished folder to `target`; only then remove the folder that was there."""
    old = _old(target)
    if target.exists():
        _remove_old(old)  # left by a process that was killed
        target.rename(old)
    fresh.rename(target)
    _remove_old(old)


def _old(target: Path) -> Path:
    """Where `swap_in` keeps the folder that it replaces."""
    return target.with_name(f".{target.name}.old")


def _remove_old(old: Path) -> None:
    """Remove a folder under another name, so that `put_back` finds it whole or not at all."""
    gone = old.with_suffix(".gone")
    shutil.rmtree(gone, ignore_errors=True)  # left by a process that was killed
    with suppress(OSError):
        old.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def put_back(target: Path) -> None:
    """Rename back the folder that `swap_in` took away, where the process was killed before the new one was there."""
    old = _old(target)
    if old.is_dir() and not target.exists():
        old.rename(target)


def copy_folder(source: Path, target: Path, also: Mapping[str, str] | None = None) -> None:
    """Copy a folder, without the temporary files of `replacing`, beside the target, then rename it (`swap_in`).

    Args:
        source: the folder.
        target: where the copy goes; an earlier folder there is replaced.
        also: more text files of the copy, by name.
    """
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        shutil.copytree(source, fresh, ignore=lambda _, names: list(filter(_TEMPORARY.fullmatch, names)))
        for name, text in (also or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)  # on a full disk it would have the room that is left
        raise
    swap_in(fresh, target)


@contextmanager
def disk_errors(path: Path, needed: int | Callable[[], int] | None = None) -> Iterator[None]:
    """Turn the errors of a full disk, as every library words them, into one that says so and what to do.

    Args:
        path: the file or folder that the block writes.
        needed: bytes that the block writes, where they are known, or what counts them once there is no room.

    Raises:
        NoRoomError: there is no room on the disk, the user's quota is used up, or the file would be larger than the
            process may make one.
    """
    try:
        yield
    except TmkdError:
        raise
    except Exception as error:  # safetensors, Arrow and the exporter of ONNX have classes of their own
        reason = _full(error)
        if reason is None:
            raise
        parents = (path, *path.resolve().parents)
        free = shutil.disk_usage(next(parent for parent in parents if parent.is_dir())).free
        raise NoRoomError(path, reason, needed=needed() if callable(needed) else needed, free=free) from error


_FULL = {
    errno.ENOSPC: "no room on disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not be so large here (`ulimit -f`)",
}
_CODES = re.compile(r"(?:os error |errno |Os { code: )(\d+)\b", re.IGNORECASE)


def _full(error: BaseException) -> str | None:
    """Why there is no room, from an error or its causes; None for an error of another kind."""
    return next((_FULL[code] for code in error_codes(error) if code in _FULL), None)


def error_codes(error: BaseException) -> Iterator[int]:
    """The system's numbers of an error and its causes, such as `errno.ENOSPC`, as every library words them."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            yield seen.errno
        yield from (int(code) for code in _CODES.findall(str(seen)))
        if os.strerror(errno.ENOSPC) in str(seen):
            yield errno.ENOSPC
        seen = seen.__cause__ or seen.__context__
