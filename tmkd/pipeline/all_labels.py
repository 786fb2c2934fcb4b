"""All labels that the students of a run learn, stored before a student is trained."""

from __future__ import annotations

from collections.abc import Sequence

from tmkd.config.methods import Method
from tmkd.data.pairs import Pairs
from tmkd.pipeline.results import LabelResult
from tmkd.pipeline.teacher_labels import TeacherLabels


def label_all(labels: TeacherLabels) -> LabelResult:
    """Store the labels that the recipe's methods learn: of the training pairs and, for stage 1, of the pool.

    Args:
        labels: the teachers of the run.
    """
    pool = train = 0
    if not any(method.stage1 for method in labels.learning):
        labels.cache.say_once("no method learns the teachers' labels of the pool: it is not labelled")
    elif labels.recipe.foreign_pool:
        _ = labels.foreign_logits
        pool = len(labels.stage1_pool)
    elif methods := [method for method in labels.learning if labels.recipe.trains_stage1(method)]:
        pool = _label(labels, labels.stage1_pool, "pool", methods)
    if methods := [method for method in labels.learning if method.stage2]:
        if (stacked := labels.stacked) is not None and any(method.targets == "mean" for method in labels.learning):
            stacked.labelling(stacked.names)
        train = _label(labels, labels.data.student_pairs, "train", methods)
    stores = tuple(step.folder for step in labels.workspace.used if step.kind == "labels")
    return LabelResult(train, pool, stores)


def _label(labels: TeacherLabels, pairs: Pairs, where: str, methods: Sequence[Method]) -> int:
    """Store the labels of some pairs that these methods learn; how many pairs these are."""
    which = labels.labellers_with_note(pairs, where)
    if labels.are_out_of_fold(where):
        for method in methods:
            labels.targets(method, pairs, where)
        which = [number for number in which if not labels.teachers[number][0].learns_labels]
    labels.logits(pairs, where, which)
    return len(pairs)
