"""Teachers that differ: other tokenizers and widths, imported scores, other classes, other orders of classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Done, Tmkd, pair_rows, step_folders, write_jsonl
from encoder_fixtures import byte_tokenizer, tiny
from safetensors.torch import load_file, save_file

from tmkd.config.load import parse_recipe
from tmkd.core.errors import RecipeError
from tmkd.models.card import read_card
from tmkd.models.checkpoint import load_student
from tmkd.models.label_map import find_label_map, require_counted
from tmkd.pipeline.steps.student import carried_heads
from tmkd.training.targets import Targets

NUMBERS = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT and an MPNet of another width whose tokenizer is another one."""
    folder = tmp_path_factory.mktemp("encoders")
    mpnet = tiny("mpnet", folder / "mpnet", hidden_size=32, pad_token_id=1, vocab_size=260, max_position_embeddings=514)
    return {"bert": tiny("bert", folder / "bert", vocab_size=30522), "mpnet": byte_tokenizer(mpnet)}


def write_recipe(path: Path, encoders: dict[str, Path], **keys: Any) -> Path:
    """A recipe of one-layer students from the BERT."""
    content = {
        "name": path.stem,
        "encoder": str(encoders["bert"]),
        "max_length": 64,
        "precision": "fp32",
        "teachers": [{"name": "a", "seed": 1, **NUMBERS}],
        "student": {"layers": 1},
        **dict.fromkeys(("stage1", "stage2", "without_stage1"), NUMBERS),
        "methods": ["tkd"],
        "take": "tkd",
        **keys,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def steps(kind: str) -> Iterator[dict[str, Any]]:
    """What the steps of a kind in the workspace depended on, with their folders."""
    for folder in step_folders(kind):
        content = json.loads((folder / "step.json").read_text())["depends_on"]
        yield {"folder": folder, **content["settings"], **content["inputs"]}


def test_teachers_of_two_families_and_imported_scores_in_one_run_against_a_reference(
    tmkd: Tmkd, encoders: dict[str, Path], tmp_path: Path
) -> None:
    scored: list[dict[str, Any]] = [
        {"question": row["question"], "passage": row["passage"], "score": 0.9 if row["label"] else 0.1 + n % 3 / 10,
         "judge": 0.7 if row["label"] else 0.2}
        for n, row in enumerate(pair_rows(3))
    ]  # fmt: skip
    write_jsonl(tmp_path / "train.jsonl", scored)
    recipe = write_recipe(
        tmp_path / "mixed.yaml",
        encoders,
        data={
            "train": "train.jsonl", "hold_out": {"dev": 0.2, "test": 0.2}, "reference": "score",
            "scores": {"score": "probability", "judge": "probability"},
        },
        pool={"sources": [{"questions": "own", "passages": "own"}], "passages_per_question": 4},
        teachers=[
            {"name": "bert", "seed": 1, **NUMBERS},
            {"name": "mpnet", "encoder": str(encoders["mpnet"]), "max_length": 96, **NUMBERS},
            {"name": "judge", "scores": "judge"},
            {"name": "web", "scores": "score"},
        ],
        take="tmkd",
        methods=["teacher", "teacher-ensemble", "finetune", "tkd", "1avg-tkd", "tmkd"],
    )  # fmt: skip
    said = " ".join(tmkd("distill", recipe).stderr.split())
    (stage1,) = [one for one in steps("stage1") if len(one["targets"]) == 2]  # the pool carries no scores
    assert "no pool pair has a score of judge, web: the other teachers label them" in said
    assert "best teacher on the development set (only teachers that label the pairs): " in said
    student = read_card(Path("workspace/runs/mixed/student"))
    columns = ["column judge (probability)", "column score (probability)"]
    assert list(student.teachers or ()) == [*stage1["targets"], *columns]
    assert json.loads(Path("workspace/runs/mixed/student/config.json").read_text())["model_type"] == "bert"
    stores = [json.loads((one["folder"] / "manifest.json").read_text())["header"] for one in steps("labels")]
    assert len({header["tokenizer"] for header in stores}) == 2
    reference_teachers = [one for one in steps("teacher") if "by score (probability)" in one["train"]]
    assert len(reference_teachers) == 2

    unseen = [{**row, "question": f"Please: {row['question']}"} for row in scored[:32]]
    write_jsonl(tmp_path / "unseen.jsonl", unseen)
    done = evaluate(tmkd, tmp_path / "unseen.jsonl")
    why = "it made the reference 'score'"
    assert f"teacher:web is not measured, nor is an ensemble with it: {why}" in " ".join(done.stderr.split())
    results = json.loads(done.stdout)
    assert results["unmeasured"] == {"web": why}
    names = [row["name"] for row in results["methods"]]
    assert names == ["teacher:bert", "teacher:mpnet", "teacher:judge", "teacher-ensemble", "finetune", "tkd",
                     "1avg-tkd", "tmkd"]  # fmt: skip
    assert results["reference"] == "score"
    assert all({"spearman", "auc", "accuracy"} <= set(row) for row in results["methods"])
    write_jsonl(tmp_path / "unseen.jsonl", [{**row, "label": row["score"] > 0.5} for row in unseen])
    refused = evaluate(tmkd, tmp_path / "unseen.jsonl", check=False)
    assert "'label' is True" in refused.stderr
    write_jsonl(tmp_path / "unseen.jsonl", [{**row, "label": int(row["score"] > 0.5)} for row in unseen])
    golden = json.loads(evaluate(tmkd, tmp_path / "unseen.jsonl").stdout)
    assert "teacher:web" in [row["name"] for row in golden["methods"]]  # golden labels are not its own scores
    assert "spearman" not in golden["methods"][0]


def evaluate(tmkd: Tmkd, pairs: Path, *, check: bool = True) -> Done:
    return tmkd("evaluate", "workspace/runs/mixed", "--pairs", pairs, "--json", "-", "--no-speed", check=check)


def test_stage_1_of_another_task_goes_on_with_encoder_and_pooler(
    tmkd: Tmkd, encoders: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "qa.jsonl", pair_rows(2))
    nli = [{"question": f"{row['question']}?", "passage": row["passage"], "label": n % 3}
           for n, row in enumerate(pair_rows(2))]  # fmt: skip
    write_jsonl(tmp_path / "nli.jsonl", nli)
    tmkd("distill", write_recipe(tmp_path / "qa.yaml", encoders, data={"train": "qa.jsonl"}))
    recipe = write_recipe(tmp_path / "nli.yaml", encoders, data={"train": "nli.jsonl"}, classes=3)
    before = load_file("workspace/runs/qa/stage1/model.safetensors")

    first = tmkd("distill", recipe, "stage1_from=workspace/runs/qa/stage1", "stage2.learning_rate=1e-12")
    assert "stage 1 of" not in first.stderr
    student = load_student(Path("workspace/runs/nli/student"))
    assert student.classes == 3
    after = load_file("workspace/runs/nli/student/model.safetensors")
    for name in ("bert.encoder.layer.0.output.dense.weight", "bert.pooler.dense.weight"):
        assert torch.allclose(before[name], after[name], atol=1e-6)

    pool = "pool={teachers: [workspace/runs/qa], sources: [{pairs: qa.jsonl}]}"
    second = tmkd("distill", recipe, pool, "name=nli2")
    assert "stage 1 of tkd" in second.stderr
    assert read_card(Path("workspace/runs/nli2/stage1")).classes == 2
    assert load_student(Path("workspace/runs/nli2/student")).classes == 3
    own = tmkd("distill", recipe, "pool={sources: [{questions: own, passages: own, ask: passages}]}", "name=nli3")
    assert "mine the pool" in own.stderr
    assert read_card(Path("workspace/runs/nli3/stage1")).classes == 3

    for override, message in {
        "student.layers=2": "has 1 layers, student.layers is 2",
        f"encoder={encoders['mpnet']}": "reads text with another tokenizer",
    }.items():
        done = tmkd("label", recipe, "stage1_from=workspace/runs/qa/stage1", override, check=False)
        assert message in " ".join(done.stderr.split()), done.stderr
    done = tmkd("label", recipe, "pool.teachers=[gone]", check=False)
    assert "pool.teachers: gone is neither a checkpoint" in done.stderr
    three = next(str(one["folder"]) for one in steps("teacher") if one["classes"] == 3)
    done = tmkd("label", recipe, f"pool.teachers=[workspace/runs/qa, {three}]", check=False)
    assert "their numbers of classes differ" in done.stderr
    done = tmkd("label", recipe, f"teachers=[{{name: two, checkpoint: {qa_teacher()}}}]", check=False)
    assert "needs a head of 3 classes, this one has 2" in done.stderr


def qa_teacher() -> str:
    return next(str(one["folder"]) for one in steps("teacher") if one["classes"] == 2)


NAMES = ["entailment", "neutral", "contradiction"]


def turned(folder: Path, target: Path) -> Path:
    """A checkpoint as another project publishes it: no tmkd.json, its classes named and in another order (2, 0, 1)."""
    shutil.copytree(folder, target)
    (target / "tmkd.json").unlink()
    weights = load_file(target / "model.safetensors")
    for part in ("weight", "bias"):
        weights[f"classifier.{part}"] = weights[f"classifier.{part}"][[2, 0, 1]].clone()
    save_file(weights, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    config["id2label"] = {str(place): NAMES[was].upper() for place, was in enumerate([2, 0, 1])}
    config["label2id"] = {name: int(place) for place, name in config["id2label"].items()}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_checkpoint_whose_classes_are_in_another_order(tmkd: Tmkd, encoders: dict[str, Path], tmp_path: Path) -> None:
    rows = [{**row, "label": NAMES[n % 3]} for n, row in enumerate(pair_rows(2))]
    write_jsonl(tmp_path / "nli.jsonl", rows)
    data = {"train": "nli.jsonl", "labels": {name: n for n, name in enumerate(NAMES)}}
    recipe = write_recipe(tmp_path / "nli.yaml", encoders, data=data, classes=3)
    tmkd("teach", recipe)
    (mine,) = steps("teacher")
    theirs = turned(mine["folder"], tmp_path / "theirs")

    teacher = f"teachers=[{{name: b, checkpoint: {theirs}}}]"
    done = tmkd("label", recipe, teacher, check=False)
    said = " ".join(done.stderr.split())
    assert "its classes are CONTRADICTION, ENTAILMENT, NEUTRAL in that order" in said
    assert "the task's (data.labels) are entailment, neutral, contradiction" in said
    mapped = f"teachers=[{{name: b, checkpoint: {theirs}, label_map: {{contradiction: 2, entailment: 0, neutral: 1}}}}]"
    tmkd("label", recipe, mapped)
    saved = next(one["folder"] for one in steps("teacher") if one["folder"] != mine["folder"])
    assert json.loads((saved / "config.json").read_text())["id2label"]["0"] == "ENTAILMENT"
    first, second = (load_file(folder / "model.safetensors") for folder in (mine["folder"], saved))
    assert torch.equal(first["classifier.weight"], second["classifier.weight"])
    for store in steps("labels"):
        header = json.loads((store["folder"] / "manifest.json").read_text())["header"]
        assert header["class_order"] == [1, 2, 0]
    for label_map, message in {
        "{yes: 0, no: 1, maybe: 2}": "quote them",
        "{good: 0, bad: 1, maybe: 2}": "label_map names good, bad, maybe; the checkpoint's classes are CONTRA",
        "{entailment: 0, neutral: 1, contradiction: 1}": "label_map: no name stands for class 2 of 3",
        "{entailment: 0, neutral: 1, contradiction: 3}": "label_map: 'contradiction' is class 3; there are 3",
    }.items():
        wrong = f"teachers=[{{name: b, checkpoint: {theirs}, label_map: {label_map}}}]"
        done = tmkd("label", recipe, wrong, check=False)
        assert message in " ".join(done.stderr.split()), done.stderr


def test_turned_numbers_of_a_pool_teacher_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "1", "1": "0"}}))
    with pytest.raises(RecipeError, match="in this order; rename them in its config"):
        require_counted(tmp_path, "of the pool", mappable=False)


@pytest.mark.parametrize(
    ("id2label", "label_map", "labels", "expected"),
    [
        ({}, None, {}, [0, 1]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None, {"no": 0, "yes": 1}, [0, 1]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, {"0": 1, "1": 0}, {}, [1, 0]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, {"LABEL_0": 1, "LABEL_1": 0}, {}, [1, 0]),
        ({"0": "Not Entailment", "1": "entailment"}, None, {"not_entailment": 0, "entailment": 1}, [0, 1]),
        ({"0": "yes", "1": "no"}, None, {"not_entailment": 0, "entailment": 1}, "Say which is which"),
        (
            {"0": "1", "1": "0"},
            None,
            {},
            "calls its classes 1, 0, in this order; if these are the task's classes, say so: "
            "label_map: {'1': 1, '0': 0}",
        ),
        ({"0": "LABEL_1", "1": "LABEL_0"}, None, {}, "label_map: {'LABEL_1': 1, 'LABEL_0': 0}"),
        ({"0": "1", "1": "0"}, {"1": 1, "0": 0}, {}, [1, 0]),
        ({"0": "yes", "1": "no"}, {"0": 1, "1": 0}, {}, "label_map names 0, 1; the checkpoint's classes are yes, no"),
        ({"0": "LABEL_0", "1": "LABEL_1"}, {"yes": 1, "no": 0}, {}, "use their numbers, 0 to 1"),
    ],
)
def test_orders_of_classes(
    tmp_path: Path, id2label: dict[str, str], label_map: dict[str, int] | None, labels: dict[str, int], expected: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": id2label} if id2label else {}))
    teacher: dict[str, Any] = {"name": "b", "checkpoint": str(tmp_path), "label_map": label_map}
    recipe = parse_recipe({"data": {"train": "t", "labels": labels}, "teachers": [{"name": "a"}, teacher]}, "r")
    if isinstance(expected, str):
        with pytest.raises(RecipeError) as caught:
            find_label_map(tmp_path, recipe.teachers[1], recipe)
        assert expected in str(caught.value)
    else:
        assert find_label_map(tmp_path, recipe.teachers[1], recipe) == expected


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["a", "b"], ["a", "b", "column s"], [0, 1, None]),
        (["a", "b"], ["column s", "a", "b"], [None, 0, 1]),
        (["a"], ["a", "b"], None),
        (["a", "b"], ["a"], None),
        ([], ["column s"], None),
        (["mean of a+b"], ["mean of a+b+column s"], [0]),
        (["mean of a+b"], ["mean of column s+a+b"], [0]),
        (["mean of a+b"], ["mean of a+column s+t+b"], [0]),
        (["stacked x of a"], ["stacked x of column s+a"], [0]),
        (["stacked x of a"], ["stacked y of column s+a"], None),
        (["mean of a+b"], ["mean of column s+a"], None),
        (["mean of a+b"], ["mean of a+b"], [0]),
        (["mean of a"], ["mean of a+b"], None),
        (["mean of a"], ["mean of ab"], None),
    ],
)
def test_which_headers_go_on(tmp_path: Path, before: list[str], now: list[str], expected: Any) -> None:
    (tmp_path / "tmkd.json").write_text(json.dumps({"format": 1, "max_length": 32, "classes": 2, "teachers": before}))
    targets = Targets(tuple(now), np.zeros((1, len(now), 2), dtype=np.float32))
    assert carried_heads(tmp_path, 2, targets) == expected
    assert carried_heads(tmp_path, 3, targets) is None
