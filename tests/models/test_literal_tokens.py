"""A special token that a text spells out (`[SEP]`, `<pad>`) does everywhere what it does in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from encoder_fixtures import OURS, THEIRS, byte_tokenizer, tiny
from export_fixtures import dev_pairs, mpnet_student
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tmkd.export.export import export_student
from tmkd.export.fold import load_checkpoint
from tmkd.export.onnx import write_onnx
from tmkd.inference.scorer import Scorer
from tmkd.models.batching import pack, pad
from tmkd.models.checkpoint import load_encoder, load_finished, save_student
from tmkd.models.encoders.families import takes_token_types
from tmkd.models.encoders.forward import Batch, Packing
from tmkd.models.encoders.lstm import LstmEncoder, LstmShape
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import score
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer

QUESTIONS = ["how do i pad a list?", "what is [PAD] for", "why </s> or [SEP]", "<pad> <pad>", "where is [CLS] put"]
PASSAGES = [
    "the token <pad> fills a row, as [PAD] does, up to the longest one",
    "a plain passage of this pair",
    "[CLS] question [SEP] passage [SEP] is what <s>a model</s></s>reads</s>",
    "[PAD][PAD]<pad><pad>",
    "first",
]


def saved_student(family: str, folder: Path) -> Path:
    """A student of a family with a tokenizer whose padding token is the one that its configuration names."""
    bytes_ = family in {"roberta", "xlm-roberta", "mpnet"}
    source = tiny(family, folder / "source", **({"pad_token_id": 1} if bytes_ else {}))
    if bytes_:
        byte_tokenizer(source)
    student = Student(load_encoder(source, 2, layers=2), 2)
    torch.nn.init.normal_(student.golden.weight, std=0.5)
    save_student(student, folder / "saved", source, 96, {})
    return folder / "saved"


def of_transformers(folder: Path) -> np.ndarray:
    """The log-odds of the pairs as transformers alone computes them, [N, 1]: two classes are saved as one logit."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(QUESTIONS, PASSAGES, truncation=True, padding=True, return_tensors="pt")
    if takes_token_types(model.config):
        given["token_type_ids"] = given.get("token_type_ids", torch.zeros_like(given["input_ids"]))
    else:
        given.pop("token_type_ids", None)
    with torch.no_grad():
        found: np.ndarray = model(**given).logits.numpy()
    return log_odds(found)


def log_odds(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]
    return found


@pytest.mark.parametrize("family", [*OURS, *THEIRS])
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = saved_student(family, tmp_path)
    wanted = of_transformers(folder)
    student, tokenizer = load_finished(folder, 2).eval(), PairTokenizer(folder, 96)
    encoded = tokenizer.encode(QUESTIONS, PASSAGES)
    assert sum(tokenizer.pad_id in ids for ids in encoded.ids) >= 2  # the texts hold the padding token itself
    np.testing.assert_allclose(
        log_odds(score(student, TokenInputs(encoded, tokenizer.pad_id), precision="fp32")), wanted, atol=1e-5
    )
    every = np.arange(len(QUESTIONS))
    ids, mask, types = pad(encoded.ids, encoded.type_ids, every, tokenizer.pad_id)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    write_onnx(load_checkpoint(folder), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})
    np.testing.assert_allclose(log_odds(found), wanted, atol=1e-5)
    if student.encoder.packs:
        ids, types, starts = pack(encoded.ids, encoded.type_ids, every)
        packing = Packing(torch.from_numpy(starts), int(encoded.lengths.max()))
        with torch.no_grad():
            packed = student(Batch(torch.from_numpy(ids), None, torch.from_numpy(types), packing))
        np.testing.assert_allclose(log_odds(student.combine(packed).numpy()), wanted, atol=1e-5)


def test_the_runtime_scores_an_export_as_transformers_does(tmp_path: Path) -> None:
    student = mpnet_student(tmp_path / "mpnet")
    export_student(student, dev_pairs(20), tmp_path / "export", backends=["onnx-fp32"])
    found = Scorer(tmp_path / "export").logits(QUESTIONS, PASSAGES)
    np.testing.assert_allclose(log_odds(found), of_transformers(tmp_path / "export"), atol=1e-5)


def test_a_separator_in_the_question_does_not_move_the_passage_of_a_bilstm() -> None:
    encoder = LstmEncoder(LstmShape(vocab_size=9, embedding_size=4, hidden_size=4, separator=3, pad_token_id=0))
    ids = torch.tensor([[2, 5, 3, 6, 3, 7, 8, 3, 0]])  # [CLS] 5 [SEP] 6 [SEP] 7 8 [SEP] [PAD]; the first is spelled out
    types = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 0]])
    question, passage = encoder._sides(Batch(ids, None, types), (ids != 0).long())
    assert question.tolist() == [[True] * 5 + [False] * 4]
    assert passage.tolist() == [[False] * 5 + [True] * 3 + [False]]
    plain = torch.tensor([[2, 5, 3, 7, 3]])
    question, passage = encoder._sides(Batch(plain, None, torch.zeros_like(plain)), torch.ones_like(plain))
    assert passage.tolist() == [[False] * 3 + [True] * 2]
