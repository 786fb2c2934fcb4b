"""Metrics compared with other libraries and with hand-computed values, intervals with known values, and the report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import logits
from sklearn.metrics import roc_auc_score

from tmkd.data.pairs import Pairs, Reference
from tmkd.evaluation.bootstrap import Resamples, distributions, interval
from tmkd.evaluation.comparison import ComparisonOptions, compare, disagreements
from tmkd.evaluation.metrics import Questions, SortedPairs, ranking_metrics
from tmkd.evaluation.report import headline, write_report
from tmkd.evaluation.results import ModelOutput, Results
from tmkd.evaluation.speed import measure_speed


def rows(questions: int = 60, seed: int = 0) -> Pairs:
    per = 8
    labels = np.zeros((questions, per), dtype=int)
    labels[:, 0] = 1
    names = [f"question {i}" for i in range(questions) for _ in range(per)]
    return Pairs.build(names, [f"passage {i}" for i in range(questions * per)], labels=labels.ravel().tolist())


def outputs(pairs: Pairs, seed: int = 0) -> list[ModelOutput]:
    generator = np.random.default_rng(seed)

    def scores(strength: float) -> np.ndarray:
        return logits(strength * pairs.labels + generator.normal(size=len(pairs)))

    times = {10: 5.0, 25: 12.0, 50: 25.0, 100: 50.0}
    slow: dict[str, Any] = {
        "parameters": 22_700_000,
        "bytes": 90_000_000,
        "layers": 6,
        "pairs_per_second": 150.0,
        "milliseconds": times,
    }
    fast = {**slow, "layers": 3, "pairs_per_second": 300.0, "milliseconds": {n: t / 2 for n, t in times.items()}}
    return [
        ModelOutput("teacher:t1", "teacher", scores(2.0)[None], **slow),
        ModelOutput("teacher:t2", "teacher", scores(2.1)[None], **slow),
        ModelOutput("teacher-ensemble", "ensemble", scores(2.4)[None], **{**slow, "pairs_per_second": 75.0}),
        ModelOutput("finetune", "baseline", np.stack([scores(1.0), scores(1.1)]), **fast),
        ModelOutput("tmkd", "student", np.stack([scores(2.2), scores(2.3)]), **fast),
    ]


def test_auc_equals_scikit_learn_with_ties_and_weights() -> None:
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, 500), generator.integers(0, 30, 500).astype(float)
    weights = generator.integers(0, 4, 500).astype(float)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    pairs = SortedPairs.of(labels, scores)
    assert pairs.auc(weights[pairs.order]) == pytest.approx(expected, abs=1e-12)


def test_ranking_metrics_by_hand() -> None:
    labels = np.array([1, 0, 0, 0, 1, 1, 0, 0])
    questions = Questions.of(labels, ["a", "a", "a", "b", "b", "b", "c", "c"])
    found = ranking_metrics(questions, np.array([0.1, 0.9, 0.0, 0.5, 0.7, 0.2, 1.0, 2.0]))
    assert found["mrr"][:2] == pytest.approx([1 / 2, 1.0])
    assert found["map"][:2] == pytest.approx([1 / 2, (1 + 2 / 3) / 2])
    assert found["ndcg@10"][0] == pytest.approx(1 / np.log2(3))
    assert np.isnan(found["mrr"][2])  # no positive: not counted, not zero


def test_undefined_metrics_are_absent() -> None:
    pairs = Pairs.build([f"q{i}" for i in range(6)], ["p"] * 6, labels=[0, 1, 2, 0, 1, 2])
    results = compare(pairs, [ModelOutput("m", "student", np.eye(3)[[0, 1, 2, 0, 1, 1]][None])], classes=3, task="nli")
    assert set(results.methods[0].metrics) == {"accuracy"}
    assert results.methods[0].metrics["accuracy"].mean == pytest.approx(5 / 6)
    single = Pairs.build([f"q{i}" for i in range(4)], ["p"] * 4, labels=[0, 1, 0, 1])
    results = compare(
        single, [ModelOutput("m", "student", logits(np.array([0.0, 1, 2, 3]))[None])], classes=2, task="t"
    )
    assert set(results.methods[0].metrics) == {"accuracy", "auc"}


def test_intervals_cover_the_true_value_in_about_95_percent() -> None:
    """Mean reciprocal rank of a model with a known expectation: 95% intervals cover it in most of 100 draws."""
    generator = np.random.default_rng(1)
    pairs = rows(40)
    questions = Questions.of(pairs.labels, pairs.qids)
    draws = Resamples(questions, 300, seed=0)
    truth = np.mean([1 / rank for rank in range(1, 9)])  # a positive at a uniformly random rank among 8
    inside = 0
    for _ in range(100):
        value, spread = distributions(draws, logits(generator.random(len(pairs)))[None])["mrr"]
        span = interval(value, spread)
        inside += int(span.low <= truth <= span.high)
    assert 85 <= inside <= 100


def test_shares_differences_and_their_verdicts() -> None:
    pairs = rows()
    results = compare(pairs, outputs(pairs), classes=2, task="t")
    row = {row.name: row for row in results.methods}
    top, base, student = (row[name].metrics["auc"].mean for name in ("teacher-ensemble", "finetune", "tmkd"))
    assert row["tmkd"].kept["auc"].mean == pytest.approx(student / top)
    assert row["tmkd"].kept_above_chance["auc"].mean == pytest.approx((student - 0.5) / (top - 0.5))
    assert row["tmkd"].recovered["auc"].mean == pytest.approx((student - base) / (top - base))
    significant = {(d.second, d.metric): d.significant for d in results.differences}
    assert significant["finetune", "auc"]
    same = [ModelOutput("finetune", "baseline", outputs(pairs)[4].logits), outputs(pairs)[4]]
    none = compare(pairs, same, classes=2, task="t").differences
    assert [d.metric for d in none] == ["accuracy", "auc", "mrr", "map", "ndcg@10"]
    assert [d.value.to_json() for d in none] == [{"mean": 0.0, "low": 0.0, "high": 0.0}] * 5
    assert not any(d.significant for d in none)
    json.dumps(results.to_json(), allow_nan=False)
    results.taught_by = 2
    assert "2 teachers of 6 layers became one student of 3 layers" in headline(results)
    assert "2.0 times as fast as one teacher" in headline(results)


def test_the_headline_counts_who_taught_and_names_no_depth_where_it_is_not_known() -> None:
    pairs = rows()
    some = outputs(pairs)
    unknown = [replace(one, layers=None) if one.kind == "teacher" and n == 0 else one for n, one in enumerate(some)]
    results = compare(pairs, unknown, classes=2, task="t")
    results.taught_by = 2
    assert headline(results).startswith("2 teachers became one student")
    results = compare(pairs, some, classes=2, task="t")
    for taught_by, said in {
        None: "One student of 3 layers keeps ",
        0: "One student of 3 layers, trained on labels alone, keeps ",
        1: "1 teacher of 6 layers became one student of 3 layers that keeps ",
        2: "2 teachers of 6 layers became one student of 3 layers that keeps ",
    }.items():
        results.taught_by = taught_by
        assert headline(results).startswith(said)
    untimed = [replace(one, pairs_per_second=None) if n == 0 else one for n, one in enumerate(some)]
    named = headline(compare(pairs, untimed, classes=2, task="t"))
    assert f"times as fast as the teacher {some[1].name.removeprefix('teacher:')}" in named
    results.unmeasured, results.taught_by = {"judge": "it has no score"}, 3
    assert headline(results).startswith("3 teachers became one student")
    alone = [one for one in some if one.name == "tmkd"]
    assert "One student of 3 layers" in headline(compare(pairs, alone, classes=2, task="t"))


def test_teachers_that_are_not_measured_are_named_with_the_reason() -> None:
    pairs = rows()
    results = compare(pairs, outputs(pairs), classes=2, task="t")
    results.unmeasured = {"judge": "it has no score for 1 of 480 pairs", "big": "it made the reference 'score'"}
    assert results.standing()[-1] == (
        "Not measured on these pairs: judge (it has no score for 1 of 480 pairs); big (it made the reference 'score'). "
        "Of 4 teachers teacher-ensemble has 2."
    )


def test_accuracy_above_the_largest_class_by_hand() -> None:
    labels = np.array([0, 0, 0, 1] * 2)  # the largest class has three quarters
    pairs = Pairs.build([f"q{i // 4}" for i in range(8)], [f"p{i}" for i in range(8)], labels=labels.tolist())
    one_wrong = np.where(np.arange(8) == 7, 0, labels)
    given = [
        ModelOutput("teacher-ensemble", "ensemble", logits(2.0 * labels - 1)[None]),
        ModelOutput("tmkd", "student", logits(2.0 * one_wrong - 1)[None]),
    ]
    (row,) = (row for row in compare(pairs, given, classes=2, task="t").methods if row.name == "tmkd")
    assert row.kept["accuracy"].mean == pytest.approx(7 / 8)
    assert row.kept_above_chance["accuracy"].mean == pytest.approx((7 / 8 - 3 / 4) / (1 - 3 / 4))


def test_shares_have_intervals_of_the_same_resamples() -> None:
    pairs = rows()
    results = compare(pairs, outputs(pairs), classes=2, task="t")
    row = next(row for row in results.methods if row.name == "tmkd")
    for shares in (row.kept, row.kept_above_chance, row.recovered):
        for name in ("auc", "mrr", "map", "ndcg@10"):
            assert shares[name].low < shares[name].mean < shares[name].high, name
    content = row.to_json()
    assert content["kept"]["auc"] == row.kept["auc"].mean
    assert content["kept_intervals"]["auc"] == {"low": row.kept["auc"].low, "high": row.kept["auc"].high}
    width = row.kept["auc"].high - row.kept["auc"].low
    assert row.kept_above_chance["auc"].high - row.kept_above_chance["auc"].low > width  # of a shorter way
    twin = [ModelOutput("tmkd", "student", outputs(pairs)[2].logits), outputs(pairs)[2]]
    same = next(row for row in compare(pairs, twin, classes=2, task="t").methods if row.name == "tmkd")
    assert same.kept["auc"].to_json() == {"mean": 1.0, "low": 1.0, "high": 1.0}  # paired: equal on every resample


def test_the_chance_of_a_ranking_metric_is_that_of_a_random_order() -> None:
    pairs = rows()
    results = compare(pairs, outputs(pairs), classes=2, task="t")
    random = np.mean([1 / rank for rank in range(1, 9)])  # one right passage of eight
    assert [results.chance[name] for name in ("map", "mrr")] == pytest.approx([random, random])
    metrics = {row.name: row.metrics["map"].mean for row in results.methods}
    row = next(row for row in results.methods if row.name == "tmkd")
    expected = (metrics["tmkd"] - random) / (metrics["teacher-ensemble"] - random)
    assert row.kept_above_chance["map"].mean == pytest.approx(expected)


def test_no_share_is_given_of_an_ensemble_at_chance() -> None:
    pairs = rows()
    noise = np.random.default_rng(0).normal(size=(2, len(pairs)))
    given = [
        ModelOutput("teacher-ensemble", "ensemble", logits(noise[0])[None]),
        ModelOutput("tmkd", "student", logits(noise[1])[None]),
    ]
    row = next(row for row in compare(pairs, given, classes=2, task="t").methods if row.name == "tmkd")
    assert "auc" in row.kept
    assert "auc" not in row.kept_above_chance


def test_questions_where_the_student_is_worse() -> None:
    pairs = rows(2)
    good = logits(pairs.labels.astype(float))
    bad = good.copy()
    bad[0] = -bad[0]
    bad[0] -= [-1, 1]
    found = disagreements(pairs, bad, good)
    assert [(d.question, d.student_rank, d.teacher_rank) for d in found] == [("question 0", 8, 1)]
    assert not found[0].student_first_right
    assert found[0].teacher_first_right


class _Assets(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.outside.append(f"{tag} {name}={value}")


def test_the_report_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    pairs = rows()
    results: Results = compare(pairs, outputs(pairs), classes=2, task="<b>task</b>")
    parity = [{"backend": "onnx-fp32", "passed": True, "max_logit_difference": 3e-6, "decision_agreement": 1.0,
               "top1_agreement": 0.5, "top1_agreement_within_0_1": 0.875, "kendall_tau": 0.75,
               "kendall_tau_within_0_1": 0.98765, "metric_name": "auc", "metric_pytorch": 0.9,
               "metric_export": 0.9, "pairs_per_second": 200.0, "reason": ""}]  # fmt: skip
    curve = [{"step": i, "epoch": i / 10, "loss": 1 / (i + 1)} for i in range(10)]
    found = disagreements(pairs, outputs(pairs)[3].logits[0], outputs(pairs)[2].logits[0])
    write_report(
        tmp_path, results, curves={"tmkd": curve}, parity=parity, disagreements=found, environment={"torch": "2"}
    )
    page = (tmp_path / "report.html").read_text()
    assets = _Assets()
    assets.feed(page)
    assert assets.outside == []
    assert assets.tags.count("svg") == 2
    assert "<b>task</b>" not in page
    assert "50.00%<small>87.50%</small>" in page  # the same first passage, and that within 0.1
    assert "0.7500<small>0.9877</small>" in page
    assert "&lt;b&gt;task" in page
    assert not re.search(r"@import|url\(\s*['\"]?http", page)
    assert "nan" not in re.sub(r"<[^>]*>", " ", page).lower().split()
    assert json.loads((tmp_path / "results.json").read_text()) == results.to_json()
    write_report(tmp_path / "bare", compare(pairs, outputs(pairs)[3:4], classes=2, task="bare"))
    assert "The export matches" not in (tmp_path / "bare" / "report.html").read_text()


def test_speed_is_measured_per_scorer() -> None:
    import time

    found = measure_speed(
        {"slow": lambda q, p: time.sleep(0.0004 * len(q)), "fast": lambda q, p: time.sleep(0.0001 * len(q))},
        ["q"] * 50, ["p"] * 50, repeats=2, sizes=(10, 25),
    )  # fmt: skip
    assert found["fast"].pairs_per_second > found["slow"].pairs_per_second
    assert set(found["fast"].milliseconds) == {10, 25}


def test_an_ensemble_that_is_no_better_than_one_teacher_is_said_to_be_none() -> None:
    pairs = rows(120)
    found = outputs(pairs)
    generator = np.random.default_rng(5)

    def model(strength: float) -> np.ndarray:
        return logits(strength * pairs.labels + generator.normal(size=len(pairs)))[None]

    best = ComparisonOptions(best_teacher="teacher:t1", resamples=300)
    found[0] = ModelOutput("teacher:t1", "teacher", model(4.0))
    results = compare(pairs, found, classes=2, task="a task", options=best)
    assert results.relative_to == "teacher:t1"
    assert results.ensemble_lead is not None
    assert results.ensemble_lead.significant
    sentence = "The ensemble is significantly worse than t1, which is the best teacher on the development set, by "
    assert results.standing()[0].startswith(sentence)
    assert results.standing()[0].endswith("what is kept is relative to t1.")
    student, top = (next(row for row in results.methods if row.name == name) for name in ("tmkd", "teacher:t1"))
    assert student.kept["auc"].mean == pytest.approx(student.metrics["auc"].mean / top.metrics["auc"].mean)
    by_hand = [(row.metrics["auc"].mean + row.metrics["mrr"].mean) / 2 for row in results.methods]
    assert results.ensemble_lead.value.mean == pytest.approx(by_hand[2] - by_hand[0])
    in_each = {one.metric: one.value.mean for one in results.ensemble_differences}
    means = [{name: value.mean for name, value in row.metrics.items()} for row in results.methods]
    assert in_each == pytest.approx({name: means[2][name] - means[0][name] for name in means[0]})
    assert [one["metric"] for one in results.to_json()["ensemble"]["differences"]] == list(in_each)
    named = {(d.first, d.second) for d in results.differences}
    assert {("tmkd", "teacher:t1"), ("tmkd", "teacher-ensemble")} <= named

    found[0] = ModelOutput("teacher:t1", "teacher", found[2].logits)
    level = compare(pairs, found, classes=2, task="a task", options=best)
    assert level.relative_to == "teacher-ensemble"
    assert "The ensemble is not significantly better than t1, which is the best teacher on the" in level.standing()[0]
    assert level.to_json()["ensemble"]["lead"]["real"] is False


def test_the_first_sentence_says_whether_the_student_is_ahead_of_what_is_free(tmp_path: Path) -> None:
    pairs = rows(120)
    generator = np.random.default_rng(6)

    def model(strength: float) -> np.ndarray:
        return logits(strength * pairs.labels + generator.normal(size=len(pairs)))[None]

    free = [ModelOutput("bm25", "free", model(0.3)), ModelOutput("cosine", "free", model(0.6))]
    options, few = ComparisonOptions(resamples=300, free=("teacher:t2",)), ComparisonOptions(resamples=300)
    results = compare(pairs, [*outputs(pairs), *free], classes=2, task="a task", options=options)
    assert [row.name for row in results.free] == ["bm25", "cosine"]
    assert "bm25" not in [row.name for row in results.methods]
    assert all("accuracy" not in row.metrics for row in results.free)
    assert {d.second for d in results.against_free} == {"bm25", "cosine", "teacher:t2"}
    assert results.against_free[0].second == "teacher:t2"  # the best of them first
    weak = compare(pairs, [*outputs(pairs), *free], classes=2, task="a task", options=few)
    sentence = "tmkd is significantly ahead of the best that trains nothing, cosine, in the mean of ROC-AUC and MRR by"
    assert weak.standing()[0].startswith(sentence)
    write_report(tmp_path, weak)
    page = (tmp_path / "report.html").read_text()
    assert page.index(sentence) < page.index("One student of 3 layers keeps")
    strong = [ModelOutput("bm25", "free", model(6.0))]
    behind = compare(
        pairs, [*outputs(pairs), *strong], classes=2, task="a task", options=ComparisonOptions(resamples=300)
    )
    assert behind.standing()[0].startswith("tmkd is significantly behind the best that trains nothing, bm25, in")
    same = [ModelOutput("bm25", "free", outputs(pairs)[-1].logits)]
    level = compare(pairs, [*outputs(pairs), *same], classes=2, task="a task", options=few)
    assert level.standing()[0].startswith("tmkd is not significantly ahead of the best that trains nothing, bm25, in")


def test_a_model_that_scores_all_pairs_alike_has_a_report(tmp_path: Path) -> None:
    """An ensemble whose teachers all weigh 0, over a reference: a correlation that was no number ended the run."""
    judge = np.random.default_rng(3).random(480)
    names = [f"question {number}" for number in range(480)]
    pairs = Pairs.build(names, names[::-1], scores={"judge": judge.tolist()})
    pairs = pairs.with_reference(Reference("judge", "probability"))
    found = [*outputs(rows()), ModelOutput("constant", "baseline", logits(np.zeros((1, 480))))]
    results = compare(pairs, found, classes=2, task="web QA", options=ComparisonOptions(taken="tmkd"))
    (constant,) = (row for row in results.methods if row.name == "constant")
    assert (constant.metrics["auc"].mean, constant.metrics["spearman"].mean) == (0.5, 0)
    write_report(tmp_path, results)
    assert json.loads((tmp_path / "results.json").read_text())["methods"]
