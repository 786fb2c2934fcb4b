"""Arrays of different lengths, one after another in one array, which may be mapped from a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Ragged(Sequence[NDArray[Any]]):
    """N arrays of numbers, read as a list of arrays is, without an object in memory for each of them.

    Args:
        values: the numbers of all arrays, one array after another, [sum of T_i].
        lengths: how many numbers each array has, T_i, [N].

    Example:
        >>> rows = Ragged(np.array([5, 6, 7], dtype=np.uint8), np.array([1, 2]))
        >>> len(rows), rows[1].tolist(), rows[1].dtype.name
        (2, [6, 7], 'int32')
        >>> [row.tolist() for row in rows.followed_by(rows)]
        [[5], [6, 7], [5], [6, 7]]
    """

    def __init__(self, values: NDArray[Any], lengths: NDArray[np.integer[Any]]) -> None:
        self._parts = [(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))]
        self._firsts = [0, len(lengths)]  # the number of the first array of each part, and N

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
        values, starts = self._parts[number]
        row -= self._firsts[number]
        return np.asarray(values[starts[row] : starts[row + 1]]).astype(np.int32, copy=False)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many numbers each array has, [N] int64."""
        return np.concatenate([np.diff(starts) for _, starts in self._parts])

    def followed_by(self, others: Ragged) -> Ragged:
        """These arrays, and then the others; nothing is copied."""
        both = Ragged.__new__(Ragged)
        both._parts = [*self._parts, *others._parts]
        both._firsts = [*self._firsts[:-1], *(len(self) + first for first in others._firsts)]
        return both
