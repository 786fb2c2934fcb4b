"""A study on a few rows: variants over seeds, held against the first one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Tmkd

from tmkd.errors import RecipeError
from tmkd.evaluation.intervals import Interval
from tmkd.study import Cell, Outcome, Study, load_study, run_study
from tmkd.workspace import Workspace

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
def study_file(recipe_file: Path) -> Path:
    path = recipe_file.with_name("study.yaml")
    path.write_text(STUDY)
    return path


def steps(workspace: Path) -> set[str]:
    return {path.name for path in (workspace / "steps").iterdir()}


def test_a_study_measures_every_variant_and_trains_none_twice(tmkd: Tmkd, study_file: Path, tmp_path: Path) -> None:
    done = tmkd("study", study_file, "--json", tmp_path / "numbers.json")
    first = json.loads((tmp_path / "numbers.json").read_text())
    rows = {(row["task"], row["variant"]): row for row in first["rows"]}
    names = ("tiny, finetune", "other, mkd", "all")
    assert list(rows) == [(task, variant) for task in names for variant in ("plain", "more epochs")]
    assert "more epochs" in done.stdout
    for key in ("mean", "low", "high"):
        both = [rows[task, "plain"][key] for task in names]
        assert all(0 <= value <= 1 for value in both)
    assert np.isclose(rows["all", "plain"]["mean"], np.mean([rows[task, "plain"]["mean"] for task in names[:2]]))
    ahead = rows["all", "more epochs"]["ahead"]["mean"]
    assert np.isclose(ahead, rows["all", "plain"]["mean"] - rows["all", "more epochs"]["mean"])
    assert first["no_worse"].keys() == {"more epochs"}

    before = steps(tmp_path / "workspace")
    assert sum(name.startswith("student-") for name in before) == 8
    assert json.loads((tmp_path / "workspace/studies/tiny-study/results.json").read_text()) == first
    again = tmkd("study", study_file, "seeds=[0,1]")
    assert steps(tmp_path / "workspace") == before
    assert again.stderr.count("done before") > 8
    assert tmkd("clean").stdout == ""


def test_an_interrupted_study_continues_with_what_is_missing(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, place = load_study(study_file, ["seeds=[0]"]), Workspace(tmp_path / "workspace")
    whole = run_study(study, Workspace(tmp_path / "whole")).to_json()
    real = Workspace.step

    def killed(self: Workspace, kind: str, *rest: object, **more: object) -> object:
        if kind == "student" and sum(name.startswith("student-") for name in steps(self.root)) == 2:
            raise KeyboardInterrupt
        return real(self, kind, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, place)
    found = run_study(study, place).to_json()
    for one, other in zip(found["rows"], whole["rows"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_grid_gives_every_combination() -> None:
    study = Study.model_validate(
        {"name": "g", "tasks": [{"recipe": "r"}], "grid": {"student.layers": [2, 3], "loss.kind": ["kl", "mse"]}}
    )
    assert study.all_variants() == {
        "student.layers=2, loss.kind=kl": {"student.layers": 2, "loss.kind": "kl"},
        "student.layers=2, loss.kind=mse": {"student.layers": 2, "loss.kind": "mse"},
        "student.layers=3, loss.kind=kl": {"student.layers": 3, "loss.kind": "kl"},
        "student.layers=3, loss.kind=mse": {"student.layers": 3, "loss.kind": "mse"},
    }


def test_no_worse_looks_at_the_lower_bound_of_the_mean_over_tasks() -> None:
    study = Study.model_validate({"name": "s", "tasks": [{"recipe": "r"}], "variants": {"a": {}, "b": {}, "c": {}}})
    value = Interval(0.8, 0.7, 0.9)
    cells = [
        Cell("all", "a", value, None),
        Cell("all", "b", value, Interval(0.0, -0.014, 0.014)),
        Cell("all", "c", value, Interval(0.0, -0.016, 0.016)),
        Cell("task", "c", value, Interval(0.0, 0.0, 0.0)),
    ]
    outcome = Outcome(study, cells)
    assert outcome.no_worse == {"b": True, "c": False}
    assert "not shown to be as good as c" in outcome.sentences()[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("variants:", "variant:"), r"variant: unknown key; did you mean 'variants'"),
        (("epochs: 2", "epochs: two"), r"variant 'more epochs'.*without_stage1.epochs.*'two'"),
        (("without_stage1.epochs", "without_stage1.epoch"), r"unknown key; did you mean 'epochs'"),
        (("  more epochs: {without_stage1.epochs: 2}\n", ""), "two or more `variants`"),
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


@pytest.mark.parametrize("name", sorted(p.name for p in (Path(__file__).parents[1] / "recipes/studies").glob("*.yaml")))
def test_shipped_studies_are_valid(name: str) -> None:
    study = load_study(Path(__file__).parents[1] / "recipes" / "studies" / name)
    assert len(study.seeds) >= 3
