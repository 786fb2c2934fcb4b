"""Arrays in one array, read as a list of arrays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tmkd.core.mapped import NumbersInFile
from tmkd.models.ragged import Ragged, together
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


def test_some_arrays_together_are_the_same_from_a_list_in_memory_and_from_a_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 30_000, size).astype(np.int32) for size in (3, 0, 5, 1, 70)]
    types = [generator.integers(0, 2, len(row)).astype(np.int32) for row in rows]
    packed = np.concatenate(rows).astype(np.uint16) | np.concatenate(types).astype(np.uint16) << 15
    (tmp_path / "tokens").write_bytes(b"before" + packed.tobytes() + b"behind")
    lengths = np.array([3, 0, 5, 1, 70])
    of_file = Ragged(NumbersInFile(tmp_path / "tokens", np.uint16, 6, 79), lengths).unpacked(15)
    in_memory = Ragged(packed, lengths).unpacked(15)
    plain = Ragged(np.concatenate(rows), lengths)
    chosen = [4, 0, 1, 4]
    for first, second in (
        (rows, types), of_file, in_memory, (plain, plain.beside(np.concatenate(types))), (plain, of_file[1]),
        (of_file[0].followed_by(plain), of_file[1].followed_by(plain)), (of_file[0], types),
    ):  # fmt: skip
        found = together(first, second, chosen)
        assert found.ids.tolist() == np.concatenate([rows[place] for place in chosen]).tolist()
        assert found.others.tolist() == np.concatenate([types[place] for place in chosen]).tolist()
        assert found.lengths.tolist() == [70, 3, 0, 70]
        assert [part.tolist() for part in together(first, second, [])] == [[], [], []]
        assert [row.tolist() for row in first][:5] == [row.tolist() for row in rows]
        assert [row.tolist() for row in second][:5] == [row.tolist() for row in types]
    assert of_file[1].lengths.tolist() == lengths.tolist()
    with pytest.raises(ValueError, match="too short for 86 numbers"):
        NumbersInFile(tmp_path / "tokens", np.uint16, 6, 86)


def _target(number: str) -> str:
    """What a file descriptor is open for, or nothing if another thread has closed it since."""
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        return ""


def test_a_file_of_numbers_is_closed_with_the_object(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(bytes(8))

    def opened() -> int:
        return [_target(number) for number in os.listdir("/proc/self/fd")].count(str(tmp_path / "tokens"))

    numbers = NumbersInFile(tmp_path / "tokens", np.uint16, 0, 4)
    assert opened() == 1
    del numbers
    assert opened() == 0
    with pytest.raises(FileNotFoundError):
        NumbersInFile(tmp_path / "none", np.uint16, 0, 4)
