"""Token ids of a set of pairs: computed once for a tokenizer and a length, and kept in the workspace's `tokens/`.

This is a cache beside the steps and not a step: the folder can be removed at any time, and no result changes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from tmkd.core.console import progress
from tmkd.core.files import digest_of, remove_temporary_of, replacing
from tmkd.core.mapped import NumbersInFile
from tmkd.core.open_files import require_room
from tmkd.data.pairs import Pairs
from tmkd.models.inputs import TokenInputs
from tmkd.models.ragged import Ragged, together
from tmkd.models.tokenizer import Encoded, PairTokenizer
from tmkd.pipeline.store.workspace import Workspace

logger = logging.getLogger(__name__)

_DATA = 512  # bytes before the numbers of a file
_KINDS: dict[str, Any] = {"U16": np.uint16, "U32": np.uint32, "I64": np.int64}
_BITS = {"U16": 15, "U32": 31, "I64": 0}  # of a number that are a token id


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
    path = tokens_path(workspace, tokenizer, pairs)
    found = _opened(path) if path.is_file() else None
    if found is None:
        write_tokens(path, tokenizer.encode_chunks(pairs.texts()), len(pairs), tokenizer.vocabulary)
        found = _opened(path)
        assert found is not None
    return found


def tokens_path(workspace: Workspace, tokenizer: PairTokenizer, pairs: Pairs) -> Path:
    """Where the token ids of the pairs are kept; arguments as of `tokens_of`."""
    name = digest_of({"tokenizer": tokenizer.fingerprint(), "pairs": pairs.digest(), "format": 2})
    return workspace.tokens / f"{name}.safetensors"


def write_tokens(path: Path, chunks: Iterator[Encoded], count: int, vocabulary: int) -> None:
    """Write a file of token ids: 2 bytes for a token, or 4 for a large vocabulary, whose highest bit is the segment id.

    So one place of the file has all of a pair.

    Args:
        path: a safetensors file: tokens [tokens], lengths [N].
        chunks: some pairs after the others; one chunk is in memory at a time.
        count: N.
        vocabulary: how many token ids there are.

    Raises:
        NoRoomError: the disk is full.
        ValueError: a token id is not in the vocabulary, or a segment id is neither 0 nor 1.
    """
    kind = "U16" if vocabulary <= 1 << 15 else "U32"
    dtype, bits = _KINDS[kind], _BITS[kind]
    lengths = [np.empty(0, dtype=np.int64)]
    first = list(islice(chunks, 1))
    needed = sum(int((dtype().itemsize * one.lengths + 8).mean() * count) for one in first)  # if others are as long
    remove_temporary_of(path)
    with replacing(path, needed) as temporary, temporary.open("wb") as file:
        file.write(bytes(_DATA))  # the header needs the number of tokens
        with progress("tokenize", count) as bar:
            for chunk in chain(first, chunks):
                numbers = together(chunk.ids, chunk.type_ids, range(len(chunk.ids)))
                if numbers.ids.max(initial=0) >= vocabulary or numbers.others.max(initial=0) > 1:
                    raise ValueError(f"a token id from {vocabulary:,} on, or a segment id that is not 0 or 1")
                file.write((numbers.ids.astype(dtype) | numbers.others.astype(dtype) << dtype(bits)).tobytes())
                lengths.append(numbers.lengths)
                bar.advance(len(chunk.ids))
        each = np.concatenate(lengths)
        file.write(each.tobytes())
        file.seek(0)
        file.write(_header(kind, int(each.sum()), len(each)))


def _header(kind: str, tokens: int, pairs: int) -> bytes:
    """The first `_DATA` bytes of a safetensors file with these numbers of tokens and pairs."""
    content, start = {}, 0
    for name, dtype, count in (("tokens", kind, tokens), ("lengths", "I64", pairs)):
        end = start + count * _KINDS[dtype]().itemsize
        content[name] = {"dtype": dtype, "shape": [count], "data_offsets": [start, end]}
        start = end
    return (_DATA - 8).to_bytes(8, "little") + json.dumps(content).encode().ljust(_DATA - 8)


def _opened(path: Path) -> Encoded | None:
    """The token ids in a cache file, which stays on the disk and is read where it is needed; None if it is damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
        (tokens, bits), (lengths, _) = (_tensor(path, 8 + size, header[name]) for name in ("tokens", "lengths"))
        each = lengths.pieces(np.array([0]), np.array([len(lengths)]))
        if len(tokens) != each.sum():
            raise ValueError(f"{len(tokens)} tokens, lengths of {each.sum()} in all")
    except (OSError, ValueError, KeyError, OverflowError) as error:
        require_room(error, path)
        logger.warning(f"{path} is damaged ({error}); the pairs are tokenized again")
        return None
    return Encoded(*Ragged(tokens, each).unpacked(bits))


def _tensor(path: Path, data: int, entry: dict[str, Any]) -> tuple[NumbersInFile, int]:
    """The numbers of a tensor, and how many of their bits are a token id."""
    kind, (count,) = entry["dtype"], entry["shape"]
    return NumbersInFile(path, _KINDS[kind], data + entry["data_offsets"][0], count), _BITS[kind]
