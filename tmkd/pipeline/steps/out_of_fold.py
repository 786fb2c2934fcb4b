"""Out-of-fold labels: a training pair is labelled by a teacher that did not see its question.

A teacher has learned the labels of its own training pairs, so its soft labels for them are closer to 0 and 1 than those
for other pairs. Every teacher is therefore trained once more for each fold, on the pairs of the other folds. Each of
these teachers is a step of the workspace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.config.recipe import Recipe
from tmkd.config.teacher_sections import Teacher
from tmkd.data.pairs import Pairs
from tmkd.data.split import folds
from tmkd.pipeline.store.workspace import Step

Teach = Callable[[Teacher, Pairs], Step]
LogitsOf = Callable[[Step, Pairs, str], NDArray[np.float32]]


@dataclass(frozen=True)
class FoldLabels:
    """The labels of pairs by teachers that did not see them.

    Attributes:
        logits: [N, C] float32 in the order of the pairs.
        teachers: the fingerprint of each fold's teacher; none where the labels are of a teacher of all training pairs.
    """

    logits: NDArray[np.float32]
    teachers: tuple[str, ...]


def fold_logits(recipe: Recipe, teacher: Teacher, rows: Pairs, teach: Teach, logits_of: LogitsOf) -> FoldLabels:
    """For each fold, train a teacher on all other folds and label the fold with it.

    Args:
        recipe: its number of folds and of classes.
        teacher: the teacher to train once for each fold.
        rows: the N training pairs.
        teach: trains a teacher on pairs (`TeacherLabels.teach`).
        logits_of: labels pairs with a finished teacher (`TeacherLabels.logits_of`).

    Raises:
        DataError: there are more folds than questions.
    """
    fold = folds(rows, recipe.folds)
    found = np.empty((len(rows), recipe.classes), dtype=np.float32)
    fingerprints = []
    for number in range(recipe.folds):
        name = f"{teacher.name} without fold {number + 1} of {recipe.folds}"
        step = teach(teacher.model_copy(update={"name": name}), rows.take(np.flatnonzero(fold != number)))
        held_out = np.flatnonzero(fold == number)
        found[held_out] = logits_of(step, rows.take(held_out), name)
        fingerprints.append(step.fingerprint)
    return FoldLabels(found, tuple(fingerprints))
