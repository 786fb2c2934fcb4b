"""The steps of METHOD.md in order, each done once: data, teachers, labels, stage 1, stage 2, export, report.

Choices (which teacher is best) are made on development rows; test rows are read once, for the report.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tmkd.distill import distill, distill_lstm, pretrain
from tmkd.encoder.checkpoint import read_card
from tmkd.encoder.find import find_encoder
from tmkd.errors import DataError, ExportError, RecipeError, TmkdError
from tmkd.files import copy_folder, disk_errors, write_json
from tmkd.hardware import describe, prepare
from tmkd.losses import GROUPED, golden_loss
from tmkd.methods import METHODS, Method
from tmkd.out_of_fold import fold_logits
from tmkd.pairs.datasets import TaskData, load_task
from tmkd.pairs.mining import Material
from tmkd.pairs.record import Pairs
from tmkd.pairs.split import folds, subsample
from tmkd.pool import pool_of, pool_teachers
from tmkd.progress import say
from tmkd.qa.calibration import FILE as CALIBRATION
from tmkd.qa.calibration import of_the_same_student
from tmkd.recipe import Recipe, Teacher
from tmkd.targets import COLUMN, Replay, Targets, questions_of
from tmkd.teachers import column_logits, label, made_reference, method_logits, teach
from tmkd.tokenizer import PairTokenizer
from tmkd.weighting import above_chance, development_weights
from tmkd.workspace import Step, Workspace, fingerprint


@dataclass(frozen=True)
class Student:
    """The students of one method: finished steps, seed after seed, and the stage-1 step of each where it has one.

    Attributes:
        each: steps of a seed (K of m-o-m, else 1).
    """

    method: Method
    steps: tuple[Step, ...]
    stage1: tuple[Step, ...]
    each: int = 1


@dataclass
class Shared:
    """What the pipelines of one process have in common: rows, labels in memory, and what the log said already."""

    tasks: dict[str, TaskData] = field(default_factory=dict)
    materials: dict[str, list[Material]] = field(default_factory=dict)
    pools: dict[str, tuple[Pairs, list[dict[str, Any]]]] = field(default_factory=dict)
    logits: dict[tuple[str, str, str], NDArray[np.float32]] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def say(self, text: str) -> None:
        """A line of the log, once."""
        if text not in self.said:
            say(text)
            self.said.add(text)


class Pipeline:
    """One recipe in one workspace. Every part is computed when it is first asked for."""

    def __init__(self, recipe: Recipe, workspace: Workspace, shared: Shared | None = None) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.shared = shared or Shared()
        self.run = workspace.root / "runs" / recipe.name
        prepare(attention=recipe.attention)
        self.shared.say(f"running on {describe(recipe.precision)}")

    @functools.cached_property
    def _rows_key(self) -> str:
        """What the rows depend on in the recipe."""
        return fingerprint([self.recipe.data.model_dump(exclude={"train_share"}), self.recipe.classes])

    @functools.cached_property
    def data(self) -> TaskData:
        """Train, dev, test and pool."""
        key = self._rows_key
        if key in self.shared.tasks:
            return self.shared.tasks[key]
        task = self.shared.tasks[key] = load_task(self.recipe.data, self.recipe.classes)
        pool = f", pool {len(task.pool):,}" if task.pool is not None else ""
        self.shared.say(f"data: train {len(task.train):,}, dev {len(task.dev):,}, test {len(task.test):,}{pool} pairs")
        return task

    @functools.cached_property
    def _mined(self) -> tuple[Pairs, list[dict[str, Any]]]:
        key = fingerprint([self.recipe.model_dump(include={"pool"}), self._rows_key])
        if key not in self.shared.pools:
            self.shared.pools[key] = pool_of(self.workspace, self.recipe, self.data, self.shared.materials)
        return self.shared.pools[key]

    @property
    def pool(self) -> Pairs:
        """The pairs of stage 1: the pool, or the training pairs where there is none."""
        return self._mined[0]

    @functools.cached_property
    def teachers(self) -> list[tuple[Teacher, Step | None]]:
        """Every teacher with its finished step (None for a column of scores)."""
        if self.recipe.labels == "out-of-fold":
            folds(self.data.train, self.recipe.folds)  # too many of them are refused before anything is trained
        self._require_groups()
        return [
            (teacher, None if teacher.scores else teach(self.workspace, self.recipe, teacher, self.data.train))
            for teacher in self.recipe.used_teachers
        ]

    def _require_groups(self) -> None:
        """A loss that compares the passages of a question finds some: said before hours of training teachers."""
        if self.recipe.loss.kind not in GROUPED:
            return
        learning = [METHODS[name] for name in self.recipe.methods if METHODS[name].targets != "none"]
        if learning:
            questions_of(self.student_pairs, self.recipe.loss, "train")
        if any(method.stage1 for method in learning) and not isinstance(self.recipe.stage1, str):
            questions_of(self.pool, self.recipe.loss, "pool")

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
                logits.append(column_logits(self.recipe, teacher, pairs, where))
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

    def student_logits(self, student: Student, pairs: Pairs) -> NDArray[np.float64]:
        """The outputs of a method's students under the recipe's combination, [S, N, C], one for every seed."""
        return method_logits(
            self.workspace, student.steps, pairs, self.recipe.combination, each=student.each,
            name=student.method.name, precision=self.recipe.precision,
        )  # fmt: skip

    def targets(self, method: Method, pairs: Pairs, where: str, only: int | None = None) -> Targets | None:
        """What one student learns on these pairs; `only`: the teacher of one that learns from one, the best unless
        given."""
        if method.targets == "none":
            return None
        which = self.labellers(pairs)
        if not which:
            raise TmkdError(f"no teacher can label the {where} rows: they carry none of the recipe's score columns")
        chosen = [self.teachers[number] for number in which]
        names = [step.fingerprint if step else f"{COLUMN}{teacher.scores}" for teacher, step in chosen]
        best = which.index(self.best_of(method) if only is None else only) if method.targets == "one" else 0
        logits, marks = self.teacher_logits(pairs, where, which), tuple[str, ...]()
        if where == "train" and self.recipe.labels == "out-of-fold":
            for place, number in enumerate(which):
                teacher = self.teachers[number][0]
                if teacher.trained and (method.targets != "one" or place == best):
                    labels = fold_logits(self.workspace, self.recipe, teacher, self.data.train, self.logits)
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
        return [n for n in self.labellers(dev) if not made_reference(self.teachers[n][0], dev)]

    @functools.cached_property
    def student_rows(self) -> NDArray[np.int64]:
        """The training rows that students see (`data.train_share`), [n].

        Raises:
            DataError: the share leaves no row.
        """
        share, train = self.recipe.data.train_share, self.data.train
        if share == 1:
            return np.arange(len(train))
        rows = subsample(train, share)
        if len(rows) == 0:
            raise DataError(f"data.train_share: {share} leaves none of {len(set(train.qids)):,} training questions")
        return rows

    @functools.cached_property
    def student_pairs(self) -> Pairs:
        """The training pairs that students see."""
        train = self.data.train
        return train if self.recipe.data.train_share == 1 else train.take(self.student_rows)

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
        mined = method.stage1 and not self.foreign_pool and not isinstance(self.recipe.stage1, str)
        which = self.labellers(self.pool) if mined else range(len(self.teachers))
        best = min(which, key=lambda number: self.dev_losses[number])
        self.shared.say(f"best teacher on development rows: {self.teachers[best][0].name}")
        return best

    @functools.cached_property
    def best_teacher_of_encoder(self) -> Step:
        """The best on development rows of the teachers that are fine-tuned from the recipe's own encoder.

        Raises:
            RecipeError: there is none.
        """
        own = [
            (loss, step, teacher.name)
            for loss, (teacher, step) in zip(self.dev_losses, self.teachers, strict=True)
            if step is not None and not teacher.checkpoint and teacher.encoder in (None, self.recipe.encoder)
        ]
        if not own:
            raise RecipeError(
                f"student.start: teacher needs a teacher that is fine-tuned from {self.recipe.encoder!r}, and there is "
                "none; use spaced"
            )
        _, step, name = min(own, key=lambda one: one[0])
        self.shared.say(f"the student begins with layers of teacher {name}")
        return step

    def label_all(self) -> None:
        """Every teacher's labels for pool and training pairs."""
        if isinstance(self.recipe.stage1, str):
            self.stage1_student(self.recipe.stage1)  # an error comes now, not after hours
        elif self.foreign_pool:
            _ = self.foreign_logits
        else:
            self.teacher_logits(self.pool, "pool", self.labellers(self.pool))
        self.teacher_logits(self.student_pairs, "train")

    @property
    def foreign_pool(self) -> bool:
        """Whether the pool is of another task, with teachers of its own (`pool.teachers`)."""
        return self.recipe.pool is not None and bool(self.recipe.pool.teachers)

    @functools.cached_property
    def foreign_logits(self) -> tuple[list[str], list[NDArray[np.float32]]]:
        """Names and logits of the pool's own teachers, in their own classes."""
        steps = pool_teachers(self.workspace, self.recipe)
        logits = [self.logits(step, self.pool, f"pool teacher {n}") for n, step in enumerate(steps, start=1)]
        return [step.fingerprint for step in steps], logits

    def stage1_student(self, path: str) -> Path:
        """The folder of an earlier run's stage-1 student, checked against the recipe."""
        folder = Path(path)
        if not (folder / "tmkd.json").is_file():
            raise TmkdError(
                f"stage1: {folder} is not a stage-1 student (no tmkd.json); an earlier run's is at runs/NAME/stage1"
            )
        length, encoder = self.recipe.max_length, find_encoder(self.recipe.encoder)
        if PairTokenizer(folder, length).fingerprint() != PairTokenizer(encoder, length).fingerprint():
            raise TmkdError(
                f"stage1: {folder} reads text with another tokenizer than the encoder, {self.recipe.encoder}"
            )
        if (layers := read_card(folder)["layers"]) != self.recipe.student.layers:
            raise TmkdError(f"stage1: {folder} has {layers} layers, student.layers is {self.recipe.student.layers}")
        return folder

    def pretrain(self, method: Method, seed: int) -> Step | Path:
        """The stage-1 student of a method, or the one the recipe names."""
        if isinstance(self.recipe.stage1, str):
            return self.stage1_student(self.recipe.stage1)
        if self.foreign_pool:
            targets = Targets.choose(method, *self.foreign_logits, best=0)
            if targets is not None and self.recipe.loss.weighting == "confidence":  # no rows to measure the others on
                targets = targets.weigh("confidence", lambda: np.empty(0))
        else:
            targets = self.targets(method, self.pool, "pool")
        assert targets is not None
        return pretrain(self.workspace, self.recipe, method, self.pool, targets, seed, teacher=self.begins_with(method))

    def begins_with(self, method: Method) -> Step | None:
        """The teacher whose layers a method's student takes; None: the recipe's encoder's."""
        if self.recipe.student.start != "teacher" or method.targets == "none":
            return None
        return self.best_teacher_of_encoder

    @functools.cached_property
    def students(self) -> list[Student]:
        """The finished students of every method that trains one, seed by seed."""
        return [self.train(METHODS[name]) for name in self.recipe.methods if METHODS[name].trains]

    def train(self, method: Method) -> Student:
        """The finished students of a method, seed by seed. `m-o-m` is `1-o-1` of every teacher, step by step."""
        steps: list[Step] = []
        firsts = []
        for seed in self.recipe.seeds:
            first = self.pretrain(method, seed) if method.stage1 else None
            if isinstance(first, Step):
                firsts.append(first)
            if method.students == "K":
                each = self.labellers(self.student_pairs)
                steps += [self.distill(METHODS["1-o-1"], None, seed, only=teacher) for teacher in each]
            else:
                steps.append(self.distill(method, first, seed))
        return Student(method, tuple(steps), tuple(firsts), len(steps) // len(self.recipe.seeds))

    def distill(self, method: Method, first: Step | Path | None, seed: int, only: int | None = None) -> Step:
        """One student: stage 2, or the only stage. `only`: as in `targets`."""
        soft = self.targets(method, self.student_pairs, "train", only)
        if method.encoder == "lstm":
            assert soft is not None
            teacher = self.teachers[self.best_of(method)][1]
            return distill_lstm(self.workspace, self.recipe, method, self.student_pairs, soft, teacher, seed)
        return distill(
            self.workspace, self.recipe, method, self.student_pairs, soft, first, seed,
            teacher=None if first is not None else self.begins_with(method), replay=self._replay(method),
        )  # fmt: skip

    def _replay(self, method: Method) -> Replay | None:
        """What stage 2 of a method mixes in."""
        if not (method.stage1 and self.recipe.stage2.replay):
            return None
        targets = self.targets(method, self.pool, "pool")
        return Replay(self.pool, targets) if targets else None

    def taken(self) -> Student:
        """The students of the method that is exported."""
        return next(student for student in self.students if student.method.name == self.recipe.take)

    def write_manifest(self) -> None:
        """The resolved recipe, the models of the run and the steps it used; what `evaluate` and `clean` read."""
        models: list[dict[str, Any]] = [
            {"name": f"teacher:{teacher.name}", "kind": "teacher", "steps": [step.folder.name] if step else [],
             "scores": teacher.scores}
            for teacher, step in self.teachers
        ]  # fmt: skip
        for student in self.students:
            kind = "student" if student.method.stage1 else "baseline"
            steps = [step.folder.name for step in student.steps]
            models.append({"name": student.method.name, "kind": kind, "steps": steps, "each": student.each})
        write_json(
            self.run / "manifest.json",
            {
                "recipe": self.recipe.model_dump(mode="json"),
                "steps": [step.folder.name for step in self.workspace.used],
                "models": models,
                "take": self.recipe.take,
                "data": self.data.info,
                **({"pool": self._mined[1]} if "_mined" in self.__dict__ and self._mined[1] else {}),
            },
        )

    def require_exportable(self) -> None:
        """Say before hours of training that the method to take cannot be exported.

        Raises:
            ExportError: `take` is m-o-m or bilstm.
        """
        method = METHODS[self.recipe.take]
        if not method.exportable:
            fit = [name for name in self.recipe.methods if METHODS[name].exportable]
            why = "is an LSTM, no transformers checkpoint" if method.encoder == "lstm" else "is several students"
            raise ExportError(
                f"take: {method.name} {why}, and cannot be exported; it is measured all the same. Take "
                + (f"one of: {', '.join(fit)}" if fit else "another method, such as 1-o-1, and add it to `methods`")
            )

    def take_away(self) -> None:
        """Copy the student (and its stage-1 student) out of the steps into the run's folder."""
        self.require_exportable()
        taken = self.taken()
        with disk_errors(self.run):
            copy_folder(taken.steps[0].folder, self.run / "student")
            if taken.stage1:
                copy_folder(taken.stage1[0].folder, self.run / "stage1")

    @functools.cached_property
    def exported(self) -> Step:
        """The export of the taken student, folder `export/` of its step."""
        from tmkd.export import export_student
        from tmkd.gate import writable
        from tmkd.quantise import FLOAT_STEPS, choose_calibration

        student, dev = self.taken().steps[0], self.data.dev
        backends = list(self.recipe.export.backends or writable())
        calibration = choose_calibration(self.data.train)
        depends = {
            "student": student.fingerprint,
            "dev": dev.digest(),
            "calibration": calibration.digest(),
            "backends": backends,
            "int8": FLOAT_STEPS,
        }

        def build(folder: Path) -> None:
            export_student(student.folder, dev, folder / "export", calibration=calibration, backends=backends)

        return self.workspace.step("export", depends, build, label="export")

    def export(self, *, named: bool = False) -> list[dict[str, Any]]:
        """Fold, write every back end, gate; the parity table. `named`: a back end that fails is an error.

        Raises:
            ExportError: a back end asked for by name did not pass (everything else is written).
        """
        self.take_away()
        step = self.exported
        target = self.run / "export"
        calibration = of_the_same_student(target, step.folder / "export")
        with disk_errors(self.run):
            copy_folder(step.folder / "export", target)
            if calibration is not None:  # `tmkd calibrate` wrote it there; it is no step
                (target / CALIBRATION).write_text(calibration, encoding="utf-8")
        rows: list[dict[str, Any]] = json.loads((step.folder / "export" / "parity.json").read_text())
        failed = [row for row in rows if not row["passed"]]
        if named and failed:
            raise ExportError(f"{failed[0]['backend']} was asked for and is not written: {failed[0]['reason']}")
        return rows
