"""The encoder's own opinion, with nothing trained: the cosine of question's and passage's mean-pooled embeddings.

A sentence encoder knows much of the task before any label is seen (Reimers and Gurevych 2019, "Sentence-BERT", mean
pooling). A teacher that does not come ahead of this has learned something else than the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tmkd.batching import length_sorted_batches, pad
from tmkd.hardware import device
from tmkd.progress import progress
from tmkd.tokenizer import PairTokenizer

TOKENS = 4096  # most tokens of a batch
SHARPNESS = 10.0  # logits are this times the cosine's distance from one half, so a decision is at one half


def cosine_logits(
    folder: Path, questions: Sequence[str], passages: Sequence[str], max_length: int
) -> NDArray[np.float32]:
    """Logits of two classes, [N, 2] float32: 0, and SHARPNESS (cosine - 1/2). The order by them is the cosine's.

    Args:
        folder: an encoder, as `find_encoder` gives it; each text is cut to `max_length` tokens.
    """
    texts = list(dict.fromkeys([*questions, *passages]))
    place = {text: row for row, text in enumerate(texts)}
    embeddings = embed(folder, texts, max_length)
    asked = embeddings[[place[text] for text in questions]]
    told = embeddings[[place[text] for text in passages]]
    cosine = (asked * told).sum(axis=1)
    return np.stack([np.zeros_like(cosine), SHARPNESS * (cosine - 0.5)], axis=1)


def embed(folder: Path, texts: Sequence[str], max_length: int) -> NDArray[np.float32]:
    """Mean over the tokens' last states, of length 1: [N, d] float32."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to(device()).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    ids = [np.array(one.ids, dtype=np.int64) for one in tokenizer.encode_batch(list(texts))]
    types = [np.zeros_like(row) for row in ids]
    pad_id = PairTokenizer(folder, max_length).pad_id
    found = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
    with progress("embed", len(ids), "texts") as bar, torch.inference_mode():
        for rows in length_sorted_batches(np.array([len(row) for row in ids]), TOKENS):
            input_ids, mask, _ = (torch.from_numpy(a).to(device()) for a in pad(ids, types, rows, pad_id))
            states = model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()
            weight = mask[..., None].float()
            mean = (states * weight).sum(dim=1) / weight.sum(dim=1)
            found[rows] = F.normalize(mean, dim=1).cpu().numpy()
            bar.advance(len(rows))
    return found
