"""Functions of logits, with numbers computed by hand and with logits at which a plain formula overflows."""

from __future__ import annotations

import numpy as np
import pytest

from tmkd.core.logits import log_mean_softmax, log_odds, log_softmax, sigmoid, softmax
from tmkd.teachers.ensemble import ensemble_logits

THREE_TO_ONE = [0.0, np.log(3.0)]  # probabilities 1/4, 3/4


def test_softmax_by_hand() -> None:
    logits = np.array([THREE_TO_ONE, [5.0, 5.0], [-1e4, 1e4]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]], atol=1e-7)
    np.testing.assert_allclose(log_softmax(logits[:2]), np.log([[0.25, 0.75], [0.5, 0.5]]), atol=1e-7)
    np.testing.assert_allclose(log_softmax(logits[2]), [-2e4, 0])
    np.testing.assert_allclose(softmax(np.log([[1.0, 2.0, 5.0]])), [[1 / 8, 2 / 8, 5 / 8]])


def test_the_mean_is_that_of_probabilities() -> None:
    """3/4 and 1/2 have the mean 5/8: odds of 5 to 3."""
    both = np.array([[THREE_TO_ONE, [7.0, 7.0]]])
    np.testing.assert_allclose(log_mean_softmax(both), np.log([[3 / 8, 5 / 8]]))
    teachers = [np.array([THREE_TO_ONE, [0.0, 0.0]]), np.array([[7.0, 7.0], [0.0, 0.0]])]
    np.testing.assert_allclose(log_odds(ensemble_logits(teachers)), [np.log(5 / 3), 0], atol=1e-12)
    nearly_one = np.array([[[0.0, 50.0]] * 2, [[0.0, 60.0]] * 2])
    np.testing.assert_allclose(log_odds(log_mean_softmax(nearly_one)), [50, 60])


def test_log_odds_and_their_probability() -> None:
    logits = np.array([[1.0, 3.0], [2.0, -1.0]], dtype=np.float32)
    assert log_odds(logits).tolist() == [2.0, -3.0]
    with pytest.raises(ValueError, match="log-odds need two classes, these logits have 3"):
        log_odds(np.zeros((1, 3)))
    np.testing.assert_allclose(sigmoid(np.array([0.0, np.log(3.0), -np.log(3.0), 800.0])), [0.5, 0.75, 0.25, 1.0])
    assert sigmoid(np.array([-700.0]))[0] == pytest.approx(np.exp(-700.0), rel=1e-9)
