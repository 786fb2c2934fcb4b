"""Arrays of different lengths, one after another in one array, which may be mapped from a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from tmkd.core.mapped import MappedFile


class _Part(NamedTuple):
    values: NDArray[Any]
    starts: NDArray[np.int64]
    file: MappedFile | None


class Ragged(Sequence[NDArray[Any]]):
    """N arrays of numbers, read as a list of arrays is, without an object in memory for each of them.

    Args:
        values: the numbers of all arrays, one array after another, [sum of T_i].
        lengths: how many numbers each array has, T_i, [N].
        file: holds the values, if it is mapped; it is told what is read.

    Example:
        >>> rows = Ragged(np.array([5, 6, 7], dtype=np.uint8), np.array([1, 2]))
        >>> len(rows), rows[1].tolist(), rows[1].dtype.name
        (2, [6, 7], 'int32')
        >>> [row.tolist() for row in rows.followed_by(rows)]
        [[5], [6, 7], [5], [6, 7]]
    """

    def __init__(self, values: NDArray[Any], lengths: NDArray[np.integer[Any]], file: MappedFile | None = None) -> None:
        starts = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        self._parts = [_Part(values, starts, file)]
        self._firsts = [0, len(lengths)]  # the number of the first array of each part, and N

    def beside(self, values: NDArray[Any]) -> Ragged:
        """Other numbers in arrays of the same lengths, from the same file; only their values take memory."""
        (mine,) = self._parts
        other = Ragged.__new__(Ragged)
        other._parts, other._firsts = [mine._replace(values=values)], self._firsts
        return other

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, row: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, row: slice) -> list[NDArray[Any]]: ...
    def __getitem__(self, row: int | slice) -> NDArray[Any] | list[NDArray[Any]]:
        """One array, [T_i] int32, or those of a slice."""
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        row = int(row) + (len(self) if row < 0 else 0)
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = 0
        while row >= self._firsts[number + 1]:
            number += 1
        values, starts, file = self._parts[number]
        row -= self._firsts[number]
        if file is not None:
            file.used(1)
        return np.asarray(values[starts[row] : starts[row + 1]]).astype(np.int32, copy=False)

    def together(self, rows: NDArray[np.integer[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Some arrays one after another, as `together` gives those of any sequence."""
        if len(self._parts) > 1:
            return _joined([self[row] for row in rows])
        ((values, starts, file),) = self._parts
        begins = starts[rows]
        lengths = starts[rows + 1] - begins
        ends = np.cumsum(lengths)
        if file is not None:
            file.used(len(rows))
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - ends + lengths, lengths)
        return values[places], lengths

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many numbers each array has, [N] int64."""
        return np.concatenate([np.diff(part.starts) for part in self._parts])

    def followed_by(self, others: Ragged) -> Ragged:
        """These arrays, and then the others; nothing is copied."""
        both = Ragged.__new__(Ragged)
        both._parts = [*self._parts, *others._parts]
        both._firsts = [*self._firsts[:-1], *(len(self) + first for first in others._firsts)]
        return both


def together(
    arrays: Sequence[NDArray[Any]], rows: Sequence[int] | NDArray[np.integer[Any]]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Some of the arrays of a sequence, one after another.

    Args:
        arrays: N arrays, [T_i] each.
        rows: which of them, n numbers.

    Returns:
        Their numbers, [sum of T_i], and how many each has, [n].
    """
    if isinstance(arrays, Ragged):
        return arrays.together(np.asarray(rows, dtype=np.int64))
    return _joined([arrays[row] for row in rows])


def _joined(chosen: list[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    lengths = np.fromiter(map(len, chosen), dtype=np.int64, count=len(chosen))
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int32), lengths
