"""Score a file of pairs with an exported student, and write its rows with the scores added (`tmkd score`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.core.files import Quoting, same_file
from tmkd.core.logits import log_odds, softmax
from tmkd.data.readers import Rows, column_names, file_format, read_rows
from tmkd.data.rows import Columns, checked_column, require_columns, require_two_columns, text
from tmkd.data.writers import Extended
from tmkd.inference.scorer import Scorer

logger = logging.getLogger(__name__)

RAW_SCORE = "tmkd_score"
_NAMING = "Name yours with --question and --passage (in Python: columns)"
ADDED = (RAW_SCORE, "tmkd_logits", "tmkd_probabilities", "tmkd_predicted")


@dataclass(frozen=True)
class ScoredFile:
    """What became of a file of pairs.

    Attributes:
        rows: Its rows, all of which were scored.
        cut: How many of them are longer than the student reads: what is beyond `max_length` tokens had no effect.
        max_length: Tokens of a pair that the student reads.
        backend: The backend that scored.
    """

    rows: int
    cut: int
    max_length: int
    backend: str

    @property
    def cut_share(self) -> float:
        """The share of the rows that are longer than the student reads."""
        return self.cut / self.rows

    def to_json(self) -> dict[str, Any]:
        """Return {"rows", "cut", "cut_share", "max_length", "backend"}."""
        return {
            "rows": self.rows, "cut": self.cut, "cut_share": self.cut_share, "max_length": self.max_length,
            "backend": self.backend,
        }  # fmt: skip


def score_file(
    model_folder: str | Path,
    pairs_path: str | Path,
    output: str | Path = "-",
    *,
    columns: Mapping[str, str] | None = None,
    quoting: Quoting = "auto",
    backend: str = "auto",
    threads: int | None = None,
) -> ScoredFile:
    """Score every row of a file of pairs. Rows keep their order and their other columns.

    Each row gets `tmkd_logits` and `tmkd_probabilities` (one number for each class), `tmkd_predicted` (the class, an
    int) and, for two classes, `tmkd_score` (the raw score of the positive class, its log-odds: rank by it). What the
    other columns hold stays as `tmkd.data.writers.Extended` describes it.

    Args:
        model_folder: An export.
        pairs_path: JSON, JSONL, CSV, TSV or Parquet, plain or .gz.
        output: A file, whose extension is its format (CSV and TSV hold lists as JSON), or `-` for JSONL on stdout.
        columns: Names of columns of the file by what they hold (question, passage), where they have other names.
        quoting: What a quote in a CSV or TSV file means (`tmkd.data.delimited.find_dialect`).
        backend: As `tmkd.inference.scorer.Scorer` takes it.
        threads: As `tmkd.inference.scorer.Scorer` takes it.

    Returns:
        The number of rows, and how many were cut.

    Raises:
        DataError: A file, row or column cannot be used, or cannot be written in the output's format.
        ExportError: The export cannot be used.
        ValueError: `threads` is below 1, or `columns` names something else.
    """
    names = {"question": "question", "passage": "passage", **(columns or {})}
    if len(names) > 2:
        raise ValueError(f"columns names {', '.join(names)}; there are question and passage")
    source = Path(pairs_path)
    _require_writable(output, source)
    scorer = Scorer(model_folder, backend=backend, threads=threads)
    rows = read_rows(source, quoting, keep=True)
    _require_unscored(rows, source)
    require_columns([*names.values()], column_names(rows), source, _NAMING)
    require_two_columns(Columns(**names), source, _NAMING)
    questions, passages = (checked_column(rows, names[side], text, source) for side in ("question", "passage"))
    target = Extended(rows, output)
    with progress("score", len(rows)) as bar:
        found = scorer.score_pairs(questions, passages, bar.advance)
    target.write(score_columns(found.logits, scorer.positive))
    if len(cut := np.flatnonzero(found.cut)):
        logger.warning(
            f"{source}: {len(cut):,} of {len(rows):,} pairs ({len(cut) / len(rows):.1%}) are longer than the "
            f"{scorer.max_length} tokens that the student reads, and were cut; the first is row {cut[0] + 1}"
        )
    return ScoredFile(len(rows), len(cut), scorer.max_length, scorer.backend)


def score_columns(logits: NDArray[np.float32], positive: int = 1) -> Iterator[dict[str, Any]]:
    """The columns that scoring adds, one row after the other.

    Args:
        logits: The rows' logits, [N, C] float32.
        positive: Of two classes the one whose log-odds are the score.
    """
    probabilities = softmax(logits)
    predicted = logits.argmax(axis=1)
    scores = log_odds(logits, positive) if logits.shape[1] == 2 else None
    for number in range(len(logits)):
        added: dict[str, Any] = {} if scores is None else {"tmkd_score": float(scores[number])}
        added["tmkd_logits"] = logits[number].tolist()
        added["tmkd_probabilities"] = probabilities[number].tolist()
        added["tmkd_predicted"] = int(predicted[number])
        yield added


def _require_writable(output: str | Path, source: Path) -> None:
    """Refuse an output that cannot be written, before hours of scoring rather than after them."""
    if str(output) == "-":
        return
    file_format(output)
    target = Path(output)
    if not target.parent.is_dir():
        raise DataError(f"{output}: the folder {target.parent} does not exist; make it first")
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise DataError(f"{output}: {'is a folder' if target.is_dir() else 'its folder cannot be written to'}")
    if same_file(target, source):
        raise DataError(f"{output} is the file to be scored, which would be lost; name another output")


def _require_unscored(rows: Rows, path: Path) -> None:
    present = column_names(rows)
    clash = [name for name in ADDED if name in present]
    if clash:
        raise DataError(
            f"{path} already has the column {clash[0]!r}: it was scored before. Score the original file, "
            "or rename the column"
        )
