"""The students of a run: stage 1 and stage 2 of every method of its recipe, one student for each seed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.config.methods import Method, chosen_method
from tmkd.config.recipe import BEST, Recipe
from tmkd.config.sections import StatesTraining
from tmkd.core.errors import ExportError
from tmkd.data.pairs import Pairs
from tmkd.pipeline.choice import Choice, choose_best
from tmkd.pipeline.run_data import RunCache, RunData
from tmkd.pipeline.steps.bi_encoder_cosine import bi_encoder_cosine
from tmkd.pipeline.steps.bilstm import bilstm
from tmkd.pipeline.steps.label import method_logits
from tmkd.pipeline.steps.stage1 import stage1
from tmkd.pipeline.steps.stage2 import stage2
from tmkd.pipeline.steps.student import StudentSpec
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.pipeline.teacher_labels import TeacherLabels
from tmkd.training.targets import Replay, Targets
from tmkd.training.token_cosine import soft_labels


@dataclass(frozen=True)
class TrainedStudents:
    """The finished students of one method.

    Attributes:
        method: a row of the table of methods.
        steps: the students, seed after seed.
        stage1: the stage-1 student of each seed; empty where the method has none, or the recipe names a finished one.
        each: students of one seed (K of `m-o-m`, else 1).
    """

    method: Method
    steps: tuple[Step, ...]
    stage1: tuple[Step, ...]
    each: int = 1

    @classmethod
    def of(cls, method: Method, seeds: list[TrainedSeed]) -> TrainedStudents:
        """The students of a method from those of each seed."""
        steps = [step for _, finished in seeds for step in finished]
        firsts = tuple(first for first, _ in seeds if isinstance(first, Step))
        return cls(method, tuple(steps), firsts, len(steps) // len(seeds))


TrainedSeed = tuple[Step | Path | None, list[Step]]
"""Of one seed: the stage-1 student, where the method has one, and the finished student (K of them for `m-o-m`)."""


class Students:
    """The students of a recipe. Each is trained when it is first asked for.

    Args:
        labels: the teachers of the run and their labels, with its recipe, pairs and workspace.
    """

    def __init__(self, labels: TeacherLabels) -> None:
        self.labels = labels
        self.data = labels.data
        self.recipe = labels.recipe
        self.workspace = labels.workspace
        self._trained: list[TrainedStudents] | None = None

    @classmethod
    def of(cls, recipe: Recipe, workspace: Workspace, cache: RunCache) -> Students:
        """The students of a recipe over its own data and teachers."""
        return cls(TeacherLabels(RunData(recipe, workspace, cache)))

    def on(self, workspace: Workspace) -> Students:
        """The same students in another view of the workspace."""
        return self if workspace is self.workspace else Students(self.labels.on(workspace))

    @property
    def methods(self) -> list[Method]:
        """The recipe's methods that train a student."""
        return [method for method in self.recipe.chosen_methods if method.trains]

    def train_all(self) -> list[TrainedStudents]:
        """Train the students that are not there, and give all of them, method by method."""
        if self._trained is None:
            found = iter(self.workspace.in_turn(self.trainings()))
            self._trained = [
                TrainedStudents.of(method, [next(found) for _ in self.recipe.seeds]) for method in self.methods
            ]
        return self._trained

    def taken(self) -> TrainedStudents:
        """The students of the method that is exported (`take`); trained, with all others, if they are not there."""
        return next(students for students in self.train_all() if students.method.name == self.choice.method)

    @functools.cached_property
    def choice(self) -> Choice:
        """The method that is exported, and why; students are trained first where the development set decides."""
        if self.recipe.take != BEST:
            return Choice(self.recipe.take)
        recipe, dev = self.recipe, self.data.dev
        fit = [students for students in self.train_all() if students.method.exportable]
        # An export folds the heads, whatever `combination` is.
        logits = {
            one.method.name: method_logits(
                self.workspace, one.steps, dev, name=one.method.name, precision=recipe.precision
            )
            for one in fit
        }
        found = choose_best(logits, dev, classes=recipe.classes, positive=recipe.positive_class)
        self.data.cache.say_once(found.sentence())
        return found

    def trainings(self) -> list[Callable[[Workspace], TrainedSeed]]:
        """For every method and seed a function that trains the student in the workspace it is given."""
        return [partial(self._train, *one) for one in itertools.product(self.methods, self.recipe.seeds)]

    def _train(self, method: Method, seed: int, workspace: Workspace) -> TrainedSeed:
        return self.on(workspace).train(method, seed)

    def train(self, method: Method, seed: int) -> TrainedSeed:
        """The student of one method and seed; the students of `m-o-m` are the `1-o-1` students of every teacher."""
        first = self.pretrain(method, seed) if method.stage1 else None
        if not method.stage2:
            assert isinstance(first, Step)  # a recipe with `stage1_from` is refused
            return first, [first]
        if method.students == "K":
            each = self.labels.labellers(self.data.student_pairs)
            single = chosen_method("1-o-1", "cached" if method.cached else "layers")
            return first, [self.distill(single, None, seed, only=teacher) for teacher in each]
        return first, [self.distill(method, first, seed)]

    def pretrain(self, method: Method, seed: int) -> Step | Path:
        """The stage-1 student of a method and seed, or the folder of the one that the recipe names."""
        if (finished := self.recipe.finished_stage1(method)) is not None:
            return Path(finished)
        pool, targets = self.labels.stage1_pool, self.stage1_targets(method).mapped(self.workspace.tokens)
        recipe = self.recipe.of_method(method)
        recipe = recipe.model_copy(update={"cached": recipe.cached.frozen_before_the_last()})
        spec = StudentSpec(recipe, method, seed, self.begins_with(method), self._taught_by(method))
        return stage1(self.workspace, spec, pool, targets)

    def stage1_targets(self, method: Method) -> Targets:
        """What a method's student learns in stage 1: the teachers' labels, or the bi-encoder cosine (`self-taught`)."""
        if method.self_taught:
            pool = self.labels.stage1_pool
            cosine = bi_encoder_cosine(self.workspace, self.recipe, pool)
            return Targets((f"cosine {cosine.fingerprint}",), soft_labels(cosine.folder, pool)[:, None])
        targets = self.labels.pool_targets(method)
        assert targets is not None
        return targets

    def begins_with(self, method: Method) -> Step | None:
        """The teacher, or the warm start, whose layers a method's student has first; None for those of the encoder."""
        if method.warm:
            return self.labels.warm_start
        taught = (
            self.recipe.of_method(method).student.start == "teacher" and method.targets != "none" and not method.cached
        )
        return self.labels.of_own_encoder[0] if taught else None

    def _taught_by(self, method: Method) -> tuple[Step, ...]:
        """The teachers whose hidden states a student of the method learns in stage 1, the best first."""
        recipe = self.recipe.of_method(method)
        numbers: StatesTraining = recipe.cached.stage1 if method.cached else recipe.stage1
        if not numbers.states or not (method.cached or self.begins_with(method)):
            return ()
        every = self.labels.of_own_encoder
        return every if numbers.states_from == "each" and method.targets != "one" else every[:1]

    def distill(self, method: Method, first: Step | Path | None, seed: int, only: int | None = None) -> Step:
        """Train one student: stage 2, or the only stage.

        Args:
            method: a row of the table of methods.
            first: the stage-1 student that it begins with.
            seed: of the order of the pairs, and of new weights.
            only: the teacher (index) of a student that learns from one; the best teacher unless given.
        """
        pairs = self.data.student_pairs
        soft = self.labels.targets(method, pairs, "train", only)
        if method.encoder == "lstm":
            assert soft is not None
            best, teacher = self.labels.teachers[self.labels.best_of(method)]
            words = None if best.tune is not None else teacher
            return bilstm(self.workspace, StudentSpec(self.recipe, method, seed, words), pairs, soft)
        begin = None if first is not None else self.begins_with(method)
        spec = StudentSpec(self.recipe.of_method(method), method, seed, begin)
        return stage2(self.workspace, spec, pairs, soft, first, self._replay(method))

    def _replay(self, method: Method) -> Replay | None:
        """The pairs of the pool that stage 2 of a method mixes in."""
        recipe = self.recipe.of_method(method)
        numbers = recipe.cached.stage2 if method.cached else recipe.stage2
        if not (method.stage1 and numbers.replay):
            return None
        pool = self.labels.stage1_pool
        targets = self.labels.targets(method, pool, "pool")
        return Replay(pool, targets) if targets else None

    def logits(self, students: TrainedStudents, pairs: Pairs) -> NDArray[np.float64]:
        """The outputs of a method's students under the recipe's combination, [S, N, C] for S seeds."""
        return method_logits(
            self.workspace, students.steps, pairs, self.recipe.combination, each=students.each,
            name=students.method.name, precision=self.recipe.precision,
        )  # fmt: skip

    def require_exportable(self) -> None:
        """Refuse, before hours of training, to take a method whose student cannot be exported.

        Raises:
            ExportError: `take` is m-o-m or bilstm.
        """
        if self.recipe.take == BEST:
            return
        method = next(one for one in self.recipe.chosen_methods if one.name == self.recipe.take)
        if not method.exportable:
            fit = [one.name for one in self.recipe.chosen_methods if one.exportable]
            why = "is an LSTM, no transformers checkpoint" if method.encoder == "lstm" else "is several students"
            raise ExportError(
                f"take: {method.name} {why}, and cannot be exported; it is measured all the same. Take "
                + (f"one of: {', '.join(fit)}" if fit else "another method, such as 1-o-1, and add it to `methods`")
            )
