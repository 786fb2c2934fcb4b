"""Hidden states as an auxiliary objective of stage 1."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import Tmkd
from encoder_fixtures import tiny
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tmkd.models.batching import pack, pad
from tmkd.models.checkpoint import load_encoder, load_student, save_student
from tmkd.models.encoders.families import takes_token_types
from tmkd.models.encoders.forward import Batch, Packing, PairEncoder
from tmkd.models.student import Student
from tmkd.models.tokenizer import Encoded, PairTokenizer
from tmkd.training.hidden_states import VALUES, HiddenStates, HiddenStatesConfig, StoredStates, hidden_states_objectives
from tmkd.training.objectives import TotalLoss

STATES = ("student.start=teacher", "student.layers=2", "stage1.batch_size=8")


class Followed(NamedTuple):
    """A student that begins with evenly spaced layers of a teacher of four; two pairs of different lengths."""

    student: Student
    objective: HiddenStates
    teacher: Path
    encoded: Encoded
    pad_id: int

    def distance(self, batch: Batch) -> torch.Tensor:
        """How far the student's hidden states are from the teacher's, for both pairs, [2]."""
        return self.objective.loss(self.student(batch, self.objective.layers), batch, torch.tensor([0, 1]))

    def padded(self) -> Batch:
        """Both pairs as a rectangle."""
        ids, mask, types = pad(self.encoded.ids, self.encoded.type_ids, [0, 1], self.pad_id)
        return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types))


def followed(family: str, folder: Path, layers: int = 2) -> Followed:
    source = tiny(family, folder / "encoder", num_hidden_layers=4)
    tokenizer = PairTokenizer(source, 32)
    torch.manual_seed(0)
    teacher = folder / "teacher"
    save_student(Student(load_encoder(source, 2), 2), teacher, source, 32, {})
    torch.manual_seed(1)
    encoder = load_encoder(teacher, 2, layers=layers, start="spaced")
    student = Student(encoder, 2, 1, use_golden=False).train()
    (objective,) = hidden_states_objectives(encoder, [teacher], HiddenStatesConfig(10.0, precision="fp32"))
    encoded = tokenizer.encode(["how to sort", "why"], ["sort the keys by their values", "so"])
    return Followed(student, objective, teacher, encoded, tokenizer.pad_id)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_the_distance_is_that_of_the_modules_states(family: str, tmp_path: Path) -> None:
    setting = followed(family, tmp_path)
    batch = setting.padded()
    found = setting.distance(batch)
    teacher = AutoModelForSequenceClassification.from_pretrained(setting.teacher).eval()
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "output_hidden_states": True}
    given |= {"token_type_ids": batch.token_type_ids} if takes_token_types(teacher.config) else {}
    with torch.no_grad():
        taught = teacher(**given).hidden_states  # embeddings, then after each layer
        encoder = setting.student.encoder
        assert isinstance(encoder, PairEncoder)
        own = encoder.model.eval()(**given).hidden_states
    gain = teacher.get_submodule(encoder.family.base).encoder.layer[1].output.LayerNorm.weight
    for row, length in enumerate(len(tokens) for tokens in setting.encoded.ids):
        error = (own[1][row, :length] - taught[2][row, :length]).square().mean()
        assert torch.allclose(found[row], error / gain.square().mean(), rtol=1e-4)
    assert found.min() > 0.1


def test_a_student_as_deep_as_its_teacher_is_where_it_is(tmp_path: Path) -> None:
    setting = followed("bert", tmp_path, layers=4)
    found = setting.distance(setting.padded())
    assert torch.allclose(found, torch.zeros(2), atol=1e-7)  # but for float16


def test_packed_and_padded_batches_are_as_far(tmp_path: Path) -> None:
    setting = followed("bert", tmp_path)
    rectangle = setting.distance(setting.padded())
    ids, types, starts = (torch.from_numpy(a) for a in pack(setting.encoded.ids, setting.encoded.type_ids, [0, 1]))
    packed = setting.distance(Batch(ids, None, types, Packing(starts, 32)))
    assert torch.allclose(rectangle, packed, rtol=1e-4)


def test_the_teacher_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    setting = followed("bert", tmp_path)
    student, batch = setting.student, setting.padded()
    setting.distance(batch).sum().backward()
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert trained  # the layers below the last, and nothing above them
    assert all(".layer.0." in name for name in trained)
    assert not any(parameter.requires_grad for parameter in setting.objective.parameters())
    loss = TotalLoss(lambda output, rows: output.soft.sum(), [setting.objective])
    assert loss.trained(student) == {name: p for name, p in student.named_parameters() if p.requires_grad}
    assert not any("teacher" in name for name in student.state_dict())
    assert not student(batch).hidden_states  # nothing is kept that no objective asks for


def test_each_teacher_but_the_first_is_learned_through_a_projection(tmp_path: Path) -> None:
    setting = followed("bert", tmp_path)
    encoder, batch, config = setting.student.encoder, setting.padded(), HiddenStatesConfig(10.0, precision="fp32")
    first, second = hidden_states_objectives(encoder, [setting.teacher, setting.teacher], config)
    assert first.weight == second.weight == 5.0
    assert not list(first.projections.parameters())
    output, rows = setting.student(batch, first.layers), torch.tensor([0, 1])
    before = first.loss(output, batch, rows)
    assert torch.allclose(second.loss(output, batch, rows), before)  # the identity
    total = TotalLoss(lambda output, rows: output.soft.sum(), [first, second])
    assert set(total.trained(setting.student)) - set(dict(setting.student.named_parameters())) == {
        "projections.teacher-1.weight"
    }
    (projection,) = second.projections.parameters()
    second.loss(output, batch, rows).sum().backward()
    assert projection.grad is not None
    with torch.no_grad():
        projection.sub_(1e-2 * projection.grad)
        assert (second.loss(output, batch, rows) < before).all()
        projection.zero_()
        taught = second._taught(batch, rows)[0].float()
        length = len(setting.encoded.ids[0])
        alone = taught[0, :length].square().mean() / second.scales[0]
        assert torch.allclose(second.loss(output, batch, rows)[0], alone, rtol=1e-4)  # by hand: nothing against it


def test_stage_1_learns_those_of_every_teacher(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    """tmkd has another stage 1 with them, tkd the same; the student has no projection."""
    steps = tmp_path / "workspace" / "steps"
    deep = tiny("bert", tmp_path / "deep", num_hidden_layers=4)
    given = (*STATES, f"encoder={deep}", "stage1.states=10", "methods=[tkd,tmkd]", "stage1.epochs=2")
    tmkd("pretrain", tiny_recipe, *given)
    best = set(steps.glob("stage1-*"))
    said = tmkd("pretrain", tiny_recipe, *given, "stage1.states_from=each").stderr
    (each,) = set(steps.glob("stage1-*")) - best
    assert "stage 1 of tkd, seed 0: done before" in said
    assert said.count("the teacher's hidden states are stored in the first pass") == 2
    assert {frozenset(load_file(step / "model.safetensors")) for step in (each, *best)} == {
        frozenset(load_file(each / "model.safetensors"))
    }
    alone = tmkd("pretrain", tiny_recipe, *given, "stage1.states_from=each", "use_teachers=1", check=False)
    assert alone.returncode != 0
    assert "stage1.states_from: each is for two or more teachers that are fine-tuned from" in alone.stderr


@pytest.mark.parametrize("bf16", [False, True])
def test_kept_states_are_those_of_the_first_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    setting = followed("bert", tmp_path)
    batch = setting.padded()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):  # as `MicroBatchGradients.run` calls it
        running = setting.distance(batch)
        setting.objective.store(tmp_path / "state", setting.encoded.lengths)
        first = setting.distance(batch)
    assert torch.equal(first, running)  # both in float16

    def fail(*given: object) -> None:
        pytest.fail("the teacher read a pair twice")

    monkeypatch.setattr(setting.objective.teacher, "with_hidden_states", fail)
    again = followed("bert", tmp_path / "again")  # as after a kill: another process, the same file
    again.student.load_state_dict(setting.student.state_dict())
    again.objective.store(tmp_path / "state", setting.encoded.lengths)
    monkeypatch.setattr(again.objective.teacher, "with_hidden_states", fail)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert torch.equal(setting.distance(batch), first)
        assert torch.equal(again.distance(batch), first)


def test_states_are_kept_where_the_system_reserves_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no `posix_fallocate`."""
    monkeypatch.delattr(os, "posix_fallocate")
    lengths, states = np.array([70_000, 3]), np.ones((1, 3, 8), dtype=np.float16)
    StoredStates(tmp_path, lengths, 8).store([1], states)
    kept = StoredStates(tmp_path, lengths, 8)  # as after an interruption
    assert kept.load([0], 3) is None
    np.testing.assert_array_equal(kept.load([1], 3), states)
    assert (tmp_path / VALUES).stat().st_size == 70_003 * 8 * 2


def test_states_that_the_disk_has_no_room_for_are_computed_in_every_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setting = followed("bert", tmp_path)
    running = setting.distance(setting.padded())
    monkeypatch.setattr("tmkd.training.hidden_states.SHARE_OF_DISK", 0.0)
    caplog.set_level("INFO", "tmkd")
    setting.objective.store(tmp_path / "state", setting.encoded.lengths)
    assert "the teacher runs in every pass" in caplog.text
    assert torch.equal(setting.distance(setting.padded()), running)
    assert not list((tmp_path / "state").iterdir())


@pytest.mark.parametrize("loss", ["kl", "margin_mse"])
def test_stage_1_learns_them_beside_the_soft_labels(loss: str, tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    steps = tmp_path / "workspace" / "steps"
    deep = tiny("bert", tmp_path / "deep", num_hidden_layers=4)
    given = (*STATES, f"loss.kind={loss}", f"encoder={deep}")
    tmkd("pretrain", tiny_recipe, *given)
    (alone,) = steps.glob("stage1-*")
    tmkd("pretrain", tiny_recipe, *given, "stage1.states=10")
    (both,) = set(steps.glob("stage1-*")) - {alone}
    curves = [json.loads((step / "curve.json").read_text()) for step in (alone, both)]
    assert curves[1][0]["loss"] > curves[0][0]["loss"] + 0.1
    names = [sorted(load_file(step / "model.safetensors")) for step in (alone, both)]
    assert names[0] == names[1]  # an ordinary student
    assert load_student(both).soft_heads == load_student(alone).soft_heads
    again = tmkd("pretrain", tiny_recipe, *given, "stage1.states=10")
    assert "stage 1 of tmkd, seed 0: done before" in again.stderr


def test_only_a_student_that_begins_with_a_teacher_learns_them(tmkd: Tmkd, tiny_recipe: Path) -> None:
    refused = tmkd("pretrain", tiny_recipe, "stage1.states=10", check=False)
    assert refused.returncode != 0
    assert "stage1.states: 10, but a student learns the states of the teacher" in refused.stderr
    assert "set student.start=teacher, or stage1.states=0" in refused.stderr


def test_an_encoder_that_transformers_runs_goes_without(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    other = tiny("distilbert", tmp_path / "other")
    done = tmkd("pretrain", tiny_recipe, *STATES, "stage1.states=10", f"encoder={other}")
    assert "the teacher's hidden states are not learned" in done.stderr
