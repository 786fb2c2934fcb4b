"""Embeddings that are kept for later processes: each text once, and damaged files are made again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tmkd.core.cluster import Cluster
from tmkd.core.errors import ClusterError
from tmkd.data.pairs import Pairs
from tmkd.models.bi_encoder import embeddings
from tmkd.models.encoders.find import find_encoder
from tmkd.models.text_reader import TextReader
from tmkd.teachers.bi_encoder import BiEncoderTeacher
from tmkd.teachers.embedded_texts import EmbeddedTexts
from tmkd.teachers.on_cluster import Embedded, EmbedTexts

QUESTIONS = [f"How do I sort {thing} by value?" for thing in ("a hash", "a list of files", "an index", "my mail", "it")]
PASSAGES = [f"{begin}, with a comparison of the values." for begin in ("Sort the keys", "Walk it", "Use sort", "Ask")]


def pairs_of(first: int, last: int) -> Pairs:
    both = [(question, passage) for question in QUESTIONS[first:last] for passage in PASSAGES[first % 2 :]]
    return Pairs.build([question for question, _ in both], [passage for _, passage in both])


def teacher_in(folder: Path) -> BiEncoderTeacher:
    found = BiEncoderTeacher("builtin:minilm-l6", precision="fp32")
    found.keep_in(folder, 0)
    return found


def test_a_later_process_gives_the_same_bits_and_embeds_no_text_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = teacher_in(tmp_path / "one")
    at_once = [one.raw(pairs_of(0, 2)), one.raw(pairs_of(1, 5))]
    first = teacher_in(tmp_path / "two").raw(pairs_of(0, 2))  # as a process that is killed afterwards
    embedded: list[str] = []

    def counted(reader: TextReader, texts: Sequence[str]) -> NDArray[np.float32]:
        embedded.extend(texts)
        return embeddings(reader, texts)

    monkeypatch.setattr("tmkd.teachers.bi_encoder.embeddings", counted)
    second = teacher_in(tmp_path / "two").raw(pairs_of(1, 5))
    assert np.array_equal(first, at_once[0])
    assert np.array_equal(second, at_once[1])
    assert sorted(embedded) == sorted(QUESTIONS[2:])  # the passages, and the second question, were embedded before
    again = teacher_in(tmp_path / "two")
    assert np.array_equal(again.raw(pairs_of(1, 5)), second)
    assert len(embedded) == 3


def test_the_sides_of_a_text_are_kept_apart() -> None:
    kept = EmbeddedTexts()
    kept.add([("query", "a"), ("document", "a")], np.array([[1, 0], [0, 1]], dtype=np.float32))
    assert kept.of("document", ["a", "a"]).tolist() == [[0, 1], [0, 1]]
    assert kept.missing([("query", "a"), ("query", "b"), ("query", "b"), ("document", "b")]) == [
        ("query", "b"),
        ("document", "b"),
    ]


def test_texts_of_many_parts_are_found_whatever_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that begin or end with zeros, or differ in their last byte alone, are keys like others."""
    keys = [bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\xff" * 16, b"\xff" * 15 + bytes(1), bytes(range(16))]
    names = [str(number) for number in range(len(keys))]
    monkeypatch.setattr("tmkd.teachers.embedded_texts._key", lambda one: keys[int(one[1])])
    kept = EmbeddedTexts(tmp_path)
    for some in (names[3:], names[:1]):  # in parts of three and one, out of order
        kept.add([("query", name) for name in some], np.array([[float(name)] for name in some], dtype=np.float32))
    for now in (kept, EmbeddedTexts(tmp_path)):
        assert now.missing([("query", name) for name in names]) == [("query", "1"), ("query", "2")]
        now.add([("query", name) for name in names[1:3]], np.array([[1], [2]], dtype=np.float32))
        assert now.missing([("query", name) for name in names]) == []
        assert now.of("query", [*names[::-1], "0"]).ravel().tolist() == [5, 4, 3, 2, 1, 0, 0]


def test_pairs_whose_texts_are_embedded_do_not_wait_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(0, 5)
    embedded: list[tuple[str, ...]] = []

    def counted(reader: TextReader, texts: Sequence[str]) -> NDArray[np.float32]:
        embedded.append(tuple(texts))
        return embeddings(reader, texts)

    monkeypatch.setattr("tmkd.teachers.bi_encoder.embeddings", counted)
    teacher = BiEncoderTeacher("builtin:minilm-l6", precision="fp32")
    monkeypatch.setattr("tmkd.teachers.bi_encoder.CHUNK", 6)
    expected, batches = teacher.raw(pairs), [*embedded]
    embedded.clear()
    monkeypatch.setattr("tmkd.teachers.bi_encoder._BLOCK", 3)
    monkeypatch.setattr("tmkd.teachers.bi_encoder._WAITING", 4)
    other = BiEncoderTeacher("builtin:minilm-l6", precision="fp32")
    for again in (False, True):  # all texts are embedded the second time
        parts = list(other.scored(pairs))
        rows = np.concatenate([rows for rows, _ in parts])
        assert sorted(rows.tolist()) == [*range(len(pairs))]
        assert np.array_equal(np.concatenate([scores for _, scores in parts])[np.argsort(rows)], expected)
        assert len(parts) > 2
        assert not again or max(len(rows) for rows, _ in parts) <= 6
    assert embedded == batches


@pytest.mark.parametrize("spoil", ["cut", "gone", "other", "flipped"])
def test_a_damaged_part_is_made_again(tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture) -> None:
    kept = EmbeddedTexts(tmp_path)
    kept.add([("query", "a")], np.ones((1, 2), dtype=np.float32))
    kept.add([("query", "b")], np.zeros((1, 2), dtype=np.float32))
    (values,) = [path for path in tmp_path.glob("00000-*.npy") if ".keys" not in path.name]
    if spoil == "cut":
        values.write_bytes(values.read_bytes()[:-4])
    elif spoil == "gone":
        values.unlink()
    elif spoil == "flipped":
        values.write_bytes(values.read_bytes()[:-1] + b"\x40")
    else:
        np.save(values, np.ones((2, 2), dtype=np.float32))
    with caplog.at_level(logging.WARNING):
        again = EmbeddedTexts(tmp_path)
    assert again.missing([("query", "a"), ("query", "b")]) == [("query", "a")]
    assert "is missing or damaged" in caplog.text
    left = values.with_name(f"00002-{values.name.removeprefix('00000-')}.9999999.tmp")  # of a process that was killed
    left.touch()
    os.utime(left, (0, 0))
    again.add([("query", "a")], np.full((1, 2), 3, dtype=np.float32))
    assert not left.exists()
    assert EmbeddedTexts(tmp_path).of("query", ["a", "b"]).tolist() == [[3, 3], [0, 0]]


def test_what_a_cluster_gave_before_it_went_away_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings come back in any order, in blocks; those of a block that came are in the folder."""
    pairs = pairs_of(0, 5)
    expected = teacher_in(tmp_path / "here").raw(pairs)
    asked: list[list[tuple[str, str]]] = []

    def blocks(cluster: Cluster, work: EmbedTexts, texts: Sequence[tuple[str, str]]) -> Iterator[Embedded]:
        asked.append(list(texts))
        model = work.open_model(find_encoder("builtin:minilm-l6"))
        for place in range(len(texts) - 1, -1, -1):
            if len(asked) == 1 and place < 3:
                raise ClusterError("it went away")
            side, text = texts[place]
            yield np.array([place]), model(side)([text])

    monkeypatch.setattr("tmkd.teachers.bi_encoder.embed_on", blocks)
    monkeypatch.setattr("tmkd.teachers.bi_encoder.CHUNK", 4)
    monkeypatch.setattr(Cluster, "workers", 2)
    cluster = object.__new__(Cluster)  # not connected to anything
    with pytest.raises(ClusterError, match="it went away"):
        list(teacher_in(tmp_path / "there").scored(pairs, cluster))
    found = np.concatenate([scores for _, scores in teacher_in(tmp_path / "there").scored(pairs, cluster)])
    assert len(asked[0]) == len(QUESTIONS) + len(PASSAGES)
    assert sorted(asked[1]) == sorted(asked[0][:3])
    assert len(asked) == 2
    np.testing.assert_allclose(found, expected, atol=1e-5)
