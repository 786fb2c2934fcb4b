"""The join of stored logits with pairs by their ids, in arrays of numbers, for a range of the ids at a time.

Every one of the 128 bits of an id is compared. Nothing here is an object for each pair: Python's strings and
dictionaries take some 200 bytes a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tmkd.core.malloc import give_back_freed_memory
from tmkd.data.pair_ids import Numbers, StoredIds, chunks_of, numbers_of

_AT_ONCE = 4_000_000  # stored pairs whose ids are in memory at the same time

Part = tuple[pa.Array, NDArray[np.float32]]
"""The ids of a part of a store, N strings in Arrow, and their logits, [N, width] float32."""


def join(
    parts: Callable[[], Iterable[Part]], rows: int, width: int, wanted: Sequence[str]
) -> tuple[NDArray[np.float32], int]:
    """The latest logits that the parts of a store have of some pairs.

    A store of many pairs is read several times, for a range of the ids each time.

    Args:
        parts: Gives the parts, oldest first.
        rows: How many pairs they have in all.
        width: Numbers of a pair.
        wanted: The ids of N pairs; an id may occur more than once.

    Returns:
        [N, width] float32 in the order of `wanted`, nan for a pair that no part has; and how many pairs that are.
    """
    found, missing = np.full((len(wanted), width), np.nan, dtype=np.float32), 0
    for within in _ranges(rows):
        numbers, logits = [np.empty((0, 2), dtype=np.uint64)], [np.empty((0, width), dtype=np.float32)]
        for ids, some in parts():
            every = numbers_of(ids)
            mine = within(every)
            numbers.append(every[mine])
            logits.append(some[mine])
        joined, known, end = np.concatenate(numbers), np.concatenate(logits), 0
        del numbers, logits
        stored = StoredIds(joined)
        del joined
        for ids in chunks_of(wanted):
            every = numbers_of(ids)
            mine = within(every)
            places = stored.find(every[mine])
            there = places >= 0
            found[end + np.flatnonzero(mine)[there]] = known[places[there]]
            missing += int((~there).sum())
            end += len(ids)
        del stored, known
        if rows > _AT_ONCE:  # hundreds of megabytes, between which little is in use
            give_back_freed_memory()
            pa.default_memory_pool().release_unused()
    return found, missing


def _ranges(rows: int) -> Iterator[Callable[[Numbers], NDArray[np.bool_]]]:
    """For each range of ids, of about `_AT_ONCE` rows at most, a function that tells which of N ids are in it, [N]."""
    count = max(1, -(-rows // _AT_ONCE))
    for number in range(count):
        lowest, highest = (number << 64) // count, ((number + 1 << 64) // count) - 1
        yield partial(_within, np.uint64(lowest), np.uint64(highest))


def _within(lowest: np.uint64, highest: np.uint64, ids: Numbers) -> NDArray[np.bool_]:
    return (ids[:, 0] >= lowest) & (ids[:, 0] <= highest)


def finite_rows(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether all numbers of each row of [N, width] are finite, [N]."""
    return np.asarray(np.isfinite(logits).all(axis=1))


def have_finite(parts: Callable[[], Iterable[Part]], rows: int, wanted: Sequence[str]) -> NDArray[np.bool_]:
    """Whether the latest logits that the parts have of each pair are finite, [N]; arguments as of `join`."""

    def finiteness() -> Iterator[Part]:
        for ids, logits in parts():
            yield ids, finite_rows(logits)[:, None].astype(np.float32)

    # a pair that no part has is nan, which is not above 0
    return join(finiteness, rows, 1, wanted)[0][:, 0] > 0
