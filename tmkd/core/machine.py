"""This machine, and which of its processes has ended: for what a killed one leaves behind."""

from __future__ import annotations

import os
import socket
import sys


def this_machine() -> dict[str, str]:
    """This machine, and where on it a process number means the same process."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return {"host": socket.gethostname(), "numbers": numbers}


def has_ended(pid: int) -> bool:
    """Whether no process of this machine has a number. On Windows always false: it cannot be asked there."""
    if sys.platform == "win32":  # `os.kill` with signal 0 would send Ctrl-C there
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        pass
    return False
