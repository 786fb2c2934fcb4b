"""A teacher that is a column of scores: probabilities and log-odds become two logits."""

from __future__ import annotations

import numpy as np
import pytest

from tmkd.core.errors import DataError
from tmkd.data.pairs import Pairs, Reference
from tmkd.teachers.interface import TeacherLike
from tmkd.teachers.scores import ScoresTeacher, imported_logits


def pairs(*judge: float | None) -> Pairs:
    return Pairs.build(["q"] * len(judge), [str(n) for n in range(len(judge))], scores={"judge": list(judge)})


def test_imported_probabilities_become_clipped_log_odds() -> None:
    found = imported_logits(np.array([0.0, 0.5, 0.9, 1.0]), "probability")
    z = found[:, 1] - found[:, 0]
    limit = np.log((1 - 1e-6) / 1e-6)
    assert np.allclose(z, [-limit, 0, np.log(9), limit])
    assert np.allclose(found.sum(axis=1), 0)
    assert np.allclose(np.exp(found[2]) / np.exp(found[2]).sum(), [0.1, 0.9])


def test_imported_logits_are_log_odds_already() -> None:
    assert imported_logits(np.array([3.0, -1.0]), "logit").tolist() == [[-1.5, 1.5], [0.5, -0.5]]
    with pytest.raises(ValueError, match="'percent'"):
        imported_logits(np.array([3.0]), "percent")  # type: ignore[arg-type]


def test_a_column_is_a_teacher() -> None:
    teacher: TeacherLike = ScoresTeacher("judge", "probability")
    logits = teacher.logits(pairs(0.9, 0.5))
    assert logits.dtype == np.float32
    assert logits.shape == (2, 2)
    assert logits[0, 1] - logits[0, 0] == pytest.approx(np.log(9))
    assert teacher.name == "judge"
    assert ScoresTeacher("judge", "probability", "a").fingerprint == teacher.fingerprint  # the name does not count
    assert ScoresTeacher("judge", "logit").fingerprint != teacher.fingerprint
    with pytest.raises(ValueError, match="'percent'"):
        ScoresTeacher("judge", "percent")  # type: ignore[arg-type]


def test_pairs_without_scores_are_refused() -> None:
    with pytest.raises(DataError, match="teacher judge: 1 dev rows have no 'judge'"):
        ScoresTeacher("judge", "logit").logits(pairs(0.1, None), "dev")
    with pytest.raises(DataError, match="teacher a: the given rows have no column 'other'"):
        ScoresTeacher("other", "logit", "a").logits(pairs(0.1))


def test_the_column_that_stands_for_labels_is_known() -> None:
    judged = pairs(0.1, 0.9)
    teacher = ScoresTeacher("judge", "probability")
    assert not teacher.is_reference_of(judged)
    assert teacher.is_reference_of(judged.with_reference(Reference("judge", "probability")))
