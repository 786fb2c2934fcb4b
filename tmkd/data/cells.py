"""Cells of a pairs file: each check gives the value that a pair holds, or says what is wrong with the cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MOST_CLASSES = 2**31


class BadValue(Exception):
    """A cell that cannot be used; the message goes behind its place and column."""


def text(value: Any) -> str:
    """A question or a passage: text that is not blank."""
    if not isinstance(value, str):
        raise BadValue(f"is {'absent' if value is None else type(value).__name__}, it must be text")
    if not value.strip():
        raise BadValue("is empty; remove the row or fill it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValue("holds an unpaired surrogate, which is not text") from None
    return value


def identifier(value: Any) -> str | None:
    """A qid or pid; None where the cell is empty."""
    return None if value is None or value == "" else text(str(value))


def label(value: Any, classes: int | None, names: Mapping[str, int | None]) -> int | None:
    """A class, through `names` where there are some; None where the cell is empty."""
    if value is None or value == "":
        return None
    if names:
        if str(value) not in names:
            raise BadValue(f"is {value!r}, which data.labels does not map; it maps {', '.join(names)}")
        return names[str(value)]
    try:
        number = float(value)
        whole = int(number)
    except (TypeError, ValueError, OverflowError):
        raise BadValue(f"is {value!r}, it must be an integer from 0") from None
    if isinstance(value, bool) or number != whole or "_" in str(value):
        raise BadValue(f"is {value!r}, it must be an integer from 0")
    if whole < 0 or whole >= (_MOST_CLASSES if classes is None else classes):
        span = "0 and up" if classes is None else f"0 to {classes - 1}"
        raise BadValue(f"is {value}, out of range; labels are {span} (`classes` in the recipe)")
    return whole


def score(value: Any, kind: str) -> float | None:
    """A score of a kind (`logit` or `probability`); None where the cell is empty."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadValue(f"is the score {value!r}, it must be a number") from None
    if not math.isfinite(number):
        raise BadValue(f"is the score {number}, it must be finite; leave it empty where there is none")
    if kind == "probability" and not 0 <= number <= 1:
        raise BadValue(f"is the score {number}, a probability is within 0 and 1 (or declare it `logit`)")
    return number
