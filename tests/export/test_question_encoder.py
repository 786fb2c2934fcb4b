"""The export of a cached student whose questions have an encoder, and a tokenizer, of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cached_fixtures import bottom_of_minilm, cached_export, cached_student
from encoder_fixtures import byte_tokenizer, tiny
from export_fixtures import dev_pairs, texts

from tmkd.core.errors import ExportError
from tmkd.data.pairs import Pairs
from tmkd.export.cached import CachedStudent
from tmkd.export.export import export_student
from tmkd.inference.scorer import Scorer
from tmkd.inference.text_encoder import TextEncoder
from tmkd.models.checkpoint import load_encoder, load_student, save_student
from tmkd.models.encoders.find import find_encoder
from tmkd.models.encoders.interaction import InteractionEncoder
from tmkd.models.encoders.text_batches import TrainedReaders
from tmkd.models.text_tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions are read by a RoBERTa with a tokenizer of bytes, passages by the bottom of MiniLM; all backends."""
    folder = tmp_path_factory.mktemp("two")
    asking = byte_tokenizer(tiny("roberta", folder / "asking", hidden_size=384, num_hidden_layers=1, pad_token_id=1))
    cached_student(folder, asking=asking)
    export_student(folder / "student", dev_pairs(), folder / "out", calibration=dev_pairs())
    return folder


def test_both_encoders_are_exported_and_agree_with_the_student(export: Path) -> None:
    out = export / "out"
    card = json.loads((out / "tmkd.json").read_text())
    assert (card["format"], card["states"]["question_encoder"]) == (4, True)
    rows = {row["backend"]: row for row in json.loads((out / "parity.json").read_text())}
    assert rows["onnx-fp32"]["passed"], rows["onnx-fp32"]["reason"]
    assert rows["onnx-fp32"]["stored_difference"] == 0.0
    assert rows["onnx-fp32"]["cosine_difference"] < 1e-4
    named = {part["file"] for entry in card["backends"].values() for part in entry["files"].values()}
    assert named == {f"onnx/{path.name}" for path in (out / "onnx").iterdir()}
    assert "onnx/question.onnx" in named

    questions, passages = texts(40, seed=5)
    folders = (export / "student", TextTokenizer(out, 48), TextTokenizer(out / "question_encoder", 48))
    pairs = Pairs.build(questions, passages)
    student = CachedStudent(*folders)
    wanted = student.logits(student.read(pairs), pairs, rounded=True)[:, 1]
    assert wanted.std() > 0.05
    np.testing.assert_allclose(Scorer(out, backend="onnx-fp32").scores(questions, passages), wanted, atol=2e-3)
    assert TextEncoder.open(out, backend="onnx-fp32").identity == student.identity
    asked = Scorer(out, backend="onnx-fp32").text_encoder.question(questions[0])  # type: ignore[union-attr]
    assert len(asked.hidden) == min(len(questions[0]) + 2, 48) or len(asked.hidden) > len(questions[0].split()) + 2


def test_the_states_of_passages_do_not_depend_on_the_encoder_of_questions(export: Path, tmp_path: Path) -> None:
    """So an index that was read once serves students with other encoders of questions; another E has another name."""
    plain = json.loads((cached_export() / "out" / "tmkd.json").read_text())["states"]["identity"]
    assert json.loads((export / "out" / "tmkd.json").read_text())["states"]["identity"] == plain
    deeper = cached_student(tmp_path, layers=2)
    assert CachedStudent(deeper, TextTokenizer(cached_export() / "out", 48)).identity != plain


def test_states_of_an_encoder_before_its_training_are_of_another_model(tmp_path: Path) -> None:
    """Interaction and projection are the same; one weight of the encoder was changed by training."""
    source = find_encoder("builtin:minilm-l6")
    student = load_student(cached_export() / "student")
    assert isinstance(student.encoder, InteractionEncoder)
    student.encoder.readers = TrainedReaders(load_encoder(student.encoder.source, 2))
    for name, step in (("same", 0.0), ("trained", 1e-3)):
        with torch.no_grad():
            student.encoder.readers.passage.base.encoder.layer[0].output.dense.bias[0] += step
        save_student(student, tmp_path / name, source, 48, {"step": "tmkd", "teachers": ["a", "b"]})
        again = load_student(tmp_path / name).encoder  # its files fit together
        assert isinstance(again, InteractionEncoder)
        assert torch.equal(again.projection.weight, student.encoder.projection.weight)
    tokenizer = TextTokenizer(cached_export() / "out", 48)
    before, after = (CachedStudent(tmp_path / name, tokenizer) for name in ("same", "trained"))
    assert before.identity != after.identity
    scorer = Scorer(cached_export() / "out")
    with pytest.raises(ExportError, match=f"holds states of {after.identity}.*another model, tokenizer or length"):
        scorer.attach(SimpleNamespace(identity=after.identity, get=lambda key: None))


@pytest.mark.parametrize("what", ["onnx/question.onnx", "question_encoder/tokenizer.json"])
def test_a_missing_or_damaged_file_of_questions_is_named(export: Path, tmp_path: Path, what: str) -> None:
    copy = Path(shutil.copytree(export / "out", tmp_path / "out"))
    content = (copy / what).read_bytes()
    (copy / what).write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=rf"{what}.*damaged"):
        Scorer(copy)
    (copy / what).unlink()
    with pytest.raises(Exception, match=what.split("/")[1]):
        Scorer(copy)


def test_an_entry_without_the_graph_of_questions_is_damaged(export: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(export / "out", tmp_path / "out"))
    card = json.loads((copy / "tmkd.json").read_text())
    for entry in card["backends"].values():
        del entry["files"]["question"]
    (copy / "tmkd.json").write_text(json.dumps(card))
    with pytest.raises(ExportError, match=r"tmkd\.json is damaged"):
        Scorer(copy)


def test_another_encoder_of_questions_in_the_students_folder_is_refused(export: Path, tmp_path: Path) -> None:
    student = Path(shutil.copytree(export / "student", tmp_path / "student"))
    other = bottom_of_minilm(tmp_path / "other", 2)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(other / name, student / "question_encoder" / name)
    with pytest.raises(Exception, match=r"question_encoder is not the encoder that this student was trained with"):
        export_student(student, dev_pairs(10), tmp_path / "out", backends=["onnx-fp32"])
