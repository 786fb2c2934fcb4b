"""Locks between processes: a file that one process holds, or several share. The system frees it when a process ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tmkd.core.errors import TmkdError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, busy: TmkdError, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold a lock file until the block ends or the process does.

    Args:
        path: The lock file; its folder is made.
        busy: What is raised where another process holds the lock; its text is logged where that process is waited for.
        wait: Wait for that process.
        shared: Share the lock with others that ask for a shared one.

    Raises:
        TmkdError: `busy`, unless `wait` is true; or this is Windows, which has no such locks.
    """
    if fcntl is None:
        raise TmkdError(f"{path} cannot be locked: Windows has no `flock`; run this on Linux or macOS, or in WSL")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("w") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise busy from None
            logger.info(str(busy))
            fcntl.flock(file, kind)
        yield
