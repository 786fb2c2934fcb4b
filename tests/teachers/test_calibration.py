"""Calibration: scores of any scale become log-odds that agree with labels, in the same order."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tmkd.core.errors import DataError
from tmkd.core.logits import log_odds, sigmoid, two_logits
from tmkd.teachers.calibration import Calibration, fit, reliability, standardised

RNG = np.random.default_rng(0)
TRUE = RNG.normal(-1.0, 2.0, 20_000)  # log-odds
LABELS = (RNG.random(len(TRUE)) < sigmoid(TRUE)).astype(np.int64)
GIVEN = two_logits(np.tanh(TRUE / 6))  # a rising function of them, on another scale


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibrated_log_odds_are_the_true_ones_and_keep_the_order(kind: str) -> None:
    linear = two_logits(TRUE / 7 + 3) if kind == "platt" else GIVEN  # a line is what Platt can mend
    found = fit(kind, linear, LABELS, "t")
    odds = log_odds(found.apply(linear))
    middle = np.abs(TRUE) < 3
    assert np.abs(odds - TRUE)[middle].mean() < 0.15
    before, after = reliability(linear, LABELS), reliability(found.apply(linear), LABELS)
    assert after["error"] < 0.02 < before["error"]
    assert after["log_loss"] < before["log_loss"]
    order = np.argsort(log_odds(linear), kind="stable")
    assert (np.diff(odds[order]) >= 0).all()
    assert (np.diff(odds[order]) > 0)[np.diff(log_odds(linear)[order]) > 1e-3].all()


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_a_calibration_is_written_and_read(kind: str) -> None:
    found = fit(kind, GIVEN, LABELS, "t")
    again = Calibration.of_json(json.loads(json.dumps(found.to_json())))
    np.testing.assert_array_equal(again.apply(GIVEN), found.apply(GIVEN))


def test_platts_line_is_that_of_logistic_regression() -> None:
    """The same line as scikit-learn's without a penalty, on the same softened targets (as weighted classes)."""
    from sklearn.linear_model import LogisticRegression

    z, y = TRUE[:500] * 0.3 + 2, LABELS[:500]
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / (len(y) - y.sum() + 2)
    soft = np.where(y == 1, high, low)
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.r_[z, z][:, None], np.r_[np.ones(500), np.zeros(500)], np.r_[soft, 1 - soft]
    )
    ours = log_odds(fit("platt", two_logits(z).astype(np.float64), y, "t").apply(two_logits(z)))
    np.testing.assert_allclose(ours, z * theirs.coef_[0, 0] + theirs.intercept_[0], atol=2e-3)


def test_probabilities_can_be_targets() -> None:
    found = fit("platt", two_logits(TRUE / 2), sigmoid(TRUE), "t")
    assert np.abs(log_odds(found.apply(two_logits(TRUE / 2))) - TRUE).mean() < 0.02


def test_what_cannot_be_calibrated() -> None:
    with pytest.raises(DataError, match=r"judge: .*the 3 training labels are of class 1 alone.*calibrate: none"):
        fit("platt", GIVEN[:3], np.ones(3), "judge")
    with pytest.raises(DataError, match="labels are none"):
        fit("platt", GIVEN[:0], np.ones(0), "judge")
    with pytest.raises(DataError, match=r"teacher judge: its scores fall where the training labels rise.*negate"):
        fit("isotonic", -GIVEN, LABELS, "judge")
    with pytest.raises(DataError, match=r"gives all 2 training pairs the same score, 0\.5"):
        fit("platt", two_logits(np.array([0.5, 0.5])), np.array([0, 1]), "judge")
    with pytest.raises(ValueError, match="not 'beta'"):
        fit("beta", GIVEN, LABELS, "judge")


def test_scores_are_standardised_within_their_question() -> None:
    questions = np.array([0, 0, 1, 1, 1, 2])
    found = log_odds(standardised(two_logits(np.array([1.0, 3.0, 10.0, 20.0, 30.0, 7.0])), questions))
    np.testing.assert_allclose(found, [-1, 1, -np.sqrt(1.5), 0, np.sqrt(1.5), 0], atol=1e-6)


def test_reliability_on_hand_computed_numbers() -> None:
    found = reliability(two_logits(np.log([3.0, 3.0, 3.0, 1 / 9])), np.array([1, 1, 0, 0]))
    assert found["error"] == pytest.approx((3 * 0.75 - 2 + 0.1) / 4, abs=1e-6)
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 0.75**2 + 0.1**2) / 4, abs=1e-6)
    assert found["log_loss"] == pytest.approx(-(2 * np.log(0.75) + np.log(0.25) + np.log(0.9)) / 4, abs=1e-6)
