"""The step that computes the bi-encoder cosine of a set of pairs, token by token (`tmkd.training.token_cosine`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tmkd.config.recipe import Recipe
from tmkd.core.console import progress
from tmkd.core.files import disk_errors
from tmkd.data.pair_ids import DistinctTexts
from tmkd.data.pairs import Pairs
from tmkd.models.bi_encoder import embeddings, token_products
from tmkd.models.encoders.find import find_encoder
from tmkd.models.text_reader import TextReader
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.token_cosine import TARGETS, TOKENS

_TOGETHER = 65_536  # distinct texts that are in memory at the same time


def bi_encoder_cosine(workspace: Workspace, recipe: Recipe, pairs: Pairs) -> Step:
    """The bi-encoder cosine of the pairs by the recipe's encoder, computed once for teachers and students.

    Args:
        workspace: Keeps the result.
        recipe: Names the encoder, the maximum length and the precision.
        pairs: N pairs; their labels are not read.

    Returns:
        A step that holds `TOKENS`, one float16 number for each token of a passage, pair after pair in any order, and
        `TARGETS`: `cosine`, [N] float32, and `firsts`, [N] int64, where in `TOKENS` the numbers of each pair begin.
    """
    source = find_encoder(recipe.encoder)
    content = depends_on(
        settings={"max_length": recipe.max_length, "precision": recipe.precision},
        inputs={"encoder": source, "pairs": pairs},
    )

    def build(folder: Path) -> None:
        write_cosine(folder, TextReader(source, recipe.max_length, recipe.precision), pairs)

    return workspace.step("token-cosine", content, build, label="bi-encoder cosine, token by token")


def write_cosine(folder: Path, reader: TextReader, pairs: Pairs) -> None:
    """Write what the step holds. Every distinct text is read once, and few of them are in memory at a time.

    Args:
        folder: The step's.
        reader: The encoder.
        pairs: N pairs.

    Raises:
        NoRoomError: The disk is full.
    """
    questions, passages = (
        DistinctTexts.of((batch.column(0) for batch in pairs.batches([side])), len(pairs))
        for side in ("question", "passage")
    )
    by_passage = np.argsort(passages.number, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(passages.number))])
    cosine, firsts, written = np.empty(len(pairs), dtype=np.float32), np.empty(len(pairs), dtype=np.int64), 0
    with disk_errors(folder / TOKENS):
        embedded = _embedded(folder, reader, (some.questions for some in _each_once(pairs, questions)))
        with (folder / TOKENS).open("wb") as file, progress("embed", len(passages.firsts), "texts") as bar:
            begin = 0
            for some in _each_once(pairs, passages):
                for row, hidden, own in reader.read(some.passages):
                    mine = by_passage[ends[begin + row] : ends[begin + row + 1]]  # the passage's pairs
                    cosine[mine], products = token_products(hidden, own, embedded[questions.number[mine]])
                    firsts[mine] = written + products.shape[1] * np.arange(len(mine))
                    written += file.write(products.tobytes()) // products.itemsize
                    bar.advance(1)
                begin += len(some)
        save_file({"cosine": cosine, "firsts": firsts}, folder / TARGETS)


def _each_once(pairs: Pairs, texts: DistinctTexts) -> Iterator[Pairs]:
    """The pairs in which the texts occur first, in their order, some at a time."""
    for start in range(0, len(texts.firsts), _TOGETHER):
        yield pairs.take(texts.firsts[start : start + _TOGETHER])


def _embedded(folder: Path, reader: TextReader, parts: Iterable[Sequence[str]]) -> NDArray[np.float32]:
    """The embeddings of M texts, [M, d], in a file of the folder without a name, which is mapped into memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for texts in parts:
            file.write(embeddings(reader, texts).data)
        file.flush()
        return np.memmap(file, np.float32, "r").reshape(-1, reader.width)
