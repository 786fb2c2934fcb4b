"""Arrays in one array, read as a list of arrays."""

from __future__ import annotations

import numpy as np
import pytest

from tmkd.models.ragged import Ragged
from tmkd.models.tokenizer import Encoded


def test_it_reads_like_the_list_of_its_arrays() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 9, size).astype(np.int32) for size in (3, 0, 5, 1)]
    more = [generator.integers(0, 9, size).astype(np.int32) for size in (2, 4)]
    one, other = (Ragged(np.concatenate(part), np.array([len(row) for row in part])) for part in (rows, more))
    for found, wanted in ((one, rows), (one.followed_by(other), rows + more)):
        assert len(found) == len(wanted)
        assert found.lengths.tolist() == [len(row) for row in wanted]
        for number in [*range(len(wanted)), -1]:
            np.testing.assert_array_equal(found[number], wanted[number])
            assert found[number].dtype == np.int32
        assert [row.tolist() for row in found[1:3]] == [row.tolist() for row in wanted[1:3]]
        assert [row.tolist() for row in found] == [row.tolist() for row in wanted]
        with pytest.raises(IndexError):
            found[len(wanted)]


def test_pairs_in_a_file_and_pairs_in_memory_follow_each_other() -> None:
    plain = Encoded([np.array([1, 2], dtype=np.int32)], [np.array([0, 1], dtype=np.int32)])
    mapped = Encoded(Ragged(np.array([3, 4, 5]), np.array([1, 2])), Ragged(np.array([0, 0, 1]), np.array([1, 2])))
    for first, second in ((plain, mapped), (mapped, plain), (mapped, mapped)):
        both = first.followed_by(second)
        assert both.lengths.tolist() == [*first.lengths, *second.lengths]
        assert [row.tolist() for row in both.ids] == [row.tolist() for row in (*first.ids, *second.ids)]
        assert [row.tolist() for row in both.type_ids] == [row.tolist() for row in (*first.type_ids, *second.type_ids)]
