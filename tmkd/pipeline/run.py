"""The steps of METHOD.md in order, each done once: data, teachers, labels, stage 1, stage 2, export, report.

Choices (which teacher is best) are made on development rows; test rows are read once, for the report.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.config.methods import METHODS, Method
from tmkd.core.errors import ExportError
from tmkd.core.files import copy_folder, disk_errors, write_json
from tmkd.data.pairs import Pairs
from tmkd.inference.qa.calibration import FILE as CALIBRATION
from tmkd.inference.qa.calibration import of_the_same_student
from tmkd.pipeline.preflight import require_runnable
from tmkd.pipeline.steps.bi_encoder_cosine import bi_encoder_cosine
from tmkd.pipeline.steps.distill import distill, distill_lstm, pretrain
from tmkd.pipeline.steps.label import method_logits
from tmkd.pipeline.store.workspace import UNFINISHED, Step, held
from tmkd.pipeline.teacher_labels import Supervision
from tmkd.training.targets import Replay, Targets
from tmkd.training.token_cosine import soft_labels

logger = logging.getLogger(__name__)


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


Trained = tuple[Step | Path | None, list[Step]]
"""Of one seed: the stage-1 student, where the method has it, and the finished one (K of `m-o-m`)."""


class Pipeline(Supervision):
    """Every step of a recipe, over its rows and its teachers' labels."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the run, and refuse before any work what can be refused (`tmkd.pipeline.preflight`)."""
        name = self.recipe.name
        busy = f"run {name} is in use by another tmkd process; wait for it, or give this one another: name={name}-2"
        with self.workspace.locked(), held(self.run.with_name(f".{name}.lock"), busy):
            require_runnable(self)
            self.workspace.record = self.run / UNFINISHED
            yield

    def student_logits(self, student: Student, pairs: Pairs) -> NDArray[np.float64]:
        """The outputs of a method's students under the recipe's combination, [S, N, C], one for every seed."""
        return method_logits(
            self.workspace, student.steps, pairs, self.recipe.combination, each=student.each,
            name=student.method.name, precision=self.recipe.precision,
        )  # fmt: skip

    def pretrain(self, method: Method, seed: int) -> Step | Path:
        """The stage-1 student of a method, or the one the recipe names."""
        if self.recipe.stage1_from is not None:
            return Path(self.recipe.stage1_from)
        pool, targets = self.pool, self.pool_targets(method)
        assert targets is not None
        if self.recipe.stage1.share < 1:
            pool, targets = pool.take(self.stage1_rows), targets.take(self.stage1_rows)
        return pretrain(self.workspace, self.recipe, method, pool, targets, seed, begin=self.begins_with(method))

    def pool_targets(self, method: Method) -> Targets | None:
        """What a method's student learns in stage 1: the teachers' labels, the pool's own teachers', or the cosine."""
        if method.self_taught:
            told = bi_encoder_cosine(self.workspace, self.recipe, self.pool)
            return Targets((f"cosine {told.fingerprint}",), soft_labels(told.folder, self.pool)[:, None])
        if not self.foreign_pool:
            return self.targets(method, self.pool, "pool")
        targets = Targets.choose(method, *self.foreign_logits, best=0)
        if targets is not None and self.recipe.loss.weighting == "confidence":  # no rows to measure the others on
            targets = targets.weigh("confidence", lambda: np.empty(0))
        return targets

    def begins_with(self, method: Method) -> Step | None:
        """The teacher whose layers a method's student begins with; None: the encoder's."""
        taught = self.recipe.student.start == "teacher" and method.targets != "none"
        return self.best_teacher_of_encoder if taught else None

    @functools.cached_property
    def students(self) -> list[Student]:
        """The finished students of every method that trains one, seed by seed."""
        found = iter(self.workspace.in_turn(self.trainings()))
        return [_students(method, [next(found) for _ in self.recipe.seeds]) for method in self._training]

    @property
    def _training(self) -> list[Method]:
        return [METHODS[name] for name in self.recipe.methods if METHODS[name].trains]

    def trainings(self) -> list[Callable[[], Trained]]:
        """What trains the students, one for every method and seed."""
        return [partial(self._train, *one) for one in itertools.product(self._training, self.recipe.seeds)]

    def _train(self, method: Method, seed: int) -> Trained:
        """The students of one seed. `m-o-m` is `1-o-1` of every teacher, step by step."""
        first = self.pretrain(method, seed) if method.stage1 else None
        if method.students == "K":
            each = self.labellers(self.student_pairs)
            return first, [self.distill(METHODS["1-o-1"], None, seed, only=teacher) for teacher in each]
        return first, [self.distill(method, first, seed)]

    def distill(self, method: Method, first: Step | Path | None, seed: int, only: int | None = None) -> Step:
        """One student: stage 2, or the only stage. `only`: as in `targets`."""
        soft = self.targets(method, self.student_pairs, "train", only)
        if method.encoder == "lstm":
            assert soft is not None
            teacher = self.teachers[self.best_of(method)][1]
            return distill_lstm(self.workspace, self.recipe, method, self.student_pairs, soft, teacher, seed)
        return distill(
            self.workspace, self.recipe, method, self.student_pairs, soft, first, seed,
            begin=None if first is not None else self.begins_with(method), replay=self._replay(method),
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
            for teacher, step in self.__dict__.get("teachers", ())  # a verb whose students need none trains none
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
                "stage1": [step.folder.name for step in self.taken().stage1[:1]],
                "data": self.data.info,
                **({"pool": self._mined[1]} if "_mined" in self.__dict__ and self._mined[1] else {}),
            },
        )
        (self.run / UNFINISHED).unlink(missing_ok=True)

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
        """Copy the student (and its stage-1 student) out of the steps into the run's folder; say what is older."""
        self.require_exportable()
        taken = self.taken()
        older = [name for name in ("export", "report") if (self.run / name).is_dir()]
        if older and not _same(taken.steps[0].folder / "step.json", self.run / "student" / "step.json"):
            logger.warning(f"{' and '.join(older)} in {self.run} are of an earlier student; `tmkd run` makes them anew")
        with disk_errors(self.run):
            copy_folder(taken.steps[0].folder, self.run / "student")
            if taken.stage1:
                copy_folder(taken.stage1[0].folder, self.run / "stage1")

    @functools.cached_property
    def exported(self) -> Step:
        """The export of the taken student, folder `export/` of its step."""
        from tmkd.export.export import export_student
        from tmkd.export.gate import writable
        from tmkd.export.int8 import FLOAT_STEPS, choose_calibration
        from tmkd.export.onnx import GRAPH

        student, dev = self.taken().steps[0], self.data.dev
        backends = list(self.recipe.export.backends or writable())
        calibration = choose_calibration(self.data.train)
        depends = {
            "student": student.fingerprint,
            "dev": dev.digest(),
            "calibration": calibration.digest(),
            "backends": backends,
            "int8": FLOAT_STEPS,
            "graph": GRAPH,
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


def _students(method: Method, seeds: list[Trained]) -> Student:
    steps = [step for _, each in seeds for step in each]
    firsts = tuple(first for first, _ in seeds if isinstance(first, Step))
    return Student(method, tuple(steps), firsts, len(steps) // len(seeds))


def _same(first: Path, second: Path) -> bool:
    """Whether two files are there and hold the same."""
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()
