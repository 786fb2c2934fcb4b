"""Students that learn labels alone, beside `finetune`: of whole depth, and from the warm start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tmkd, pair_rows
from encoder_fixtures import tiny

from tmkd.config.load import load_recipe
from tmkd.config.methods import METHODS
from tmkd.inference.scorer import Scorer
from tmkd.models.checkpoint import load_encoder, load_student
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import score
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps.student import StudentSpec

METHODS_KEY = "methods=[teacher,finetune,finetune-whole,finetune-warm]"
WARM = "warm_up={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}"


def layers_of(student: Student) -> list[dict[str, torch.Tensor]]:
    return [layer.state_dict() for layer in student.encoder.base.encoder.layer]  # type: ignore[union-attr]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_whole_encoder_is_a_student_that_is_exported(tmkd: Tmkd, tiny_recipe: Path) -> None:
    """It is trained as `finetune` is, by the section of students without stage 1; only its depth is another."""
    overrides = [METHODS_KEY, WARM, "take=finetune-whole", "export.backends=[onnx-fp32]", "student.start=teacher"]
    done = tmkd("run", tiny_recipe, *overrides, "--json")
    results = json.loads(done.stdout)
    rows = {row["name"]: row for row in results["methods"]}
    assert [rows[name]["layers"] for name in ("finetune", "finetune-whole", "finetune-warm")] == [1, 3, 1]
    assert all(rows[name]["kind"] == "baseline" for name in ("finetune-whole", "finetune-warm"))
    rate = {"without_stage1": {"learning_rate": 2e-4, "epochs": 1}}
    assert results["training"] == dict.fromkeys(("finetune", "finetune-whole", "finetune-warm"), rate)
    folder = Path("workspace/runs/tiny/student")
    student = load_student(folder)
    assert student.encoder.layers == 3
    questions, passages = ([str(row[key]) for row in pair_rows(1)] for key in ("question", "passage"))
    tokenizer = PairTokenizer(folder, 64)
    inputs = TokenInputs(tokenizer.encode(questions, passages), tokenizer.pad_id)
    logits = score(student, inputs, precision="fp32")
    exported = Scorer("workspace/runs/tiny/export").scores(questions, passages)
    np.testing.assert_allclose(exported, logits[:, 1] - logits[:, 0], atol=1e-4)


def test_what_they_start_from(tiny_recipe: Path, tmp_path: Path) -> None:
    """The warm-started encoder's evenly spaced layers, and all layers of the encoder as it is."""
    deep = tiny("bert", tmp_path / "deep", num_hidden_layers=4)
    recipe = load_recipe(tiny_recipe, [METHODS_KEY, WARM, "take=finetune", "student.layers=2", f"encoder={deep}"])
    students = Run(recipe, tmp_path / "workspace").students
    warm = students.labels.warm_start
    assert warm is not None
    start = {}
    for name in ("finetune", "finetune-whole", "finetune-warm"):
        spec = StudentSpec(recipe, METHODS[name], 0, students.begins_with(METHODS[name]))
        pairs = spec.inputs(students.workspace, students.data.student_pairs)
        start[name] = spec.new_student(recipe.without_stage1, pairs, 2, 0, use_golden=True)
    source = {"encoder": Path(recipe.encoder), "warm": warm.folder}
    whole = {name: layers_of(Student(load_encoder(folder, 2), 2)) for name, folder in source.items()}
    assert not equal(whole["encoder"][0], whole["warm"][0])  # the warm start trained them
    for found, name, expected in (
        ("finetune", "encoder", (0, 1)),
        ("finetune-whole", "encoder", (0, 1, 2, 3)),
        ("finetune-warm", "warm", (0, 2)),
    ):
        theirs = layers_of(start[found])
        assert len(theirs) == len(expected)
        for mine, place in zip(theirs, expected, strict=True):
            assert equal(mine, whole[name][place]), (found, place)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_depth_of_students_does_not_change_a_whole_one(tiny_recipe: Path, tmp_path: Path, depth: int) -> None:
    recipe = load_recipe(tiny_recipe, ["methods=[finetune-whole]", "take=finetune-whole", f"student.layers={depth}"])
    run = Run(recipe, tmp_path / "workspace")
    _, (step,) = run.students.train(METHODS["finetune-whole"], 0)
    settings = json.loads((step.folder / "step.json").read_text())
    assert "start" not in json.dumps(settings)
    other = recipe.model_copy(update={"student": recipe.student.model_copy(update={"layers": 3 - depth})})
    _, (again,) = Run(other, tmp_path / "workspace").students.train(METHODS["finetune-whole"], 0)
    assert again.fingerprint == step.fingerprint
