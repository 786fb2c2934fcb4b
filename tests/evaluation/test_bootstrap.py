"""Intervals: how often they cover a known value, what pairing and seeds change, and too few pairs for an interval."""

from __future__ import annotations

import time
from statistics import NormalDist

import numpy as np
import pytest
from conftest import logits

from tmkd.data.pairs import Pairs
from tmkd.evaluation.bootstrap import Resamples, distributions, interval
from tmkd.evaluation.comparison import ComparisonOptions, compare, labelled_questions
from tmkd.evaluation.metrics import Questions
from tmkd.evaluation.results import ModelOutput


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


def test_a_question_under_several_ids_is_resampled_as_one() -> None:
    """The same rows four times, each time under other ids, say no more than once: the interval keeps its width."""
    generator = np.random.default_rng(1)
    once = rows(40)
    odds = once.labels + generator.normal(size=len(once))
    spans = []
    for copies in (1, 4):
        pairs = Pairs.build(
            once.questions * copies, once.passages * copies, labels=once.labels.tolist() * copies,
            qids=[f"{copy} {qid}" for copy in range(copies) for qid in once.qids],
        )  # fmt: skip
        _, questions = labelled_questions(pairs)
        drawn = distributions(Resamples(questions, 400, seed=0), logits(np.tile(odds, copies))[None])
        spans.append({name: interval(*one) for name, one in drawn.items()})
        assert questions.count("auc") == questions.count("mrr") == 40
    for name, span in spans[0].items():
        assert (spans[1][name].low, spans[1][name].high) == pytest.approx((span.low, span.high), abs=1e-9), name


def test_an_interval_holds_the_middle_95_percent() -> None:
    drawn = np.append(np.arange(1001) / 1000, [np.nan] * 50)  # resamples without a value are skipped
    found = interval(0.7, np.random.default_rng(0).permutation(drawn))
    assert (found.mean, found.low, found.high) == pytest.approx((0.7, 0.025, 0.975))


def test_resamples_of_two_questions_by_hand() -> None:
    """Each resample holds the first question twice, the second twice, or both once; pairs count with their question."""
    labels = np.array([1, 1, 0, 1, 0])
    questions = Questions.of(labels, ["a", "a", "a", "b", "b"])
    draws = Resamples(questions, 200, seed=0)
    assert {tuple(row) for row in draws.weights.tolist()} == {(2.0, 0.0), (1.0, 1.0), (0.0, 2.0)}
    scores = np.array([2.0, 3.0, 1.0, -1.0, 4.0])  # decisions: right, right, wrong, wrong, wrong
    found = distributions(draws, logits(scores)[None])
    both = draws.weights[:, 0] == 1
    first = draws.weights[:, 0] == 2
    by_hand = {  # the metric on the first question, on both, on the second
        "accuracy": (2 / 3, 2 / 5, 0.0),
        "auc": (1.0, 2 / 6, 0.0),  # both: positives 2, 3, -1 and negatives 1, 4
        "mrr": (1.0, 3 / 4, 1 / 2),
        "map": (1.0, 3 / 4, 1 / 2),
        "ndcg@10": (1.0, (1 + 1 / np.log2(3)) / 2, 1 / np.log2(3)),
    }
    assert found.keys() == by_hand.keys()
    for name, (on_first, on_both, on_second) in by_hand.items():
        value, drawn = found[name]
        assert value == pytest.approx(on_both), name
        np.testing.assert_allclose(drawn, np.where(first, on_first, np.where(both, on_both, on_second)), err_msg=name)


def test_resamples_draw_seeds_too() -> None:
    """A seed that is always right and one that is always wrong: a resample has both, or one of them twice."""
    labels = np.array([1, 0, 1, 0])
    draws = Resamples(Questions.of(labels, ["a", "a", "b", "b"]), 300, seed=0)
    right = logits(np.array([1.0, -1.0, 1.0, -1.0]))
    for name in ("accuracy", "auc"):
        value, drawn = distributions(draws, np.stack([right, -right]))[name]
        assert value == pytest.approx(0.5)
        shares = [float((drawn == part).mean()) for part in (0.0, 0.5, 1.0)]
        assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.08)


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


def called_different(seeds: int, trials: int = 80) -> float:
    """How often two equal methods look significantly different: 400 questions, a deviation of 0.02 between seeds."""
    generator = np.random.default_rng(1)
    questions = Questions.of(generator.integers(0, 2, 400), [str(number) for number in range(400)])
    draws = Resamples(questions, 300, 0)

    def accuracies(hard: np.ndarray) -> tuple[float, np.ndarray]:
        shares = 0.75 + 0.02 * generator.normal(size=seeds)
        right = [hard + 0.3 * generator.normal(size=400) < np.quantile(hard, share) for share in shares]
        return distributions(draws, logits(np.where(right, 1, -1) * (2 * questions.labels - 1.0)))["accuracy"]

    found = 0
    for _ in range(trials):
        hard = generator.normal(size=400)
        (first, spread), (second, other) = accuracies(hard), accuracies(hard)
        value = interval(first - second, spread - other)
        found += value.low > 0 or value.high < 0
    return found / trials


def test_equal_methods_look_different_far_more_often_with_one_seed() -> None:
    assert called_different(1) > 0.25
    assert called_different(5) < 0.12
