"""The encoder of a student that reads passages once: starts at the cosine, ignores padding, survives its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tmkd.core.errors import EncoderError
from tmkd.models.bi_encoder import cosine_logits
from tmkd.models.checkpoint import load_student, save_student
from tmkd.models.encoders.find import find_encoder
from tmkd.models.encoders.interaction import InteractionEncoder, InteractionShape
from tmkd.models.encoders.text_batches import StateBatch
from tmkd.models.student import Student
from tmkd.models.text_reader import TextReader
from tmkd.models.text_states import TextStates, dequantised, padded, quantised, text_key

QUESTIONS = ["how do I sort a list?", "what is a hash?"]
PASSAGES = ["Use the sort function; it returns a new list.", "A hash maps keys to values, each key once in it."]


@pytest.fixture(scope="module")
def encoder() -> Path:
    return find_encoder("builtin:minilm-l6")


def a_batch(encoder: Path) -> StateBatch:
    states = {row: hidden for row, hidden, _ in TextReader(encoder, 64, "fp32").read([*QUESTIONS, *PASSAGES])}
    cosine = torch.from_numpy(cosine_logits(encoder, QUESTIONS, PASSAGES, 64, "fp32")[:, 1] / 10 + 0.5)

    def side(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(states[row]) for row in rows)
        found, mask = torch.zeros(len(rows), longest, 384), torch.zeros(len(rows), longest)
        for line, row in enumerate(rows):
            found[line, : len(states[row])] = torch.from_numpy(states[row])
            mask[line, : len(states[row])] = 1
        return found, mask

    return StateBatch(*side([0, 1]), *side([2, 3]), cosine)


def a_student(encoder: Path, **shape: object) -> Student:
    torch.manual_seed(0)
    sizes = InteractionShape(384, 96, 384, **shape)  # type: ignore[arg-type]
    return Student(InteractionEncoder(sizes, encoder), 2, soft_heads=3).eval()


def test_training_starts_exactly_at_the_cosine(encoder: Path) -> None:
    student = a_student(encoder)
    student.start_at_cosine()
    with torch.inference_mode():
        found = student.combine(student(a_batch(encoder)))
    wanted = cosine_logits(encoder, QUESTIONS, PASSAGES, 64, "fp32")
    assert np.allclose(found.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [{}, {"asks": "all"}, {"self_attention": False}])
def test_padding_changes_nothing(encoder: Path, shape: dict[str, object]) -> None:
    student, batch = a_student(encoder, **shape), a_batch(encoder)
    one = StateBatch(*(part[1:2] for part in batch))
    question, passage = int(one.question_mask.sum()), int(one.passage_mask.sum())
    alone = StateBatch(
        one.question[:, :question], one.question_mask[:, :question],
        one.passage[:, :passage], one.passage_mask[:, :passage], one.cosine,
    )  # fmt: skip
    with torch.inference_mode():
        both, single = student.combine(student(batch)), student.combine(student(alone))
    assert torch.allclose(both[1:2], single, atol=1e-5)


def test_one_question_for_all_passages_is_the_same_as_repeated(encoder: Path) -> None:
    student, batch = a_student(encoder), a_batch(encoder)
    repeated = batch._replace(question=batch.question[[0, 0]], question_mask=batch.question_mask[[0, 0]])
    single = batch._replace(question=batch.question[:1], question_mask=batch.question_mask[:1])
    with torch.inference_mode():
        assert torch.allclose(student.combine(student(repeated)), student.combine(student(single)), atol=1e-5)


def test_a_saved_student_gives_the_same_scores(encoder: Path, tmp_path: Path) -> None:
    student, batch = a_student(encoder), a_batch(encoder)
    save_student(student, tmp_path, encoder, 64, {"step": "tmkd", "teachers": ["a", "b", "c"]})
    loaded = load_student(tmp_path)
    with torch.inference_mode():
        before, after = student.eval()(batch), loaded.eval()(batch)
    assert torch.equal(before.golden, after.golden)
    assert torch.equal(before.soft, after.soft)


def test_another_encoder_in_the_folder_is_refused(encoder: Path, tmp_path: Path) -> None:
    save_student(a_student(encoder), tmp_path, encoder, 64, {})
    config = tmp_path / "encoder" / "config.json"
    text = config.read_text()
    config.unlink()  # it may be a link to the original
    config.write_text(text.replace("1536", "1537"))
    with pytest.raises(EncoderError, match="not the encoder"):
        load_student(tmp_path)


def test_eight_bits_are_within_half_a_step(encoder: Path) -> None:
    states = np.random.default_rng(0).normal(size=(40, 96)).astype(np.float32)
    values, scales = quantised(states)
    error = np.abs(dequantised(values, scales) - states)
    assert (error <= scales[:, None].astype(np.float32) * 0.5 + np.abs(states) * 1e-3).all()


def test_padding_has_the_scale_zero_and_other_texts_other_keys() -> None:
    one = TextStates.of(np.ones((3, 4), np.float32), np.ones(2, np.float32))
    two = TextStates.of(np.ones((5, 4), np.float32), np.ones(2, np.float32))
    values, scales, embeddings = padded([one, two])
    assert values.shape == (2, 5, 4)
    assert (scales[0] > 0).tolist() == [True, True, True, False, False]
    assert embeddings.shape == (2, 2)
    assert len({text_key(text) for text in ("-5", "+5", "5", " 5", "\u00e9", "e\u0301")}) == 6
