"""The stacked ensemble: weights on log-odds by hand, teachers of noise, teachers that are alike, one class alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.core.logits import even_logits, log_odds, softmax
from tmkd.teachers.ensemble import Stacking, _order_loss, ensemble_logits, fit_stacking

Floats = NDArray[np.float64]


def classes_of(labels: NDArray[np.int64], count: int = 2) -> Floats:
    return np.eye(count)[labels]


def drawn(rows: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Log-odds of a teacher that is right about them, labels drawn from these, and five folds."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0, 2, rows)
    labels = (generator.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    return odds, labels, np.arange(rows) % 5


def test_the_weight_of_one_teacher_by_hand() -> None:
    # Log-odds +1 where 3 of 4 pairs are relevant and -1 where 1 of 4 is: sigmoid(w) = 3/4, so w = ln 3 and b = 0.
    odds = np.array([1.0] * 4 + [-1.0] * 4)
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    found = fit_stacking(["a"], [even_logits(odds)], classes_of(labels), np.zeros(8, dtype=np.int64), ridges=(0.0,))
    assert found.weights[0] == pytest.approx(math.log(3), abs=1e-5)
    assert found.intercept == pytest.approx((0.0, 0.0), abs=1e-5)
    assert found.log_loss is not None
    assert found.log_loss["a"] == pytest.approx((6 * math.log1p(math.exp(-1)) + 2 * math.log1p(math.e)) / 8)


def test_the_intercept_by_hand() -> None:
    # Of the pairs with log-odds 0, 1 of 4 is relevant; of those with 2, 3 of 4 are: b = -ln 3, 2 w + b = ln 3.
    odds = np.array([0.0] * 4 + [2.0] * 4)
    labels = np.array([1, 0, 0, 0, 1, 1, 1, 0])
    found = fit_stacking(["a"], [even_logits(odds)], classes_of(labels), np.zeros(8, dtype=np.int64), ridges=(0.0,))
    assert found.weights[0] == pytest.approx(math.log(3), abs=1e-4)
    assert found.intercept[1] == pytest.approx(-math.log(3), abs=1e-4)


def test_the_order_loss_by_hand() -> None:
    # Questions 0 and 2 of three; 1 has no right passage. Softmax of (0, ln 3) is (1/4, 3/4), of (0, 0) halves.
    scores = np.array([0.0, 5.0, math.log(3), 0.0, 0.0])
    gains, questions = np.array([0.0, 0.0, 1.0, 1.0, 0.0]), np.array([0, 1, 0, 2, 2])
    losses, gradient = _order_loss(scores, gains, questions)
    assert losses == pytest.approx([-math.log(3 / 4), -math.log(1 / 2)])
    assert gradient == pytest.approx([1 / 4, 0, -1 / 4, -1 / 2, 1 / 2])


def of_questions(rows: int) -> tuple[list[Floats], NDArray[np.int64], NDArray[np.int64]]:
    """One teacher that orders the five passages of a question, and one that knows which questions have good answers."""
    generator = np.random.default_rng(0)
    questions = np.arange(rows) // 5
    good, near = generator.normal(0, 2, rows // 5)[questions], generator.normal(0, 2, rows)
    labels = (generator.random(rows) < 1 / (1 + np.exp(-(good + near)))).astype(np.int64)
    shifted = generator.normal(0, 4, rows // 5)[questions]  # differs from question to question, so pairs are misled
    return [even_logits(near + shifted), even_logits(good)], labels, questions


def test_weights_fit_the_order_of_a_questions_passages() -> None:
    logits, labels, questions = of_questions(5000)
    fold = questions % 5
    pairs = fit_stacking(["near", "good"], logits, classes_of(labels), fold)
    order = fit_stacking(["near", "good"], logits, classes_of(labels), fold, questions)
    assert (pairs.fitted_to, order.fitted_to) == ("pairs", "order")
    assert pairs.weights[1] > 0.5
    assert order.weights[1] < 0.05 * order.weights[0]  # it says nothing of the order
    assert "fitted to the order of each question's passages" in order.sentence()
    # calibrated on the pairs all the same
    assert softmax(order.apply(logits))[:, 1].mean() == pytest.approx(labels.mean(), abs=1e-4)
    assert order.log_loss is not None
    assert order.log_loss["stacked"] < order.log_loss["near"]
    turned = [one[:, ::-1] for one in logits]
    other = fit_stacking(["near", "good"], turned, classes_of(1 - labels), fold, questions, positive=0)
    assert other.weights == pytest.approx(order.weights, rel=1e-4)


def test_questions_with_one_passage_have_no_order() -> None:
    logits, labels, _ = of_questions(500)
    alone, fold = np.arange(500), np.arange(500) % 5
    for targets in (classes_of(labels), 0.1 + 0.8 * classes_of(labels)):  # labels, and the probabilities of a reference
        found = fit_stacking(["near", "good"], logits, targets, fold, alone)
        assert found == fit_stacking(["near", "good"], logits, targets, fold)
        assert found.fitted_to == "pairs"


def test_more_classes_are_weighed_on_log_probabilities() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3]])
    both = Stacking(("a", "b"), (2.0, 1.0), (0.0, 0.0, math.log(2)))
    other = np.array([[0.2, 0.3, 0.5], [0.4, 0.4, 0.2]])
    wanted = probabilities**2 * other * np.array([1, 1, 2])
    given = softmax(both.apply([np.log(probabilities), np.log(other)]))
    assert given == pytest.approx(wanted / wanted.sum(axis=1, keepdims=True))


def test_a_teacher_of_noise_weighs_next_to_nothing() -> None:
    odds, labels, fold = drawn(4000)
    noise = np.random.default_rng(1).normal(0, 2, len(odds))
    found = fit_stacking(["good", "noise"], [even_logits(odds), even_logits(noise)], classes_of(labels), fold)
    assert found.weights[0] == pytest.approx(1, abs=0.1)
    assert found.weights[1] < 0.03
    assert found.log_loss is not None
    assert found.log_loss["stacked"] < found.log_loss["mean"]
    against = fit_stacking(["good", "against"], [even_logits(odds), even_logits(-odds)], classes_of(labels), fold)
    assert against.weights[1] == pytest.approx(0, abs=0.1)
    assert min(against.weights) >= 0


def test_teachers_that_are_alike_share_their_weight() -> None:
    odds, labels, fold = drawn(4000)
    found = fit_stacking(["a", "b", "c"], [even_logits(odds)] * 3, classes_of(labels), fold)
    assert found.weights == pytest.approx((1 / 3,) * 3, abs=0.05)
    constant = fit_stacking(["a", "b"], [even_logits(odds), even_logits(odds * 0 + 3)], classes_of(labels), fold)
    assert constant.weights[1] == 0


def test_separable_labels_give_finite_weights() -> None:
    odds = np.linspace(-3, 3, 40)
    found = fit_stacking(["a"], [even_logits(odds)], classes_of((odds > 0).astype(np.int64)), np.arange(40) % 4)
    assert 0 < found.weights[0] < 100


def test_labels_of_one_class_are_refused() -> None:
    odds, labels, fold = drawn(50)
    with pytest.raises(DataError, match=r"the 50 labelled training pairs have none of class 1; .*ensemble: mean"):
        fit_stacking(["a"], [even_logits(odds)], classes_of(labels * 0), fold)


def test_two_teachers_that_know_different_things_are_better_together_than_their_mean() -> None:
    generator = np.random.default_rng(2)
    strong, weak = generator.normal(0, 3, 4000), generator.normal(0, 0.5, 4000)
    labels = (generator.random(4000) < 1 / (1 + np.exp(-(strong + weak)))).astype(np.int64)
    logits = [even_logits(strong), even_logits(weak * 8)]  # the weak one shouts
    found = fit_stacking(["strong", "weak"], logits, classes_of(labels), np.arange(4000) % 5)
    assert found.weights == pytest.approx((1, 1 / 8), abs=0.1)
    truth = strong + weak
    stacked, mean = (np.corrcoef(log_odds(one), truth)[0, 1] for one in (found.apply(logits), ensemble_logits(logits)))
    assert stacked > mean
