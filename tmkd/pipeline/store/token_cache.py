"""Token ids of a set of pairs: computed once for a tokenizer and a length, and kept in the workspace's `tokens/`.

This is a cache beside the steps and not a step: the folder can be removed at any time, and no result changes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.files import digest_of, replacing
from tmkd.core.mapped import MappedFile
from tmkd.data.pairs import Pairs
from tmkd.models.inputs import TokenInputs
from tmkd.models.ragged import Ragged, together
from tmkd.models.tokenizer import Encoded, PairTokenizer
from tmkd.pipeline.store.workspace import Workspace

logger = logging.getLogger(__name__)

_DATA = 512  # bytes before the numbers of a file


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
    found = _mapped(path) if path.is_file() else None
    if found is None:
        write_tokens(path, tokenizer.encode_chunks(pairs.texts()), len(pairs))
        found = _mapped(path)
        assert found is not None
    return found


def tokens_path(workspace: Workspace, tokenizer: PairTokenizer, pairs: Pairs) -> Path:
    """Where the token ids of the pairs are kept; arguments as of `tokens_of`."""
    name = digest_of({"tokenizer": tokenizer.fingerprint(), "pairs": pairs.digest()})
    return workspace.tokens / f"{name}.safetensors"


def write_tokens(path: Path, chunks: Iterator[Encoded], count: int) -> None:
    """Write a file of token ids.

    Args:
        path: a safetensors file: ids [tokens], lengths [N], type_ids [tokens].
        chunks: some pairs after the others; one chunk is in memory at a time.
        count: N.

    Raises:
        NoRoomError: the disk is full.
    """
    lengths = [np.empty(0, dtype=np.int64)]
    first = list(islice(chunks, 1))
    needed = sum(int((5 * one.lengths + 8).mean() * count) for one in first)  # if the others are as long
    with replacing(path, needed) as temporary, temporary.open("wb") as file, TemporaryFile(dir=path.parent) as types:
        file.write(bytes(_DATA))  # the header needs the number of tokens
        with progress("tokenize", count) as bar:
            for chunk in chain(first, chunks):
                numbers = together(chunk.ids, chunk.type_ids, range(len(chunk.ids)))
                file.write(numbers.ids.astype(np.int32).tobytes())
                types.write(numbers.others.astype(np.uint8).tobytes())
                lengths.append(numbers.lengths)
                bar.advance(len(chunk.ids))
        each = np.concatenate(lengths)
        file.write(each.tobytes())
        types.seek(0)
        shutil.copyfileobj(types, file)
        file.seek(0)
        file.write(_header(int(each.sum()), len(each)))


def _header(tokens: int, pairs: int) -> bytes:
    """The first `_DATA` bytes of a safetensors file with these numbers of tokens and pairs."""
    content, start = {}, 0
    for name, kind, count, size in (
        ("ids", "I32", tokens, 4),
        ("lengths", "I64", pairs, 8),
        ("type_ids", "U8", tokens, 1),
    ):
        content[name] = {"dtype": kind, "shape": [count], "data_offsets": [start, start + count * size]}
        start += count * size
    return (_DATA - 8).to_bytes(8, "little") + json.dumps(content).encode().ljust(_DATA - 8)


def _mapped(path: Path) -> Encoded | None:
    """The token ids in a cache file, which stays on the disk and is read where it is needed; None if it is damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
        mapped = MappedFile(path)
        ids, lengths, types = (_tensor(mapped, 8 + size, header[name]) for name in ("ids", "lengths", "type_ids"))
        if not len(ids) == len(types) == lengths.sum():
            raise ValueError(f"{len(ids)} ids, {len(types)} segment ids, lengths of {lengths.sum()} in all")
    except (OSError, ValueError, KeyError, OverflowError) as error:
        logger.warning(f"{path} is damaged ({error}); the pairs are tokenized again")
        return None
    each = Ragged(ids, lengths, mapped)
    return Encoded(each, each.beside(types))


def _tensor(mapped: MappedFile, data: int, entry: dict[str, Any]) -> NDArray[Any]:
    kind, (count,) = {"I32": np.int32, "I64": np.int64, "U8": np.uint8}[entry["dtype"]], entry["shape"]
    return mapped.array(kind, data + entry["data_offsets"][0], count)
