"""Refuse keys that do nothing and columns that are named twice, except in the recorded recipe of a finished run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ValidationInfo

RECORDED = {"recorded": True}
"""The context in which the recipe of a finished run is validated: earlier versions accepted keys that do nothing."""


def refuse_unused(part: BaseModel, reasons: Mapping[str, str], info: ValidationInfo) -> None:
    """Refuse keys that have another value than the usual one and do nothing; not in a recorded recipe.

    Args:
        part: the section.
        reasons: by key, why it does nothing.
        info: of the validation; its context tells whether the recipe is a recorded one.

    Raises:
        ValueError: there is such a key.
    """
    for key, reason in reasons.items() if info.context != RECORDED else ():
        value = getattr(part, key)
        if value != type(part).model_fields[key].get_default(call_default_factory=True):
            raise ValueError(f"{key}: {value!r} would have no effect, since {reason}; leave it out")


def refuse_same_columns(part: BaseModel, pairs: Iterable[tuple[str, str]], info: ValidationInfo) -> None:
    """Refuse two keys that name one column; not in a recorded recipe.

    Args:
        part: the section.
        pairs: the keys that must differ, two by two.
        info: as in `refuse_unused`.

    Raises:
        ValueError: two name the same column.
    """
    for one, other in pairs if info.context != RECORDED else ():
        if (name := getattr(part, one)) == getattr(part, other):
            raise ValueError(f"{one} and {other} are both the column {name!r}; name the right one for each")
