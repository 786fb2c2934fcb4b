"""A checkpoint as a teacher: its own tokenizer, length and order of classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pair_rows
from encoder_fixtures import tiny
from safetensors.torch import load_file, save_file

from tmkd.core.errors import EncoderError, LabelError
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_encoder, save_student
from tmkd.models.own_length import own_length
from tmkd.models.student import Student
from tmkd.teachers.encoder import EncoderTeacher
from tmkd.teachers.interface import TeacherLike

ROWS = pair_rows()
PAIRS = Pairs.build([str(row["question"]) for row in ROWS], [str(row["passage"]) for row in ROWS])


def checkpoint(folder: Path, *, ours: bool = True) -> Path:
    """A checkpoint with a random head, as tmkd saves it, or as another tool does (`ours=False`)."""
    torch.manual_seed(0)
    source = tiny("bert", folder / "tiny", max_position_embeddings=64)
    model = Student(load_encoder(source, 3, layers=1), 3)
    torch.nn.init.normal_(model.golden.weight)
    save_student(model, folder / "teacher", source, 48, {})
    if not ours:
        (folder / "teacher" / "tmkd.json").unlink()
    return folder / "teacher"


def test_a_checkpoint_gives_logits_in_the_order_of_the_pairs(tmp_path: Path) -> None:
    teacher: TeacherLike = EncoderTeacher(checkpoint(tmp_path), precision="fp32")
    logits = teacher.logits(PAIRS)
    assert logits.dtype == np.float32
    assert logits.shape == (len(PAIRS), 3)
    np.testing.assert_allclose(teacher.logits(PAIRS.take([5, 2])), logits[[5, 2]], atol=1e-5)
    assert teacher.name == "teacher"


def test_classes_are_put_into_the_order_of_the_task(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    own = EncoderTeacher(folder, precision="fp32")
    turned = EncoderTeacher(folder, class_order=[2, 0, 1], precision="fp32")
    np.testing.assert_allclose(turned.logits(PAIRS), own.logits(PAIRS)[:, [2, 0, 1]], atol=1e-6)
    assert turned.fingerprint != own.fingerprint
    with pytest.raises(ValueError, match="does not name each class"):
        EncoderTeacher(folder, class_order=[0, 1])


def test_the_length_is_the_checkpoints_own_unless_given(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    assert EncoderTeacher(folder).max_length == 48
    short = EncoderTeacher(folder, max_length=8, name="short")
    assert short.name == "short"
    assert short.fingerprint != EncoderTeacher(folder).fingerprint
    assert EncoderTeacher(folder, name="other").fingerprint == EncoderTeacher(folder).fingerprint
    with pytest.raises(EncoderError, match="has positions for 64 tokens"):
        EncoderTeacher(folder, max_length=65)


def test_the_length_is_what_the_files_of_another_tool_say(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, ours=False)
    tokenizer, library = folder / "tokenizer_config.json", folder / "sentence_bert_config.json"
    settings = json.loads(tokenizer.read_text())
    found = []
    for said in (40, 512, 1e30, None):
        tokenizer.write_text(json.dumps({**settings, "model_max_length": said}))
        found.append(EncoderTeacher(folder).max_length)
    assert found == [40, 64, 64, 64], "no more than the positions, which are 64"
    library.write_text(json.dumps({"max_seq_length": 32}))
    assert EncoderTeacher(folder).max_length == 32
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "roberta", "pad_token_id": 1}))
    library.unlink()
    assert own_length(folder) == 62, "RoBERTa's positions begin behind that of the padding"


def test_a_checkpoint_of_another_tool(tmp_path: Path) -> None:
    mine = EncoderTeacher(checkpoint(tmp_path / "a"), precision="fp32")
    theirs = EncoderTeacher(checkpoint(tmp_path / "b", ours=False), max_length=48, precision="fp32")
    np.testing.assert_allclose(theirs.logits(PAIRS), mine.logits(PAIRS), atol=1e-6)


def test_an_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="has no classification head"):
        EncoderTeacher(tiny("bert", tmp_path / "tiny"))


def scaled(folder: Path, factor: float) -> Path:
    """The checkpoint with its last layer's weights multiplied."""
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "classifier.weight": weights["classifier.weight"] * factor}, folder / "model.safetensors")
    return folder


def test_weights_that_are_not_finite_name_the_teacher_and_its_folder(tmp_path: Path) -> None:
    folder = scaled(checkpoint(tmp_path), float("nan"))
    with pytest.raises(EncoderError, match=r"^teacher large: .*not finite, first classifier\.weight.*fetch") as got:
        EncoderTeacher(folder, name="large").logits(PAIRS)
    assert str(folder) in str(got.value)


def test_logits_that_are_not_finite_name_the_teacher_the_pair_and_the_precision(tmp_path: Path) -> None:
    folder = scaled(checkpoint(tmp_path, ours=False), 1e38)
    first = f"first {PAIRS.questions[0]!r}"
    with pytest.raises(LabelError, match=r"teacher large .*no number for \d+ of \d+ pairs.*use precision: fp32") as got:
        EncoderTeacher(folder, name="large", max_length=48, precision="fp32").logits(PAIRS.take([0, 0, 0]))
    assert str(folder) in str(got.value)
    assert first in str(got.value)
    assert got.value.not_finite == 3
