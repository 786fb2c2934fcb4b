"""Token ids of a set of pairs: computed once for a tokenizer and a length, and kept in the workspace's `tokens/`.

This is a cache beside the steps and not a step: the folder can be removed at any time, and no result changes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tmkd.core.console import progress
from tmkd.core.files import digest_of, replacing
from tmkd.data.pairs import Pairs
from tmkd.models.inputs import TokenInputs
from tmkd.models.tokenizer import Encoded, PairTokenizer
from tmkd.pipeline.store.workspace import Workspace

logger = logging.getLogger(__name__)


def token_inputs(workspace: Workspace, tokenizer: PairTokenizer, pairs: Pairs) -> TokenInputs:
    """The pairs as a model of token ids reads them; arguments and errors as of `tokens_of`."""
    return TokenInputs(tokens_of(workspace, tokenizer, pairs), tokenizer.pad_id)


def tokens_of(workspace: Workspace, tokenizer: PairTokenizer, pairs: Pairs) -> Encoded:
    """The token ids of every pair in the order of the pairs, from the cache where they are there.

    Args:
        workspace: holds the cache.
        tokenizer: its files and its maximum length are part of the key.
        pairs: their digest is the other part of the key.

    Raises:
        NoRoomError: the disk is full.
    """
    name = digest_of({"tokenizer": tokenizer.fingerprint(), "pairs": pairs.digest()})
    path = workspace.tokens / f"{name}.safetensors"
    found = _read(path) if path.is_file() else None
    if found is None:
        found = _encode(tokenizer, pairs)
        _write(path, found)
    return found


def _encode(tokenizer: PairTokenizer, pairs: Pairs) -> Encoded:
    encoded = Encoded([], [])
    with progress("tokenize", len(pairs)) as bar:
        for chunk in tokenizer.encode_chunks(pairs.questions, pairs.passages):
            encoded.ids.extend(chunk.ids)
            encoded.type_ids.extend(chunk.type_ids)
            bar.advance(len(chunk.ids))
    return encoded


def _write(path: Path, encoded: Encoded) -> None:
    empty = [np.empty(0, dtype=np.int32)]  # np.concatenate needs one array at least
    tensors: dict[str, np.ndarray] = {
        "ids": np.concatenate(encoded.ids or empty),
        "type_ids": np.concatenate(encoded.type_ids or empty).astype(np.uint8),
        "lengths": encoded.lengths,
    }
    with replacing(path, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary)


def _read(path: Path) -> Encoded | None:
    """The token ids in a cache file; None if the file is damaged."""
    try:
        stored = load_file(path)
    except Exception as error:  # safetensors raises its own class for a damaged header
        logger.warning(f"{path} is damaged ({error}); the pairs are tokenized again")
        return None
    if len(stored["lengths"]) == 0:
        return Encoded([], [])
    ends = np.cumsum(stored["lengths"])[:-1]
    return Encoded(np.split(stored["ids"], ends), np.split(stored["type_ids"].astype(np.int32), ends))
