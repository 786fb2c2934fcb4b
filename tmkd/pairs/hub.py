"""Pairs from a hub data set, or from a local folder in the hub's layout, through `datasets`. No remote code runs."""

from __future__ import annotations

from tmkd.errors import DataError, MissingExtraError
from tmkd.pairs.files import Columns, ScoreKinds, rows_to_pairs
from tmkd.pairs.record import Pairs


def read_hub(
    name: str,
    split: str,
    *,
    columns: Columns | None = None,
    scores: ScoreKinds | None = None,
    classes: int | None = None,
    need_labels: bool = False,
) -> Pairs:
    """Read one split. `name` may carry a configuration after a colon: `glue:rte`.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: no such data set or split, or rows that cannot be used.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("hub data sets need `datasets`; install it with: pip install 'tmkd[hub]'") from error
    path, _, configuration = name.partition(":")
    try:
        rows = load_dataset(path, configuration or None, split=split)
    except Exception as error:  # the library raises many classes, network ones among them
        raise DataError(f"hub data set {name!r}, split {split!r}: {type(error).__name__}: {error}") from error
    return rows_to_pairs(
        list(rows), f"{name}[{split}]", columns=columns, scores=scores, classes=classes, need_labels=need_labels
    )
