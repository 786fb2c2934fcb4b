"""How closely a finished student follows the teachers that it learned from: on pairs it has learned, and on test pairs.

Stanton et al. 2021, "Does Knowledge Distillation Really Work?", section 3, compare a student with its teacher on both.
A student that follows its teachers on pairs that it has learned, and less closely on others, lacks pairs. One that does
not follow them on pairs that it has learned lacks layers or epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.config.methods import Method
from tmkd.core.logits import log_odds
from tmkd.data.pairs import Pairs
from tmkd.evaluation.results import ENSEMBLE
from tmkd.pipeline.steps.finished_run import FinishedRun
from tmkd.pipeline.steps.label import head_logits
from tmkd.pipeline.teacher_labels import TeacherLabels
from tmkd.training.targets import Targets

MOST = 1000  # pairs of a set: the standard error of a correlation of 0.9 is then 0.006

Logits = NDArray[np.floating[Any]]


def followed(
    labels: TeacherLabels, run: FinishedRun, name: str, on_test: Mapping[str, Logits]
) -> dict[str, dict[str, float]]:
    """Correlate each head of a method's student with the teacher that it learned from.

    Args:
        labels: the teachers of the run, and their labels.
        run: the finished run.
        name: the method, one whose student can be exported.
        on_test: the teachers' and the ensemble's logits of the test pairs, [N, C], by their name in the report.

    Returns:
        By teacher (or the ensemble) Pearson's correlation of its log-odds with those of its head, by set: `stage1`,
        `train` and `test`, at most `MOST` random pairs of each. With more than two classes it is that of all logits,
        less their mean over the classes. A set is left out where the teacher has no labels of it, or the same one for
        every pair. With several seeds, the student is that of the first one.
    """
    method = next(one for one in run.recipe.chosen_methods if one.name == name)
    if method.targets == "none":
        return {}
    learned = list(learned_sets(labels, method))
    if not learned:  # stage 1 alone, on another task's teachers
        return {}
    heads = learned[-1][2].names  # of the last stage
    shown = dict(zip(heads, taught_by(labels, method, learned[-1][1]), strict=True))
    found: dict[str, dict[str, float]] = {teacher: {} for teacher in shown.values()}
    for where, pairs, targets in learned:
        rows = _some(len(pairs))
        given = _of_heads(run, name, pairs.take(rows), len(heads))
        for place, teacher in enumerate(targets.names):
            known = rows >= 0 if targets.weights is None else targets.weights[rows, place] > 0
            if teacher in shown:
                own = given[known, heads.index(teacher)]
                found[shown[teacher]][where] = correlation(own, targets.logits[rows, place][known])
    test = labels.data.test
    rows = _some(len(test))
    given = _of_heads(run, name, test.take(rows), len(heads))
    for place, teacher in enumerate(shown.values()):
        taught = on_test.get(teacher if teacher == ENSEMBLE else f"teacher:{teacher}")
        if taught is not None:
            found[teacher]["test"] = correlation(given[:, place], taught[rows])
    return {teacher: kept for teacher, by_set in found.items() if (kept := _finite(by_set))}


def correlation(first: Logits, second: Logits) -> float:
    """Pearson's correlation of two models' outputs, [N, C] each; nan where one of them is the same for all pairs."""
    one, other = (_centred(logits) for logits in (first, second))
    if len(one) < 2 or not (one.std() and other.std()):
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def learned_sets(labels: TeacherLabels, method: Method) -> Iterator[tuple[str, Pairs, Targets]]:
    """The pairs whose soft labels a method's students learn in this run, and these labels, stage by stage."""
    if labels.recipe.trains_stage1(method) and not labels.recipe.foreign_pool:
        targets = labels.pool_targets(method)
        assert targets is not None
        yield "stage1", labels.stage1_pool, targets
    if method.stage2:
        pairs = labels.data.student_pairs
        targets = labels.targets(method, pairs, "train")
        assert targets is not None
        yield "train", pairs, targets


def taught_by(labels: TeacherLabels, method: Method, pairs: Pairs) -> list[str]:
    """What the report calls the teacher of each head that learns from these pairs."""
    if method.targets == "mean":
        return [ENSEMBLE]
    which = [labels.best_of(method)] if method.targets == "one" else labels.labellers(pairs)
    return [labels.teachers[number][0].name for number in which]


def _of_heads(run: FinishedRun, name: str, pairs: Pairs, count: int) -> NDArray[np.float32]:
    """The logits of the student's last `count` heads, which learn soft labels, [N, count, C]."""
    model = next(model for model in run.models if model.name == name)
    (step,) = run.steps(model.steps[:1])
    given = head_logits(run.workspace, step, pairs, name=name, precision=run.recipe.precision)
    return given[:, given.shape[1] - count :]


def _some(count: int) -> NDArray[np.int64]:
    """At most `MOST` of so many rows, drawn with seed 0."""
    return np.sort(np.random.default_rng(0).permutation(count)[:MOST])


def _centred(logits: Logits) -> NDArray[np.float64]:
    if logits.shape[1] == 2:
        return log_odds(logits)
    wide = logits.astype(np.float64)
    flat: NDArray[np.float64] = (wide - wide.mean(axis=1, keepdims=True)).ravel()
    return flat


def _finite(by_set: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in by_set.items() if np.isfinite(value)}
