"""The encoder's own opinion, with nothing trained: the cosine of question's and passage's mean-pooled embeddings.

A sentence encoder knows much of the task before any label is seen (Reimers and Gurevych 2019, "Sentence-BERT", mean
pooling). A teacher that does not come ahead of this has learned something else than the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tmkd.core.console import progress
from tmkd.core.hardware import device, use_bf16
from tmkd.models.batching import length_sorted_batches, pad
from tmkd.models.tokenizer import PairTokenizer

TOKENS = 4096  # most tokens of a batch
SHARPNESS = 10.0  # logits are this times the cosine's distance from one half, so a decision is at one half


def cosine_logits(
    folder: Path, questions: Sequence[str], passages: Sequence[str], max_length: int, precision: str = "auto"
) -> NDArray[np.float32]:
    """Logits of two classes, [N, 2] float32: 0, and SHARPNESS (cosine - 1/2). The order by them is the cosine's.

    Args:
        folder: an encoder, as `find_encoder` gives it; each text is cut to `max_length` tokens.
        precision: of the encoder's arithmetic, as in a recipe.
    """
    texts = list(dict.fromkeys([*questions, *passages]))
    place = {text: row for row, text in enumerate(texts)}
    embeddings = embed(folder, texts, max_length, precision)
    asked = embeddings[[place[text] for text in questions]]
    told = embeddings[[place[text] for text in passages]]
    cosine = (asked * told).sum(axis=1)
    return np.stack([np.zeros_like(cosine), SHARPNESS * (cosine - 0.5)], axis=1)


def embed(folder: Path, texts: Sequence[str], max_length: int, precision: str = "auto") -> NDArray[np.float32]:
    """Mean over the tokens' last states, of length 1: [N, d] float32."""
    found: NDArray[np.float32] | None = None
    for row, states, _ in _states(folder, texts, max_length, precision):
        found = np.empty((len(texts), states.shape[1]), dtype=np.float32) if found is None else found
        found[row] = _mean(states)
    return np.empty((0, 0), dtype=np.float32) if found is None else found


def cosine_by_token(
    folder: Path, questions: Sequence[str], passages: Sequence[str], max_length: int, precision: str = "auto"
) -> tuple[NDArray[np.float32], list[NDArray[np.float16]]]:
    """The cosine of every pair, [N], and what each token of its passage adds to it, N arrays [tokens], in order.

    The cosine is the mean over the passage's tokens of <q, state of the token>, q being the question's embedding, over
    the length of the mean state; these products are what is returned, of the text's own tokens (no special ones).
    """
    asked = {text: row for row, text in enumerate(dict.fromkeys(questions))}
    embeddings = embed(folder, list(asked), max_length, precision)
    pairs_of: dict[str, list[int]] = {}
    for pair, text in enumerate(passages):
        pairs_of.setdefault(text, []).append(pair)
    told, texts = list(pairs_of.values()), list(pairs_of)
    cosine = np.empty(len(passages), dtype=np.float32)
    by_token = [np.empty(0, dtype=np.float16)] * len(passages)
    for row, states, own in _states(folder, texts, max_length, precision):
        mean = _mean(states)
        for pair in told[row]:
            question = embeddings[asked[questions[pair]]]
            cosine[pair] = mean @ question
            by_token[pair] = (states[own] @ question).astype(np.float16)
    return cosine, by_token


def _mean(states: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = states.mean(axis=0)
    unit: NDArray[np.float32] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return unit


def _states(
    folder: Path, texts: Sequence[str], max_length: int, precision: str
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
    """Of every text, in some order: its place, its tokens' last states [T, d], and which tokens are its own [T]."""
    from transformers import AutoModel
    from transformers.utils import logging

    where = device()
    logging.disable_progress_bar()  # of reading the weights
    model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to(where).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    encoded = tokenizer.encode_batch(list(texts))
    ids = [np.array(one.ids, dtype=np.int64) for one in encoded]
    own = [np.array(one.special_tokens_mask) == 0 for one in encoded]
    types = [np.zeros_like(row) for row in ids]
    pad_id = PairTokenizer(folder, max_length).pad_id
    with (
        progress("embed", len(ids), "texts") as bar,
        torch.inference_mode(),
        torch.autocast(where.type, torch.bfloat16, enabled=use_bf16(precision)),
    ):
        for rows in length_sorted_batches(np.array([len(row) for row in ids]), TOKENS):
            input_ids, mask, _ = (torch.from_numpy(a).to(where) for a in pad(ids, types, rows, pad_id))
            states = model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float().cpu().numpy()
            for row, of_text in zip(rows, states, strict=True):
                yield int(row), of_text[: len(ids[row])], own[row]
            bar.advance(len(rows))
