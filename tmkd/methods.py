"""What each named method of METHOD.md is: one table, no word of how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tmkd.errors import RecipeError


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        stage1: whether distillation pre-training comes first.
        targets: the soft labels: none, those of the best teacher on development data, their mean, or each teacher's.
        trains: whether a student is trained at all (`teacher` and `teacher-ensemble` only need the teachers).
        text: what a table's caption says.
    """

    name: str
    stage1: bool
    targets: Literal["none", "one", "mean", "each"]
    trains: bool
    text: str


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("teacher", False, "none", False, "each deep teacher alone"),
        Method("teacher-ensemble", False, "none", False, "mean of the teachers' probabilities"),
        Method("finetune", False, "none", True, "the shallow student on golden labels only"),
        Method("1-o-1", False, "one", True, "student of the best teacher, no stage 1"),
        Method("1avg-o-1", False, "mean", True, "student of the averaged teachers, no stage 1"),
        Method("mkd", False, "each", True, "a header per teacher, no stage 1"),
        Method("tkd", True, "one", True, "both stages, the best teacher only"),
        Method("1avg-tkd", True, "mean", True, "both stages, the averaged teachers"),
        Method("tmkd", True, "each", True, "both stages, a header per teacher"),
    )
}


def method_named(name: str) -> Method:
    """The method by that name; RecipeError names the ones there are."""
    if name not in METHODS:
        raise RecipeError(f"methods: {name!r} is not one; there are: {', '.join(METHODS)}")
    return METHODS[name]
