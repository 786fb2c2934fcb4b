"""The join of stored logits with pairs by their ids, in arrays: 24 bytes a stored pair and its logits.

Every one of the 128 bits of an id is compared. Nothing here is an object for each pair: Python's strings and
dictionaries take some 200 bytes a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tmkd.data.pair_ids import Numbers, chunks_of, numbers_of

Part = tuple[pa.Array, NDArray[np.float32]]
"""The ids of a part of a store, N strings in Arrow, and their logits, [N, width] float32."""


class StoredIds:
    """The ids of stored pairs, in which others are looked up.

    Args:
        numbers: The ids as numbers (`tmkd.data.pair_ids`), [M, 2] uint64 in chunks, oldest first; an id may occur more
            than once.
        count: M, no less than there are.
    """

    def __init__(self, numbers: Iterable[Numbers], count: int) -> None:
        first, second = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.uint64)
        end = 0
        for some in numbers:
            first[end : end + len(some)], second[end : end + len(some)] = some.T
            end += len(some)
        order = np.argsort(first[:end], kind="stable")  # so of equal ids the latest comes last
        self._first = first[:end][order]
        del first
        self._second = second[:end][order]
        del second
        self._order = order.astype(np.int32) if end < 2**31 else order

    def find(self, wanted: Numbers) -> NDArray[np.int64]:
        """The place of the latest of the stored ids that equals each wanted one, [N] int64; -1 where none does."""
        order = np.argsort(wanted[:, 0])  # one after another they are near to each other in memory
        first, second = wanted[order].T
        places = np.searchsorted(self._first, first, side="right") - 1
        found = np.full(len(wanted), -1, dtype=np.int64)
        left = np.arange(len(wanted))
        while len(left):  # once for all but ids whose first 64 bits are those of a later stored one
            left = left[places[left] >= 0]
            left = left[self._first[places[left]] == first[left]]
            equal = self._second[places[left]] == second[left]
            found[order[left[equal]]] = self._order[places[left[equal]]]
            left = left[~equal]
            places[left] -= 1
        return found


def join(parts: Iterable[Part], rows: int, width: int, wanted: Sequence[str]) -> tuple[NDArray[np.float32], int]:
    """The latest logits that the parts of a store have of some pairs.

    Args:
        parts: Oldest first.
        rows: How many pairs they have in all.
        width: Numbers of a pair.
        wanted: The ids of N pairs; an id may occur more than once.

    Returns:
        [N, width] float32 in the order of `wanted`, nan for a pair that no part has; and how many pairs that are.
    """
    logits = np.empty((rows + 1, width), dtype=np.float32)
    logits[-1] = np.nan  # the place -1 of a pair that is not there
    stored = StoredIds(_numbers(parts, logits), rows)
    found, end, missing = np.empty((len(wanted), width), dtype=np.float32), 0, 0
    for ids in chunks_of(wanted):
        places = stored.find(numbers_of(ids))
        found[end : end + len(places)] = logits[places]
        missing += int((places < 0).sum())
        end += len(places)
    return found, missing


def _numbers(parts: Iterable[Part], logits: NDArray[np.float32]) -> Iterator[Numbers]:
    """The ids of parts as numbers, while their logits are written into an array."""
    end = 0
    for ids, some in parts:
        logits[end : end + len(some)] = some
        end += len(some)
        yield numbers_of(ids)


def finite_rows(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether all numbers of each row of [N, width] are finite, [N]."""
    return np.asarray(np.isfinite(logits).all(axis=1))


def have_finite(parts: Iterable[Part], rows: int, wanted: Sequence[str]) -> NDArray[np.bool_]:
    """Whether the latest logits that the parts have of each pair are finite, [N]; arguments as of `join`."""
    finite = np.zeros((rows + 1, 1), dtype=np.float32)

    def told() -> Iterator[Part]:
        for ids, logits in parts:
            yield ids, finite_rows(logits)[:, None].astype(np.float32)

    stored = StoredIds(_numbers(told(), finite), rows)
    found = [finite[stored.find(numbers_of(ids)), 0] > 0 for ids in chunks_of(wanted)]
    return np.concatenate([np.empty(0, dtype=np.bool_), *found])
