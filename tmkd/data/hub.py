"""Pairs from a hub data set, or from a local folder in the hub's layout, through `datasets`. No remote code runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from tmkd.core.errors import DataError, MissingExtraError
from tmkd.data.pairs import Pairs
from tmkd.data.row_counts import RowCounts
from tmkd.data.rows import Columns, Expected, rows_to_pairs


def read_hub(name: str, split: str, *, config: str | None = None, **expected: Unpack[Expected]) -> Pairs:
    """Read one split of a hub data set or of a local folder.

    If the data set declares the label column as classes, -1 means "no label"; where labels are needed, such rows are
    left out. `labels` can map the names of the classes as well as their numbers.

    Args:
        name: a hub id, or a local folder in the hub's layout.
        split: such as train or train[:5000].
        config: the configuration, such as `mnli` of nyu-mll/glue. A hub id may have it after a colon: `glue:rte`.
        **expected: what is expected of the rows (`Expected`).

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: there is no such data set or split, or a row cannot be used.
    """
    rows, features, called = hub_rows(name, split, config)
    label = expected.get("columns", Columns()).label
    needed = expected.get("need_labels", False)
    rows = _known_labels(rows, features, label, expected.get("labels", {}) if needed else {})
    expected.setdefault("counts", RowCounts(called))
    pairs = rows_to_pairs(rows, called, **expected)
    if needed and len(known := np.flatnonzero(pairs.labels >= 0)) < len(pairs):
        expected["counts"].leave_out("no label", len(pairs) - len(known))
        pairs = pairs.take(known)
    return pairs


def hub_rows(name: str, split: str, config: str | None = None) -> tuple[list[dict[str, Any]], Any, str]:
    """The rows of one split as they are, their features (an object of `datasets`), and what messages call the split."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(
            "hub data sets need `datasets`; install it with: pip install 'tmkd[hub]'", extra="hub", package="datasets"
        ) from error
    path, configuration = (name, "") if Path(name).exists() else (name.partition(":")[0], name.partition(":")[2])
    called = f"{name}{f':{config}' if config else ''}[{split}]"
    try:
        found = load_dataset(path, config or configuration or None, split=split)
        return found.to_list(), found.features, called
    except Exception as error:  # the library raises many classes, network ones among them
        raise DataError(f"hub data set {called}: {type(error).__name__}: {error}") from error


def _known_labels(
    rows: list[dict[str, Any]], features: Any, label: str | None, names: Mapping[str, int | None]
) -> list[dict[str, Any]]:
    """The rows with None for labels of -1, and with the class's name for its number where `names` maps names."""
    from datasets import ClassLabel

    classes = features.get(label) if label is not None else None
    if label is None or not isinstance(classes, ClassLabel):
        return rows

    def known(value: Any) -> Any:
        if value is None or value == -1:
            return None
        return classes.int2str(value) if names and str(value) not in names else value

    return [{**row, label: known(row[label])} for row in rows]
