"""What a run's models have seen: hashes of its training and development pairs, for figures on other files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.files import replacing
from tmkd.data.documents.text import question_key
from tmkd.data.pairs import Pairs, pair_id
from tmkd.data.row_counts import RowCounts

FILE = "seen.npz"  # in a run's folder


def save_seen(folder: Path, trained: Sequence[Pairs], dev: Pairs) -> None:
    """Write the hashes of a run's training pairs and questions and of its development pairs.

    Args:
        folder: the run's folder.
        trained: its training pairs, and those of other tasks that its teachers learned.
        dev: its development set.
    """
    pairs, questions = (np.concatenate([of(part) for part in trained]) for of in (_pairs, _questions))
    with replacing(folder / FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, train=pairs, questions=questions, dev=_pairs(dev))


def warn_of_seen(folder: Path, measured: Pairs, counts: RowCounts, name: str = "this run") -> None:
    """Warn where pairs to measure on are pairs that the run's models were trained on, or chosen on.

    Spelling does not count (`tmkd.data.documents.text.question_key`).

    Args:
        folder: the run's folder.
        measured: the pairs.
        counts: keeps the warnings.
        name: what warnings call the run.
    """
    if not (folder / FILE).is_file():
        counts.warn(f"an earlier version made {name}: whether its models have seen these pairs is not known")
        return
    pairs = _pairs(measured)
    with np.load(folder / FILE) as seen:
        trained, chosen = np.isin(pairs, seen["train"]), np.isin(pairs, seen["dev"])
        asked = np.isin(_questions(measured), seen["questions"])
    for found, what in (
        (trained, f"are training pairs of {name}: figures on them do not show how its models do on new pairs"),
        (chosen & ~trained, f"are development pairs of {name}, on which its choices were made"),
        (asked & ~trained, f"ask questions that the training pairs of {name} ask, too"),
    ):
        if found.any():
            example = measured.questions[int(found.argmax())]
            counts.warn(f"{int(found.sum()):,} of {len(measured):,} rows {what}, for example {example[:60]!r}")


def _pairs(pairs: Pairs) -> NDArray[np.uint64]:
    return _hashes(pairs.pair_keys)


def _questions(pairs: Pairs) -> NDArray[np.uint64]:
    return _hashes([pair_id(question_key(question), "") for question in pairs.questions])


def _hashes(names: list[str]) -> NDArray[np.uint64]:
    return np.array([int(name[:16], 16) for name in names], dtype=np.uint64)
