"""The label map: how a finished checkpoint's classes correspond to the task's (keys `label_map`, `data.labels`)."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from tmkd.config.recipe import Recipe
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import EncoderError, RecipeError
from tmkd.models.card import has_card, read_card
from tmkd.models.encoders.forward import PairEncoder
from tmkd.models.ready import checkpoint_json, head_rows
from tmkd.models.student import Student

logger = logging.getLogger(__name__)

_NAMELESS = re.compile(r"(?:label_)?\d+")
_NEGATIONS = ("not_", "non_", "no_", "non", "un", "ir", "in")
_OPPOSITES = frozenset(
    {("no", "yes"), ("false", "true"), ("negative", "positive"), ("neg", "pos"), ("bad", "good"), ("wrong", "right")}
)
_POSITIVE = ("relevant", "entailment", "entailed", "answer", "correct", "duplicate", "match")


def find_label_map(folder: Path, teacher: Teacher, recipe: Recipe, logits: int | None = None) -> list[int]:
    """Return, for each class of the task, the class of the checkpoint that it is, [C].

    The recipe's `label_map` decides. Without one, the names of the checkpoint's classes (`id2label`) and those of the
    task (`data.labels`) must agree in their order. If the task names none, the meaning of two names decides
    (`not_relevant` is the negation of `relevant`); other names are refused, since their order cannot be known. Classes
    without names are taken in the checkpoint's order, and a note says so. A head of one logit has two classes: its
    logit is the log-odds of class 1, and where class 0 is the positive one it must have the name of class 1 or a map.

    Args:
        folder: the checkpoint.
        teacher: the recipe's entry for it.
        recipe: the task's classes and their names.
        logits: how many logits it gives, where a library has opened it; its files say so unless given.

    Returns:
        The checkpoint's class of each class of the task.

    Raises:
        RecipeError: the names differ, are in another order, or have no counterpart; the message says what to write.
    """
    names = class_names(folder)
    if teacher.label_map is not None:
        return _mapped(teacher.label_map, names, teacher.name, recipe.classes)
    as_it_is, of_task = list(range(recipe.classes)), _names_of_task(recipe)
    if (only := _only_logit(folder, logits)) is not None:
        _require_class_1(only, of_task, teacher, recipe.positive_class)
        return as_it_is
    if not _named(names):
        require_counted(folder, teacher.name)
        if not has_card(folder):
            logger.info(f"teacher {teacher.name}: {folder} does not name its classes; they are taken in their order")
        return as_it_is
    if of_task:
        if [of_task.get(_plain(name)) for name in names] != as_it_is:
            raise _refusal(teacher, names, of_task)
        return as_it_is
    if has_card(folder):  # written by tmkd for a task without names
        return as_it_is
    if (order := order_of_two(folder, teacher.name)) is None:
        raise _refusal(teacher, names, {})
    return order


def order_of_two(folder: Path, teacher: str) -> list[int] | None:
    """Return the order of a checkpoint's two classes by the meaning of their names, the negative class first.

    Args:
        folder: the checkpoint.
        teacher: what the log calls it.

    Returns:
        The places of the negative and the positive class; None where tmkd wrote the checkpoint, which has the order of
        its task, or where the names do not tell.
    """
    names = [] if has_card(folder) else class_names(folder)
    if (negative := _negative(names)) is None:
        return None
    order = [negative, 1 - negative]
    logger.info(f"teacher {teacher}: its classes are {', '.join(names)}; class 1 is taken to be {names[order[1]]}")
    return order


def unlike_order(folder: Path, recipe: Recipe) -> str:
    """Say how the classes of a teacher of the pool are not the task's, in their order.

    Args:
        folder: the checkpoint. The two classes of one that tmkd did not write are taken as `order_of_two` has them.
        recipe: the task's classes and their names.

    Returns:
        The names of both; empty where they agree, or where one of the two names none.
    """
    names, of_task = class_names(folder), _names_of_task(recipe)
    if (only := _only_logit(folder)) is not None:
        return _unlike_class_1(only, of_task, recipe.positive_class)
    if not of_task or not _named(names):
        return ""
    negative = _negative(names)
    if not has_card(folder) and negative is not None:
        names = [names[negative], names[1 - negative]]
    in_order = [of_task.get(_plain(name)) for name in names] == list(range(recipe.classes))
    mean_the_same = not of_task.keys() & set(map(_plain, names)) and _negative(names) == _negative(list(of_task)) == 0
    if in_order or mean_the_same:
        return ""
    return f"its classes are {', '.join(names)} in that order, the task's (data.labels) are {', '.join(of_task)}"


def class_names(folder: Path) -> list[str]:
    """Return a checkpoint's class names in its order; an empty list where it does not name every class."""
    names = _names(folder)
    return names if len(names) > 1 else []  # one logit names class 1 alone


def _names_of_task(recipe: Recipe) -> dict[str, int]:
    """Return the class of each of the task's class names; empty where it has none, or numbers in their place."""
    labels = {name: value for name, value in recipe.data.labels.items() if value is not None}
    in_order = sorted(labels, key=lambda name: labels[name])
    return {_plain(name): labels[name] for name in in_order} if _named(in_order) else {}


def _only_logit(folder: Path, logits: int | None = None) -> str | None:
    """Return the name of a one-logit checkpoint's only class; empty if it has none; None for several logits."""
    names = _names(folder)
    if has_card(folder):
        return None
    # what a library found counts first: a language model that answers yes or no may name two classes in its files
    if not (logits == 1 if logits is not None else len(names) == 1 or (not names and _has_one_logit(folder))):
        return None
    return names[0] if len(names) == 1 and _named(names) else ""


def _has_one_logit(folder: Path) -> bool:
    """Tell whether a checkpoint has one logit. `num_labels` in its config.json says so; without it, its weights do."""
    if (number := checkpoint_json(folder / "config.json").get("num_labels")) is not None:
        return bool(number == 1)
    try:
        return head_rows(folder) == 1
    except EncoderError:  # of an architecture that sentence-transformers reads
        return False


def _require_class_1(only: str, of_task: dict[str, int], teacher: Teacher, positive: int) -> None:
    """The only logit of a checkpoint is the log-odds of the task's class 1.

    Raises:
        RecipeError: it may be of class 0; the message says what to write.
    """
    if problem := _unlike_class_1(only, of_task, positive):
        raise RecipeError(
            f"teachers: {teacher.name}: {problem}. If it is the log-odds of that class, write "
            "label_map: {0: 1, 1: 0}; if it is that of class 1, label_map: {0: 0, 1: 1}"
        )
    logger.info(f"teacher {teacher.name}: one logit, taken as the log-odds of class 1")


def _unlike_class_1(only: str, of_task: dict[str, int], positive: int) -> str:
    """Say why a checkpoint's only logit may be of class 0; empty where it is taken as that of class 1.

    It is of class 0 where it has the name of the task's class 0 or, in a task without names, that of a negation. Where
    class 0 is the positive one it must be named as class 1 is: a reranker's logit is mostly of the positive class.
    """
    name = _plain(only)
    called = f"its only logit is named {only}" if only else "its only logit has no name"
    if of_task.get(name) == 0 if of_task else _is_negation(name):
        return f"{called}, which {'is' if of_task else 'means'} class 0 of the task"
    if positive == 0 and of_task.get(name) != 1:
        return f"{called}, and data.positive says that class 0 is right"
    return ""


def _refusal(teacher: Teacher, names: list[str], of_task: dict[str, int]) -> RecipeError:
    example = ", ".join(f"{name}: {of_task.get(_plain(name), '?')}" for name in names)
    theirs = f"are {', '.join(of_task)}" if of_task else "have no names"
    return RecipeError(
        f"teachers: {teacher.name}: its classes are {', '.join(names)} in that order, the task's (data.labels) "
        f"{theirs}. Say which is which: label_map: {{{example}}}"
    )


def _negative(names: list[str]) -> int | None:
    """Return which of two class names means the negative class; None where the names do not say."""
    if len(names) != 2:
        return None
    first, second = (_plain(name) for name in names)
    if (first, second) in _OPPOSITES or first in _negations(second):
        return 0
    if (second, first) in _OPPOSITES or second in _negations(first):
        return 1
    return None


def _negations(name: str) -> set[str]:
    return {f"{prefix}{name}" for prefix in _NEGATIONS}


def require_counted(folder: Path, teacher: str, *, mappable: bool = True) -> None:
    """Refuse a checkpoint whose classes are called by numbers in another order: config.json may call class 0 "1".

    Args:
        folder: the checkpoint.
        teacher: what the error calls it.
        mappable: whether the recipe can give it a label_map.

    Raises:
        RecipeError: the numbers do not rise.
    """
    names = class_names(folder)
    if has_card(folder) or not all(_NAMELESS.fullmatch(_plain(name)) for name in names):
        return
    numbers = [int(re.sub(r"\D", "", name)) for name in names]
    if sorted(numbers) != numbers:
        order = ", ".join(f"{name!r}: {number}" for name, number in zip(names, numbers, strict=True))
        known = sorted(numbers) == list(range(len(numbers)))
        fix = f"if these are the task's classes, say so: label_map: {{{order}}}" if known else "give a label_map"
        if not mappable:
            fix = "rename them in its config.json (id2label, label2id) to what they mean"
        raise RecipeError(
            f"teachers: {teacher}: {folder} calls its classes {', '.join(names)}, in this order; {fix}", key="teachers"
        )


def _is_negation(name: str) -> bool:
    return name in {no for no, _ in _OPPOSITES} or any(name in _negations(yes) for yes in _POSITIVE)


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
    if not isinstance(student.encoder, PairEncoder):
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
    """Return the names in a checkpoint's config.json in their order; an empty list where it has none."""
    if has_card(folder) and (labels := read_card(folder).labels):
        return list(labels)
    found = checkpoint_json(folder / "config.json").get("id2label") or {}
    return [str(found[key]) for key in sorted(found, key=int)]


def _named(names: list[str]) -> bool:
    return bool(names) and not any(_NAMELESS.fullmatch(_plain(name)) for name in names)


def _plain(name: str) -> str:
    """Normalise a class name: lower case, spaces and hyphens as underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower())
