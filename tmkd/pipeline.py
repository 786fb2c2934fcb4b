"""The steps of METHOD.md in order, each done once: data, teachers, labels, stage 1, stage 2, export, report.

Choices (which teacher is best) are made on development rows; test rows are read once, for the report.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from tmkd.distill import Targets, distill, pretrain
from tmkd.errors import ExportError, TmkdError
from tmkd.files import copy_folder, disk_errors, write_json
from tmkd.hardware import describe, prepare
from tmkd.methods import METHODS, Method
from tmkd.pairs.datasets import TaskData, load_task
from tmkd.pairs.record import Pairs
from tmkd.progress import say
from tmkd.recipe import Recipe, Teacher
from tmkd.teachers import column_logits, label, method_logits, teach
from tmkd.workspace import Step, Workspace


@dataclass(frozen=True)
class Student:
    """The students of one method: a finished step per seed, and the stage-1 step of each where it has one."""

    method: Method
    steps: tuple[Step, ...]
    stage1: tuple[Step, ...]


class Pipeline:
    """One recipe in one workspace. Every part is computed when it is first asked for."""

    def __init__(self, recipe: Recipe, workspace: Workspace) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.run = workspace.root / "runs" / recipe.name
        prepare(attention=recipe.attention)
        say(f"running on {describe(recipe.precision)}")

    @functools.cached_property
    def data(self) -> TaskData:
        """Train, dev, test and pool."""
        task = load_task(self.recipe.data, self.recipe.classes)
        pool = f", pool {len(task.pool):,}" if task.pool is not None else ""
        say(f"data: train {len(task.train):,}, dev {len(task.dev):,}, test {len(task.test):,}{pool} pairs")
        return task

    @property
    def pool(self) -> Pairs:
        """The pairs of stage 1: the pool, or the training pairs where there is none."""
        return self.data.pool if self.data.pool is not None else self.data.train

    @functools.cached_property
    def teachers(self) -> list[tuple[Teacher, Step | None]]:
        """Every teacher with its finished step (None for a column of scores)."""
        return [
            (teacher, None if teacher.scores else teach(self.workspace, self.recipe, teacher, self.data.train))
            for teacher in self.recipe.teachers
        ]

    def teacher_logits(self, pairs: Pairs, where: str) -> list[NDArray[np.float32]]:
        """Each teacher's logits for the pairs, K arrays [N, C] in the order of the pairs."""
        logits = []
        for teacher, step in self.teachers:
            if step is None:
                logits.append(column_logits(self.recipe, teacher, pairs, where))
            else:
                logits.append(self.logits(step, pairs, teacher.name))
        return logits

    def logits(self, model: Step, pairs: Pairs, name: str) -> NDArray[np.float32]:
        """A model's stored logits for the pairs, [N, C]."""
        store = label(self.workspace, model, pairs, name=name, precision=self.recipe.precision)
        return store.logits_for(pairs.pair_ids)

    def student_logits(self, student: Student, pairs: Pairs) -> NDArray[np.float64]:
        """The outputs of a method's students under the recipe's combination, [S, N, C], one for every seed."""
        return method_logits(
            self.workspace, student.steps, pairs, self.recipe.combination,
            name=student.method.name, precision=self.recipe.precision,
        )  # fmt: skip

    def targets(self, method: Method, pairs: Pairs, where: str) -> Targets | None:
        """What a method learns on these pairs."""
        if method.targets == "none":
            return None
        names = [step.fingerprint if step else f"column {teacher.scores}" for teacher, step in self.teachers]
        best = self.best_teacher if method.targets == "one" else 0
        return Targets.choose(method, names, self.teacher_logits(pairs, where), best)

    @functools.cached_property
    def best_teacher(self) -> int:
        """The teacher with the lowest cross-entropy on development rows (an index)."""
        labels = self.data.dev.labels
        known = np.flatnonzero(labels >= 0)
        losses = []
        for logits in self.teacher_logits(self.data.dev, "dev"):
            losses.append(-log_softmax(logits.astype(np.float64), axis=1)[known, labels[known]].mean())
        best = int(np.argmin(losses))
        say(f"best teacher on development rows: {self.teachers[best][0].name}")
        return best

    def label_all(self) -> None:
        """Every teacher's labels for pool and training pairs."""
        for where, pairs in (("pool", self.pool), ("train", self.data.train)):
            self.teacher_logits(pairs, where)

    def pretrain(self, method: Method, seed: int) -> Step | Path:
        """The stage-1 student of a method, or the one the recipe names."""
        if isinstance(self.recipe.stage1, str):
            folder = Path(self.recipe.stage1)
            if not (folder / "tmkd.json").is_file():
                raise TmkdError(
                    f"stage1: {folder} is not a stage-1 student (no tmkd.json); an earlier run's is at runs/NAME/stage1"
                )
            return folder
        targets = self.targets(method, self.pool, "pool")
        assert targets is not None
        return pretrain(self.workspace, self.recipe, method, self.pool, targets, seed)

    @functools.cached_property
    def students(self) -> list[Student]:
        """The finished students of every method that trains one, seed by seed."""
        found = []
        for name in self.recipe.methods:
            method = METHODS[name]
            if not method.trains:
                continue
            steps, firsts = [], []
            for seed in self.recipe.seeds:
                first = self.pretrain(method, seed) if method.stage1 else None
                if isinstance(first, Step):
                    firsts.append(first)
                soft = self.targets(method, self.data.train, "train")
                steps.append(distill(self.workspace, self.recipe, method, self.data.train, soft, first, seed))
            found.append(Student(method, tuple(steps), tuple(firsts)))
        return found

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
            models.append({"name": student.method.name, "kind": kind, "steps": [s.folder.name for s in student.steps]})
        write_json(
            self.run / "manifest.json",
            {
                "recipe": self.recipe.model_dump(mode="json"),
                "steps": [step.folder.name for step in self.workspace.used],
                "models": models,
                "take": self.recipe.take,
                "data": self.data.info,
            },
        )

    def take_away(self) -> None:
        """Copy the student (and its stage-1 student) out of the steps into the run's folder."""
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
        with disk_errors(self.run):
            copy_folder(step.folder / "export", self.run / "export")
        rows: list[dict[str, Any]] = json.loads((step.folder / "export" / "parity.json").read_text())
        failed = [row for row in rows if not row["passed"]]
        if named and failed:
            raise ExportError(f"{failed[0]['backend']} was asked for and is not written: {failed[0]['reason']}")
        return rows
