"""Logits are joined with pairs by all 128 bits of their ids, as a dictionary of strings would join them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from tmkd.core.errors import LabelError
from tmkd.data.pair_ids import PairIds, first_of_each, numbers_of
from tmkd.data.pairs import pair_id
from tmkd.pipeline.store import label_join
from tmkd.pipeline.store.label_store import LabelStore

WIDTH = 2


class Plain:
    """The join as it was: a dictionary of strings."""

    def __init__(self, store: LabelStore) -> None:
        self.rows: dict[str, NDArray[np.float32]] = {}
        for ids, logits in store._parts():
            self.rows.update(zip(ids.to_pylist(), logits, strict=True))

    def logits_for(self, ids: list[str]) -> NDArray[np.float32]:
        found = np.stack([self.rows.get(one, np.full(WIDTH, np.nan, dtype=np.float32)) for one in ids])
        found[~np.isfinite(found).all(axis=1)] = np.nan
        return found

    def has(self, ids: list[str]) -> list[bool]:
        return [one in self.rows and bool(np.isfinite(self.rows[one]).all()) for one in ids]

    def missing(self, ids: list[str]) -> int:
        return sum(one not in self.rows for one in ids)


def of_texts(number: int) -> str:
    return pair_id("question", str(number))


def near_to_each_other(number: int) -> str:
    """Ids that differ in their last or first digits alone, so that one half of each is that of many others."""
    return f"{number % 7:016x}{number // 7:016x}" if number % 2 else f"{number // 7:016x}{number % 7:016x}"


def of_every_form(number: int) -> str:
    """Ids of 32 digits, in upper case too, and others, which no pair has."""
    forms = [f"{number:032x}", f"{number:032x}".upper(), f"{number:031x}g", str(number), f"{number:033x}", "é" * number]
    return forms[number % len(forms)]


@pytest.mark.parametrize("named", [of_texts, near_to_each_other, of_every_form])
@pytest.mark.parametrize(("seed", "at_once"), [(0, 10**6), (1, 10**6), (2, 90)])  # 90: the store is read 8 times
def test_the_join_is_that_of_a_dictionary(
    tmp_path: Path, named: Callable[[int], str], seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmkd.data.pair_ids._CHUNK", 100)
    monkeypatch.setattr(label_join, "_AT_ONCE", at_once)
    generator = np.random.default_rng(seed)
    store = LabelStore.open(tmp_path, header={"classes": WIDTH})
    for _ in range(12):  # a pair occurs in several parts, and twice in one
        ids = [named(int(number)) for number in generator.integers(0, 300, 60)]
        logits = generator.normal(size=(len(ids), WIDTH)).astype(np.float32)
        logits[generator.random(logits.shape) < 0.05] = generator.choice([np.nan, np.inf, -np.inf])
        store.append(ids, logits)
    plain, wanted = Plain(store), [named(int(number)) for number in generator.integers(0, 400, 1000)]
    expected = plain.logits_for(wanted)
    assert np.isnan(expected).any()
    assert np.isfinite(expected).any()
    np.testing.assert_array_equal(store.logits_for(wanted, allow_missing=True), expected)
    assert store.has(wanted).tolist() == plain.has(wanted)
    assert store.done_ids() == {one for one, done in zip(plain.rows, plain.has(list(plain.rows)), strict=True) if done}
    bad = np.flatnonzero(np.isnan(expected).all(axis=1))
    with pytest.raises(LabelError, match=f"of 1,000 pairs .* first {wanted[bad[0]]};") as caught:
        store.logits_for(wanted)
    assert caught.value.missing == plain.missing(wanted)
    assert (caught.value.missing or 0) + (caught.value.not_finite or 0) == len(bad)


def test_ids_whose_first_half_is_equal_are_told_apart(tmp_path: Path) -> None:
    store = LabelStore.open(tmp_path, header={"classes": 1})
    ids = [f"{7:016x}{second:016x}" for second in (5, 3, 9, 3)]
    store.append(ids, np.array([[1], [2], [3], [4]], dtype=np.float32))
    assert store.logits_for(ids)[:, 0].tolist() == [1, 4, 3, 4]  # the later of two counts
    assert store.has([*ids, f"{7:016x}{4:016x}", f"{8:016x}{5:016x}"]).tolist() == [True] * 4 + [False] * 2


def test_many_pairs_need_no_object_for_each(tmp_path: Path) -> None:
    """Python's strings and a dictionary would take over 200 bytes a pair; what NumPy and Arrow take is counted."""
    import tracemalloc

    count = 200_000
    numbers = np.random.default_rng(0).integers(0, 2**63, (count, 2), dtype=np.uint64)
    ids = pa.array([f"{first:016x}{second:016x}" for first, second in numbers.tolist()])
    logits = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    store = LabelStore.open(tmp_path, header={"classes": 2})
    for start in range(0, count, 20_000):
        store.append(ids[start : start + 20_000], logits[start : start + 20_000])
    wanted = PairIds(count, lambda: (ids[start : start + 4000] for start in range(0, count, 4000)))
    tracemalloc.start()
    try:
        found = store.logits_for(wanted)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, logits)
    assert peak < 100 * count


def test_numbers_keep_all_bits_and_the_order_of_the_ids() -> None:
    generator = np.random.default_rng(1)
    ids = [pair_id("q", str(number)) for number in generator.integers(0, 500, 2000)] + ["0" * 32, "f" * 32]
    numbers = numbers_of(pa.array(ids))
    assert [f"{first:016x}{second:016x}" for first, second in numbers.tolist()] == ids
    some = pa.array(ids)[17:400]  # a part of an array begins within its memory
    np.testing.assert_array_equal(numbers_of(some), numbers[17:400])
    expected = np.unique(np.array(ids), return_index=True)[1]
    np.testing.assert_array_equal(first_of_each(ids), expected)
    others = [*ids, "pair 1", "Pair 2", "pair 1"]
    np.testing.assert_array_equal(first_of_each(others), np.unique(np.array(others), return_index=True)[1])
    assert len(first_of_each([])) == 0


def test_ids_read_chunk_by_chunk_are_a_sequence() -> None:
    ids = [str(number) for number in range(10)]
    read: Any = PairIds(10, lambda: (pa.array(ids[start : start + 3]) for start in range(0, 10, 3)))
    assert list(read) == ids
    assert [read[place] for place in (0, 5, 9, -1)] == ["0", "5", "9", "9"]
    assert read[2:4] == ["2", "3"]
    with pytest.raises(IndexError):
        read[10]
    assert label_join.have_finite(list, 0, read).tolist() == [False] * 10
