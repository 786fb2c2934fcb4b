"""Score a file of pairs with an exported student, and write its rows with the scores added (`tmkd score`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.core.logits import log_odds, softmax
from tmkd.data.readers import file_format, read_rows
from tmkd.data.rows import Columns, rows_to_pairs
from tmkd.data.writers import write_rows
from tmkd.inference.scorer import Scorer

ADDED = ("tmkd_score", "tmkd_logits", "tmkd_probabilities", "tmkd_predicted")


def score_file(
    model_folder: str | Path,
    pairs_path: str | Path,
    output: str | Path = "-",
    *,
    question: str = "question",
    passage: str = "passage",
    backend: str = "auto",
    threads: int | None = None,
) -> int:
    """Score every row of a file of pairs. Rows keep their order and their other columns.

    Each row gets `tmkd_logits` and `tmkd_probabilities` (one number for each class), `tmkd_predicted` (the class, an
    int) and, for two classes, `tmkd_score` (the raw score of the positive class, its log-odds: rank by it).

    Args:
        model_folder: An export.
        pairs_path: JSONL, CSV, TSV or Parquet, plain or .gz.
        output: A file, whose extension is its format (CSV and TSV hold lists as JSON), or `-` for JSONL on stdout.
        question: The column of the question.
        passage: The column of the passage.
        backend: As `tmkd.inference.scorer.Scorer` takes it.
        threads: As `tmkd.inference.scorer.Scorer` takes it.

    Returns:
        The number of rows.

    Raises:
        DataError: A file, row or column cannot be used.
        ExportError: The export cannot be used.
        ValueError: `threads` is below 1.
    """
    source = Path(pairs_path)
    _require_writable(output, source)
    scorer = Scorer(model_folder, backend=backend, threads=threads)
    rows = read_rows(source)
    _require_unscored(rows, source)
    columns = Columns(question=question, passage=passage, label=None)
    pairs = rows_to_pairs(rows, source, columns=columns)
    with progress("score", len(pairs)) as bar:
        logits = scorer.logits(pairs.questions, pairs.passages, bar.advance)
    write_rows(output, add_columns(rows, logits))
    return len(rows)


def add_columns(rows: list[dict[str, Any]], logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Copies of rows with their scores added.

    Args:
        rows: N rows.
        logits: Their logits, [N, C] float32.
    """
    probabilities = softmax(logits)
    predicted = logits.argmax(axis=1)
    scores = log_odds(logits) if logits.shape[1] == 2 else None
    result = []
    for number, row in enumerate(rows):
        added: dict[str, Any] = {} if scores is None else {"tmkd_score": float(scores[number])}
        added["tmkd_logits"] = logits[number].tolist()
        added["tmkd_probabilities"] = probabilities[number].tolist()
        added["tmkd_predicted"] = int(predicted[number])
        result.append({**row, **added})
    return result


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
    if target.exists() and source.exists() and target.samefile(source):
        raise DataError(f"{output} is the file to be scored, which would be lost; name another output")


def _require_unscored(rows: list[dict[str, Any]], path: Path) -> None:
    present = {name for row in rows for name in row}
    clash = [name for name in ADDED if name in present]
    if clash:
        raise DataError(
            f"{path} already has the column {clash[0]!r}: it was scored before. Score the original file, "
            "or rename the column"
        )
