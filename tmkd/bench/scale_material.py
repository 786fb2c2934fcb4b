"""Synthetic pairs of realistic lengths, any number of them: texts, token ids and a teacher's made-up logits.

Texts are passages of the manual that comes with Python, cut at random: ten passages for a question, 8 words on average
for a question and 61 for a passage, as in web search. Tokenizing millions of texts takes hours, so token ids are made
up, too: 1.3 for a word. They are written as `tmkd.pipeline.store.token_cache` writes those of a tokenizer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.data.arrow_file import ArrowFile, write_arrow
from tmkd.data.pairs import Pairs
from tmkd.models.encoders.find import find_encoder
from tmkd.models.ragged import Ragged
from tmkd.models.tokenizer import Encoded, PairTokenizer
from tmkd.pipeline.store.token_cache import tokens_path, write_tokens
from tmkd.pipeline.store.workspace import Workspace

ENCODER = "builtin:minilm-l6"
MAX_LENGTH = 192
BYTES = 800  # of the disk for a pair: texts and id 490, token ids 200, the labels of two teachers 50
_SEED = 0
_CHUNK = 65_536  # pairs that are made at the same time
_PASSAGES = 10  # of a question
_TOKENS = 1.3  # of a word
_SPECIAL = 3  # tokens around and between the texts

Numbers = NDArray[np.int64]


def tokenizer() -> PairTokenizer:
    """The tokenizer whose token ids these are said to be."""
    return PairTokenizer(find_encoder(ENCODER), MAX_LENGTH)


def pairs_in(folder: Path) -> Pairs:
    """The pairs that `write_material` wrote, mapped as those of a large pool are."""
    return Pairs.mapped(ArrowFile(folder / "pairs.arrow"))


def write_material(folder: Path, count: int) -> None:
    """Write pairs and their token ids.

    Args:
        folder: Gets `pairs.arrow`, and a workspace's `tokens/` with the token ids.
        count: How many pairs.
    """
    schema = Pairs.build([], []).table.schema
    with progress("write pairs", count) as bar:

        def tables() -> Iterator[pa.Table]:
            for words in _chunks(count):
                yield _texts(words)
                bar.advance(len(words.passage))

        write_arrow(folder / "pairs.arrow", schema, tables())
    path = tokens_path(Workspace(folder), tokenizer(), pairs_in(folder))
    write_tokens(path, (_tokens(words) for words in _chunks(count)), count, tokenizer().vocabulary)


class _Words(NamedTuple):
    """The words of some pairs' texts, [n] each, and the number of the first pair."""

    question: Numbers
    passage: Numbers
    first: int


def _chunks(count: int) -> Iterator[_Words]:
    for first in range(0, count, _CHUNK):
        generator, size = np.random.default_rng([_SEED, first]), min(_CHUNK, count - first)
        questions = generator.lognormal(np.log(7), 0.45, -(-size // _PASSAGES)).astype(np.int64).clip(2, 30)
        passages = generator.lognormal(np.log(55), 0.45, size).astype(np.int64).clip(10, 180)
        yield _Words(np.repeat(questions, _PASSAGES)[:size], passages, first)


def _texts(words: _Words) -> pa.Table:
    """Pairs whose texts have so many words."""
    text, starts = _manual()
    generator = np.random.default_rng([_SEED, words.first, 1])

    def cut(counts: Numbers, repeated: int) -> list[str]:
        first = generator.integers(0, len(starts) - 200, -(-len(counts) // repeated)).repeat(repeated)[: len(counts)]
        ends = starts[first + counts] - 1
        return [text[begin:end] for begin, end in zip(starts[first].tolist(), ends.tolist(), strict=True)]

    return Pairs.build(cut(words.question, _PASSAGES), cut(words.passage, 1)).table


@functools.cache
def _manual() -> tuple[str, Numbers]:
    """The manual with one blank between its words, and where each word begins."""
    words = " ".join(topics.topics.values()).split()
    return " ".join(words), np.cumsum([0, *(len(word) + 1 for word in words[:-1])])


def _tokens(words: _Words) -> Encoded:
    """Token ids of pairs whose texts have so many words, no pair longer than `MAX_LENGTH`."""
    question = np.ceil(_TOKENS * words.question).astype(np.int64) + _SPECIAL - 1
    lengths = np.minimum(question + np.ceil(_TOKENS * words.passage).astype(np.int64) + 1, MAX_LENGTH)
    ids = np.random.default_rng([_SEED, words.first, 2]).integers(1000, 30_000, int(lengths.sum()), dtype=np.int32)
    place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    each = Ragged(ids, lengths)
    return Encoded(each, each.beside((place >= np.repeat(question, lengths)).astype(np.uint8)))
