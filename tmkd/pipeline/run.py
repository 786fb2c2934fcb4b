"""A run: the steps of METHOD.md in order, each done once: data, teachers, labels, stage 1, stage 2, export, report.

Choices (which teacher is best) are made on the development set; test pairs are read once, for the report.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tmkd.config.load import parse_recipe
from tmkd.config.recipe import Recipe
from tmkd.core import processes
from tmkd.core.cluster import Cluster
from tmkd.core.errors import ExportError
from tmkd.core.files import Quoting, copy_folder, disk_errors, read_json, write_json
from tmkd.core.hardware import describe, prepare
from tmkd.core.places import Place
from tmkd.data.measured import read_measured
from tmkd.data.pairs import Pairs
from tmkd.data.row_checks import check_groups, check_labels, counted_once
from tmkd.data.row_counts import RowCounts
from tmkd.evaluation.results import Results
from tmkd.models.checkpoint import name_classes
from tmkd.pipeline.all_labels import label_all
from tmkd.pipeline.development import teachers_on_development
from tmkd.pipeline.parallel import workers
from tmkd.pipeline.preflight import require_runnable
from tmkd.pipeline.provenance import provenance
from tmkd.pipeline.report import report, report_on_others
from tmkd.pipeline.results import DistillResult, ExportResult, LabelResult, PretrainResult, RunResult, TeachResult
from tmkd.pipeline.run_data import RunCache, RunData
from tmkd.pipeline.seen import save_seen, warn_of_seen
from tmkd.pipeline.steps.evaluate import evaluate, require_comparable
from tmkd.pipeline.steps.export import copy_export, export_step
from tmkd.pipeline.steps.finished_run import FinishedRun
from tmkd.pipeline.store.workspace import UNFINISHED, Step, Workspace, held
from tmkd.pipeline.students import Students, TrainedStudents
from tmkd.pipeline.teacher_labels import TeacherLabels

logger = logging.getLogger(__name__)


class Run:
    """A recipe that is carried out in a workspace. A finished step is not done again; an interrupted one continues.

    Every method first does the earlier steps that are missing, so `run()` alone does everything.

    Args:
        recipe: a recipe, as `load_recipe` reads it or built in Python.
        workspace: the folder that keeps every step's result; several runs may share it.
        cache: shared by the runs of one process that have pairs or labels in common.
        cluster: the Ray cluster whose workers label large sets of pairs; this process labels them unless given.
        labels: an address that shares labels between machines, such as s3://bucket/labels.

    Attributes:
        recipe: the recipe.
        workspace: the workspace.
        folder: `runs/<name>/` in the workspace, with the manifest, the student, its export and the report.
        data: the pairs of the run.
        labels: its teachers and their labels.
        students: its students.

    Before anything is trained, every method raises a `TmkdError` if something in the recipe or its files cannot work,
    and `Busy` if another process holds this run.

    Example:
        >>> run = Run(load_recipe("recipes/demo.yaml"))  # doctest: +SKIP
        >>> run.run().results.verdicts()  # doctest: +SKIP
    """

    def __init__(
        self,
        recipe: Recipe,
        workspace: Workspace | str | Path = "workspace",
        cache: RunCache | None = None,
        cluster: Cluster | None = None,
        labels: str | None = None,
    ) -> None:
        self.recipe = recipe
        self.workspace = (
            workspace
            if isinstance(workspace, Workspace)
            else Workspace(Path(workspace), cluster=cluster, labels=None if labels is None else Place.at(labels))
        )
        self.folder = self.workspace.root / "runs" / recipe.name
        self.data = RunData(recipe, self.workspace, cache or RunCache())
        self.labels = TeacherLabels(self.data)
        self.students = Students(self.labels)

    @classmethod
    def from_pairs(
        cls,
        train: Pairs,
        *,
        dev: Pairs | None = None,
        test: Pairs | None = None,
        pool: Pairs | None = None,
        workspace: str | Path = "workspace",
        **keys: Any,
    ) -> Run:
        """A run over pairs that are in memory.

        They are saved as Parquet in the workspace, and the run's recipe names these files: it is a recipe like any
        other, which `tmkd run` could carry out too.

        Args:
            train: labelled pairs to learn from.
            dev: the development set; a fifth of the training questions is held out for it unless given.
            test: the test pairs; the report is on the development set unless given.
            pool: unlabelled pairs for stage 1; the training pairs unless given.
            workspace: the workspace.
            keys: the other keys of the recipe, such as `teachers=[Teacher(name="a")]`. `data` holds keys of the data
                other than the files, such as `data={"scores": {"judge": "probability"}}`.

        Raises:
            RecipeError: a key that does not exist, or a value that does not fit.
        """
        folder = Path(workspace).resolve() / "data"
        parts = {"train": train, "dev": dev, "test": test, "pool": pool}
        files = {name: _saved(pairs, folder) for name, pairs in parts.items() if pairs is not None}
        data = {**keys.pop("data", {}), **files}
        return cls(parse_recipe({**keys, "data": data}, "Run.from_pairs"), workspace)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run that is finished, from its folder `runs/<name>/`.

        Raises:
            TmkdError: the folder has no manifest, or does not lie in a workspace.
        """
        finished = FinishedRun.read(Path(folder))
        run = cls(finished.recipe, finished.workspace)
        run.folder = finished.folder
        return run

    def prepare(self) -> None:
        """Set this process up as the recipe says (threads, attention), and log once where it runs."""
        prepare(attention=self.recipe.attention)
        self.data.cache.say_once(f"running on {describe(self.recipe.precision)}")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the run while the block works; check first that it can work (`tmkd.pipeline.preflight`).

        Raises:
            TmkdError: something in the recipe or its files cannot work.
            Busy: another process holds the run, or removes steps of the workspace.
        """
        self.prepare()
        name = self.recipe.name
        busy = f"run {name} is in use by another tmkd process; wait for it, or give this one another: name={name}-2"
        alone = held(self.folder.with_name(f".{name}.lock"), busy)
        with ExitStack() as meanwhile:
            if processes.first():
                recording = self.workspace.recording(
                    self.folder / UNFINISHED, {"recipe": self.recipe.model_dump(mode="json")}
                )
                for one in (self.workspace.locked(), alone, recording):
                    meanwhile.enter_context(one)
            require_runnable(self.data)
            yield
        processes.leave()

    def teach(self) -> TeachResult:
        """Fine-tune the teachers on golden labels."""
        with self.working():
            found = self.labels.teachers
        return TeachResult({teacher.name: step.folder if step else None for teacher, step in found})

    def label(self) -> LabelResult:
        """Label the training pairs and the pool with every teacher."""
        with self.working():
            return label_all(self.labels)

    def pretrain(self) -> PretrainResult:
        """Stage 1: the students of every method that has a stage 1, on the pool."""
        students: dict[str, tuple[Path, ...]] = {}
        with self.working():
            for method in self.students.methods:
                if method.stage1:
                    found = [self.students.pretrain(method, seed) for seed in self.recipe.seeds]
                    students[method.name] = tuple(one.folder if isinstance(one, Step) else one for one in found)
        return PretrainResult(students)

    def distill(self, jobs: int = 1) -> DistillResult:
        """Both stages: the students of every method of the recipe.

        Args:
            jobs: processes that train students side by side, each on its share of the cores.
        """
        self.students.require_exportable()
        with self.working():
            return self._distill(jobs)

    def export(self, *, must_pass: bool = False) -> ExportResult:
        """Write the student that the recipe takes for serving, with every backend that agrees with it.

        Args:
            must_pass: raise where a backend does not pass, not only say so in the result.

        Raises:
            ExportError: a backend did not pass, and `must_pass` is true; everything else is written.
        """
        self.students.require_exportable()
        with self.working():
            self._distill()
            result = self._export()
        failed = [entry for entry in result.parity if not entry["passed"]]
        if must_pass and failed:
            backend = failed[0]["backend"]
            raise ExportError(f"{backend} was asked for and is not written: {failed[0]['reason']}", backend=backend)
        return result

    def evaluate(
        self,
        pairs: Pairs | str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        quoting: Quoting | None = None,
        speed: bool = True,
        beside: Sequence[str | Path] = (),
        name: str | None = None,
    ) -> Results:
        """Compare every model of the finished run on any labelled pairs.

        Args:
            pairs: labelled pairs, or the file that holds them.
            columns: names of columns of the file by what they hold (question, passage, label, qid); the recipe's names
                unless given.
            quoting: what a quote in a CSV or TSV file means; the recipe's `data.quoting` unless given.
            speed: measure the models' speed too.
            beside: folders of other finished runs, whose students and baselines are compared with this run's.
            name: what the results call the pairs; the file's name unless given, or the run's for `Pairs`.

        Raises:
            TmkdError: a run is not finished, two of them have one name, or they have other classes.
            DataError: pairs that cannot be used, or pairs without labels.
        """
        finished = FinishedRun.read(self.folder, self.workspace)
        others = [FinishedRun.read(Path(folder)) for folder in beside]
        require_comparable(finished, others)
        task = name or (None if isinstance(pairs, Pairs) else Path(pairs).name)
        counts = RowCounts("the pairs", len(pairs)) if isinstance(pairs, Pairs) else RowCounts(str(pairs))
        if not isinstance(pairs, Pairs):
            pairs = read_measured(self.recipe.data, self.recipe.classes, Path(pairs), columns or {}, counts, quoting)
        pairs = counted_once(pairs, counts)
        check_groups(pairs, counts)
        check_labels("test", pairs, counts, self.recipe.classes)
        warn_of_seen(self.folder, pairs, counts)
        for other in others:
            warn_of_seen(other.folder, pairs, counts, f"the run {other.recipe.name}")
        with ExitStack() as holding:
            for workspace in (self.workspace, *(other.workspace for other in others)):
                holding.enter_context(workspace.locked())
            results = evaluate(finished, pairs, timed=speed, task=task, beside=others)
        results.data = {"test": counts.to_json()}
        results.provenance = provenance(finished.recipe, {"pairs": counts.where})
        return results

    def report(self, jobs: int = 1) -> RunResult:
        """Every step, then the report: all models compared on the test pairs. `run` is the same."""
        return self.run(jobs)

    def run(self, jobs: int = 1) -> RunResult:
        """Every step of the recipe: teach, label, pretrain, distill, export, report.

        Args:
            jobs: processes that train students side by side, each on its share of the cores.
        """
        self.students.require_exportable()
        with self.working():
            _ = self._development  # at once: what is wrong with a teacher is said before the pool is labelled
            label_all(self.labels)
            distilled = self._distill(jobs)
            exported = self._export()
            results = report(self.labels, self.folder, self._export_step(), exported.parity)
            others = report_on_others(self.data, self.folder)
            self._write_manifest()  # with the steps that the reports used
        page = self.folder / "report" / "report.html"
        return RunResult(self.folder, distilled.student, exported.folder, page, results, others)

    def _distill(self, jobs: int = 1) -> DistillResult:
        with workers([self.recipe], self.workspace, jobs):
            trained = self.students.train_all()
        processes.leave()  # only the first one goes on: no more model is trained
        save_seen(self.folder, self.data.learned, self.data.dev)
        self._write_manifest()
        self._take_away()
        folders = {one.method.name: tuple(step.folder for step in one.steps) for one in trained}
        return DistillResult(folders, self.folder / "student")

    def _take_away(self) -> None:
        """Copy the taken student and its stage-1 student into the run's folder; say which results are older."""
        taken = self.students.taken()
        older = [name for name in ("export", "report") if (self.folder / name).is_dir()]
        if older and not _same(taken.steps[0].folder / "step.json", self.folder / "student" / "step.json"):
            logger.warning(
                f"{' and '.join(older)} in {self.folder} are of an earlier student; `tmkd run` makes them anew"
            )
        with disk_errors(self.folder):
            self._copy_student(taken, self.folder / "student")
            if taken.stage1:
                copy_folder(taken.stage1[0].folder, self.folder / "stage1")

    def _copy_student(self, students: TrainedStudents, target: Path) -> None:
        """Copy a method's first student, with the class names of today: the step may have been made under others."""
        copy_folder(students.steps[0].folder, target)
        name_classes(target, self.recipe.class_names)

    def _export_step(self, students: TrainedStudents | None = None) -> Step:
        """The export of a method's first student; of the method that is taken, unless given."""
        student, recipe = (students or self.students.taken()).steps[0], self.recipe
        return export_step(
            self.workspace, student, self.data.task, recipe.export.backends, recipe.class_names, recipe.positive_class
        )

    def _export(self) -> ExportResult:
        target = self.folder / "export"
        copy_export(self._export_step(), target)
        if self.recipe.export.every:
            self._export_others()
        self._write_manifest()
        return ExportResult(target, tuple(read_json(target / "parity.json")))

    def _export_others(self) -> None:
        """Copy the first student of every other method, and its export, into `methods/METHOD/`."""
        for students in self.students.train_all():
            name = students.method.name
            if students.method.exportable and name != self.students.choice.method:
                folder = self.folder / "methods" / name
                with disk_errors(folder):
                    self._copy_student(students, folder / "student")
                copy_export(self._export_step(students), folder / "export")

    @functools.cached_property
    def _development(self) -> dict[str, Any]:
        """What the development set says of the teachers; empty where no method needs one."""
        return teachers_on_development(self.labels) if self.labels.needed else {}

    def _ensemble(self) -> dict[str, Any]:
        """The step of the stacked ensemble and its teachers; empty where the recipe takes the mean."""
        stacked = self.labels.stacked if self.labels.needed else None
        return {} if stacked is None else {"step": stacked.step.folder.name, "teachers": list(stacked.names)}

    def _write_manifest(self) -> None:
        """Write the resolved recipe, the models of the run and the steps it used: `evaluate` and `clean` read it."""
        teachers = self.labels.teachers if self.labels.needed else []
        models: list[dict[str, Any]] = []
        for number, (teacher, step) in enumerate(teachers):
            steps, calibration = [step.folder.name] if step else [], self.labels.calibration(number)
            about = {"scores": teacher.scores, "calibration": calibration.folder.name if calibration else None}
            models.append({"name": f"teacher:{teacher.name}", "kind": "teacher", "steps": steps, **about})
        for students in self.students.train_all():
            kind = "student" if students.method.stage1 else "baseline"
            steps = [step.folder.name for step in students.steps]
            models.append({"name": students.method.name, "kind": kind, "steps": steps, "each": students.each})
        ensemble, development = self._ensemble(), self._development  # before the steps are listed: they use some
        manifest = {
            "recipe": self.recipe.model_dump(mode="json"),
            "steps": [step.folder.name for step in self.workspace.used],
            "models": models,
            "ensemble": ensemble,
            "development": development,
            "take": self.students.choice.method,
            "choice": self.students.choice.to_json(),
            "stage1": [step.folder.name for step in self.students.taken().stage1[:1]],
            "data": self.data.task.info,
        }
        if self.data.mined:
            manifest["pool"] = self.data.mined
        write_json(self.folder / "manifest.json", manifest)
        (self.folder / UNFINISHED).unlink(missing_ok=True)


def _saved(pairs: Pairs, folder: Path) -> str:
    """Save pairs under their digest; the path of the file."""
    path = folder / f"{pairs.digest()}.parquet"
    if not path.is_file():
        pairs.save(path)
    return str(path)


def _same(first: Path, second: Path) -> bool:
    """Whether both files exist and hold the same bytes."""
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()
