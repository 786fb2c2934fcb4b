"""The classes of a finished checkpoint, put into the order of the task (keys `label_map` and `data.labels`)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from tmkd.config.recipe import Recipe
from tmkd.config.sections import Teacher
from tmkd.core.errors import RecipeError
from tmkd.models.encoders.lstm import LstmEncoder
from tmkd.models.student import Student

_NAMELESS = re.compile(r"(?:label_)?\d+")


def class_order(folder: Path, teacher: Teacher, recipe: Recipe) -> list[int]:
    """For each class of the task the checkpoint's class that it is, [C].

    `label_map` says it. Without one the order is the checkpoint's own, and where both sides name their classes
    (`id2label`, data.labels) the names must agree with that.

    Raises:
        RecipeError: the names differ, or their order does; both are named.
    """
    names = _names(folder)
    if teacher.label_map is not None:
        return _mapped(teacher.label_map, names, teacher.name, recipe.classes)
    told = {name: value for name, value in recipe.data.labels.items() if value is not None}
    if not names or any(_NAMELESS.fullmatch(_plain(name)) for name in [*names, *told]) or not told:
        return list(range(recipe.classes))
    mine = [_plain(name) for name in sorted(told, key=lambda name: told[name])]
    if [_plain(name) for name in names] != mine:
        task = ", ".join(sorted(told, key=lambda name: told[name]))
        example = ", ".join(f"{name}: {told.get(name, '?')}" for name in names)
        raise RecipeError(
            f"teachers: {teacher.name}: its classes are {', '.join(names)} in that order, the task's (data.labels) are "
            f"{task}. Say which is which: label_map: {{{example}}}"
        )
    return list(range(recipe.classes))


def reorder(student: Student, order: Sequence[int]) -> None:
    """Put a model's classes into another order: class c is what was class order[c]."""
    if list(order) == list(range(student.classes)):
        return
    with torch.no_grad():
        student.golden.weight.copy_(student.golden.weight[list(order)].clone())
        student.golden.bias.copy_(student.golden.bias[list(order)].clone())
        student.soft_weight.copy_(student.soft_weight[:, list(order)].clone())
        student.soft_bias.copy_(student.soft_bias[:, list(order)].clone())
    if isinstance(student.encoder, LstmEncoder):
        return  # it has no names of classes
    config = student.encoder.model.config
    before = dict(config.id2label)
    config.id2label = {place: before[was] for place, was in enumerate(order)}
    config.label2id = {name: place for place, name in config.id2label.items()}


def _mapped(label_map: dict[str, int], names: list[str], teacher: str, classes: int) -> list[int]:
    """The order that a label map says, its names checked against the checkpoint's."""
    by_number = [str(number) for number in range(classes)]
    usable = [[_plain(name) for name in names], by_number] if not _named(names) else [[_plain(name) for name in names]]
    asked = {_plain(name): value for name, value in label_map.items()}
    for known in usable:
        if sorted(known) == sorted(asked):
            return sorted(range(classes), key=lambda place: asked[known[place]])
    told = ", ".join(names) if names else "not named"
    raise RecipeError(
        f"teachers: {teacher}: label_map names {', '.join(label_map)}; the checkpoint's classes are {told}"
        + ("" if _named(names) else f" (use their numbers, 0 to {classes - 1})")
    )


def _names(folder: Path) -> list[str]:
    """The checkpoint's class names in its order; empty where its config.json has none."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    return [str(found[key]) for key in sorted(found, key=int)]


def _named(names: list[str]) -> bool:
    return bool(names) and not any(_NAMELESS.fullmatch(_plain(name)) for name in names)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())
