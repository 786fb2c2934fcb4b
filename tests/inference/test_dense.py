"""Dense search over real embeddings: all rows compared, damaged rows, several rows of a passage, none."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from conftest import TOPICS
from numpy.typing import NDArray

from tmkd.data.documents.text import text_hash
from tmkd.inference.dense import DenseSearch
from tmkd.models.bi_encoder import embed
from tmkd.models.encoders.find import find_encoder

PASSAGES = [passage for _, passage in TOPICS.values()]
PIDS = [text_hash(passage) for passage in PASSAGES]


@functools.cache
def embedded() -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """The embeddings of the topics' questions and passages."""
    texts = [question for question, _ in TOPICS.values()]
    both = embed(find_encoder("builtin:minilm-l6"), [*texts, *PASSAGES], 64)
    return both[: len(texts)], both[len(texts) :].astype(np.float16)


def test_the_nearest_passages_come_first_with_their_cosines() -> None:
    questions, passages = embedded()
    dense = DenseSearch(passages, PIDS)
    for row, question in enumerate(questions):
        cosines = passages.astype(np.float32) @ question
        best = np.argsort(-cosines)[:5]
        assert dense.search(question, 5) == pytest.approx({PIDS[one]: cosines[one] for one in best})
        assert list(dense.search(question, 5)) == [PIDS[one] for one in best]
        assert next(iter(dense.search(question, 1))) == PIDS[row]  # the passage that answers is the nearest
    assert len(dense.search(questions[0], 1000)) == len(PIDS)
    assert dense.damaged == 0


def test_passages_are_compared_by_their_ids() -> None:
    questions, passages = embedded()
    found = DenseSearch(passages, PIDS).cosines(questions[0], [PIDS[3], "0" * 16, PIDS[0]])
    wanted = passages.astype(np.float32) @ questions[0]
    assert found == pytest.approx({PIDS[0]: wanted[0], PIDS[3]: wanted[3]}, abs=1e-6)
    assert DenseSearch(passages, PIDS).cosines(questions[0], []) == {}


def test_of_several_rows_of_a_passage_the_nearest_counts() -> None:
    questions, passages = embedded()
    pids = [PIDS[0] if row % 3 == 0 else pid for row, pid in enumerate(PIDS)]
    cosines = passages.astype(np.float32) @ questions[6]
    dense = DenseSearch(passages, pids)
    every = dense.search(questions[6], len(set(pids)))
    assert set(every) == set(pids)
    assert every[PIDS[0]] == pytest.approx(cosines[::3].max())
    assert dense.cosines(questions[6], [PIDS[0]])[PIDS[0]] == pytest.approx(cosines[::3].max())
    near = DenseSearch(passages, [PIDS[0]] * (len(PIDS) - 1) + PIDS[-1:]).search(questions[0], 2)
    assert list(near) == [PIDS[0], PIDS[-1]]  # the second was behind all other rows of the first


def test_rows_that_are_gone_are_not_found() -> None:
    questions, passages = embedded()
    dense = DenseSearch(passages, ["", *PIDS[1:]])
    assert PIDS[0] not in dense.search(questions[0], len(PIDS))
    assert len(dense.search(questions[0], 3)) == 3
    assert dense.cosines(questions[0], PIDS[:2]).keys() == {PIDS[1]}
    nothing = DenseSearch(np.zeros((0, 384), dtype=np.float16), [])
    assert nothing.search(questions[0], 3) == nothing.cosines(questions[0], PIDS) == {}
    assert DenseSearch(passages, [""] * len(PIDS)).search(questions[0], 3) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0, 60_000.0])
def test_damaged_rows_are_counted_and_left_out(value: float) -> None:
    questions, passages = embedded()
    damaged = passages.copy()
    damaged[0, 7] = value
    dense = DenseSearch(damaged, PIDS)
    assert dense.damaged == 1
    found = dense.search(questions[0], len(PIDS))
    assert PIDS[0] not in found
    assert np.isfinite(list(found.values())).all()
    assert dense.cosines(questions[0], [PIDS[0]]) == {}
