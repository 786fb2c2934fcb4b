"""Pairs from a hub data set, or from a local folder in the hub's layout, through `datasets`. No remote code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from tmkd.errors import DataError, MissingExtraError
from tmkd.pairs.files import Columns, Expected, rows_to_pairs
from tmkd.pairs.record import Pairs


def read_hub(name: str, split: str, **expected: Unpack[Expected]) -> Pairs:
    """Read one split of a hub id or a local folder. A hub id may carry a configuration after a colon: `glue:rte`.

    A label column that the data set declares as classes may hold -1, which there means "no label".

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: no such data set or split, or rows that cannot be used.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("hub data sets need `datasets`; install it with: pip install 'tmkd[hub]'") from error
    path, configuration = (name, "") if Path(name).exists() else (name.partition(":")[0], name.partition(":")[2])
    try:
        found = load_dataset(path, configuration or None, split=split)
        rows = _unlabelled_as_none(found.to_list(), found.features, expected.get("columns", Columns()).label)
    except Exception as error:  # the library raises many classes, network ones among them
        raise DataError(f"hub data set {name!r}, split {split!r}: {type(error).__name__}: {error}") from error
    return rows_to_pairs(rows, f"{name}[{split}]", **expected)


def _unlabelled_as_none(rows: list[dict[str, Any]], features: Any, label: str | None) -> list[dict[str, Any]]:
    from datasets import ClassLabel

    if label is None or not isinstance(features.get(label), ClassLabel):
        return rows
    return [{**row, label: None} if row[label] == -1 else row for row in rows]
