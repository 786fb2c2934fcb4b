"""Out-of-fold labels: a training pair is labelled by a teacher that did not see its question.

A teacher knows its own training rows by heart, so its soft labels of them are harder than those of other rows. Every
teacher is trained once more for each fold, on the other folds; each of these is a resumable step of the workspace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.config.recipe import Recipe
from tmkd.config.sections import Teacher
from tmkd.data.pairs import Pairs
from tmkd.data.split import folds
from tmkd.pipeline.store.workspace import Step

Teach = Callable[[Teacher, Pairs], Step]
LogitsOf = Callable[[Step, Pairs, str], NDArray[np.float32]]


@dataclass(frozen=True)
class FoldLabels:
    """logits: [N, C] float32 in the order of the rows; teachers: fingerprints, fold by fold."""

    logits: NDArray[np.float32]
    teachers: tuple[str, ...]


def fold_logits(recipe: Recipe, teacher: Teacher, rows: Pairs, teach: Teach, logits_of: LogitsOf) -> FoldLabels:
    """Train one teacher on all folds but one, for each fold, and label that one with it.

    Args:
        rows: the training pairs, [N].
        teach: trains a teacher on pairs (`TeacherLabels.teach`).
        logits_of: labels pairs with a finished teacher (`TeacherLabels.logits_of`).

    Raises:
        DataError: more folds than questions.
    """
    fold = folds(rows, recipe.folds)
    found = np.empty((len(rows), recipe.classes), dtype=np.float32)
    marks = []
    for number in range(recipe.folds):
        name = f"{teacher.name} without fold {number + 1} of {recipe.folds}"
        step = teach(teacher.model_copy(update={"name": name}), rows.take(np.flatnonzero(fold != number)))
        held_out = np.flatnonzero(fold == number)
        found[held_out] = logits_of(step, rows.take(held_out), name)
        marks.append(step.fingerprint)
    return FoldLabels(found, tuple(marks))
