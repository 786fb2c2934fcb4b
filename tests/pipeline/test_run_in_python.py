"""A run from Python: pairs in memory, steps one by one, and results that say where everything lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Tmkd, pair_rows, pool_rows, write_jsonl
from encoder_fixtures import tiny

import tmkd as public
from tmkd import Export, Pairs, RecipeError, Run, Stage1, Stage2, StudentShape, Teacher


def pairs_of(rows: list[dict[str, object]], *, labels: bool = True, before: str = "") -> Pairs:
    return Pairs.build(
        [before + str(row["question"]) for row in rows],
        [str(row["passage"]) for row in rows],
        labels=[int(str(row["label"])) for row in rows] if labels else None,
    )


def a_run(tmp_path: Path, **keys: Any) -> Run:
    usual: dict[str, Any] = {
        "name": "small",
        "encoder": str(tiny("bert", tmp_path / "bert")),
        "max_length": 64,
        "precision": "fp32",
        "teachers": [Teacher(name="a", epochs=1), Teacher(name="b", epochs=1, seed=1)],
        "student": StudentShape(layers=1),
        "stage1": Stage1(learning_rate=3e-4, epochs=1),
        "stage2": Stage2(learning_rate=3e-5, epochs=1),
        "methods": ["tmkd"],
        "export": Export(backends=("onnx-fp32",)),
    }
    return Run.from_pairs(
        pairs_of(pair_rows(2)), test=pairs_of(pair_rows(1), before="Please: "),
        pool=pairs_of(pool_rows(), labels=False), workspace=tmp_path / "w", **{**usual, **keys},
    )  # fmt: skip


def test_steps_one_by_one_give_folders_and_numbers(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    teachers = run.teach().teachers
    assert list(teachers) == ["a", "b"]
    assert all(folder is not None and (folder / "tmkd.json").is_file() for folder in teachers.values())
    labelled = run.label()
    assert labelled.pool == len(run.data.pool)
    assert labelled.train == len(run.data.student_pairs)
    stores = [public.LabelStore.open(one, header=json.loads((one / "manifest.json").read_text())["header"])
              for one in labelled.stores]  # fmt: skip
    assert {len(store.done_ids()) for store in stores} == {labelled.pool, labelled.train}
    (stage1,) = run.pretrain().students["tmkd"]
    assert (stage1 / "model.safetensors").is_file()
    distilled = run.distill()
    assert list(distilled.students) == ["tmkd"]
    assert (distilled.student / "model.safetensors").is_file()
    exported = run.export()
    assert exported.backends == ("onnx-fp32",)
    scorer = public.Scorer(str(exported.folder))
    assert scorer.scores(["a"], ["b"]).shape == (1,)

    before = len(run.workspace.used)
    done = run.report()
    assert done.report.is_file()
    assert (done.folder, done.student, done.export) == (run.folder, distilled.student, exported.folder)
    measurements = {step.kind for step in run.workspace.used[before:]}
    assert measurements == {"labels", "headers", "speed", "exports", "cosine"}  # nothing was trained or exported again
    assert [row.name for row in done.results.methods] == ["teacher:a", "teacher:b", "teacher-ensemble", "tmkd"]


def test_a_run_over_pairs_in_memory_is_a_recipe_like_any_other(tmp_path: Path, tmkd: Tmkd) -> None:
    run = a_run(tmp_path, methods=["finetune"], take="finetune")
    run.distill()
    manifest = json.loads((run.folder / "manifest.json").read_text())
    files = manifest["recipe"]["data"]
    for part in ("train", "test", "pool"):
        assert Path(files[part]).parent == tmp_path / "w" / "data"
    recipe = tmp_path / "recipe.json"  # JSON is YAML
    recipe.write_text(json.dumps(manifest["recipe"]))
    again = tmkd("distill", recipe, "--workspace", tmp_path / "w")
    assert "finetune, seed 0: done before" in again.stderr

    test = write_jsonl(tmp_path / "mine.jsonl", pair_rows(1))
    measured = tmkd("evaluate", run.folder, "--pairs", test, "--no-speed", "--json", "-")
    results = Run.open(str(run.folder)).evaluate(str(test), speed=False)
    assert results.to_json() == json.loads(measured.stdout)
    assert results.to_json()["methods"] == Run.open(run.folder).evaluate(
        pairs_of(pair_rows(1)), speed=False
    ).to_json()["methods"]  # fmt: skip


def test_a_wrong_key_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'teachers'"):
        a_run(tmp_path, teacher=[])
