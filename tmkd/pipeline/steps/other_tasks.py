"""The other recipes that a pool is mined from (`pool.sources.N.task`): their pairs, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tmkd.config.load import load_other
from tmkd.config.recipe import Recipe
from tmkd.core.errors import RecipeError, TmkdError
from tmkd.core.files import digest_of
from tmkd.data.decontamination import HeldOut
from tmkd.data.documents.text import distinct, question_key
from tmkd.data.mining import decontaminate
from tmkd.data.pairs import Pairs
from tmkd.data.tasks import TaskData, built_in, load_task


@dataclass(frozen=True)
class LoadedTask:
    """One of these recipes with its pairs.

    Attributes:
        recipe: the recipe, with the keys that the source changes.
        data: its pairs. Development and test set stay out of the pool.
    """

    recipe: Recipe
    data: TaskData

    @property
    def name(self) -> str:
        """The recipe's name, which messages and reports call it by."""
        return self.recipe.name

    def texts(self) -> tuple[list[str], list[str]]:
        """The questions and the passages that a pool is mined from, each once."""
        parts = [self.data.train, *([] if self.data.pool is None else [self.data.pool])]
        questions = distinct([question for part in parts for question in part.questions])
        if self.recipe.data.builtin is not None:
            return questions, distinct([one.text for one in built_in(self.recipe.data).passages])
        return questions, distinct([passage for part in parts for passage in part.passages])


def load_others(recipe: Recipe, read: dict[str, TaskData]) -> dict[int, LoadedTask]:
    """Read the recipes that a pool's sources name, and their pairs, except of sources with a share of 0.

    Args:
        recipe: the recipe with the pool.
        read: tasks that were read before, by what they depend on; those that are read now are added.

    Returns:
        The tasks by the number of their source.

    Raises:
        RecipeError: a recipe that cannot be used, has other classes, or has the name of another one.
        DataError: files of it that cannot be used; begins with the source's key, and says how to leave the source out.
    """
    found: dict[int, LoadedTask] = {}
    for number, source in enumerate(recipe.pool.sources if recipe.pool is not None else ()):
        if source.task is None or source.share == 0:
            continue
        key = f"pool.sources.{number}"
        other = load_other(source.task)
        _require_alike(recipe, other, key, [one.name for one in found.values()])
        depends = digest_of([other.data.model_dump(exclude={"train_share"}), other.classes])
        if depends not in read:
            try:
                read[depends] = load_task(other.data, other.classes)
            except TmkdError as error:
                raise error.within(f"{key}.task: {other.name} ({key}.share=0 leaves it out)") from None
        found[number] = LoadedTask(other, read[depends])
    return found


def held_out(data: TaskData, others: Mapping[int, LoadedTask]) -> list[Pairs]:
    """The development and test sets of a task and of the other tasks: nothing is learned from the texts in them."""
    return [part for one in (data, *(other.data for other in others.values())) for part in (one.dev, one.test)]


def labelled_pairs(recipe: Recipe, data: TaskData, others: Mapping[int, LoadedTask]) -> list[Pairs]:
    """The training pairs of the other tasks, for teachers that learn them (`other_tasks`), without held-out texts.

    Raises:
        DataError: not a single pair of one is left.
    """
    held = HeldOut(held_out(data, others), recipe.classes, recipe.positive_class)
    return [decontaminate(one.data.train, held, f"training pairs of {one.name}") for one in others.values()]


def unseen_by_folds(others: Sequence[Pairs], train: Pairs, learned: Pairs) -> list[Pairs]:
    """Other tasks' training pairs without the questions of this task that a fold holds out from its teacher.

    Args:
        others: what `labelled_pairs` gives.
        train: this task's training pairs.
        learned: those of them that the teacher learns; all of them, or all but a fold.
    """
    held_out = {question_key(one) for one in set(train.questions) - set(learned.questions)}
    if not held_out:
        return list(others)
    asked = [np.array([question_key(one) not in held_out for one in pairs.questions]) for pairs in others]
    return [pairs.take(np.flatnonzero(kept)) for pairs, kept in zip(others, asked, strict=True)]


def _require_alike(recipe: Recipe, other: Recipe, key: str, names: list[str]) -> None:
    """The students can be measured on the other recipe's development set, under a name of its own."""
    for what in ("classes", "positive_class"):
        here, there = getattr(recipe, what), getattr(other, what)
        if here != there:
            raise RecipeError(f"{key}.task: {other.name} has {what} {there}, this recipe has {here}", key=key)
    if other.name in [recipe.name, *names]:
        raise RecipeError(f"{key}.task: another task here has the name {other.name}; set keys: {{name: ...}}", key=key)
