"""A study on a few rows: variants over seeds, held against the first one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Tmkd, pair_rows, write_jsonl
from encoder_fixtures import tiny

from tmkd.core.errors import EncoderError, RecipeError
from tmkd.data.tasks import TaskData, load_task
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.pipeline.study.board import Status
from tmkd.pipeline.study.plan import Study, load_study
from tmkd.pipeline.study.run import carry_out

STUDY = """
name: tiny-study
tasks:
  - {recipe: recipe.yaml, keys: {take: finetune}}
  - {recipe: recipe.yaml, keys: {take: mkd, name: other}}
variants:
  plain: {}
  more epochs: {without_stage1.epochs: 2}
seeds: [0, 1]
"""


@pytest.fixture
def study_file(recipe_file: Path, tmp_path: Path) -> Path:
    text = recipe_file.read_text().replace("batch_size: 8", "batch_size: 32")
    recipe_file.write_text(text.replace("builtin:minilm-l6", str(tiny("bert", tmp_path / "bert"))))
    path = recipe_file.with_name("study.yaml")
    path.write_text(STUDY)
    return path


def steps(workspace: Path) -> set[str]:
    return {path.name for path in workspace.glob("steps/*")}


def test_a_study_measures_every_variant_and_trains_none_twice(tmkd: Tmkd, study_file: Path, tmp_path: Path) -> None:
    done = tmkd("study", study_file, "--json", tmp_path / "numbers.json")
    assert "0 of 8 students are there; now tiny, finetune, plain, seed 0" in done.stderr
    assert "8 of 8 students are there" in done.stderr
    first = json.loads((tmp_path / "numbers.json").read_text())
    rows = {(row["task"], row["variant"]): row for row in first["rows"]}
    names = ("tiny, finetune", "other, mkd", "all")
    assert list(rows) == [(task, variant) for task in names for variant in ("plain", "more epochs")]
    assert "more epochs" in done.stdout
    for metric in ("auc", "mrr", "map", "ndcg@10", "accuracy"):
        both = [rows[task, "plain"][metric]["mean"] for task in names]
        assert all(0 <= value <= 1 for value in both)
        assert np.isclose(both[2], np.mean(both[:2]))
    (difference,) = (d for d in first["differences"] if (d["task"], d["metric"]) == ("all", "auc"))
    assert (difference["first"], difference["second"]) == ("more epochs", "plain")
    assert np.isclose(
        difference["mean"], rows["all", "more epochs"]["auc"]["mean"] - rows["all", "plain"]["auc"]["mean"]
    )
    folder = tmp_path / "workspace" / "studies" / "tiny-study"
    assert json.loads((folder / "results.json").read_text()) == first
    assert {path.name for path in folder.iterdir()} == {
        "figures", "manifest.json", "report.html", "results.json", "table.md",
    }  # fmt: skip

    before = steps(tmp_path / "workspace")
    assert sum(name.startswith("student-") for name in before) == 8
    again = tmkd("study", study_file, "seeds=[0,1]", "--json", "-")
    assert json.loads(again.stdout) == first
    assert steps(tmp_path / "workspace") == before
    assert "loss" not in again.stderr  # nothing was trained
    assert tmkd("clean").stdout == ""


def test_a_listing_says_what_is_missing_and_writes_nothing(tmkd: Tmkd, study_file: Path, tmp_path: Path) -> None:
    empty = tmkd("study", study_file, "--list", "--json", tmp_path / "cells.json")
    assert "0 of 8 students are there" in empty.stdout
    assert empty.stdout.count("○○") == 4
    assert "to do next: finetune, seed 0; " in empty.stdout
    assert not (tmp_path / "workspace").exists()
    cells = json.loads((tmp_path / "cells.json").read_text())["cells"]
    assert [cell["missing"] for cell in cells if cell["task"] == "other, mkd"] == ["teacher a"] * 4

    tmkd("study", study_file, "seeds=[0]")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "workspace").rglob("*")}
    some = tmkd("study", study_file, "--list", "--json", "-")
    content = json.loads(some.stdout)
    assert [cell["seed"] for cell in content["cells"] if cell["missing"] is None] == [0, 0, 0, 0]
    assert content["seconds_left"] > 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "workspace").rglob("*")} == before


def test_an_interrupted_study_continues_with_what_is_missing(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan, place = load_study(study_file, ["seeds=[0]"]), Workspace(tmp_path / "workspace")
    whole = carry_out(plan, Workspace(tmp_path / "whole")).to_json()
    real = Workspace.step

    def killed(self: Workspace, kind: str, *rest: Any, **more: Any) -> Step:
        if kind == "student" and sum(name.startswith("student-") for name in steps(self.root)) == 2:
            raise KeyboardInterrupt
        return real(self, kind, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            carry_out(plan, place)
    assert "2 of 4 students are there, about " in caplog.text
    assert place.unused() == []  # the teachers of the student that was stopped are kept too
    found = carry_out(plan, place).to_json()
    for one, other in zip(found["rows"], whole["rows"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_ctrl_c_in_training_stops_cleanly(study_file: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tmkd",
            "study",
            str(study_file),
            "tasks.0.keys={take: finetune, without_stage1.epochs: 2000}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "workspace" / "steps").glob("student-*.partial")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "0 of 8 students are there" in errors
    assert "the same command continues" in errors
    assert "Traceback" not in errors


def test_rows_and_recipes_are_read_once(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def load_task_counted(*a: Any) -> TaskData:
        read.append(a)
        return load_task(*a)

    monkeypatch.setattr("tmkd.pipeline.run_data.load_task", load_task_counted)
    opened: list[Path] = []
    text = Path.read_text

    def read_text_counted(path: Path, *a: Any, **k: Any) -> str:
        opened.append(path)
        return text(path, *a, **k)

    monkeypatch.setattr(Path, "read_text", read_text_counted)
    carry_out(load_study(study_file, ["seeds=[0]"]), Workspace(tmp_path / "workspace"))
    assert len(read) == 1  # both tasks and both variants have the same data
    assert sum(path.name == "recipe.yaml" for path in opened) == 1


def test_time_left_is_that_of_finished_cells_of_the_variant(study_file: Path) -> None:
    plan = load_study(study_file)
    assert Status(plan, set(), {}).left() is None
    status = Status(plan, {0, 2}, {0: 10.0, 2: 100.0})  # a seed of each variant of the first task
    assert status.left() == 10 + 100 + 4 * 55
    assert status.sentence() == "2 of 8 students are there, about 6 min of work left"


def test_a_grid_gives_every_combination() -> None:
    study = Study.model_validate(
        {"name": "g", "tasks": [{"recipe": "r"}], "grid": {"student.layers": [2, 3], "loss.kind": ["kl", "mse"]}}
    )
    assert study.short("student.layers") == "layers"
    assert study.model_copy(update={"grid": {"stage1.epochs": [1], "stage2.epochs": [2]}}).all_variants() == {
        "stage1.epochs=1, stage2.epochs=2": {"stage1.epochs": 1, "stage2.epochs": 2}
    }
    assert study.all_variants() == {
        "layers=2, kind=kl": {"student.layers": 2, "loss.kind": "kl"},
        "layers=2, kind=mse": {"student.layers": 2, "loss.kind": "mse"},
        "layers=3, kind=kl": {"student.layers": 3, "loss.kind": "kl"},
        "layers=3, kind=mse": {"student.layers": 3, "loss.kind": "mse"},
    }


def test_variants_may_be_methods(study_file: Path) -> None:
    plan = load_study(study_file, ["tasks=[{recipe: recipe.yaml}]", "variants={}", "grid={take: [finetune, mkd]}"])
    assert plan.tasks == ["tiny"]
    assert [cell.recipe.methods for cell in plan.cells] == [("finetune",)] * 2 + [("mkd",)] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("variants:", "variant:"), r"variant: unknown key; did you mean 'variants'"),
        (("epochs: 2", "epochs: two"), r"variant 'more epochs'.*without_stage1.epochs.*'two'"),
        (("without_stage1.epochs", "without_stage1.epoch"), r"unknown key; did you mean 'epochs'"),
        (("  more epochs: {without_stage1.epochs: 2}\n", ""), "two or more `variants`"),
        (("variants:\n  plain: {}\n  more epochs: {without_stage1.epochs: 2}", "grid: {}"), "two or more `variants`"),
        (("seeds:", "grid: {student.layers: []}\nseeds:"), "student.layers has no values"),
        (("seeds:", "grid: {student.layers: 3}\nseeds:"), "grid.student.layers.*list, got 3"),
        (("seeds:", "grid: {student.layers: [1, 1]}\nseeds:"), "a value twice"),
        (("seeds:", "grid: {teachers.5.epochs: [1, 2]}\nseeds:"), "'5' is not an index of a list of 2"),
        (("seeds:", "against: plane\nseeds:"), "'plane' is not a variant; did you mean 'plain'"),
        (("seeds: [0, 1]", "seeds: [0, 0]"), "there twice"),
        (("plain: {}", "plain: {seeds: [1]}"), "variant 'plain' sets 'seeds'"),
        (("take: mkd, name: other", "take: finetune"), "two tasks are called 'tiny, finetune'"),
        (("plain: {}", "plain: {classes: 3}"), "variant 'plain': metric 'auc' is not defined for 3 classes"),
        (
            ("plain: {}", "plain: {take: 1avg-o-1, ensemble: stacked-dev}"),
            "variant 'plain': ensemble: stacked-dev fits its weights on the development set, and a study",
        ),
        (("recipe.yaml", "recipes.yaml"), "recipes.yaml: no such recipe"),
        (("seeds:", "metric: f1\nseeds:"), "'f1' is not one; there are: accuracy"),
        (("{recipe: recipe.yaml, keys: {take: finetune}}", "{recipe: recipe.yaml, key: {}}"), "did you mean 'keys'"),
    ],
)
def test_a_bad_study_says_what_is_wrong_before_it_trains(
    study_file: Path, change: tuple[str, str], message: str
) -> None:
    study_file.write_text(STUDY.replace(*change))
    with pytest.raises(RecipeError, match=message):
        load_study(study_file)


def test_a_metric_needs_rows_that_give_it_a_meaning(study_file: Path, tmp_path: Path) -> None:
    dev = [{**row, "question": f"{row['question']} {n}"} for n, row in enumerate(pair_rows(1))]  # one passage each
    write_jsonl(tmp_path / "dev.jsonl", dev)
    plan = load_study(study_file, ["tasks.0.keys={take: finetune, data.dev: dev.jsonl}", "metric=mrr"])
    with pytest.raises(RecipeError, match=r"'mrr' is not defined on .*tiny, finetune; there are: accuracy, auc"):
        carry_out(plan, Workspace(tmp_path / "workspace"))
    assert steps(tmp_path / "workspace") == set()


def test_an_error_in_a_student_names_it(study_file: Path, tmp_path: Path) -> None:
    plan = load_study(study_file, ["variants={plain: {}, deep: {student.layers: 9}}", "seeds=[0]"])
    with pytest.raises(EncoderError, match=r"study tiny-study, tiny, finetune, deep, seed 0: .* has 3 layers"):
        carry_out(plan, Workspace(tmp_path / "workspace"))


def test_one_student_read_in_several_ways_is_trained_once(study_file: Path, tmp_path: Path) -> None:
    plan = load_study(
        study_file, ["tasks=[{recipe: recipe.yaml, keys: {take: mkd}}]", "variants={}", "seeds=[0]",
                     "grid={combination: [logit, probability, golden]}"],
    )  # fmt: skip
    outcome = carry_out(plan, Workspace(tmp_path / "workspace"))
    assert sum(name.startswith("student-") for name in steps(tmp_path / "workspace")) == 1
    assert len({row.metrics["auc"].mean for row in outcome.rows}) > 1


def test_variants_are_measured_on_the_same_rows(study_file: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "dev.jsonl", [{**row, "question": f"Hm: {row['question']}"} for row in pair_rows(1)])
    plan = load_study(study_file, ["variants.more epochs={data.dev: dev.jsonl}"])
    with pytest.raises(RecipeError, match="variant 'more epochs' has another development set"):
        carry_out(plan, Workspace(tmp_path / "workspace"))


@pytest.mark.parametrize("name", sorted(p.name for p in (Path(__file__).parents[2] / "recipes/studies").glob("*.yaml")))
def test_shipped_studies_are_valid(name: str) -> None:
    plan = load_study(Path(__file__).parents[2] / "recipes" / "studies" / name)
    assert len(plan.study.seeds) >= 3
