"""Ranking metrics: those of trec_eval without ties, and with ties the mean over every order of the equal scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import pytrec_eval

from tmkd.data.pairs import Pairs
from tmkd.evaluation.comparison import ComparisonOptions, compare, disagreements
from tmkd.evaluation.metrics import Questions, ranking_metrics
from tmkd.evaluation.ranking import RANKING, first_right, fused_ranks, kendall_within, ranking_values
from tmkd.evaluation.results import ModelOutput

TREC = {"mrr": "recip_rank", "map": "map", "ndcg@10": "ndcg_cut_10"}


def by_trec(scores: np.ndarray, gains: np.ndarray) -> dict[str, float]:
    """trec_eval's values of one question without ties."""
    qrels = {"q": {f"d{n}": int(gain) for n, gain in enumerate(gains)}}
    run = {"q": {f"d{n}": float(score) for n, score in enumerate(scores)}}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank", "map", "ndcg_cut.10"}).evaluate(run)["q"]
    return {name: found[theirs] for name, theirs in TREC.items()}


def ours(scores: np.ndarray, gains: np.ndarray) -> dict[str, float]:
    group = np.zeros(len(scores), dtype=np.int64)
    return {name: values[0] for name, values in ranking_values(group, scores, gains > 0, gains.astype(float)).items()}


def over_all_orders(scores: np.ndarray, gains: np.ndarray) -> dict[str, float]:
    """The mean of trec_eval's values over every order of the equal scores."""
    runs = [np.flatnonzero(scores == value) for value in sorted(set(scores), reverse=True)]
    every = []
    for orders in itertools.product(*(itertools.permutations(run) for run in runs)):
        places = np.empty(len(scores))
        places[list(itertools.chain(*orders))] = np.arange(len(scores))
        every.append(by_trec(-places, gains))
    return {name: float(np.mean([one[name] for one in every])) for name in RANKING}


def test_without_ties_the_values_are_those_of_trec_eval() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        gains = np.append(generator.integers(0, 2, 14), [0, 1])
        scores = generator.permutation(16).astype(float)
        assert ours(scores, gains) == pytest.approx(by_trec(scores, gains), abs=1e-12)


@pytest.mark.parametrize("highest", [1, 3])  # right or wrong; grades
def test_with_ties_the_values_are_the_mean_over_every_order(highest: int) -> None:
    generator = np.random.default_rng(highest)
    for _ in range(25):
        gains = np.append(generator.integers(0, highest + 1, 5), [0, 1])
        scores = generator.integers(0, 3, 7).astype(float)
        assert ours(scores, gains) == pytest.approx(over_all_orders(scores, gains), abs=1e-9)


def test_a_run_of_ties_that_the_tenth_place_cuts() -> None:
    gains, scores = np.array([0] * 8 + [1, 0, 1, 0]), np.array([3.0] * 8 + [2.0] * 4)
    discounts = 1 / np.log2(np.arange(2, 14))
    expected = discounts[8:10].sum() / 2 / (discounts[:2].sum())
    assert ours(scores, gains)["ndcg@10"] == pytest.approx(expected)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_constant_scorer_gets_the_expected_value_wherever_the_right_row_stands(place: int) -> None:
    labels = np.eye(4, dtype=np.int64)[place]
    found = ranking_metrics(Questions.of(labels, ["a"] * 4), np.zeros(4))
    mean = np.mean([1, 1 / 2, 1 / 3, 1 / 4])
    assert found["mrr"][0] == pytest.approx(mean)
    assert found["map"][0] == pytest.approx(mean)
    pairs = Pairs.build(["a"] * 4, list("pqrs"), labels=labels.tolist())
    output = ModelOutput("tmkd", "student", np.zeros((1, 4, 2)))
    measured = compare(pairs, [output], classes=2, task="t", options=ComparisonOptions(resamples=20)).methods[0].metrics
    assert measured["mrr"].mean == pytest.approx(mean)
    assert measured["auc"].mean == 0.5
    right = np.stack([-labels, labels], axis=-1).astype(float)
    [item] = disagreements(pairs, np.zeros((4, 2)), right)
    assert (item.student_rank, item.teacher_rank) == (2.5, 1)


def test_a_long_run_of_ties_is_exact() -> None:
    count = 5000
    labels = (np.arange(count) < 2).astype(np.int64)
    found = ranking_metrics(Questions.of(labels, ["a"] * count), np.zeros(count))["mrr"][0]
    places = np.arange(1, count)
    by_hand = (2 * (count - places) / (count * (count - 1)) / places).sum()
    assert found == pytest.approx(by_hand, rel=1e-9)


def test_the_expected_rank_of_the_first_right_passage() -> None:
    scores, right = np.array([5.0, 3, 3, 3, 1]), np.array([False, True, False, True, True])
    ranks = [1 + min(order.index(0), order.index(2)) + 1 for order in itertools.permutations(range(3))]
    assert first_right(scores, right) == pytest.approx(np.mean(ranks))


def test_the_positive_class_is_the_one_that_is_ranked_first() -> None:
    """Labels and logits of a task whose class 0 is right give what the turned ones give."""
    generator = np.random.default_rng(5)
    labels, odds = generator.integers(0, 2, 60), generator.normal(size=60)
    questions, passages = [f"q{n // 6}" for n in range(60)], [f"p{n}" for n in range(60)]
    logits = np.stack([-odds, odds], axis=-1)
    found, named = [], []
    for positive in (1, 0):
        own = logits if positive else logits[:, ::-1]
        pairs = Pairs.build(questions, passages, labels=(labels if positive else 1 - labels).tolist())
        output, options = ModelOutput("tmkd", "student", own[None]), ComparisonOptions(resamples=50, positive=positive)
        found.append(compare(pairs, [output], classes=2, task="t", options=options).methods[0].to_json())
        named.append([one.question for one in disagreements(pairs, own, -own, positive=positive)])
    assert found[0] == found[1]
    assert named[0] == named[1] != []
    wrong = compare(pairs, [output], classes=2, task="t", options=ComparisonOptions(resamples=50)).methods[0].to_json()
    assert wrong["mrr"] != found[0]["mrr"]
    assert wrong["accuracy"] == found[0]["accuracy"]


def test_reciprocal_rank_fusion_by_hand() -> None:
    groups = np.array([0, 0, 0, 1])
    found = fused_ranks(groups, [np.array([3.0, 2.0, 1.0, 9.0]), np.array([5.0, 7.0, 5.0, 0.0])])
    assert found == pytest.approx([1 / 61 + 1 / 62.5, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62.5, 2 / 61])


def test_kendalls_tau_is_the_mean_over_questions_that_have_an_order() -> None:
    questions = np.array([3, 1, 3, 1, 3, 2, 4, 4, 1])
    first = np.array([1.0, 5.0, 2.0, 6.0, 3.0, 0.0, 1.0, 1.0, 6.0])
    second = np.array([1.0, 9.0, 3.0, 7.0, 2.0, 0.0, 1.0, 2.0, 8.0])
    # question 3: one of three pairs the other way round; 1: two of three, the third tied; 2: one passage; 4: all tied
    tau, count = kendall_within(questions, first, second)
    assert count == 2
    assert tau == pytest.approx(((2 - 1) / 3 + (0 - 2) / np.sqrt(2 * 3)) / 2)
    opposite, count = kendall_within(questions, first, -first)
    assert opposite == pytest.approx(-1.0)
    assert count == 2
    assert kendall_within(questions[:1], first[:1], second[:1]) == (None, 0)
