"""Rows with every kind of awkward text, every file ending, and a check of refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tmkd.core.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"question": "what is öl?", "passage": 'a "fat",\nliquid', "label": 1},
    {"question": "who?", "passage": "tab\there", "label": 0},
    {"question": "who?", "passage": "nobody\u2028new", "label": 1},
]
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
EXTENSIONS = [f"{name}{gz}" for name in FORMATS for gz in ("", ".gz")]


def refused(call: Callable[[], Any], *parts: str) -> str:
    """The message of the DataError that `call` raises; every part must be in it."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    return message
