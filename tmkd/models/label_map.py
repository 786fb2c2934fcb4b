"""The label map: how a finished checkpoint's classes correspond to the task's (keys `label_map`, `data.labels`)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from tmkd.config.recipe import Recipe
from tmkd.config.sections import Teacher
from tmkd.core.errors import RecipeError
from tmkd.models.card import has_card, read_card
from tmkd.models.encoders.lstm import LstmEncoder
from tmkd.models.student import Student

_NAMELESS = re.compile(r"(?:label_)?\d+")


def find_label_map(folder: Path, teacher: Teacher, recipe: Recipe) -> list[int]:
    """Return, for each class of the task, the class of the checkpoint that it is, [C].

    The recipe's `label_map` decides. Without one the checkpoint's order is kept; where both the checkpoint (`id2label`)
    and the task (`data.labels`) name their classes, the names must then agree in that order.

    Args:
        folder: the checkpoint.
        teacher: the recipe's entry for it.
        recipe: the task's classes and their names.

    Returns:
        The checkpoint's class of each class of the task.

    Raises:
        RecipeError: the names differ or are in another order; the message shows both.
    """
    names = _names(folder)
    if teacher.label_map is not None:
        return _mapped(teacher.label_map, names, teacher.name, recipe.classes)
    labels = {name: value for name, value in recipe.data.labels.items() if value is not None}
    if not names or any(_NAMELESS.fullmatch(_plain(name)) for name in [*names, *labels]) or not labels:
        return list(range(recipe.classes))
    of_task = sorted(labels, key=lambda name: labels[name])
    if [_plain(name) for name in names] != [_plain(name) for name in of_task]:
        example = ", ".join(f"{name}: {labels.get(name, '?')}" for name in names)
        raise RecipeError(
            f"teachers: {teacher.name}: its classes are {', '.join(names)} in that order, the task's (data.labels) are "
            f"{', '.join(of_task)}. Say which is which: label_map: {{{example}}}"
        )
    return list(range(recipe.classes))


def reorder(student: Student, order: Sequence[int]) -> None:
    """Reorder a model's classes in place, heads and class names: class c becomes what was class order[c].

    Args:
        student: a model of C classes.
        order: what `find_label_map` returns, [C].
    """
    if list(order) == list(range(student.classes)):
        return
    with torch.no_grad():
        student.golden.weight.copy_(student.golden.weight[list(order)].clone())
        student.golden.bias.copy_(student.golden.bias[list(order)].clone())
        student.soft_weight.copy_(student.soft_weight[:, list(order)].clone())
        student.soft_bias.copy_(student.soft_bias[:, list(order)].clone())
    if isinstance(student.encoder, LstmEncoder):
        return  # its files hold no class names
    config = student.encoder.model.config
    before = dict(config.id2label)
    config.id2label = {place: before[was] for place, was in enumerate(order)}
    config.label2id = {name: place for place, name in config.id2label.items()}


def _mapped(label_map: dict[str, int], names: list[str], teacher: str, classes: int) -> list[int]:
    """Return the order that a recipe's label map gives, after checking its names against the checkpoint's."""
    by_number = [str(number) for number in range(classes)]
    usable = [[_plain(name) for name in names], by_number] if not _named(names) else [[_plain(name) for name in names]]
    wanted = {_plain(name): value for name, value in label_map.items()}
    for known in usable:
        if sorted(known) == sorted(wanted):
            return sorted(range(classes), key=lambda place: wanted[known[place]])
    there = ", ".join(names) if names else "not named"
    raise RecipeError(
        f"teachers: {teacher}: label_map names {', '.join(label_map)}; the checkpoint's classes are {there}"
        + ("" if _named(names) else f" (use their numbers, 0 to {classes - 1})")
    )


def _names(folder: Path) -> list[str]:
    """Return the checkpoint's class names in its order; an empty list where it does not name every class."""
    if has_card(folder) and (labels := read_card(folder).labels):
        return list(labels)
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    return (
        [str(found[key]) for key in sorted(found, key=int)] if len(found) > 1 else []
    )  # one logit names class 1 alone


def _named(names: list[str]) -> bool:
    return bool(names) and not any(_NAMELESS.fullmatch(_plain(name)) for name in names)


def _plain(name: str) -> str:
    """Normalise a class name: lower case, spaces and hyphens as underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower())
