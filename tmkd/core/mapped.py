"""Files that are read where they are needed: mapped into memory, or piece by piece."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.files import disk_errors

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


def mapped_numbers(numbers: NDArray[Any], folder: Path) -> NDArray[Any]:
    """Numbers in a file without a name, mapped: when memory is short, the kernel drops pages and reads them again.

    Args:
        numbers: Any array of numbers, not empty.
        folder: Where there is room for the file, which is gone with the array; it is made.

    Returns:
        The same numbers. Those that are changed are changed in memory alone.

    Raises:
        NoRoomError: The disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder / "numbers", numbers.nbytes), tempfile.TemporaryFile(dir=folder) as file:
        file.write(np.ascontiguousarray(numbers).data)  # `tofile` does not say that the disk is full
        file.flush()
        return np.memmap(file, numbers.dtype, "c", shape=numbers.shape)


class NumbersInFile:
    """Numbers in a file, of which pieces are read where they are needed.

    A piece comes from the kernel's cache, like one of a mapped file, and costs a system call of a microsecond or two.
    In a mapped file it costs a page fault, which is dearer, and the pages count as resident.

    Args:
        path: The file.
        kind: The dtype of the numbers.
        start: The byte at which they begin.
        count: How many.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is shorter.
    """

    def __init__(self, path: Path, kind: Any, start: int, count: int) -> None:
        self.dtype = np.dtype(kind)
        self._path, self._start, self._count = path, start, count
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        if os.fstat(self._file).st_size < start + count * self.dtype.itemsize:
            raise ValueError(f"the file is too short for {count:,} numbers")

    def __len__(self) -> int:
        return self._count

    def pieces(self, begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Pieces of the numbers, one after another.

        Args:
            begins: The place at which each piece begins, [n].
            lengths: How many numbers each has, [n].

        Raises:
            OSError: The file was cut off since it was opened.
        """
        size, file = self.dtype.itemsize, self._file
        ends = np.cumsum(lengths) * size
        found = np.empty(int(lengths.sum()), dtype=self.dtype)
        room, place = memoryview(found.view(np.uint8)), 0  # type: ignore[arg-type]  # NumPy 2.4 has Buffer at run time
        for begin, end in zip((self._start + begins * size).tolist(), ends.tolist(), strict=True):
            if os.preadv(file, (room[place:end],), begin) < end - place:
                raise OSError(f"{self._path} was cut off while it was read")
            place = end
        return found
