"""How many files a process may have open: the limit is raised, and an error that comes of it is no damaged file."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from tmkd.core.errors import TmkdError
from tmkd.core.files import error_codes

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

_ON_MACOS = 10_240  # the most that macOS allows, where it says that there is no hard limit
_ENOUGH = 65_536  # programs that this process starts may close every number up to the limit, one by one


def raise_limit() -> None:
    """Let this process, and those that it starts, have as many files open as the system allows, or 65,536."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    for limit in (wanted, _ON_MACOS):
        if soft == resource.RLIM_INFINITY or soft >= limit:
            return
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return


def too_many(error: BaseException, path: Path | str) -> TmkdError | None:
    """What to raise where a file could not be opened because too many are open; None for an error of another kind.

    Args:
        error: Of any library.
        path: The file.
    """
    codes = set(error_codes(error))
    if errno.EMFILE in codes and resource is not None:
        soft, hard = (
            "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
            for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
        )
        reason = f"the limit of open files of this process is {soft} (`ulimit -n`; the hard limit is {hard})"
    elif errno.ENFILE in codes:
        reason = "the whole system has as many files open as it may (on Linux `sysctl fs.file-max`)"
    else:
        return None
    return TmkdError(f"{path} cannot be opened: {reason}. Raise the limit and run the same command again")


def require_room(error: BaseException, path: Path | str) -> None:
    """Call this before an error that a file gave is taken for damage.

    Args:
        error: Of any library.
        path: The file.

    Raises:
        TmkdError: The file could not be opened because too many are open.
    """
    found = too_many(error, path)
    if found is not None:
        raise found from error
