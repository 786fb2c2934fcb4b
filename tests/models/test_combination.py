"""Heads of a student: stored once, combined in one place, as METHOD.md's "Inference" says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tmkd, pair_rows
from encoder_fixtures import tiny

from tmkd.core.errors import TmkdError
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_encoder, save_student
from tmkd.models.student import Student, combine
from tmkd.pipeline.steps.label import combined_logits, head_logits, label, method_logits
from tmkd.pipeline.store.workspace import Step, Workspace


def pairs() -> Pairs:
    rows = pair_rows()
    return Pairs.build([str(r["question"]) for r in rows], [str(r["passage"]) for r in rows])


def stored(folder: Path, *, use_golden: bool = True, seed: int = 0) -> Step:
    """A student of three heads (two where the golden one was not trained) that differ much."""
    torch.manual_seed(seed)
    source = tiny("bert", folder / "tiny")
    student = Student(load_encoder(source, 2, layers=1), 2, soft_heads=2, use_golden=use_golden)
    torch.nn.init.normal_(student.soft_weight)
    torch.nn.init.normal_(student.golden.weight)
    save_student(student, folder / "student", source, 64, {})
    return Step("student", f"mark{seed}{use_golden}", folder / "student")


def test_combinations_by_hand() -> None:
    odds = np.array([3.0, 1.0, -2.0])  # of the golden head and two soft ones
    heads = np.stack([np.zeros(3), odds], axis=-1)[None]
    by = {how: combine(heads, how) for how in ("logit", "probability", "golden")}
    found = {how: float(logits[0, 1] - logits[0, 0]) for how, logits in by.items()}
    mean = (1 / (1 + np.exp(-odds))).mean()
    assert found["logit"] == pytest.approx(2 / 3)
    assert found["probability"] == pytest.approx(np.log(mean / (1 - mean)))
    assert found["golden"] == pytest.approx(3.0)
    assert np.exp(by["probability"]).sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="golden head was not trained"):
        combine(heads, "golden", golden=False)


def test_the_golden_head_begins_as_the_mean_of_the_soft_heads(tmp_path: Path) -> None:
    student = Student(load_encoder(tiny("bert", tmp_path / "tiny"), 2, layers=1), 2, soft_heads=2, use_golden=False)
    with torch.no_grad():
        student.soft_weight.copy_(torch.stack([torch.full((2, 48), 1.0), torch.full((2, 48), 5.0)]))
        student.soft_bias.copy_(torch.tensor([[0.0, 2.0], [4.0, 8.0]]))
        student.golden.bias.fill_(9.0)
    student.start_golden_from_soft()
    assert student.use_golden
    assert torch.equal(student.golden.weight, torch.full((2, 48), 3.0))
    assert student.golden.bias.tolist() == [2.0, 5.0]
    weight, bias = student.fold()  # three heads: 1, 5 and their mean
    assert torch.allclose(weight, torch.full((2, 48), 3.0))
    assert bias.tolist() == pytest.approx([2.0, 5.0])
    with torch.no_grad():
        student.golden.weight.fill_(0.0)
        student.golden.bias.fill_(-1.0)
    weight, bias = student.fold()
    assert torch.allclose(weight, torch.full((2, 48), 2.0))
    assert bias.tolist() == pytest.approx([1.0, 3.0])


def test_stored_heads_give_every_combination(tmp_path: Path) -> None:
    workspace, model, rows = Workspace(tmp_path / "w"), stored(tmp_path), pairs()
    given: dict[str, Any] = {"name": "tmkd", "precision": "fp32"}
    heads = head_logits(workspace, model, rows, **given)
    assert heads.shape == (len(rows), 3, 2)
    assert np.abs(heads[:, 0] - heads[:, 1]).max() > 0.1
    combined = label(workspace, model, rows, **given).logits_for(rows.pair_ids)
    np.testing.assert_allclose(heads.mean(axis=1), combined, atol=1e-6)
    for how in ("probability", "golden"):
        np.testing.assert_array_equal(combined_logits(workspace, model, rows, how, **given), combine(heads, how))
    few = rows.take([3, 1])
    np.testing.assert_array_equal(head_logits(workspace, model, few, **given), heads[[3, 1]])
    assert len(list((tmp_path / "w" / "steps").glob("headers-*"))) == 2
    assert method_logits(workspace, [model, model], rows, "probability", **given).shape == (2, len(rows), 2)


def test_several_students_of_a_seed_are_averaged(tmp_path: Path) -> None:
    workspace, rows = Workspace(tmp_path / "w"), pairs()
    models = [stored(tmp_path / str(seed), seed=seed) for seed in range(4)]
    given: dict[str, Any] = {"name": "m-o-m", "precision": "fp32"}
    alone = method_logits(workspace, models, rows, **given)
    together = method_logits(workspace, models, rows, each=2, **given)
    softmax = np.exp(alone) / np.exp(alone).sum(-1, keepdims=True)
    assert together.shape == (2, len(rows), 2)
    np.testing.assert_allclose(np.exp(together[0]), softmax[:2].mean(0), atol=1e-12)
    np.testing.assert_allclose(np.exp(together[1]), softmax[2:].mean(0), atol=1e-12)


def test_a_stage1_student_has_no_golden_head(tmp_path: Path) -> None:
    workspace, model = Workspace(tmp_path / "w"), stored(tmp_path, use_golden=False)
    assert head_logits(workspace, model, pairs(), name="s", precision="fp32").shape[1] == 2
    with pytest.raises(TmkdError, match="no golden head; use combination: logit"):
        combined_logits(workspace, model, pairs(), "golden", name="s", precision="fp32")


def test_a_recipe_says_how_its_students_are_combined(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    encoder = f"encoder={tiny('bert', tmp_path / 'tiny')}"
    numbers = []
    for how in ("logit", "probability"):
        tmkd(
            "distill",
            recipe_file,
            encoder,
            "methods=[mkd]",
            "take=mkd",
            f"combination={how}",
        )
        run = tmp_path / "workspace" / "runs" / "tiny"
        tmkd("evaluate", run, "--pairs", tmp_path / "test.jsonl", "--no-speed", "--json", tmp_path / f"{how}.json")
        numbers.append(json.loads((tmp_path / f"{how}.json").read_text()))
    steps = [path.name.split("-")[0] for path in (tmp_path / "workspace" / "steps").iterdir()]
    assert steps.count("student") == 1  # nothing is trained again
    assert steps.count("headers") == 1
    assert numbers[0]["methods"][0] == numbers[1]["methods"][0]  # teachers have one head
