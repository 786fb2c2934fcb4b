"""Files that are mapped into memory and read where they are needed."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FAULT = 65_536  # bytes that a kernel maps around an address that is read for the first time
_MOST = 1 << 27  # bytes that stay mapped at most


class MappedFile:
    """A file of the disk as memory, of which little is resident at a time.

    What is read of a mapped file counts as resident memory of the process until the kernel needs the room. So its
    pages are given back after a while: they stay in the kernel's cache, from where they come again at little cost.

    Args:
        path: The file, which is not empty. It may be removed while it is mapped.

    Raises:
        OSError: It cannot be read.
        ValueError: It is empty.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._read = 0

    def array(self, kind: Any, start: int, count: int) -> NDArray[Any]:
        """Numbers of the file, not copied.

        Args:
            kind: Their dtype.
            start: The byte at which they begin.
            count: How many.

        Raises:
            ValueError: The file is shorter.
        """
        return np.frombuffer(self.memory, dtype=kind, count=count, offset=start)

    def used(self, places: int, size: int = 0) -> None:
        """Say what was read since the last call, so that pages are given back when they are many.

        Args:
            places: In how many places.
            size: How many bytes in each of them.
        """
        self._read += places * (size + _FAULT)
        if self._read >= _MOST:
            self.memory.madvise(mmap.MADV_DONTNEED)
            self._read = 0
