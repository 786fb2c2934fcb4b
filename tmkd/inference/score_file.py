"""`tmkd score`: score a pairs file with an exported student and write every row as it was, with the scores added."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.core.logits import softmax
from tmkd.data.readers import file_format, read_rows
from tmkd.data.rows import Columns, rows_to_pairs
from tmkd.data.writers import write_rows
from tmkd.inference.scorer import Scorer, log_odds

ADDED = ("tmkd_score", "tmkd_logits", "tmkd_probabilities", "tmkd_predicted")


def score_file(
    model_folder: Path,
    pairs_path: Path,
    output: str | Path = "-",
    *,
    question: str = "question",
    passage: str = "passage",
    backend: str = "auto",
    threads: int | None = None,
) -> int:
    """Score every row of a pairs file; rows keep their order and their other columns.

    Added to each row: `tmkd_logits` and `tmkd_probabilities` (one number per class), `tmkd_predicted` (the class, int)
    and, for two classes, `tmkd_score` (unsquashed log-odds of the positive class: rank by it).

    Args:
        model_folder: an export.
        pairs_path: JSONL, CSV, TSV or Parquet, plain or .gz.
        output: a file (its extension is the format; lists are JSON in CSV and TSV), or `-` for JSONL on stdout.
        question: the column of the question. passage: the column of the passage.

    Returns:
        How many rows were scored.

    Raises:
        DataError: a file, row or column that cannot be used. ExportError: the model folder cannot.
    """
    source = Path(pairs_path)
    _require_writable(output, source)
    scorer = Scorer(Path(model_folder), backend=backend, threads=threads)
    rows = read_rows(source)
    _require_unscored(rows, source)
    columns = Columns(question=question, passage=passage, label=None)
    pairs = rows_to_pairs(rows, source, columns=columns)
    with progress("score", len(pairs)) as bar:
        logits = scorer.logits(pairs.questions, pairs.passages, bar.advance)
    write_rows(output, add_columns(rows, logits))
    return len(rows)


def add_columns(rows: list[dict[str, Any]], logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Copies of the N rows with the scores in them.

    Args:
        logits: [N, C] float32, one line per row.
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
    """Refuse an output that cannot be written before an hour of scoring, not after it."""
    if str(output) == "-":
        return
    file_format(output)
    target = Path(output)
    if not target.parent.is_dir():
        raise DataError(f"{output}: the folder {target.parent} does not exist; make it first")
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise DataError(f"{output}: {'is a folder' if target.is_dir() else 'its folder cannot be written to'}")
    if target.exists() and source.exists() and target.samefile(source):
        raise DataError(f"{output} is the file that is scored, which would be lost; name another output")


def _require_unscored(rows: list[dict[str, Any]], path: Path) -> None:
    present = {name for row in rows for name in row}
    clash = [name for name in ADDED if name in present]
    if clash:
        raise DataError(
            f"{path} already has the column {clash[0]!r}: it was scored before. Score the file that it was made from, "
            "or rename the column"
        )
