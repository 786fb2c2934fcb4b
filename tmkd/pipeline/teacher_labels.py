"""What the students of a run learn from: its teachers, their labels, and what development rows say of each teacher."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tmkd.config.methods import METHODS, Method
from tmkd.config.sections import Teacher
from tmkd.data.pairs import Pairs
from tmkd.data.split import BAGS, subsample
from tmkd.pipeline.run_data import Rows
from tmkd.pipeline.steps.label import label
from tmkd.pipeline.steps.out_of_fold import fold_logits
from tmkd.pipeline.steps.pool import pool_teachers
from tmkd.pipeline.steps.teach import teach
from tmkd.pipeline.steps.warm_up import warm_up
from tmkd.pipeline.store.workspace import Step
from tmkd.teachers.scores import ScoresTeacher
from tmkd.training.losses import golden_loss
from tmkd.training.targets import Targets
from tmkd.training.teacher_weights import above_chance, development_weights


class Supervision(Rows):
    """The teachers of a recipe, trained once, and their labels, stored once."""

    @functools.cached_property
    def teachers(self) -> list[tuple[Teacher, Step | None]]:
        """Every teacher with its finished step (None for a column of scores)."""
        return [
            (teacher, None if teacher.scores else self.teach(teacher, self.data.train))
            for teacher in self.recipe.used_teachers
        ]

    def teach(self, teacher: Teacher, rows: Pairs) -> Step:
        """One teacher, trained on its share of the rows: from the warmed-up encoder where the recipe has it and it is
        the same.

        Raises:
            DataError: its share leaves no row.
        """
        begin = self.warmed_up if self.recipe.fine_tunes_own(teacher) else None
        return teach(self.workspace, self.recipe, teacher, share_of_rows(teacher, rows), begin)

    @functools.cached_property
    def warmed_up(self) -> Step | None:
        """The encoder that teachers begin with, where the recipe asks for a warm-up."""
        numbers = self.recipe.warm_up
        return None if numbers is None else warm_up(self.workspace, self.recipe, numbers, self.pool)

    def labellers(self, pairs: Pairs) -> list[int]:
        """The teachers that can label the pairs (indices): a column of scores only where the pairs carry it."""
        return [
            number
            for number, (teacher, _) in enumerate(self.teachers)
            if teacher.scores is None or teacher.scores in pairs.score_names
        ]

    def teacher_logits(self, pairs: Pairs, where: str, which: Sequence[int] | None = None) -> list[NDArray[np.float32]]:
        """Each teacher's logits for the pairs (or those of `which`), K arrays [N, C] in the order of the pairs."""
        logits = []
        for teacher, step in self.teachers if which is None else [self.teachers[number] for number in which]:
            if step is None:
                logits.append(ScoresTeacher.of(teacher, self.recipe.data).logits(pairs, where))
            else:
                logits.append(self.logits(step, pairs, teacher.name))
        return logits

    def logits(self, model: Step, pairs: Pairs, name: str) -> NDArray[np.float32]:
        """A model's stored logits for the pairs, [N, C]."""
        key = (model.fingerprint, pairs.digest(), self.recipe.precision)
        if key not in self.shared.logits:
            store = label(self.workspace, model, pairs, name=name, precision=self.recipe.precision)
            self.shared.logits[key] = store.logits_for(pairs.pair_ids)
        return self.shared.logits[key]

    def targets(self, method: Method, pairs: Pairs, where: str, only: int | None = None) -> Targets | None:
        """What one student learns on these pairs; `only`: the teacher of one that learns from one, the best unless
        given."""
        if method.targets == "none":
            return None
        which = self.labellers(pairs)
        assert which, "tmkd.pipeline.preflight finds rows that no teacher can label"
        chosen = [self.teachers[number] for number in which]
        names = [
            step.fingerprint if step else ScoresTeacher.of(teacher, self.recipe.data).fingerprint
            for teacher, step in chosen
        ]
        best = which.index(self.best_of(method) if only is None else only) if method.targets == "one" else 0
        logits, marks = self.teacher_logits(pairs, where, which), tuple[str, ...]()
        if where == "train" and self.recipe.labels == "out-of-fold":
            for place, number in enumerate(which):
                teacher = self.teachers[number][0]
                if teacher.trained and (method.targets != "one" or place == best):
                    labels = fold_logits(self.recipe, teacher, self.data.train, self.teach, self.logits)
                    logits[place] = labels.logits[self.student_rows]
                    marks += labels.teachers
        found = Targets.choose(method, names, logits, best)
        assert found is not None
        weighed = found.weigh(self.recipe.loss.weighting, lambda: self.development_weights(which))
        return replace(weighed, folds=marks)

    @functools.cached_property
    def dev_metrics(self) -> list[float]:
        """Each teacher's metric above chance on development rows, [K]; nan where it has no say there."""
        dev, metrics = self.data.dev, [float("nan")] * len(self.teachers)
        for number in self.measured_teachers:
            (logits,) = self.teacher_logits(dev, "dev", [number])
            metrics[number] = above_chance(logits, dev.labels)
        return metrics

    def development_weights(self, which: Sequence[int]) -> NDArray[np.float64]:
        """The weights in the loss of some teachers (indices) by their metric on development rows, [len(which)].

        A teacher that cannot be measured there weighs as much as the others do on average.
        """
        metrics = np.array([self.dev_metrics[number] for number in which])
        known = metrics[~np.isnan(metrics)]
        weights = development_weights(np.nan_to_num(metrics, nan=known.mean() if len(known) else 1.0))
        told = ", ".join(f"{self.teachers[n][0].name} {w:.3f}" for n, w in zip(which, weights, strict=True))
        self.shared.say(f"teachers' weights in the loss: {told}")
        return weights

    @property
    def measured_teachers(self) -> list[int]:
        """The teachers (indices) that development rows can judge: their column is there, and is not the reference."""
        dev = self.data.dev
        return [n for n in self.labellers(dev) if not self._made_reference(self.teachers[n][0], dev)]

    def _made_reference(self, teacher: Teacher, pairs: Pairs) -> bool:
        return teacher.scores is not None and ScoresTeacher.of(teacher, self.recipe.data).is_reference_of(pairs)

    @functools.cached_property
    def dev_losses(self) -> list[float]:
        """Each teacher's cross-entropy on development rows, [K]; inf where it has no say there: its column is absent,
        or it is the reference itself."""
        dev = self.data.dev
        golden = torch.from_numpy(dev.golden)
        golden = golden.double() if golden.ndim == 2 else golden
        known = np.flatnonzero(dev.labels >= 0)
        losses = [float("inf")] * len(self.teachers)
        measured = self.measured_teachers
        for number, logits in zip(measured, self.teacher_logits(dev, "dev", measured), strict=True):
            losses[number] = float(golden_loss(torch.from_numpy(logits).double(), golden)[known].mean())
        return losses

    def best_of(self, method: Method) -> int:
        """The best teacher on development rows (an index), of those that take part in every stage of the method."""
        mined = method.stage1 and not self.foreign_pool and self.recipe.stage1_from is None
        which = self.labellers(self.pool) if mined else range(len(self.teachers))
        best = min(which, key=lambda number: self.dev_losses[number])
        self.shared.say(f"best teacher on development rows: {self.teachers[best][0].name}")
        return best

    @functools.cached_property
    def best_teacher_of_encoder(self) -> Step:
        """The best on development rows of the teachers that are fine-tuned from the recipe's own encoder."""
        own = [
            (loss, step, teacher.name)
            for loss, (teacher, step) in zip(self.dev_losses, self.teachers, strict=True)
            if step is not None and self.recipe.fine_tunes_own(teacher)
        ]
        _, step, name = min(own, key=lambda one: one[0])
        self.shared.say(f"the student begins with layers of teacher {name}")
        return step

    @functools.cached_property
    def foreign_logits(self) -> tuple[list[str], list[NDArray[np.float32]]]:
        """Names and logits of the pool's own teachers, in their own classes."""
        steps = pool_teachers(self.workspace, self.recipe)
        logits = [self.logits(step, self.pool, f"pool teacher {n}") for n, step in enumerate(steps, start=1)]
        return [step.fingerprint for step in steps], logits

    def label_all(self) -> None:
        """The labels that methods learn: every teacher's, of the training pairs and, for stage 1, of the pool."""
        learning = [METHODS[name] for name in self.recipe.methods if METHODS[name].targets != "none"]
        if not any(method.stage1 for method in learning):
            self.shared.say("no method learns the teachers' labels of the pool: it is not labelled")
        elif self.foreign_pool:
            _ = self.foreign_logits
        elif self.recipe.stage1_from is None:
            self.teacher_logits(self.pool, "pool", self.labellers(self.pool))
        if learning:
            self.teacher_logits(self.student_pairs, "train")


def share_of_rows(teacher: Teacher, rows: Pairs) -> Pairs:
    """The rows of the questions that a teacher sees (`share`).

    Raises:
        DataError: not a single one is left.
    """
    none = f"teacher {teacher.name}: share {teacher.share} leaves it no training question"
    return rows.take(subsample(rows, teacher.share, BAGS + teacher.seed, none=none)) if teacher.share < 1 else rows
