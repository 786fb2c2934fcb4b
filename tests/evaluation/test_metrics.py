"""Metrics compared with other libraries or hand-computed values; ties; pairs for which no metric is defined."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import logits
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from tmkd.core.errors import DataError
from tmkd.data.pairs import Pairs, Reference
from tmkd.evaluation.comparison import ComparisonOptions, compare, disagreements
from tmkd.evaluation.metrics import Questions, Ranks, SortedPairs, auc, ranking_metrics, spearman
from tmkd.evaluation.results import ModelOutput


def student(odds: object) -> list[ModelOutput]:
    """One student of one seed."""
    return [ModelOutput("tmkd", "student", logits(np.asarray(odds, dtype=float))[None])]


def test_map_and_ndcg_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (20, 12))
    labels[:, :2] = [0, 1]
    scores = generator.normal(size=labels.shape)
    found = ranking_metrics(Questions.of(labels.ravel(), [f"q{i:02d}" for i in range(20) for _ in range(12)]),
                            scores.ravel())  # fmt: skip
    assert found["map"] == pytest.approx([average_precision_score(y, s) for y, s in zip(labels, scores, strict=True)])
    assert found["ndcg@10"] == pytest.approx(
        [ndcg_score(y[None], s[None], k=10) for y, s in zip(labels, scores, strict=True)]
    )


@pytest.mark.parametrize("levels", [5, 10**9])  # with many ties, and with none
def test_auc_under_weights_equals_scikit_learn(levels: int) -> None:
    generator = np.random.default_rng(1)
    labels, scores = generator.integers(0, 2, 300), generator.integers(0, levels, 300).astype(float)
    rows = SortedPairs.of(labels, scores)
    assert (rows.starts is None) == (levels > 300)
    assert rows.auc(np.ones(300)) == pytest.approx(auc(labels, scores), abs=1e-12)
    for _ in range(5):
        weights = generator.integers(0, 3, 300).astype(float)
        expected = roc_auc_score(labels, scores, sample_weight=weights)
        assert rows.auc(weights[rows.order]) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(rows.auc((labels == 0)[rows.order].astype(float)))


@pytest.mark.parametrize("levels", [5, 10**9])
def test_spearman_under_weights_equals_scipy_on_repeated_rows(levels: int) -> None:
    generator = np.random.default_rng(2)
    first = generator.integers(0, levels, 200).astype(float)
    second = first + generator.integers(0, levels, 200).astype(float)
    weights = generator.integers(0, 4, 200)
    for times in (np.ones(200, dtype=int), weights):
        rows = np.repeat(np.arange(200), times)
        found = spearman(Ranks.of(first), Ranks.of(second), times.astype(float))
        assert found == pytest.approx(spearmanr(first[rows], second[rows]).statistic, abs=1e-12)
    assert spearman(Ranks.of(np.zeros(200)), Ranks.of(second), weights.astype(float)) == 0  # no order, as an AUC of 0.5


def test_a_reference_is_measured_by_its_classes_and_its_ranks() -> None:
    scores = [0.9, 0.6, 0.4, 0.1]
    pairs = Pairs.build([f"q{n}" for n in range(4)], ["p"] * 4, scores={"score": scores})
    referred = pairs.with_reference(Reference("score", "probability"))
    results = compare(referred, student([2, 3, -2, -1]), classes=2, task="t", options=ComparisonOptions(resamples=20))
    found = results.methods[0].metrics
    assert (found["accuracy"].mean, found["auc"].mean) == (1.0, 1.0)
    assert found["spearman"].mean == pytest.approx(spearmanr(scores, [2, 3, -2, -1]).statistic)
    assert found["spearman"].low < found["spearman"].mean
    assert results.to_json()["reference"] == "score"
    golden = Pairs.build(pairs.questions, pairs.passages, labels=[1, 1, 0, 0], scores={"score": scores})
    assert "spearman" not in compare(golden, student([2, 3, -2, -1]), classes=2, task="t").methods[0].metrics


def test_scores_that_differ_only_in_double_precision_are_no_tie() -> None:
    questions = Questions.of(np.array([1, 0, 0]), ["a"] * 3)
    scores = np.array([1000.0000002, 1000.0000001, 0.0])
    assert len(set(scores.astype(np.float32))) == 2
    assert ranking_metrics(questions, scores)["mrr"] == [1.0]


def test_pairs_without_a_label_are_left_out() -> None:
    pairs = Pairs.build(["a"] * 4, list("pqrs"), labels=[None, 1, 0, None])
    row = compare(pairs, student([9, 2, 1, 9]), classes=2, task="t")
    assert (row.rows, row.methods[0].metrics["mrr"].mean) == (2, 1.0)
    assert disagreements(pairs, logits(np.array([9.0, 2, 1, 9])), logits(np.array([0.0, 2, 1, 0]))) == []


def test_one_class_only_has_an_accuracy_and_nothing_else() -> None:
    pairs = Pairs.build(["a", "a", "b"], ["p", "q", "r"], labels=[1, 1, 1])
    results = compare(pairs, student([1, 2, -1]), classes=2, task="t")
    assert results.metrics == ["accuracy"]
    assert results.headline_metrics == ["accuracy"]
    assert set(results.to_json()["methods"][0]) == {"name", "kind", "seeds", "accuracy"}


@pytest.mark.parametrize(("questions", "measured"), [(100, True), (101, False)])
def test_ranking_needs_one_question_in_a_hundred(questions: int, measured: bool) -> None:
    names = ["q0", *(f"q{i}" for i in range(questions))]  # the first has a right and a wrong passage, the others one
    pairs = Pairs.build(names, [f"p{i}" for i in range(len(names))], labels=[i % 2 for i in range(len(names))])
    results = compare(pairs, student(np.arange(len(names))), classes=2, task="t")
    assert ("mrr" in results.metrics) is measured
    assert "auc" in results.metrics


@pytest.mark.parametrize(
    ("labels", "output", "said"),
    [
        ([None, None], np.zeros((1, 2, 2)), "no row has a label"),
        ([0, 1], np.array([[[0, 1], [np.nan, 0]]]), "tmkd hold 1 values .* at seed 0, row 1"),
        ([0, 1], np.zeros((2, 2)), r"tmkd have shape \(2, 2\); expected \(seeds, 2, 2\)"),
        ([0, 1], np.zeros((1, 2, 3)), r"shape \(1, 2, 3\)"),
        ([0, 1], np.zeros((0, 2, 2)), r"shape \(0, 2, 2\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(labels: list[int | None], output: np.ndarray, said: str) -> None:
    pairs = Pairs.build(["a", "a"], ["p", "q"], labels=labels)
    with pytest.raises(DataError, match=said):
        compare(pairs, [ModelOutput("tmkd", "student", output)], classes=2, task="t")
