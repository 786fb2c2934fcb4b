"""Labelled pairs to evaluate a finished run on, whose labels are spelled as the files of its recipe spell them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tmkd.config.sections import Data
from tmkd.core.errors import DataError
from tmkd.core.files import Quoting, read_json
from tmkd.data.pairs import Pairs, Reference
from tmkd.data.readers import Rows, column_names, read_rows
from tmkd.data.row_counts import RowCounts
from tmkd.data.rows import Columns, Expected, require_columns, rows_to_pairs, spelling, warn_of_absent_ids
from tmkd.data.tasks import with_reference

logger = logging.getLogger(__name__)


def read_measured(
    data: Data,
    classes: int,
    path: Path,
    given: Mapping[str, str | None],
    counts: RowCounts | None = None,
    quoting: Quoting | None = None,
) -> Pairs:
    """Read labelled pairs to evaluate the models of a recipe on.

    Labels are read as the run read those of its own files: through `data.labels` where the recipe has it. Where that
    maps names alone, and the names are of files and not of a hub data set, class numbers are taken too. Without labels,
    the recipe's reference is used. The `test.jsonl` of a run's folder is read by the names that it is written with,
    whatever the recipe calls its own columns. Labels that earlier versions made of the reference and wrote there are
    not read.

    Args:
        data: the recipe's `data`.
        classes: C.
        path: the file.
        given: names of columns, by what they hold (`question`, `label`, ...). A column that is not given has the name
            that the recipe gives it, or the usual one if the file has no column of that name.
        counts: counts the rows that are read and left out, for the report.
        quoting: what a quote in a CSV or TSV file means; the recipe's `data.quoting` unless given.

    Raises:
        DataError: the file or a row cannot be used, a column of `given` is not there, a label is a number that may be
            a class or a number of the hub data set, or there are neither labels nor the reference.
    """
    rows = read_rows(path, quoting or data.quoting)
    present = column_names(rows)
    counts = RowCounts(str(path)) if counts is None else counts
    asked = {key: name for key, name in given.items() if name is not None}
    require_columns(list(asked.values()), present, path)
    of_run = _data_of_run(path)
    by_recipe = asdict(Columns()) if of_run is not None else data.columns.model_dump()
    ids = {key: by_recipe[key] for key in ("qid", "pid") if key not in asked and key not in present}
    warn_of_absent_ids(ids, present, counts)
    columns = _columns(by_recipe, asked, present)
    if of_run and of_run.get("reference") == data.reference is not None and "label" not in asked:
        columns = replace(columns, label=None)
    expected: Expected = {
        "columns": columns,
        "classes": classes,
        "scores": data.scores,
        "labels": _spellings(data, classes, rows, path, columns.label, written_by_run=of_run is not None),
        "need_labels": data.reference is None,
        "counts": counts,
    }
    if data.grades is not None:
        expected["relevant_from"] = data.grades.relevant_from
    pairs = rows_to_pairs(rows, path, **expected)
    if data.reference is None or pairs.has_labels:
        return pairs
    if data.reference not in pairs.score_names:
        labels = columns.label or data.columns.label
        raise DataError(f"{path}: there are no labels (column {labels!r}) and no reference {data.reference!r}")
    return with_reference(pairs, Reference(data.reference, data.scores[data.reference]), str(path))


def _columns(by_recipe: Mapping[str, Any], asked: Mapping[str, str], present: Sequence[str]) -> Columns:
    """The names of the columns; where a text or the label has neither name, the recipe's, for the error to say."""
    usual, needed = asdict(Columns()), ("question", "passage", "label")
    found = {
        key: name for key, name in by_recipe.items() if name in present or (key in needed and usual[key] not in present)
    }
    return Columns(**{**found, **asked})


def spelled_rows(pairs: Pairs, data: Data) -> list[dict[str, Any]]:
    """Pairs as rows that `read_measured` reads back: labels as the files of the recipe spell them, no pair ids.

    Labels that were made of the recipe's reference are left out: read back, they would pass for labels of their own.

    Args:
        pairs: pairs of the recipe.
        data: the recipe's `data`.
    """
    names = {number: name for name, number in reversed(data.labels.items())}  # the first spelling of each class
    rows: list[dict[str, Any]] = pairs.select_given().to_pylist()
    for row, grade in zip(rows, pairs.grades or [None] * len(rows), strict=True):
        if pairs.reference is not None:
            row.pop("label", None)
        elif grade is not None:
            row["label"] = grade
        elif names and row.get("label") is not None:
            row["label"] = names[row["label"]]
    return rows


def _spellings(
    data: Data, classes: int, rows: Rows, path: Path, label: str | None, *, written_by_run: bool
) -> Mapping[str, int | None]:
    """The class that each spelling of a label stands for; empty: the labels are the classes."""
    if not data.labels or label is None:
        return {}
    found = {spelling(row[label]): row[label] for row in rows if row.get(label) not in (None, "")}
    numbers = [name for name in found if _is_number(name) and name not in data.labels]
    if any(_is_number(name) and number is not None for name, number in data.labels.items()):
        if written_by_run and any(isinstance(value, int) for value in found.values()):
            raise DataError(
                f"{path} was written by an earlier version of tmkd and holds the task's classes, where data.labels of "
                "the recipe maps the numbers of your files; `tmkd run` of the recipe writes it anew",
                path=path,
            )
        return data.labels
    if numbers and data.hub is not None:
        raise DataError(
            f"{path}: {label!r} is {numbers[0]}, which may be a class of the task or a number of {data.hub}, whose "
            f"names data.labels maps; write the names: {', '.join(data.labels)}",
            path=path,
            column=label,
            value=found[numbers[0]],
        )
    if numbers:
        meaning = ", ".join(f"{number} is {name}" for name, number in data.labels.items() if number is not None)
        logger.info(f"{path}: numbers in {label!r} are read as the task's classes: {meaning}")
    return {**{str(number): number for number in range(classes)}, **data.labels}


def _data_of_run(path: Path) -> dict[str, Any] | None:
    """The `data` of the recipe of the run that wrote a file, its `test.jsonl`; None for other files."""
    manifest = path.with_name("manifest.json")
    if path.name != "test.jsonl" or not manifest.is_file():
        return None
    try:
        written = read_json(manifest)
        data: dict[str, Any] | None = written["recipe"]["data"] if "models" in written else None
    except (ValueError, KeyError, TypeError):  # the manifest of something else
        return None
    return data


def _is_number(name: str) -> bool:
    return name.lstrip("-").isdigit()
