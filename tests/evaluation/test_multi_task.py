"""`tmkd overall`: several tasks side by side, on hand-computed numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tmkd.cli.main import app
from tmkd.core.errors import DataError
from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.multi_task import MultiTaskResults, TaskResult, mean_of


def written(folder: Path, task: str, metric: str, kept: float, ahead: tuple[float, float, float], **more: Any) -> Path:
    """Write a run's folder in which `tmkd` minus `finetune` is `ahead` (mean, low, high)."""
    shares = "kept" if metric == "map" else "kept_above_chance"
    methods = [
        {"name": "teacher-ensemble", "kind": "ensemble", metric: {"mean": 0.9, "low": 0.8, "high": 1.0}},
        {"name": "finetune", "kind": "baseline", metric: {}, shares: {metric: kept / 2}},
        {"name": "tmkd", "kind": "student", metric: {}, shares: {metric: kept}},
        *({"name": name, "kind": "student", metric: {}, shares: {metric: kept}} for name in more.get("others", ())),
    ]
    mean, low, high = ahead
    names = {"first": "tmkd", "second": "finetune"}
    if more.get("turned"):
        mean, low, high = -mean, -high, -low
        names = {"first": "finetune", "second": "tmkd"}
    difference = {**names, "metric": metric, "mean": mean, "low": low, "high": high, "real": True}
    (folder / task / "report").mkdir(parents=True)
    content = {"task": task, "methods": methods, "differences": [difference]}
    (folder / task / "report" / "results.json").write_text(json.dumps(content))
    return folder / task


def measured(folder: Path, **of: Any) -> TaskResult:
    path = folder / "report" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | of))
    return TaskResult.read(str(path))


def test_the_same_pairs_are_no_two_tasks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (written(tmp_path, name, "auc", 0.9, (0.2, 0.1, 0.3)) for name in ("a", "b"))
    same = [measured(one, pairs_digest="1234", rows=10, questions=5) for one in (first, second)]
    with pytest.raises(DataError, match="the results of a and b are of the same pairs"):
        MultiTaskResults.of(same, "tmkd")
    MultiTaskResults.of([same[0], measured(second, pairs_digest="5678")], "tmkd")
    assert not caplog.records
    of_today = measured(first, rows=10, questions=5)
    earlier = measured(second, pairs_digest="", rows=10, questions=5)
    MultiTaskResults.of([of_today, measured(second, questions=4)], "tmkd")
    assert not caplog.records
    MultiTaskResults.of([of_today, earlier], "tmkd")
    assert "the results of a and b have as many pairs and questions" in caplog.text


def test_a_path_may_have_an_equals_sign(tmp_path: Path) -> None:
    run = written(tmp_path, "lr=3", "map", 0.9, (0.2, 0.1, 0.3))
    assert (
        TaskResult.read(f"{run}=map").metric
        == TaskResult.read(f"{run / 'report' / 'results.json'}=map").metric
        == "map"
    )
    named = run.rename(tmp_path / "x=auc")
    with pytest.raises(DataError, match="has no 'accuracy'"):
        TaskResult.read(str(named))
    with pytest.raises(DataError, match=r"x=auc=mapp: .* has no 'mapp'; it has map"):
        TaskResult.read(f"{named}=mapp")
    with pytest.raises(DataError, match="none: no such file"):
        TaskResult.read(f"{tmp_path / 'none'}=map")


def test_the_mean_over_tasks_and_its_interval(tmp_path: Path) -> None:
    first = written(tmp_path, "a", "auc", 0.9, (0.2, 0.17, 0.24), others=["mkd"])
    second = written(tmp_path, "b", "map", 1.0, (0.1, 0.06, 0.13), turned=True)
    found = MultiTaskResults.of(
        [TaskResult.read(str(first)), TaskResult.read(f"{second / 'report' / 'results.json'}=map")], "tmkd"
    )
    kept = {method: [share.mean for share in shares] for method, shares in found.kept.items()}
    assert kept == {"finetune": [0.45, 0.5, pytest.approx(0.475)], "tmkd": [0.9, 1.0, pytest.approx(0.95)]}
    (ahead,) = found.differences  # of mkd there is one task only
    assert (ahead.first, ahead.second, ahead.significant) == ("tmkd", "finetune", True)
    assert ahead.value.mean == pytest.approx(0.15)
    assert ahead.value.low == pytest.approx(0.15 - math.hypot(0.03, 0.04) / 2)
    assert ahead.value.high == pytest.approx(0.15 + math.hypot(0.04, 0.03) / 2)
    assert "tmkd is significantly better than finetune by 0.150" in found.sentence()


def results_of(task: str, share: float, low: float, high: float, metric: str = "auc") -> TaskResult:
    row = {"kept_above_chance": {metric: share}, "kept_above_chance_intervals": {metric: {"low": low, "high": high}}}
    return TaskResult(task, metric, {"tmkd": {"kind": "student", **row}}, {})


def test_a_share_above_100_percent_counts_as_100_in_the_mean() -> None:
    found = MultiTaskResults.of([results_of("a", 1.05, 0.85, 1.26), results_of("b", 0.9, 0.86, 0.96)], "tmkd")
    first, _, mean = found.kept["tmkd"]
    assert (first.mean, first.high) == (1.05, 1.26)
    assert mean.mean == pytest.approx(0.95)
    assert mean.low == pytest.approx(0.95 - math.hypot(0.15, 0.04) / 2)
    assert mean.high == pytest.approx(0.95 + math.hypot(0.0, 0.06) / 2)
    assert found.to_json()["kept_intervals"]["tmkd"]["a"] == {"low": 0.85, "high": 1.26}


def test_results_of_earlier_versions_have_the_interval_of_the_difference() -> None:
    methods = {
        "teacher-ensemble": {"kind": "ensemble", "auc": {"mean": 0.8}},
        "tmkd": {"kind": "student", "auc": {"mean": 0.77}, "kept_above_chance": {"auc": 0.9}},
    }
    difference = Interval(-0.03, -0.06, 0.015)
    found = TaskResult("a", "auc", methods, {("tmkd", "teacher-ensemble"): difference}).kept("tmkd")
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.9, 0.8, 1.05))


def test_what_chance_does_to_a_task_is_said() -> None:
    plain = {"tmkd": {"kind": "student", "kept": {"map": 0.97}}}
    old = MultiTaskResults.of([TaskResult("a", "map", plain, {})], "tmkd")
    assert old.to_json()["chance_removed"] == {"a": False}
    assert "chance not removed" in str(old.table().columns[1].header)
    with pytest.raises(DataError, match="MAP is not significantly above chance"):
        MultiTaskResults.of([TaskResult("a", "map", plain, {}, {"map": 0.3})], "tmkd")


def test_an_interval_of_one_task_is_its_own() -> None:
    assert mean_of([Interval(0.5, 0.25, 1.0)]) == Interval(0.5, 0.25, 1.0)


def test_accuracy_where_there_is_no_auc(tmp_path: Path) -> None:
    assert TaskResult.read(str(written(tmp_path, "snli", "accuracy", 0.9, (0.1, 0.0, 0.2)))).metric == "accuracy"


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path, "a", "auc", 0.9, (0.2, 0.1, 0.3))
    with pytest.raises(DataError, match=r"a=map: .* has no 'map'; it has auc"):
        TaskResult.read(f"{run}=map")
    with pytest.raises(DataError, match="none: no such file"):
        TaskResult.read(str(tmp_path / "none"))
    halved = json.loads((run / "report" / "results.json").read_text())
    del halved["differences"][0]["low"]
    (tmp_path / "halved.json").write_text(json.dumps(halved))
    with pytest.raises(DataError, match=r"halved\.json is not a results\.json"):
        TaskResult.read(str(tmp_path / "halved.json"))
    (tmp_path / "text.json").write_text("{}")
    with pytest.raises(DataError, match=r"text\.json is not a results\.json"):
        TaskResult.read(str(tmp_path / "text.json"))
    with pytest.raises(DataError, match=r"two of the results are of the task 'a'.*tmkd evaluate --name NAME"):
        MultiTaskResults.of([TaskResult.read(str(run))] * 2, "tmkd")
    with pytest.raises(DataError, match="the results of a have no 'mkd': teacher-ensemble, finetune, tmkd"):
        MultiTaskResults.of([TaskResult.read(str(run))], "mkd")


def test_a_run_of_one_teacher_counts_and_one_without_teachers_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path, "a", "auc", 0.9, (0.2, 0.1, 0.3))
    content = json.loads((run / "report" / "results.json").read_text())
    content["methods"][0] |= {"name": "teacher:t1", "kind": "teacher"}
    (tmp_path / "one.json").write_text(json.dumps(content))
    kept = MultiTaskResults.of([TaskResult.read(str(tmp_path / "one.json"))], "tmkd").kept["tmkd"]
    assert [share.mean for share in kept] == [0.9, 0.9]
    assert (
        "tmkd" in MultiTaskResults.of([TaskResult.read(str(tmp_path / "one.json"))], "teacher:t1").kept
    )  # the teacher itself may be compared
    for row in content["methods"]:
        row.pop("kept_above_chance", None)
    (tmp_path / "none.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="the results of a do not say what is kept of auc: no teacher was measured"):
        MultiTaskResults.of([TaskResult.read(str(tmp_path / "none.json"))], "tmkd")


def test_the_ensembles_against_the_best_single_teachers(tmp_path: Path) -> None:
    leads = {"a": (0.02, 0.01, 0.03, "auc"), "b": (0.01, -0.02, 0.05, "auc+mrr")}
    runs = []
    for name, (mean, low, high, metric) in leads.items():
        run = written(tmp_path, name, "auc", 0.9, (0.2, 0.1, 0.3)) / "report" / "results.json"
        pair = {"first": "teacher-ensemble", "second": f"teacher:t{name}", "metric": metric}
        content = json.loads(run.read_text())
        content["ensemble"] = {"lead": {**pair, "mean": mean, "low": low, "high": high, "real": low > 0}}
        run.write_text(json.dumps(content))
        runs.append(str(run))
    found = MultiTaskResults.of([TaskResult.read(run) for run in runs], "tmkd")
    assert found.lead is not None
    assert found.lead.value.mean == pytest.approx(0.015)
    assert found.lead.value.low == pytest.approx(0.015 - math.hypot(0.01, 0.03) / 2)
    assert found.lead.value.high == pytest.approx(0.015 + math.hypot(0.01, 0.04) / 2)
    said = found.lead_sentence()
    assert "The teachers' ensemble is better than the best single teacher in the mean over tasks by 0.015" in said
    assert "no significant difference" in said
    assert "a +0.020 in ROC-AUC (ta); b +0.010 in the mean of ROC-AUC and MRR (tb)" in said
    shown = CliRunner().invoke(app, ["overall", *runs, "--json", "-"])
    assert json.loads(shown.stdout)["ensemble_lead"]["real"] is False
    content = json.loads(Path(runs[1]).read_text())  # the metric by which the task counts comes first
    pair = {"first": "teacher-ensemble", "second": "teacher:tb", "metric": "auc"}
    content["ensemble"]["differences"] = [{**pair, "mean": 0.04, "low": 0.03, "high": 0.05, "real": True}]
    Path(runs[1]).write_text(json.dumps(content))
    found = MultiTaskResults.of([TaskResult.read(run) for run in runs], "tmkd")
    assert found.lead is not None
    assert found.lead.value.mean == pytest.approx(0.03)
    assert found.lead_sentence().startswith("The teachers' ensemble is significantly better than the best")

    other = written(tmp_path, "c", "auc", 0.9, (0.2, 0.1, 0.3))  # a run in which the two were not compared
    both = MultiTaskResults.of([TaskResult.read(one) for one in (runs[0], str(other))], "tmkd")
    assert both.lead is None
    assert both.lead_sentence() == ""


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    run = written(tmp_path, "a", "auc", 0.9, (0.2, 0.1, 0.3))
    result = CliRunner().invoke(app, ["overall", str(run), "--json", "-"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["kept"]["tmkd"] == {"a": 0.9, "mean": 0.9}
    assert content["tasks"] == {"a": "auc"}
    shown = CliRunner().invoke(app, ["overall", str(run)])
    assert "90.0%" in shown.stdout
