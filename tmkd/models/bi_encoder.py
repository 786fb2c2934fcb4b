"""The bi-encoder cosine: the cosine of the question's and the passage's embedding, with nothing trained.

An embedding is the mean over the tokens' last hidden states (Reimers and Gurevych 2019, "Sentence-BERT", mean pooling).
A bi-encoder solves much of the task before it sees a label, so a teacher that is not better than it has not learned the
task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.errors import EncoderError
from tmkd.core.hardware import device, use_bf16
from tmkd.models.batching import length_sorted_batches, pad
from tmkd.models.encoders.find import weight_files
from tmkd.models.encoders.tensors import require_finite
from tmkd.models.student import SHARPNESS
from tmkd.models.tokenizer import PairTokenizer
from tmkd.models.tokenizer_files import load_tokenizer

TOKENS = 4096  # most tokens of a batch


def cosine_logits(
    folder: Path, questions: Sequence[str], passages: Sequence[str], max_length: int, precision: str = "auto"
) -> NDArray[np.float32]:
    """Return the bi-encoder cosine of pairs as logits of two classes.

    Args:
        folder: an encoder, as `find_encoder` returns it.
        questions: N texts.
        passages: N texts.
        max_length: each text is cut to so many tokens.
        precision: of the encoder's arithmetic, as in a recipe.

    Returns:
        [N, 2] float32: 0, and SHARPNESS (cosine - 1/2). Pairs rank by them as they do by the cosine.
    """
    texts = list(dict.fromkeys([*questions, *passages]))
    place = {text: row for row, text in enumerate(texts)}
    embeddings = embed(folder, texts, max_length, precision)
    of_questions = embeddings[[place[text] for text in questions]]
    of_passages = embeddings[[place[text] for text in passages]]
    cosine = (of_questions * of_passages).sum(axis=1)
    return np.stack([np.zeros_like(cosine), SHARPNESS * (cosine - 0.5)], axis=1)


def embed(folder: Path, texts: Sequence[str], max_length: int, precision: str = "auto") -> NDArray[np.float32]:
    """Return the embeddings of texts: the mean over the tokens' last hidden states, scaled to length 1.

    Args:
        folder: an encoder.
        texts: N texts.
        max_length: each text is cut to so many tokens.
        precision: of the encoder's arithmetic, as in a recipe.

    Returns:
        [N, d] float32; [0, 0] for no texts.
    """
    found: NDArray[np.float32] | None = None
    for row, hidden, _ in _hidden_states(folder, texts, max_length, precision):
        found = np.empty((len(texts), hidden.shape[1]), dtype=np.float32) if found is None else found
        found[row] = _unit_mean(hidden)
    return np.empty((0, 0), dtype=np.float32) if found is None else found


def cosine_by_token(
    folder: Path, questions: Sequence[str], passages: Sequence[str], max_length: int, precision: str = "auto"
) -> tuple[NDArray[np.float32], list[NDArray[np.float16]]]:
    """Return the bi-encoder cosine of every pair, and the product of the question with every token of the passage.

    With q the question's embedding and s_t the last hidden state of the passage's token t, the cosine is the mean over
    t of <q, s_t>, divided by the length of the mean of the s_t.

    Args:
        folder: an encoder.
        questions: N texts.
        passages: N texts.
        max_length: each text is cut to so many tokens.
        precision: of the encoder's arithmetic, as in a recipe.

    Returns:
        The cosines, [N] float32, and for each pair the products <q, s_t> of the passage's tokens in order, [tokens]
        float16, special tokens left out.
    """
    numbers = {text: row for row, text in enumerate(dict.fromkeys(questions))}
    embeddings = embed(folder, list(numbers), max_length, precision)
    pairs_of: dict[str, list[int]] = {}
    for pair, text in enumerate(passages):
        pairs_of.setdefault(text, []).append(pair)
    pairs_by_text, texts = list(pairs_of.values()), list(pairs_of)
    cosine = np.empty(len(passages), dtype=np.float32)
    by_token = [np.empty(0, dtype=np.float16)] * len(passages)
    for row, hidden, own in _hidden_states(folder, texts, max_length, precision):
        mean = _unit_mean(hidden)
        for pair in pairs_by_text[row]:
            question = embeddings[numbers[questions[pair]]]
            cosine[pair] = mean @ question
            by_token[pair] = (hidden[own] @ question).astype(np.float16)
    return cosine, by_token


def _require_whole(about: Mapping[str, Any], folder: Path) -> None:
    """Refuse an encoder of which transformers left weights at random; the pooler is not used."""
    left = [*about["missing_keys"], *(one[0] for one in about["mismatched_keys"])]
    missing = sorted(name for name in left if not name.startswith("pooler."))
    if missing:
        raise EncoderError(
            f"{folder}: {len(missing)} weights are missing or of another shape, first {missing[0]}; "
            "this checkpoint does not hold the model that its config.json names",
            source=folder,
        )


def _unit_mean(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = hidden.mean(axis=0)
    unit: NDArray[np.float32] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return unit


def _hidden_states(
    folder: Path, texts: Sequence[str], max_length: int, precision: str
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
    """Run the encoder on texts, in the order of their length.

    Yields:
        Index of the text, last hidden states of its tokens [T, d], and which tokens are not special ones [T] bool.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    where = device()
    logging.disable_progress_bar()  # transformers shows one while it reads weights
    weight_files(folder)  # refuses what transformers would read otherwise
    model, about = AutoModel.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    _require_whole(about, folder)
    require_finite(model.state_dict(), folder)
    model.to(where).eval()
    tokenizer = load_tokenizer(folder)
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
            hidden = model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float().cpu().numpy()
            for row, of_text in zip(rows, hidden, strict=True):
                yield int(row), of_text[: len(ids[row])], own[row]
            bar.advance(len(rows))
