"""Token ids of a set of pairs: computed once for a tokenizer and a length, kept as a step beside the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tmkd.errors import TmkdError
from tmkd.pairs.record import Pairs
from tmkd.progress import progress
from tmkd.tokenizer import Encoded, PairTokenizer
from tmkd.workspace import Workspace


def tokens_of(workspace: Workspace, tokenizer: PairTokenizer, pairs: Pairs) -> Encoded:
    """Token ids of every pair, in the pairs' order. Another tokenizer, length or pair makes another step."""
    depends = {"tokenizer": tokenizer.fingerprint(), "pairs": pairs.digest()}

    def build(folder: Path) -> None:
        _write(folder / "tokens.safetensors", _encode(tokenizer, pairs))

    step = workspace.step("tokens", depends, build, label=None)
    return _read(step.folder / "tokens.safetensors")


def _encode(tokenizer: PairTokenizer, pairs: Pairs) -> Encoded:
    encoded = Encoded([], [])
    with progress("tokenize", len(pairs)) as bar:
        for chunk in tokenizer.encode_chunks(pairs.questions, pairs.passages):
            encoded.ids.extend(chunk.ids)
            encoded.type_ids.extend(chunk.type_ids)
            bar.advance(len(chunk.ids))
    return encoded


def _write(path: Path, encoded: Encoded) -> None:
    nothing = [np.empty(0, dtype=np.int32)]
    save_file(
        {
            "ids": np.concatenate(encoded.ids or nothing),
            "type_ids": np.concatenate(encoded.type_ids or nothing).astype(np.uint8),
            "lengths": encoded.lengths,
        },
        path,
    )


def _read(path: Path) -> Encoded:
    try:
        stored = load_file(path)
    except Exception as error:  # safetensors raises its own class for a damaged header
        raise TmkdError(f"{path} is damaged ({error}); remove {path.parent}, it is made again") from error
    ends = np.cumsum(stored["lengths"])[:-1]
    type_ids = stored["type_ids"].astype(np.int32)
    if len(stored["lengths"]) == 0:
        return Encoded([], [])
    return Encoded(np.split(stored["ids"], ends), np.split(type_ids, ends))
