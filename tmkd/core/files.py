"""Files and folders: the cache, hashes, and writing that never leaves an incomplete file or folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tmkd.core.errors import TmkdError

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


def sha256_of(path: Path) -> str:
    """The file's SHA-256, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file as a whole: gives a temporary path to write to, which is renamed at the end of the block.

    Makes the folder. Readers see either the old file or the complete new one. If the block fails or the process is
    killed, the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # it exists only if the block failed


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole (`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as a whole (`replacing`)."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def swap_in(fresh: Path, target: Path) -> None:
    """Rename a finished folder to `target`; only then remove the folder that was there."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder beside the target, then rename it (`swap_in`)."""
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh)
    swap_in(fresh, target)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk into one that says so and what to do.

    Args:
        folder: where the block writes.

    Raises:
        TmkdError: there is no room on the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        there = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
        free = shutil.disk_usage(there).free / 2**20
        raise TmkdError(
            f"no room on disk at {folder} ({free:,.0f} MiB free). Finished work is kept: "
            "free some space (`tmkd clean` lists steps no run needs) and run the same command again"
        ) from error
