"""Runs with a stacked ensemble: its weights in the log, the results and the report, and what students learn of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Tmkd, pair_rows, write_jsonl
from kinds_fixtures import NUMBERS
from kinds_fixtures import content as of_kinds
from sklearn.metrics import roc_auc_score

from tmkd.config.load import parse_recipe
from tmkd.core.errors import DataError, RecipeError
from tmkd.core.logits import log_odds
from tmkd.data.split import folds
from tmkd.models.card import read_card
from tmkd.pipeline.development import teachers_on_development
from tmkd.pipeline.run import Run
from tmkd.teachers.ensemble import fit_stacking

COLUMNS = [{"name": "judge", "scores": "judge"}, {"name": "noise", "scores": "noise"}]


def content(folder: Path, **keys: Any) -> dict[str, Any]:
    """A recipe with a teacher that is trained, one whose scores are good and one whose scores are noise."""
    if not (folder / "train.jsonl").is_file():
        generator = np.random.default_rng(0)
        rows = [
            {**row, "judge": 2.0 * bool(row["label"]) - 1 + float(generator.normal()), "noise": generator.normal()}
            for row in pair_rows(8)
        ]
        write_jsonl(folder / "train.jsonl", rows)
    data = {"train": str(folder / "train.jsonl"), "hold_out": {"dev": 0.2, "test": 0.2},
            "scores": {"judge": "logit", "noise": "logit"}}  # fmt: skip
    own = {
        "name": "stacked",
        "data": data,
        "methods": ["teacher", "teacher-ensemble", "1avg-tkd"],
        "take": "1avg-tkd",
        "teachers": [{"name": "mine", "seed": 1, **NUMBERS}, *COLUMNS],
        "ensemble": "stacked",
        "folds": 2,
    }
    return of_kinds(folder, **{**own, **keys})


def test_teachers_are_measured_without_a_student_that_learns_from_them(tmkd: Tmkd, tmp_path: Path) -> None:
    recipe = tmp_path / "stacked.yaml"
    recipe.write_text(yaml.safe_dump(content(tmp_path, methods=["teacher-ensemble", "finetune"], take="finetune")))
    results = json.loads(tmkd("run", recipe, "--json", "-").stdout)
    names = [row["name"] for row in results["methods"]]
    assert names == ["teacher:mine", "teacher:judge", "teacher:noise", "teacher-ensemble", "finetune"]
    assert results["ensemble"]["kind"] == "stacked"
    assert results["development"]["best"] == "teacher:judge"
    alone = json.loads(tmkd("run", recipe, "methods=[finetune]", "name=alone", "--json", "-").stdout)
    assert [row["name"] for row in alone["methods"]] == ["finetune"]


def test_a_whole_run_with_a_stacked_ensemble(tmkd: Tmkd, tmp_path: Path) -> None:
    recipe = tmp_path / "stacked.yaml"
    recipe.write_text(yaml.safe_dump(content(tmp_path)))
    done = tmkd("run", recipe, "--json", "-")
    (log,) = set(re.findall(r"weights on log-odds mine [\d.]+, judge ([\d.]+)", " ".join(done.stderr.split())))
    results = json.loads(done.stdout)
    weights = results["ensemble"]["weights"]
    assert weights["judge"] == pytest.approx(float(log), abs=1e-3)
    assert weights["judge"] > 0.3
    assert weights["noise"] < weights["judge"] / 4
    assert len(list(Path("workspace/steps").glob("teacher-*"))) == 3  # and one without each fold
    rows = {row["name"]: row for row in results["methods"]}
    assert {row["teacher"] for row in results["leave_one_out"]} == {"mine", "judge", "noise"}
    without = next(row for row in results["leave_one_out"] if row["teacher"] == "judge")
    assert without["auc"]["mean"] < rows["teacher-ensemble"]["auc"]["mean"]
    assert [row["name"] for row in results["free"]] == ["bm25", "cosine", "bm25+cosine"]
    assert "trains nothing" in results["standing"][0]
    assert results["development"]["best"] == results["ensemble"]["against"] == "teacher:judge"
    assert results["ensemble"]["relative_to"] in ("teacher:judge", "teacher-ensemble")
    assert "How the teachers are weighed" in Path("workspace/runs/stacked/report/report.html").read_text()
    (learned,) = read_card(Path("workspace/runs/stacked/student")).teachers or ()
    assert learned.startswith("stacked ")

    everything = tmkd("evaluate", "workspace/runs/stacked", "--pairs", tmp_path / "train.jsonl", "--no-speed", "--json",
                      "-")  # fmt: skip
    assert json.loads(everything.stdout)["ensemble"]["weights"] == weights
    again = tmkd("run", recipe, "ensemble=mean", "name=mean", "--json", "-")
    assert "weights" not in json.loads(again.stdout).get("ensemble", {})
    (mean,) = read_card(Path("workspace/runs/mean/student")).teachers or ()
    assert mean.startswith("mean of ")


def test_a_teacher_behind_the_untrained_cosine_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = content(tmp_path, teachers=COLUMNS, encoder="builtin:minilm-l6", ensemble="mean")
    labels = Run(parse_recipe(keys, "test"), tmp_path / "workspace").labels
    found = teachers_on_development(labels)
    assert found["values"]["judge"] > found["cosine"] - 0.5
    assert found["behind"] == [name for name in ("judge", "noise") if found["values"][name] < found["cosine"]]
    assert "noise" in found["behind"]
    assert found["best"] == "teacher:judge"
    assert found["metrics"] == ["auc", "mrr"]
    warned = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert any(one.startswith("teacher noise is behind the cosine of builtin:minilm-l6") for one in warned)
    teachers_on_development(labels)
    again = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert again == warned  # said once


def test_scores_of_the_other_class_are_suspected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = content(tmp_path, teachers=COLUMNS, ensemble="mean", data={
        "train": str(tmp_path / "train.jsonl"), "hold_out": {"dev": 0.4, "test": 0.2},
        "scores": {"judge": "logit", "noise": "logit"}, "positive": 0})  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    write_jsonl(tmp_path / "train.jsonl", [{**row, "label": 1 - row["label"]} for row in lines])
    teachers_on_development(Run(parse_recipe(keys, "test"), tmp_path / "workspace").labels)
    said = [one.getMessage() for one in caplog.records if "of the other class?" in one.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("teacher judge")
    assert "its scores fall where the labels rise: are they of the other class?" in said[0]


def test_the_soft_labels_are_the_weighted_log_odds(tmp_path: Path) -> None:
    run = Run(parse_recipe(content(tmp_path, teachers=COLUMNS), "test"), tmp_path / "workspace")
    stacked = run.labels.stacked
    assert stacked is not None
    found = stacked.of(["judge", "noise"])
    (method,) = (one for one in run.recipe.chosen_methods if one.name == "1avg-tkd")
    targets = run.labels.targets(method, run.data.dev, "dev")
    assert targets is not None
    odds = targets.logits[:, 0, 1] - targets.logits[:, 0, 0]
    scores = [run.data.dev.score(name) for name in ("judge", "noise")]
    wanted = found.weights[0] * scores[0] + found.weights[1] * scores[1] + found.intercept[1]
    assert odds == pytest.approx(wanted, abs=1e-4)


def test_one_class_and_one_teacher_are_refused(tmp_path: Path) -> None:
    alone = content(tmp_path, teachers=[{"name": "mine"}], data={"train": str(tmp_path / "train.jsonl")})
    alone |= {"methods": ["tkd"], "take": "tkd"}
    with pytest.raises(RecipeError, match="ensemble: stacked weighs two or more teachers, and mine is the only one"):
        parse_recipe(alone, "test")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    write_jsonl(tmp_path / "ones.jsonl", [{**row, "label": 1} for row in rows])
    write_jsonl(tmp_path / "dev.jsonl", [{**row, "question": f"Please: {row['question']}"} for row in rows])
    data = {**content(tmp_path)["data"], "hold_out": None, "dev": str(tmp_path / "dev.jsonl")}
    data |= {"train": str(tmp_path / "ones.jsonl")}
    run = Run(parse_recipe(content(tmp_path, data=data), "test"), tmp_path / "workspace")
    with pytest.raises(DataError, match="every training pair is of class 1"):
        run.label()


def test_teachers_whose_scores_fall_where_labels_rise_are_no_ensemble(tmp_path: Path) -> None:
    content(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    turned = [{**row, "judge": -row["judge"], "noise": -row["judge"] - 1} for row in rows]
    write_jsonl(tmp_path / "train.jsonl", turned)
    run = Run(parse_recipe(content(tmp_path, teachers=COLUMNS), "test"), tmp_path / "workspace")
    with pytest.raises(DataError, match="stacked gives judge, noise the weight 0, so every pair would have the same"):
        run.label()


def test_weights_are_fitted_on_the_development_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No teacher is trained again for a fold, and the weights are those of the development pairs' labels."""
    run = Run(parse_recipe(content(tmp_path, ensemble="stacked-dev"), "test"), tmp_path / "workspace")
    with caplog.at_level("INFO"):
        results = run.run().results
    assert [step.kind for step in run.workspace.used].count("teacher") == 1
    logits = run.labels.logits(run.data.dev, "dev")
    targets = np.eye(2)[run.data.dev.labels]
    dev = run.data.dev
    wanted = fit_stacking(["mine", "judge", "noise"], logits, targets, folds(dev, 2), dev.groups()[1])
    assert wanted.fitted_to == "order"
    assert results.ensemble["kind"] == "stacked-dev"
    assert list(results.ensemble["weights"].values()) == pytest.approx(wanted.weights, rel=1e-6)
    ensemble = next(row for row in results.methods if row.name == "teacher-ensemble")
    odds = log_odds(wanted.apply(run.labels.logits(run.data.test, "test")))
    assert ensemble.metrics["auc"].mean == pytest.approx(roc_auc_score(run.data.test.labels, odds))
    said = [one for one in caplog.messages if one.startswith("stacked ensemble: weights on log-odds mine")]
    assert len(said) == 1
    assert said[0].endswith("(development pairs)")
    page = (tmp_path / "workspace/runs/stacked/report/report.html").read_text()
    assert "The weights were fitted to the order of each question's passages on the development set" in page


def test_stacked_dev_without_a_test_set_or_with_one_class_is_refused(tmp_path: Path) -> None:
    data = content(tmp_path)["data"]
    same = {**data, "hold_out": {"dev": 0.2}}
    run = Run(parse_recipe(content(tmp_path, data=same, ensemble="stacked-dev"), "test"), tmp_path / "workspace")
    with pytest.raises(RecipeError, match=r"ensemble: stacked-dev fits .* give data.test or data.hold_out.test"):
        run.label()
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    write_jsonl(
        tmp_path / "ones.jsonl", [{**row, "question": f"Please: {row['question']}"} for row in rows if row["label"]]
    )
    ones = {**data, "hold_out": {"test": 0.2}, "dev": str(tmp_path / "ones.jsonl")}
    run = Run(parse_recipe(content(tmp_path, data=ones, ensemble="stacked-dev"), "test"), tmp_path / "workspace")
    with pytest.raises(DataError, match=r"ensemble: stacked-dev .* labelled development pairs have none of class 0"):
        run.label()
