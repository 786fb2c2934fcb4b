"""What scoring gives, and what the readers of both kinds of students refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import ExportError
from tmkd.core.logits import class_logits
from tmkd.inference.manifest import Manifest

OnBatch = Callable[[int], None]
"""Called after each micro-batch, with its number of pairs."""


@dataclass(frozen=True)
class ScoredPairs:
    """What a student gives for N pairs.

    Attributes:
        logits: [N, C] float32.
        cut: Whether the pair has more tokens than the student reads, so that a part of it was not read, [N] bool.
        tokens: The tokens of each pair before it was cut, [N] int64; of the longer of its two texts where the student
            reads each by itself. A pair is cut where they are more than the student's `max_length`.
    """

    logits: NDArray[np.float32]
    cut: NDArray[np.bool_]
    tokens: NDArray[np.int64]


def logits_of(manifest: Manifest, found: NDArray[np.float32], pairs: int) -> NDArray[np.float32]:
    """The logits of C classes, [n, C], from what a graph gives.

    Args:
        manifest: Of the export.
        found: The graph's output.
        pairs: n, how many pairs it was given.

    Raises:
        ExportError: The graph gives something else than tmkd.json says.
    """
    if found.shape != (pairs, manifest.outputs):  # numpy would silently broadcast a single column
        raise ExportError(f"the graph gives {list(found.shape)} logits for {pairs} pairs; export again")
    return class_logits(found, manifest.positive)


def require_lists(questions: Sequence[str], passages: Sequence[str], batch_size: int | None) -> None:
    """Refuse arguments that are no two lists of one length, and a batch size below 1.

    Raises:
        ValueError: One of them is wrong.
    """
    for name, texts in (("questions", questions), ("passages", passages)):
        if isinstance(texts, str | bytes):
            raise ValueError(f"{name} is a single text; give a list with one text for each pair")
    if len(questions) != len(passages):
        raise ValueError(f"{len(questions)} questions but {len(passages)} passages; a pair has one of each")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
