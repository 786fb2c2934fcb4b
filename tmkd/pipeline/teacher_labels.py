"""The teachers of a run, their soft labels, and what the development set says of each teacher."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tmkd.config.methods import TEACHERS, Method
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import DataError
from tmkd.core.logits import log_odds
from tmkd.data.pair_ids import StoredIds, all_numbers_of
from tmkd.data.pairs import Pairs
from tmkd.data.sampling import sample
from tmkd.pipeline.choice import Choice, choose_best
from tmkd.pipeline.run_data import RunData, share_of_pairs
from tmkd.pipeline.steps.out_of_fold import FoldLabels, fold_logits
from tmkd.pipeline.steps.pool import pool_teachers
from tmkd.pipeline.steps.stacking import StackedTeachers, stack_teachers
from tmkd.pipeline.steps.teach import teach
from tmkd.pipeline.steps.teacher_logits import TeacherLogits, calibrated, is_step, join_score_files
from tmkd.pipeline.steps.tune import tune
from tmkd.pipeline.steps.warm_up import Judgement, warm_up
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.scores import ScoresTeacher
from tmkd.training.targets import Targets, mean_logits
from tmkd.training.teacher_weights import above_chance, development_weights


class TeacherLabels:
    """The teachers of a recipe, each trained once, and their labels, each stored once.

    A teacher is trained, and pairs are labelled, when that is first asked for.

    Args:
        data: the pairs of the run, with its recipe and workspace.
    """

    def __init__(self, data: RunData) -> None:
        self.data = data
        self.recipe = data.recipe
        self.workspace = data.workspace
        self.cache = data.cache
        self._calibrations: dict[int, Step] = {}

    def on(self, workspace: Workspace) -> TeacherLabels:
        """The same teachers and labels in another view of the workspace."""
        return TeacherLabels(self.data.on(workspace))

    @property
    def learning(self) -> list[Method]:
        """The recipe's methods whose students learn soft labels."""
        return [method for method in self.recipe.chosen_methods if method.targets != "none"]

    @property
    def needed(self) -> bool:
        """Whether the run has teachers: a student learns from them, or the report is to show them."""
        return bool(self.learning) or not set(TEACHERS).isdisjoint(self.recipe.methods)

    @functools.cached_property
    def teachers(self) -> list[tuple[Teacher, Step | None]]:
        """Every teacher with its finished step; None for one that is no model of the workspace (`is_step`)."""
        return [
            (teacher, self.teach(teacher, self.data.train) if is_step(teacher) else None)
            for teacher in self.recipe.used_teachers
        ]

    def teach(self, teacher: Teacher, pairs: Pairs) -> Step:
        """Train one teacher on its share of the pairs, from the warm start if it has the recipe's own encoder.

        Raises:
            DataError: the share leaves no pair.
        """
        if teacher.tune is not None:
            return tune(self.workspace, self.recipe, teacher, share_of_pairs(teacher, pairs))
        begin = self.warm_start if self.recipe.fine_tunes_own(teacher) else None
        others = self.data.others_beside(pairs) if teacher.other_tasks else ()
        return teach(self.workspace, self.recipe, teacher, share_of_pairs(teacher, pairs), begin, others)

    @functools.cached_property
    def warm_start(self) -> Step | None:
        """The warm start: the encoder that teachers begin with, if the recipe has a `warm_up`."""
        numbers = self.recipe.warm_up
        if numbers is None:
            return None
        pairs = self.data.warm_up_pairs
        judgement = None if numbers.teacher is None else self._judgement(numbers.teacher, pairs)
        return warm_up(self.workspace, self.recipe, numbers, pairs, judgement)

    def _judgement(self, name: str, pairs: Pairs) -> Judgement:
        """What a teacher that is a finished model says of pairs of the pool (`warm_up.teacher`)."""
        teacher = next(one for one in self.recipe.used_teachers if one.name == name)
        step = teach(self.workspace, self.recipe, teacher, self.data.train) if is_step(teacher) else None
        logits = self._sources.uncalibrated(teacher, step, pairs, "pool")
        return Judgement(self._sources.fingerprint(teacher, step), log_odds(logits).astype(np.float32))

    def labellers(self, pairs: Pairs) -> list[int]:
        """The teachers (indices) that can label the pairs: scores made elsewhere can where there are some for them."""
        return [n for n, (teacher, _) in enumerate(self.teachers) if self._sources.can_label(teacher, pairs)]

    def labellers_with_note(self, pairs: Pairs, where: str) -> list[int]:
        """As `labellers`, with a note that names the teachers that have no score of the pairs."""
        which = self.labellers(pairs)
        if absent := [one.name for n, (one, _) in enumerate(self.teachers) if n not in which]:
            self.cache.say_once(f"no {where} pair has a score of {', '.join(absent)}: the other teachers label them")
        return which

    def logits(self, pairs: Pairs, where: str, which: Sequence[int] | None = None) -> list[NDArray[np.float32]]:
        """Each teacher's logits of the pairs, K arrays [N, C] float32 in the order of the pairs.

        Args:
            pairs: the N pairs.
            where: what errors call the pairs: train, dev or pool.
            which: the teachers (indices); all unless given.

        Raises:
            DataError: a column of scores that the pairs do not carry, or not for every pair.
        """
        return [
            calibrated(self.teachers[n][0], self.calibration(n), self.uncalibrated(n, pairs, where), pairs)
            for n in (range(len(self.teachers)) if which is None else which)
        ]

    def uncalibrated(self, number: int, pairs: Pairs, where: str) -> NDArray[np.float32]:
        """The logits of one teacher (index) of the pairs (`where` in errors), not calibrated, [N, C] float32."""
        teacher, step = self.teachers[number]
        if step is not None:
            return self.logits_of(step, pairs, teacher.name)
        if teacher.is_column:
            return self._sources.uncalibrated(teacher, None, pairs, where)
        key = (self._sources.fingerprint(teacher, None), pairs.digest(), "raw scores")
        return self.cache.logits_by(key, lambda: self._sources.uncalibrated(teacher, None, pairs, where))

    @functools.cached_property
    def _sources(self) -> TeacherLogits:
        join_score_files(self.recipe, self.cache.stored_teachers, lambda: self.data.labelled_by_teachers)
        return TeacherLogits(self.workspace, self.recipe, self.cache.stored_teachers)

    def calibration(self, number: int) -> Step | None:
        """The calibration of one teacher (index), fitted on training labels that it has not learned from.

        A teacher that is trained here is calibrated on out-of-fold logits. None where the recipe does not calibrate the
        teacher, or where no training pair has a label.

        Raises:
            DataError: the training labels have one class, or the scores do not rise with them.
        """
        teacher, train = self.teachers[number][0], self.data.train
        if teacher.calibration == "none":
            return None
        if not train.has_labels:
            self.cache.say_once(f"teacher {teacher.name}: no training pair has a label; scores are standardised")
            return None
        if number not in self._calibrations:
            names, logits = self._unlearned(number)
            self._calibrations[number] = self._sources.calibration(teacher, names, train, logits)
        return self._calibrations[number]

    def _unlearned(self, number: int, *, dev: bool = False) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """The logits of one teacher (index) of labelled pairs that it has not seen, before they are calibrated.

        They are those of the development set, or of the training pairs: out-of-fold if the teacher is trained here. The
        fingerprints of what gave them come first.
        """
        (teacher, step), train = self.teachers[number], self.data.train
        if teacher.learns_labels and not dev:
            folded = fold_logits(self.recipe, teacher, train, self.teach, self.logits_of)
            return folded.teachers, folded.logits
        pairs, where = (self.data.dev, "dev") if dev else (train, "train")
        return (self._sources.fingerprint(teacher, step),), self.uncalibrated(number, pairs, where)

    @functools.cached_property
    def stacked(self) -> StackedTeachers | None:
        """The weights of the stacked ensemble; None where the recipe takes the mean, or uses a single teacher.

        A column of scores that made the labels on which the weights are fitted is no part of it.
        """
        if self.recipe.ensemble == "mean" or len(self.teachers) < 2:
            return None
        dev = self.recipe.ensemble == "stacked-dev"
        pairs, of = (self.data.dev, "development") if dev else (self.data.train, "training")
        which = [n for n in self.labellers(pairs) if not self._made_labels_of(n, pairs)]
        if len(which) < 2:  # without a column of scores that made the labels
            why = f"is the plain mean here: fewer than two teachers label the {of} pairs, which its weights need"
            self.cache.say_once(f"ensemble: {self.recipe.ensemble} {why}", logging.WARNING)
            return None
        inputs, logits = [], []
        for number in which:
            teacher, calibration = self.teachers[number][0], self.calibration(number)
            names, given = self._unlearned(number, dev=dev)
            inputs += [*names, calibration.fingerprint if calibration else teacher.calibration]
            logits.append(calibrated(teacher, calibration, given, pairs))
        teachers = [self.teachers[number][0].name for number in which]
        found = stack_teachers(self.workspace, teachers, inputs, logits, pairs, self.recipe)
        self.cache.say_once(f"{found.of(found.names).sentence()} ({of} pairs)")
        return found

    def _made_labels_of(self, number: int, pairs: Pairs) -> bool:
        """Whether a teacher (index) is the column of scores that stands for the labels of these pairs."""
        teacher = self.teachers[number][0]
        return teacher.is_column and ScoresTeacher.of(teacher, self.recipe.data).is_reference_of(pairs)

    def _stacked_targets(self, which: Sequence[int], logits: Sequence[NDArray[np.float32]]) -> Targets | None:
        """The stacked ensemble's soft labels, from those teachers (indices) that take part in it."""
        stacked, given = self.stacked, dict(zip([self.teachers[n][0].name for n in which], logits, strict=True))
        if stacked is None or not (members := stacked.members(given)):
            return None
        found = stacked.labelling(members).apply([given[name] for name in members])
        names = [self._name_of(number) for number in which if self.teachers[number][0].name in members]
        return Targets.stacked(stacked.step.fingerprint, names, found)

    def _name_of(self, number: int) -> str:
        """What a teacher's labels depend on, besides the pairs."""
        teacher, step = self.teachers[number]
        name = self._sources.fingerprint(teacher, step)
        if teacher.calibration == "none":
            return name
        calibration = self.calibration(number)
        return f"{name} {calibration.fingerprint if calibration else 'standardised'}"

    def logits_of(self, model: Step, pairs: Pairs, name: str) -> NDArray[np.float32]:
        """A model's logits of the pairs, [N, C] float32.

        Args:
            model: a finished model.
            pairs: the N pairs.
            name: what the log calls the model.
        """
        key = (model.fingerprint, pairs.digest(), self.recipe.precision)
        return self.cache.logits_by(key, lambda: self._sources.of_step(model, pairs, name))

    def are_out_of_fold(self, where: str) -> bool:
        """Whether students learn out-of-fold labels of `train`, or of `pool`, which is `train` where there is none."""
        trained_on = where == "train" or (where == "pool" and self.data.pool is self.data.train)
        return trained_on and self.recipe.labels == "out-of-fold"

    def learned(self, number: int, pairs: Pairs, where: str) -> FoldLabels:
        """The labels of the pairs that students learn from one teacher, out-of-fold where `are_out_of_fold` says so.

        Args:
            number: the index of the teacher.
            pairs: N pairs; training pairs where their labels are out-of-fold.
            where: what errors call the pairs: train, dev or pool.

        Returns:
            Calibrated logits, and the teachers of the folds that gave them; no fold where the teacher itself did.
        """
        teacher, train = self.teachers[number][0], self.data.train
        if not (teacher.learns_labels and self.are_out_of_fold(where)):
            return FoldLabels(self.logits(pairs, where, [number])[0], ())
        found = fold_logits(self.recipe, teacher, train, self.teach, self.logits_of)
        rows = StoredIds(all_numbers_of(train.ids)).find(all_numbers_of(pairs.ids))
        return replace(found, logits=calibrated(teacher, self.calibration(number), found.logits[rows], pairs))

    def targets(self, method: Method, pairs: Pairs, where: str, only: int | None = None) -> Targets | None:
        """What one student of a method learns on these pairs; None where it learns no soft labels.

        Args:
            method: a row of the table of methods.
            pairs: the N pairs.
            where: what errors call the pairs; says whether their labels are out-of-fold (`are_out_of_fold`).
            only: the teacher (index) of a student that learns from one; the best teacher unless given.
        """
        if method.targets == "none":
            return None
        which = self.labellers_with_note(pairs, where)
        assert which, "tmkd.pipeline.preflight finds pairs that no teacher can label"
        if method.targets == "one":
            which = [self.best_of(method) if only is None else only]
        labels = [self.learned(number, pairs, where) for number in which]
        names, logits = [self._name_of(number) for number in which], [one.logits for one in labels]
        stacked = self._stacked_targets(which, logits) if method.targets == "mean" else None
        found = stacked or Targets.choose(method, names, logits, best=0)
        assert found is not None
        weighed = found.weigh(self.recipe.of_method(method).loss.weighting, lambda: self.development_weights(which))
        if silent := weighed.without_weight:
            why = "pairs have no loss on soft labels: only teachers with the weight 0 label them"
            self.cache.say_once(f"{silent:,} of {len(pairs):,} {where} {why}", logging.WARNING)
        return replace(weighed.masked(), folds=tuple(fold for one in labels for fold in one.teachers))

    def pool_targets(self, method: Method) -> Targets | None:
        """What a method's student learns from the teachers in stage 1; from the pool's own teachers, if it has some."""
        if not self.recipe.foreign_pool:
            return self.targets(method, self.stage1_pool, "pool")
        if method.targets == "mean" and self.recipe.ensemble != "mean":
            self.cache.say_once("stage 1 learns the mean of the pool's own teachers: their task has no labels here")
        targets = Targets.choose(method, *self.foreign_logits, best=0)
        weighting = self.recipe.of_method(method).loss.weighting
        if targets is not None and weighting == "confidence":  # the others need a development set
            targets = targets.weigh("confidence", lambda: np.empty(0))
        return targets

    @functools.cached_property
    def stage1_pool(self) -> Pairs:
        """The pairs of the pool that stage 1 sees: those that `pool.sampling` and then `stage1.share` leave.

        Raises:
            DataError: a teacher whose scores decide has none of the pool, or lacks some; the share leaves no pair.
        """
        return self.data.stage1_share(self._sampled_pool())

    def _sampled_pool(self) -> Pairs:
        pool, wanted = self.data.pool, self.recipe.pool
        if wanted is None or wanted.sampling is None:
            return pool
        if not (which := [n for n in self.labellers(pool) if wanted.sampling.by in (None, self.teachers[n][0].name)]):
            raise DataError(f"pool.sampling.by: {wanted.sampling.by} has no scores of the pool; name another teacher")
        whose = ", ".join(self.teachers[number][0].name for number in which)
        logits = [self.learned(number, pool, "pool").logits for number in which]
        scores = log_odds(mean_logits(logits), self.recipe.positive_class)
        found = sample(pool, scores, wanted.sampling, wanted.seed)
        self.cache.say_once(found.sentence(whose))
        return pool.take(found.rows)

    @property
    def measured(self) -> list[int]:
        """The teachers (indices) that can be measured on the development set.

        Scores cannot where the set lacks some of them, or where they made the set's labels.
        """
        dev = self.data.dev
        able = [number for number in self.labellers(dev) if not self._made_labels_of(number, dev)]
        partial = {n for n in able if self.teachers[n][0].partial}
        return [n for n in able if n not in partial or np.isfinite(self.uncalibrated(n, dev, "dev")).all()]

    @functools.cached_property
    def dev_metrics(self) -> list[float]:
        """Each teacher's metric above chance on the development set, [K]; nan where it cannot be measured."""
        dev, metrics = self.data.dev, [float("nan")] * len(self.teachers)
        for number in self.measured:
            (logits,) = self.logits(dev, "dev", [number])
            metrics[number] = above_chance(logits, dev.labels)
        return metrics

    def development_weights(self, which: Sequence[int]) -> NDArray[np.float64]:
        """The weights in the loss of some teachers (indices) by their development metric, [len(which)] float64.

        A teacher that cannot be measured gets the mean of the others' metrics.
        """
        metrics = np.array([self.dev_metrics[number] for number in which])
        known = metrics[~np.isnan(metrics)]
        weights = development_weights(np.nan_to_num(metrics, nan=known.mean() if len(known) else 1.0))
        listed = ", ".join(f"{self.teachers[n][0].name} {w:.3f}" for n, w in zip(which, weights, strict=True))
        self.cache.say_once(f"teachers' weights in the loss: {listed}")
        return weights

    @functools.cached_property
    def development(self) -> Choice | None:
        """What the development set says of the teachers that it can measure; None where it can measure none.

        It is what chooses among students, too (`choose_best`): ROC-AUC plus MRR, or accuracy.
        """
        dev, which = self.data.dev, self.measured
        if not which:
            return None
        names = [self.teachers[number][0].name for number in which]
        logits = {name: one[None] for name, one in zip(names, self.logits(dev, "dev", which), strict=True)}
        return choose_best(logits, dev, classes=self.recipe.classes, positive=self.recipe.positive_class)

    def _best(self, which: Sequence[int]) -> int:
        """The teacher (index) of these that is best on the development set; the first if none can be measured there."""
        order = [*(self.development.order if self.development else ()), *(one.name for one, _ in self.teachers)]
        return min(which, key=lambda number: order.index(self.teachers[number][0].name))

    def best_of(self, method: Method) -> int:
        """The index of the best teacher on the development set.

        Only teachers that take part in every stage of the method count.
        """
        learned = [self.data.student_pairs] if method.stage2 else []
        learned += [self.stage1_pool] if self.recipe.trains_stage1(method) and not self.recipe.foreign_pool else []
        able = sorted(set(range(len(self.teachers))).intersection(*map(self.labellers, learned)))
        if not able:
            raise DataError(f"{method.name}: no single teacher labels both the pool and the training pairs")
        best, some = self._best(able), " (only teachers that label the pairs)" if len(able) < len(self.teachers) else ""
        self.cache.say_once(f"best teacher on the development set{some}: {self.teachers[best][0].name}")
        return best

    @functools.cached_property
    def of_own_encoder(self) -> tuple[Step, ...]:
        """The teachers that are fine-tuned from the recipe's own encoder, the best on the development set first."""
        own = [n for n, (teacher, _) in enumerate(self.teachers) if self.recipe.fine_tunes_own(teacher)]
        best = self._best(own)
        self.cache.say_once(
            f"students begin with layers, or learn hidden states, of teacher {self.teachers[best][0].name}"
        )
        steps = [self.teachers[number][1] for number in sorted(own, key=lambda number: number != best)]
        return tuple(step for step in steps if step is not None)

    @functools.cached_property
    def foreign_logits(self) -> tuple[list[str], list[NDArray[np.float32]]]:
        """Names and logits of the pool's own teachers, in the classes of their task."""
        steps = pool_teachers(self.workspace, self.recipe)
        logits = [self.logits_of(step, self.stage1_pool, f"pool teacher {n}") for n, step in enumerate(steps, start=1)]
        return [step.fingerprint for step in steps], logits
