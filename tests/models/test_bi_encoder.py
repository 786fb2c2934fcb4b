"""The bi-encoder cosine: embeddings, their cosine, its row in the comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOPICS, Tmkd
from encoder_fixtures import tiny
from tokenizers import Tokenizer

from tmkd.models.bi_encoder import cosine_logits, embed
from tmkd.models.encoders.find import find_encoder
from tmkd.models.student import SHARPNESS


@pytest.mark.parametrize("family", ["minilm", "mpnet"])
def test_an_embedding_is_the_mean_of_the_last_hidden_states_in_any_batch(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = find_encoder("builtin:minilm-l6") if family == "minilm" else tiny("mpnet", tmp_path / "tiny")
    texts = ["How do I copy a file?", "The cp command duplicates a file under another name; use -r for folders.", "x"]
    found = embed(folder, texts, 64, "fp32")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    for text, row in zip(texts, found, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([tokenizer.encode(text).ids])
            mean = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        assert np.allclose(row, mean / mean.norm(), atol=1e-5)


def test_bf16_gives_nearly_the_same() -> None:
    folder, texts = find_encoder("builtin:minilm-l6"), [text for pair in TOPICS.values() for text in pair]
    exact, close = (embed(folder, texts, 64, precision) for precision in ("fp32", "bf16"))
    assert not np.array_equal(close, exact)
    assert np.abs(close @ close.T - exact @ exact.T).max() < 0.02


def test_each_question_is_nearest_to_its_own_answer() -> None:
    questions, answers = zip(*TOPICS.values(), strict=True)
    folder = find_encoder("builtin:minilm-l6")
    pairs = [(q, a) for q in questions for a in answers]
    logits = cosine_logits(folder, [q for q, _ in pairs], [a for _, a in pairs], 64)
    scores = (logits[:, 1] - logits[:, 0]).reshape(len(questions), -1)
    assert (scores.argmax(axis=1) == np.arange(len(questions))).all()
    assert np.abs(scores).max() <= 1.5 * SHARPNESS


def test_the_cosine_is_a_row_of_the_comparison_and_computed_once(tmkd: Tmkd, recipe_file: Path) -> None:
    methods = "methods=[teacher,teacher-ensemble,cosine,finetune]"
    first = tmkd("run", recipe_file, methods, "take=finetune", "export.backends=[onnx-fp32]", "--json")
    assert '"name": "cosine"' in first.stdout
    again = tmkd("run", recipe_file, methods, "take=finetune", "export.backends=[onnx-fp32]", "--json")
    assert "bi-encoder cosine: done before" in again.stderr
    assert again.stdout == first.stdout
