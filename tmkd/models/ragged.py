"""Arrays of different lengths, one after another in one array, which may be in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from tmkd.core.mapped import NumbersInFile


class _Part(NamedTuple):
    values: NDArray[Any] | NumbersInFile
    starts: NDArray[np.int64]
    shift: int = 0  # the lowest bit of the values that counts
    mask: int = 0  # those that count, after the shift; 0: all

    def pieces(self, begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Some values as they are stored, one array after another."""
        if isinstance(self.values, NumbersInFile):
            return self.values.pieces(begins, lengths)
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0)
        places += np.repeat(begins - ends + lengths, lengths)
        found: NDArray[Any] = self.values[places]
        return found

    def unpacked(self, values: NDArray[Any]) -> NDArray[Any]:
        """What the bits that count say."""
        shifted = values >> self.shift if self.shift else values
        return shifted & self.mask if self.mask else shifted


class Together(NamedTuple):
    """Some arrays of two sequences, one after another: the numbers of both, [sum of T_i], and the lengths T_i, [n]."""

    ids: NDArray[Any]
    others: NDArray[Any]
    lengths: NDArray[np.int64]


class Ragged(Sequence[NDArray[Any]]):
    """N arrays of numbers, read as a list of arrays is, without an object in memory for each of them.

    Args:
        values: the numbers of all arrays, one array after another, [sum of T_i]; or where they are in a file.
        lengths: how many numbers each array has, T_i, [N].

    Example:
        >>> rows = Ragged(np.array([5, 6, 7], dtype=np.uint8), np.array([1, 2]))
        >>> len(rows), rows[1].tolist(), rows[1].dtype.name
        (2, [6, 7], 'int32')
        >>> [row.tolist() for row in rows.followed_by(rows)]
        [[5], [6, 7], [5], [6, 7]]
    """

    def __init__(self, values: NDArray[Any] | NumbersInFile, lengths: NDArray[np.integer[Any]]) -> None:
        starts = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        self._parts = [_Part(values, starts)]
        self._firsts = [0, len(lengths)]  # the number of the first array of each part, and N

    def unpacked(self, bits: int) -> tuple[Ragged, Ragged]:
        """Two numbers in place of each, in arrays of the same lengths: its lowest bits and the rest. Nothing is copied.

        Args:
            bits: how many are the lowest ones.
        """
        (part,) = self._parts
        return self._with(part._replace(mask=(1 << bits) - 1)), self._with(part._replace(shift=bits))

    def beside(self, values: NDArray[Any]) -> Ragged:
        """Other numbers in arrays of the same lengths; only their values take memory."""
        return self._with(self._parts[0]._replace(values=values))

    def _with(self, part: _Part) -> Ragged:
        other = Ragged.__new__(Ragged)
        other._parts, other._firsts = [part], self._firsts
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
        part = self._parts[number]
        begin, end = part.starts[row - self._firsts[number] :][:2]
        found = part.pieces(np.array([begin]), np.array([end - begin]))
        return np.asarray(part.unpacked(found)).astype(np.int32, copy=False)

    def together(self, other: Ragged, rows: NDArray[np.int64]) -> Together | None:
        """Some arrays of two, as `together` gives them; None where the two are not beside each other in one part."""
        (mine, *more), (theirs, *others) = self._parts, other._parts
        if more or others or mine.starts is not theirs.starts:
            return None
        begins = mine.starts[rows]
        lengths = mine.starts[rows + 1] - begins
        found = mine.pieces(begins, lengths)
        second = found if mine.values is theirs.values else theirs.pieces(begins, lengths)
        return Together(mine.unpacked(found), theirs.unpacked(second), lengths)

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
