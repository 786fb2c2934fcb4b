"""Intervals: how often they cover a known value, what pairing and seeds change, and too few pairs for an interval."""

from __future__ import annotations

import time
from statistics import NormalDist

import numpy as np
import pytest

from tmkd.data.pairs import Pairs
from tmkd.evaluation.bootstrap import Resamples, distributions, interval
from tmkd.evaluation.comparison import ComparisonOptions, compare
from tmkd.evaluation.metrics import Questions
from tmkd.evaluation.results import ModelOutput


def logits(odds: np.ndarray) -> np.ndarray:
    """Logits [..., 2] with the given log-odds."""
    return np.stack([-odds / 2, odds / 2], axis=-1)


def rows(questions: int, per: int = 8) -> Pairs:
    """One positive among `per` passages of each question."""
    return Pairs.build(
        [f"question {i}" for i in range(questions) for _ in range(per)],
        [f"passage {i}" for i in range(questions * per)],
        labels=([1] + [0] * (per - 1)) * questions,
    )


def test_auc_intervals_cover_the_true_value_in_about_95_percent() -> None:
    """Normal scores one standard deviation apart have an AUC of Phi(1 / sqrt 2)."""
    generator = np.random.default_rng(0)
    pairs = rows(60)
    draws = Resamples(Questions.of(pairs.labels, pairs.qids), 300, seed=0)
    truth = NormalDist().cdf(2**-0.5)
    inside = 0
    for _ in range(100):
        scores = pairs.labels + generator.normal(size=len(pairs))
        span = interval(*distributions(draws, logits(scores)[None])["auc"])
        inside += span.low <= truth <= span.high
    assert 88 <= inside <= 100


def test_questions_are_resampled_and_never_single_pairs() -> None:
    """Copies of each pair within its question add no information, so the interval keeps its width."""
    generator = np.random.default_rng(1)
    right = generator.random(80) < 0.7
    spans = []
    for copies in (1, 10):
        labels = np.ones(80 * copies, dtype=np.int64)
        questions = Questions.of(labels, [f"q{i:02d}" for i in range(80) for _ in range(copies)])
        odds = np.where(np.repeat(right, copies), 1.0, -1.0)
        spans.append(interval(*distributions(Resamples(questions, 500, seed=0), logits(odds)[None])["accuracy"]))
    assert spans[0] == spans[1]


def test_seeds_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(2)
    pairs = rows(100)
    draws = Resamples(Questions.of(pairs.labels, pairs.qids), 400, seed=0)
    same = logits(pairs.labels + generator.normal(size=len(pairs)))
    strengths = np.array([0.2, 1.0, 1.8])[:, None]
    far = logits(strengths * pairs.labels + generator.normal(size=(3, len(pairs))))
    width = [
        (span := interval(*distributions(draws, output)["auc"])).high - span.low
        for output in (np.stack([same] * 3), far)
    ]
    assert width[1] > 1.5 * width[0]


def test_paired_differences_are_significant_where_separate_intervals_overlap() -> None:
    generator = np.random.default_rng(3)
    pairs = rows(150)
    noise = generator.normal(size=len(pairs))
    results = compare(
        pairs,
        [
            ModelOutput("finetune", "baseline", logits(pairs.labels + noise)[None]),
            ModelOutput("tmkd", "student", logits(1.15 * pairs.labels + noise)[None]),
        ],
        classes=2, task="t",
    )  # fmt: skip
    low, high = (row.metrics["auc"] for row in results.methods)
    assert low.high > high.low  # the two intervals overlap
    difference = next(d for d in results.differences if d.metric == "auc")
    assert difference.significant
    assert difference.value.mean == pytest.approx(high.mean - low.mean)
    assert difference.sentence().startswith("tmkd is significantly better than finetune in ROC-AUC by 0.0")


def test_two_equal_models_have_no_difference() -> None:
    pairs = rows(20)
    output = logits(pairs.labels + np.random.default_rng(4).normal(size=len(pairs)))[None]
    results = compare(
        pairs,
        [ModelOutput("finetune", "baseline", output), ModelOutput("tmkd", "student", output)],
        classes=2,
        task="t",
    )
    assert "tmkd is equal to finetune in MRR (95%" in next(
        d.sentence() for d in results.differences if d.metric == "mrr"
    )


def test_resamples_without_a_counted_question_do_not_count_as_zero() -> None:
    """Two of 200 questions can be ranked, both without a mistake: many resamples draw neither of them."""
    questions = ["a", "a", "b", "b", *(f"q{i}" for i in range(198))]
    pairs = Pairs.build(questions, [f"p{i}" for i in range(202)], labels=[1, 0, 1, 0, *([0] * 198)])
    results = compare(
        pairs,
        [ModelOutput("m", "student", logits(-np.arange(202.0))[None])],
        classes=2,
        task="t",
        options=ComparisonOptions(resamples=300),
    )
    assert results.methods[0].metrics["mrr"].to_json() == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert (results.questions, results.ranked) == (200, 2)


def test_a_single_question_gives_no_differences() -> None:
    pairs = Pairs.build(["a"] * 4, list("pqrs"), labels=[1, 0, 0, 1])
    outputs = [
        ModelOutput("finetune", "baseline", logits(np.array([0.0, 3, 1, 2]))[None]),
        ModelOutput("tmkd", "student", logits(np.array([3.0, 0, 0, 2]))[None]),
    ]
    assert compare(pairs, outputs, classes=2, task="t").differences == []


def test_a_thousand_resamples_take_seconds() -> None:
    pairs = rows(375)
    output = logits(pairs.labels + np.random.default_rng(5).normal(size=(5, len(pairs))))
    start = time.perf_counter()
    compare(
        pairs, [ModelOutput("tmkd", "student", output)], classes=2, task="t", options=ComparisonOptions(resamples=1000)
    )
    assert time.perf_counter() - start < 10  # about 0.3 s; the bound is for a busy machine
