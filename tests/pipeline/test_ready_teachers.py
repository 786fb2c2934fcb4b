"""Ready rerankers of one logit as teachers: their labels, a whole run, the pool's teachers, the names of heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from conftest import Tmkd, pair_rows, step_folders, write_jsonl
from encoder_fixtures import decoder, reranker, tiny, transformers_logits

from tmkd.config.load import parse_recipe
from tmkd.data.pairs import Pairs
from tmkd.inference.scorer import Scorer
from tmkd.models.card import read_card
from tmkd.pipeline.steps.pool import pool_teachers
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.pipeline.store.workspace import Workspace

NUMBERS = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16}


def named(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{**row, "label": "good" if row["label"] else "poor"} for row in rows]


def recipe_of(path: Path, teacher: Path, **keys: Any) -> Path:
    """A run of a ready teacher on questions whose labels are words; its student has one layer."""
    write_jsonl(
        path.parent / "train.jsonl", [{**row, "label": "good" if row["label"] else "poor"} for row in pair_rows(3)]
    )
    content = {
        "name": path.stem,
        "encoder": str(tiny("bert", path.parent / "encoder", max_position_embeddings=128)),
        "max_length": 64,
        "precision": "fp32",
        "data": {
            "train": "train.jsonl", "hold_out": {"dev": 0.2, "test": 0.2}, "labels": {"poor": 0, "good": 1},
        },
        "teachers": [{"name": "theirs", "checkpoint": str(teacher), "max_length": 128}],
        "student": {"layers": 1},
        **dict.fromkeys(("stage1", "stage2", "without_stage1"), NUMBERS),
        "methods": ["teacher", "tkd"],
        "take": "tkd",
        **keys,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_whole_run_with_a_one_logit_teacher(tmkd: Tmkd, tmp_path: Path) -> None:
    theirs = reranker(tmp_path / "theirs")
    pool = {"teachers": [str(theirs)], "sources": [{"pairs": "train.jsonl"}]}
    recipe = recipe_of(tmp_path / "ready.yaml", theirs, pool=pool, export={"backends": ["onnx-fp32"]})
    tmkd("run", recipe)

    rows = pair_rows(3)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    expected = dict(zip(pairs.pair_ids, transformers_logits(theirs, pairs)[:, 0], strict=True))
    seen = 0
    for folder in step_folders("labels"):
        header = json.loads((folder / "manifest.json").read_text())["header"]
        if header["max_length"] == 128:  # the teacher's, not the student's
            store = LabelStore.open(folder, header=header)
            known = sorted(store.done_ids() & expected.keys())
            logits = store.logits_for(known)
            np.testing.assert_array_equal(logits[:, 0], 0)
            np.testing.assert_allclose(logits[:, 1], [expected[one] for one in known], atol=1e-5)
            seen += len(known)
    assert seen > 0

    results = json.loads(Path("workspace/runs/ready/report/results.json").read_text())
    assert [row["name"] for row in results["methods"]] == ["teacher:theirs", "tkd"]
    export = Path("workspace/runs/ready/export")
    assert json.loads((export / "config.json").read_text())["id2label"] == {"0": "good"}
    assert np.isfinite(Scorer(export).scores(["how do I copy a file?"], ["use cp"])).all()

    write_jsonl(tmp_path / "new.jsonl", named([{**row, "question": f"Say: {row['question']}"} for row in rows]))
    done = tmkd("evaluate", "workspace/runs/ready", "--pairs", tmp_path / "new.jsonl", "--json", "-", "--no-speed")
    assert [row["name"] for row in json.loads(done.stdout)["methods"]] == ["teacher:theirs", "tkd"]


def test_heads_trained_here_have_the_names_of_the_task(tmkd: Tmkd, tmp_path: Path) -> None:
    """The encoder was a classifier of another task, with names of its own for the other way round."""
    old = reranker(tmp_path / "old", 2, id2label={0: "relevant", 1: "not_relevant"}, problem_type="regression")
    teacher = {"name": "mine", "encoder": str(old), "seed": 1, **NUMBERS}
    tmkd("teach", recipe_of(tmp_path / "named.yaml", old, teachers=[teacher]))
    (folder,) = step_folders("teacher")
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "good"}
    assert config["label2id"] == {"good": 0}
    assert "problem_type" not in config or config["problem_type"] is None
    assert json.loads((folder / "tmkd.json").read_text())["labels"] == ["poor", "good"]


def test_what_makes_a_ready_teacher_wrong_is_said_before_anything_is_trained(tmkd: Tmkd, tmp_path: Path) -> None:
    graded = reranker(tmp_path / "graded", problem_type="regression")
    recipe = recipe_of(tmp_path / "wrong.yaml", graded)
    for change in (
        (),
        ("teachers=[{name: a, seed: 1}]", f"pool={{teachers: [{graded}], sources: [{{pairs: train.jsonl}}]}}"),
    ):
        done = tmkd("label", recipe, *change, check=False)
        assert done.returncode != 0
        assert "trained by regression" in " ".join(done.stderr.split())
        assert "`calibrate`" in done.stderr
    names = [{0: "no", 1: "yes", 2: "maybe"}, {0: "yes", 1: "no", 2: "maybe"}]
    two = [reranker(tmp_path / f"nli{n}", 3, id2label=one, label2id={name: k for k, name in one.items()})
           for n, one in enumerate(names)]  # fmt: skip
    pool = f"pool={{teachers: [{two[0]}, {two[1]}], sources: [{{pairs: train.jsonl}}]}}"
    done = tmkd("label", recipe, "teachers=[{name: a, seed: 1}]", pool, check=False)
    assert "pool.teachers: their classes are in different orders" in " ".join(done.stderr.split())
    assert not step_folders("teacher")


def test_a_teacher_of_the_pool_reads_as_many_tokens_as_its_own_files_say(tmp_path: Path) -> None:
    folder = reranker(tmp_path / "two", 2)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
    pool = {"teachers": [str(folder)], "sources": [{"pairs": "train.jsonl"}]}
    content = yaml.safe_load(recipe_of(tmp_path / "pool.yaml", folder, pool=pool).read_text())
    (step,) = pool_teachers(Workspace(tmp_path / "workspace"), parse_recipe(content, "test"))
    assert read_card(step.folder).max_length == 40


def test_a_student_of_the_pool_alone_has_the_classes_of_its_teachers(tmkd: Tmkd, tmp_path: Path) -> None:
    nli = {0: "no", 1: "yes", 2: "maybe"}
    three = reranker(tmp_path / "three", 3, id2label=nli, label2id={name: k for k, name in nli.items()})
    two = reranker(tmp_path / "two", 2, id2label={0: "right", 1: "wrong"}, label2id={"right": 0, "wrong": 1})

    def said(folder: Path, *keys: str) -> str:
        pool = f"pool={{teachers: [{folder}], sources: [{{pairs: train.jsonl}}]}}"
        only = ("teachers=[{name: a, seed: 1}]", pool, "methods=[stage1-only]", "take=stage1-only")
        done = tmkd("label", recipe, *only, *keys, check=False)
        assert done.returncode != 0
        assert not step_folders("teacher")
        return " ".join(done.stderr.split())

    recipe = recipe_of(tmp_path / "kept.yaml", two)
    assert "three has 3 classes, the task 2 (`classes`), and stage1-only learns no labels" in said(three)
    turned = said(three, "classes=3", "data.labels={'yes': 0, 'no': 1, maybe: 2, good: 0, poor: 1}")
    assert "its classes are no, yes, maybe in that order, the task's (data.labels) are yes" in turned
    # names of which the negative one is class 1 are turned by their meaning, and then are not the task's
    assert "its classes are wrong, right in that order" in said(
        two, "data.labels={right: 0, wrong: 1, good: 0, poor: 1}"
    )


def test_a_reranker_that_another_library_runs(tmkd: Tmkd, tmp_path: Path) -> None:
    """A decoder with yes and no: its raw scores are stored, its log-odds are learned; a killed run labels on."""
    from sentence_transformers import CrossEncoder

    theirs = decoder(tmp_path / "theirs")
    recipe = recipe_of(tmp_path / "library.yaml", theirs, teachers=[{"name": "theirs", "checkpoint": str(theirs)}])
    tmkd("run", recipe)
    rows = pair_rows(3)
    texts = [(str(row["question"]), str(row["passage"])) for row in rows]
    pairs = Pairs.build([one for one, _ in texts], [one for _, one in texts])
    model = CrossEncoder(str(theirs), local_files_only=True, model_kwargs={"dtype": "float32"})
    expected = dict(zip(pairs.pair_ids, model.predict(texts, activation_fn=torch.nn.Identity()), strict=True))
    seen = 0
    for folder in step_folders("labels"):
        header = json.loads((folder / "manifest.json").read_text())["header"]
        if header.get("holds") == "raw scores":
            store = LabelStore.open(folder, header=header)
            known = sorted(store.done_ids())
            np.testing.assert_allclose(store.logits_for(known)[:, 0], [expected[one] for one in known], atol=1e-5)
            seen += len(known)
    assert seen > 0
    assert not step_folders("teacher")
    results = json.loads(Path("workspace/runs/library/report/results.json").read_text())
    assert [row["name"] for row in results["methods"]] == ["teacher:theirs", "tkd"]
    tmkd("run", recipe)


def test_scores_on_another_scale_need_calibrate_and_then_are_a_teacher(tmkd: Tmkd, tmp_path: Path) -> None:
    graded = reranker(tmp_path / "graded", problem_type="regression")
    teacher = {"name": "graded", "checkpoint": str(graded)}
    recipe = recipe_of(tmp_path / "graded.yaml", graded, teachers=[teacher])
    done = tmkd("label", recipe, check=False)
    assert done.returncode != 0
    assert "`calibrate`: platt or isotonic" in " ".join(done.stderr.split())
    tmkd("label", recipe, "teachers.0.calibrate=isotonic", check=False)
    rising = step_folders("labels")  # random weights need not rise with the labels: the raw scores are kept either way
    assert len(rising) == 1
    header = json.loads((rising[0] / "manifest.json").read_text())["header"]
    assert header["holds"] == "raw scores"
