"""Pairs from a hub data set, or from a local folder in the hub's layout, through `datasets`. No remote code runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from tmkd.core.errors import DataError, MissingExtraError
from tmkd.data.pairs import Pairs
from tmkd.data.rows import Columns, Expected, rows_to_pairs

logger = logging.getLogger(__name__)


def read_hub(name: str, split: str, *, config: str | None = None, **expected: Unpack[Expected]) -> Pairs:
    """Read one split of a hub id or a local folder.

    A label column that the data set declares as classes may hold -1, which there means "no label"; where labels are
    needed such rows are left out. Its class names can be mapped (`labels`) as well as its numbers.

    Args:
        config: configuration (`mnli` of nyu-mll/glue); a hub id may carry it after a colon instead: `glue:rte`.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: no such data set or split, or rows that cannot be used.
    """
    rows, features, called = hub_rows(name, split, config)
    label = expected.get("columns", Columns()).label
    needed = expected.get("need_labels", False)
    rows = _labels_told(rows, features, label, expected.get("labels", {}) if needed else {})
    pairs = rows_to_pairs(rows, called, **expected)
    if needed and len(known := np.flatnonzero(pairs.labels >= 0)) < len(pairs):
        logger.info(f"{called}: {len(pairs) - len(known):,} of {len(pairs):,} rows have no label and are left out")
        pairs = pairs.take(known)
    return pairs


def hub_rows(name: str, split: str, config: str | None = None) -> tuple[list[dict[str, Any]], Any, str]:
    """The rows of one split as they are, their features (the library's), and what messages call them."""
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


def _labels_told(
    rows: list[dict[str, Any]], features: Any, label: str | None, names: Mapping[str, int | None]
) -> list[dict[str, Any]]:
    """Rows whose label is None where the data set says -1, and a class's name where `names` maps names."""
    from datasets import ClassLabel

    classes = features.get(label) if label is not None else None
    if label is None or not isinstance(classes, ClassLabel):
        return rows

    def told(value: Any) -> Any:
        if value is None or value == -1:
            return None
        return classes.int2str(value) if names and str(value) not in names else value

    return [{**row, label: told(row[label])} for row in rows]
