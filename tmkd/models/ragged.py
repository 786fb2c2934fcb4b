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


class Together(NamedTuple):
    """Some arrays of two sequences, one after another: the numbers of both, [sum of T_i], and the lengths T_i, [n]."""

    ids: NDArray[Any]
    others: NDArray[Any]
    lengths: NDArray[np.int64]


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

    def together(self, other: Ragged, rows: NDArray[np.int64]) -> Together | None:
        """Some arrays of two, as `together` gives them; None where the two are not beside each other in one part."""
        if len(self._parts) > 1 or len(other._parts) > 1 or self._parts[0].starts is not other._parts[0].starts:
            return None
        ((values, starts, file),) = self._parts
        begins = starts[rows]
        lengths = starts[rows + 1] - begins
        ends = np.cumsum(lengths)
        if file is not None:
            file.used(2 * len(rows))
        places = np.arange(ends[-1] if len(ends) else 0)
        places += np.repeat(begins - ends + lengths, lengths)
        return Together(values[places], other._parts[0].values[places], lengths)

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
    ids: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]], rows: Sequence[int] | NDArray[np.int64]
) -> Together:
    """Some arrays of two sequences whose arrays have the same lengths, one after another.

    Args:
        ids: N arrays, [T_i] each.
        others: N arrays, [T_i] each.
        rows: which of them, n numbers.
    """
    if isinstance(ids, Ragged) and isinstance(others, Ragged):
        found = ids.together(others, np.asarray(rows, dtype=np.int64))
        if found is not None:
            return found
    first, second = [ids[row] for row in rows], [others[row] for row in rows]
    lengths = np.fromiter(map(len, first), dtype=np.int64, count=len(first))
    nothing = np.empty(0, dtype=np.int32)
    return Together(np.concatenate([nothing, *first]), np.concatenate([nothing, *second]), lengths)
