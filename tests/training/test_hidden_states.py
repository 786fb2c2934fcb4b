"""Hidden states of the teacher that a student begins with, as a part of stage 1."""

from __future__ import annotations

import json
from pathlib import Path

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
from tmkd.training.hidden_states import Following

STATES = ("student.start=teacher", "student.layers=2", "stage1.batch_size=8")


def followed(family: str, folder: Path, layers: int = 2) -> tuple[Following, Path, Encoded, int]:
    """A student that begins with evenly spaced layers of a teacher of four; two pairs of different lengths."""
    source = tiny(family, folder / "encoder", num_hidden_layers=4)
    tokenizer = PairTokenizer(source, 32)
    torch.manual_seed(0)
    teacher = folder / "teacher"
    save_student(Student(load_encoder(source, 2), 2), teacher, source, 32, {})
    torch.manual_seed(1)
    encoder = load_encoder(teacher, 2, layers=layers, start="spaced")
    student = Following(encoder, 2, 1, width=32, teacher=teacher, precision="fp32", use_golden=False).train()
    encoded = tokenizer.encode(["how to sort", "why"], ["sort the keys by their values", "so"])
    return student, teacher, encoded, tokenizer.pad_id


def padded(encoded: Encoded, pad_id: int) -> Batch:
    ids, mask, types = (torch.from_numpy(a) for a in pad(encoded.ids, encoded.type_ids, [0, 1], pad_id))
    return Batch(ids, mask, types, rows=torch.tensor([0, 1]))


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_the_distance_is_that_of_the_modules_states(family: str, tmp_path: Path) -> None:
    student, folder, encoded, pad_id = followed(family, tmp_path)
    batch = padded(encoded, pad_id)
    found = student(batch).states
    teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "output_hidden_states": True}
    given |= {"token_type_ids": batch.token_type_ids} if takes_token_types(teacher.config) else {}
    with torch.no_grad():
        taught = teacher(**given).hidden_states  # embeddings, then after each layer
        encoder: PairEncoder = student.encoder  # type: ignore[assignment]
        own = encoder.model.eval()(**given).hidden_states
    gain = teacher.get_submodule(encoder.family.base).encoder.layer[1].output.LayerNorm.weight
    for row, length in enumerate(len(tokens) for tokens in encoded.ids):
        error = (own[1][row, :length] - taught[2][row, :length]).square().mean()
        assert torch.allclose(found[row], error / gain.square().mean(), rtol=1e-4)
    assert found.min() > 0.1


def test_a_student_as_deep_as_its_teacher_is_where_it_is(tmp_path: Path) -> None:
    student, _, encoded, pad_id = followed("bert", tmp_path, layers=4)
    found = student(padded(encoded, pad_id)).states
    assert torch.allclose(found, torch.zeros(2), atol=1e-9)


def test_packed_and_padded_batches_are_as_far(tmp_path: Path) -> None:
    student, _, encoded, pad_id = followed("bert", tmp_path)
    rectangle = student(padded(encoded, pad_id)).states
    ids, types, starts = (torch.from_numpy(a) for a in pack(encoded.ids, encoded.type_ids, [0, 1]))
    packed = student(Batch(ids, None, types, Packing(starts, 32))).states
    assert torch.allclose(rectangle, packed, rtol=1e-4)


def test_the_teacher_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    student, _, encoded, pad_id = followed("bert", tmp_path)
    batch = padded(encoded, pad_id)
    student(batch).states.sum().backward()
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert trained  # the layers below the last, and nothing above them
    assert all(".layer.0." in name for name in trained)
    assert not any(parameter.requires_grad for parameter in student.teacher[0].parameters())
    assert not any("teacher" in name for name in student.state_dict())
    assert student.eval()(batch).states.numel() == 0  # no teacher runs where nothing is learned


def test_kept_states_are_those_of_the_first_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, _, encoded, pad_id = followed("bert", tmp_path)
    batch = padded(encoded, pad_id)
    running = student(batch).states
    student.keep(tmp_path / "state", encoded.lengths)
    first = student(batch).states
    assert torch.allclose(first, running, rtol=1e-3)  # float16
    monkeypatch.setattr(student.teacher[0], "forward", lambda batch: pytest.fail("the teacher read a pair twice"))
    assert torch.equal(student(batch).states, first)
    again, _, _, _ = followed("bert", tmp_path / "again")  # as after a kill: another process, the same file
    again.load_state_dict(student.state_dict())
    again.keep(tmp_path / "state", encoded.lengths)
    monkeypatch.setattr(again.teacher[0], "forward", lambda batch: pytest.fail("the teacher read a pair twice"))
    assert torch.equal(again(batch).states, first)


def test_states_that_the_disk_has_no_room_for_are_computed_in_every_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    student, _, encoded, pad_id = followed("bert", tmp_path)
    running = student(padded(encoded, pad_id)).states
    monkeypatch.setattr("tmkd.training.hidden_states.SHARE_OF_DISK", 0.0)
    student.keep(tmp_path / "state", encoded.lengths)
    assert "it runs in every pass" in caplog.text
    assert torch.equal(student(padded(encoded, pad_id)).states, running)
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
    assert "the teacher's states are not learned" in done.stderr
