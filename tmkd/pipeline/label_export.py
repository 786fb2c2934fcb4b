"""The labels of a run as one file, so that other tools can train with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.errors import DataError, TmkdError
from tmkd.core.logits import log_odds
from tmkd.data.pairs import Pairs
from tmkd.data.readers import file_format
from tmkd.data.writers import write_tables
from tmkd.evaluation.results import ENSEMBLE
from tmkd.pipeline.run_labels import RunLabels

logger = logging.getLogger(__name__)

_PARTS = ("train", "dev", "pool")  # what students learn from and are chosen on: never the test set
_CHUNK = 4096  # rows that are text in memory at a time
_TEXTS = {"part": pa.string(), "pair_id": pa.string(), "question": pa.string(), "passage": pa.string(),
          "label": pa.int64()}  # fmt: skip


@dataclass(frozen=True)
class ExportedLabels:
    """What was written.

    Attributes:
        path: the file.
        rows: pairs of each set.
        columns: the models, each a column.
        missing: by set and model: how many of its pairs have no label of it, and so an empty cell.
    """

    path: Path
    rows: dict[str, int]
    columns: tuple[str, ...]
    missing: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        """The content by name."""
        return {**asdict(self), "path": str(self.path), "columns": list(self.columns)}


def export_labels(run: str | Path, path: str | Path) -> ExportedLabels:
    """Write the labels of a run's training pairs, development set and pool as one file, one row a pair.

    The columns are `part` (train, dev or pool), `pair_id`, `question`, `passage`, `label` (empty where there is none),
    then one for each teacher by its name and, of two teachers or more, `teacher-ensemble`. Of two classes they hold the
    log-odds of the right passages (`data.positive`), else a list of C logits. A set that no teacher has labelled is
    left out. They are the labels that students learn.

    Args:
        run: the run's folder, finished or not.
        path: the file to write, in the format of its extension.

    Raises:
        TmkdError: the folder is that of no run, or no set of pairs is labelled.
        LabelError: a part of the labels is damaged or missing; run the recipe again.
        DataError: a teacher has the name of another column, or the file cannot be written.
    """
    file_format(path)  # at once, not after the labels were read
    found = RunLabels(run)
    with found.workspace.locked():
        parts, missing = {}, {}
        columns = [*found.teachers, *([ENSEMBLE] if len(found.teachers) > 1 else [])]
        if taken := sorted({*_TEXTS} & {*columns}):
            raise DataError(f"a teacher is named {taken[0]}, as another column of the file; rename it in the recipe")
        for part in _PARTS:
            logits = found.logits(part) if part in found.pairs else {}
            if not logits:
                logger.info(f"{part}: not labelled by the run's teachers; left out")
                continue
            together = found.ensemble(logits)
            values: dict[str, NDArray[np.floating[Any]]] = {**logits}
            if together is not None:
                values[ENSEMBLE] = together
            if found.classes == 2:
                values = {name: log_odds(one, found.positive)[:, None] for name, one in values.items()}
            parts[part] = values
            missing[part] = {
                name: int((~np.isfinite(values[name]).all(axis=1)).sum()) if name in values else len(found.pairs[part])
                for name in columns
            }
        if not parts:
            raise TmkdError(f"{run}: no set of pairs is labelled yet; run `tmkd label` with its recipe first")
        rows = {part: len(found.pairs[part]) for part in parts}
        schema = pa.schema({**_TEXTS, **dict.fromkeys(columns, _type(found.classes))})
        write_tables(path, schema, _tables(found, parts, schema, sum(rows.values())))
    gaps = {part: {name: n for name, n in counts.items() if n} for part, counts in missing.items()}
    return ExportedLabels(Path(path), rows, tuple(columns), {part: one for part, one in gaps.items() if one})


def _type(classes: int) -> pa.DataType:
    return pa.float64() if classes == 2 else pa.list_(pa.float64())


def _tables(
    run: RunLabels, parts: dict[str, dict[str, NDArray[np.floating[Any]]]], schema: pa.Schema, total: int
) -> Iterator[pa.Table]:
    """The rows, some at a time."""
    with progress("write labels", total) as bar:
        for part, values in parts.items():
            pairs = run.pairs[part]
            for start in range(0, len(pairs), _CHUNK):
                some = pairs.take(np.arange(start, min(start + _CHUNK, len(pairs))))
                yield _table(part, some, {name: one[start : start + _CHUNK] for name, one in values.items()}, schema)
                bar.advance(len(some))


def _table(part: str, pairs: Pairs, values: dict[str, NDArray[np.floating[Any]]], schema: pa.Schema) -> pa.Table:
    labels = pairs.labels
    columns: dict[str, Any] = {
        "part": [part] * len(pairs),
        "pair_id": pairs.pair_ids,
        "question": pairs.questions,
        "passage": pairs.passages,
        "label": pa.array(labels, mask=labels < 0),
    }
    for name in schema.names[len(_TEXTS) :]:
        columns[name] = _cells(values.get(name), len(pairs), schema.field(name).type)
    return pa.table(columns, schema=schema)


def _cells(values: NDArray[np.floating[Any]] | None, count: int, kind: pa.DataType) -> pa.Array:
    """A column of numbers, or of lists of them; null for a pair without a label."""
    if values is None:
        return pa.nulls(count, kind)
    wide, gone = values.astype(np.float64), ~np.isfinite(values).all(axis=1)
    if wide.shape[1] == 1:
        return pa.array(wide[:, 0], mask=gone)
    return pa.array([None if empty else row for row, empty in zip(wide.tolist(), gone, strict=True)], kind)
