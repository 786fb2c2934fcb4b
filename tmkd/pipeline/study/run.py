"""Run a study: find the students that are there, train those that are missing, measure all on the development set.

Every student is a step of the workspace, so variants share what they have in common (teachers, labels, stage 1), an
interrupted study continues, and a longer one trains only what is new.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from tmkd.core.errors import RecipeError, TmkdError
from tmkd.core.files import disk_errors, read_json, write_json
from tmkd.core.places import Place
from tmkd.data.pairs import Pairs
from tmkd.evaluation.metrics import Questions, defined_metrics
from tmkd.evaluation.ranking import Floats
from tmkd.pipeline.parallel import workers
from tmkd.pipeline.preflight import require_runnable
from tmkd.pipeline.provenance import provenance
from tmkd.pipeline.run import Run
from tmkd.pipeline.run_data import RunCache, RunData
from tmkd.pipeline.store.workspace import UNFINISHED, StepMissing, Workspace, held
from tmkd.pipeline.study.board import Board, Status
from tmkd.pipeline.study.page import write_study
from tmkd.pipeline.study.plan import Cell, Plan, load_study
from tmkd.pipeline.study.results import MeasuredCell, StudyResults, compare_variants

logger = logging.getLogger(__name__)


@dataclass
class Survey:
    """What a workspace holds of a study.

    Attributes:
        measured: the finished cells, by their places in the plan.
        missing: for each other cell, the first step that is not there.
        steps: the folders' names of the steps that finished cells use.
        rows: each task's labelled development pairs.
    """

    measured: dict[int, MeasuredCell]
    missing: dict[int, str]
    steps: list[str]
    rows: dict[str, Pairs]


def look(plan: Plan, root: Path, cache: RunCache | None = None) -> Survey:
    """Find the finished cells of a study. Nothing is trained; only damaged labels are written again.

    Raises:
        RecipeError: a variant changes the development set, or the study's metric is not defined on it.
    """
    workspace, cache = Workspace(root).read_only(), cache or RunCache()
    found = Survey({}, {}, [], {})
    for place, cell in enumerate(plan.cells):
        run = Run(cell.recipe, workspace, cache)
        run.prepare()
        try:
            with _naming(plan, cell):
                dev = run.data.dev
            _check_rows(plan, cell, dev, found.rows)
            with _naming(plan, cell):
                require_runnable(run.data)
            found.measured[place] = _measure(run)
        except StepMissing as missing:
            found.missing[place] = str(missing)
    found.steps = [step.folder.name for step in workspace.used]
    return found


@contextmanager
def _naming(plan: Plan, cell: Cell) -> Iterator[None]:
    """Let errors inside say which student of the study they are about."""
    try:
        yield
    except TmkdError as error:
        raise error.within(f"study {plan.study.name}, {cell}") from error


def _check_rows(plan: Plan, cell: Cell, dev: Pairs, rows: dict[str, Pairs]) -> None:
    """Every variant of a task is measured on the same development set, and the metric has a meaning there."""
    known = dev.take(np.flatnonzero(dev.labels >= 0))
    if cell.task not in rows:
        there = (
            defined_metrics(Questions.of(known.labels, known.qids, known.reference_probabilities), cell.recipe.classes)
            if len(known)
            else ()
        )
        if plan.study.metric not in there:
            raise RecipeError(
                f"study {plan.study.name}: metric {plan.study.metric!r} is not defined on the development set of "
                f"{cell.task}; there are: {', '.join(there) or 'none, since no row has a label'}"
            )
        rows[cell.task] = known
    elif rows[cell.task].digest() != known.digest():
        raise RecipeError(
            f"study {plan.study.name}: variant {cell.variant!r} has another development set than the first one, so a "
            f"difference would mean nothing; give {cell.task} `data.dev`, or leave that key out of the study"
        )


def carry_out(plan: Plan, workspace: Workspace, cache: RunCache | None = None, jobs: int = 1) -> StudyResults:
    """Train the students that are missing and measure all of them on the development set.

    An interrupted call keeps every finished cell.

    Args:
        plan: the study and its cells.
        workspace: keeps the students.
        cache: pairs and labels that the cells share.
        jobs: processes that train students side by side.
    """
    cache = cache or RunCache()
    found = look(plan, workspace.root, cache)
    record = _Record(plan, workspace, found)
    unfinished = record.path.with_name(UNFINISHED)
    status = Status(plan, set(found.measured), seconds_of(plan, workspace.root))
    board = Board(status)

    def train(place: int, workspace: Workspace) -> None:
        cell, built, began = plan.cells[place], workspace.built, time.monotonic()
        board.start(place)
        run = Run(cell.recipe, workspace, cache)
        run.prepare()
        with _naming(plan, cell):
            require_runnable(run.data)  # `look` could not check what needs the pool before it was mined
            _check_rows(plan, cell, run.data.dev, found.rows)
            found.measured[place] = _measure(run)
        here = workspace.built > built  # otherwise another job trained it
        seconds = (time.monotonic() - began) / jobs if here else None
        record.write({str(cell): seconds} if seconds else None)
        board.finish(place, seconds)

    missing = list(found.missing)
    try:
        with board, workspace.recording(unfinished):
            if missing:
                train(
                    missing.pop(0), workspace
                )  # alone, on all cores: the other cells need its teachers and labels too
            with workers([plan.cells[place].recipe for place in missing], workspace, jobs):
                workspace.in_turn([partial(train, place) for place in missing])
    except BaseException:
        logger.info(f"study {plan.study.name}: {status.sentence()}")
        raise
    finally:
        record.write()
        unfinished.unlink(missing_ok=True)
    return compare_variants(
        plan.study, [(cell, found.measured[place]) for place, cell in enumerate(plan.cells)], found.rows
    )


def _manifest(plan: Plan, root: Path) -> Path:
    return root / "studies" / plan.study.name / "manifest.json"


def _took(manifest: Path) -> dict[str, float]:
    return dict(read_json(manifest).get("seconds", {})) if manifest.is_file() else {}


def seconds_of(plan: Plan, root: Path) -> dict[int, float]:
    """How long cells took in earlier calls, by their places in the plan, where it is known."""
    took = _took(_manifest(plan, root))
    return {place: took[str(cell)] for place, cell in enumerate(plan.cells) if str(cell) in took}


class _Record:
    """studies/<name>/manifest.json: the steps that `clean` must leave, and how long cells took."""

    def __init__(self, plan: Plan, workspace: Workspace, found: Survey) -> None:
        self.plan, self.workspace, self.found = plan, workspace, found
        self.path = _manifest(plan, workspace.root)
        self.took = _took(self.path)

    def write(self, more: dict[str, float] | None = None) -> None:
        """Write what is known, with the seconds of more cells."""
        self.took |= more or {}
        steps = dict.fromkeys([*self.found.steps, *(step.folder.name for step in self.workspace.used)])
        content = {"study": self.plan.study.model_dump(), "steps": list(steps), "seconds": self.took}
        write_json(self.path, content)


def _measure(run: Run) -> MeasuredCell:
    """The taken method's logits on the pairs of the development set that have a golden label."""
    dev = run.data.dev
    known = np.flatnonzero(dev.labels >= 0)
    taken = run.students.taken()
    logits: Floats = run.students.logits(taken, dev)[0][known]
    times = [_training_seconds(step.folder / "curve.json", len(run.data.student_pairs)) for step in taken.steps]
    return MeasuredCell(logits, sum(seconds for seconds in times if seconds is not None) or None)


def _training_seconds(curve: Path, rows: int) -> float | None:
    """How long a student's last stage trained: its pairs over the rate at its end; None without a learning curve."""
    if not curve.is_file():
        return None
    last = read_json(curve)[-1]
    return float(last.get("pairs", rows * last["epoch"]) / last["pairs_per_second"])


@dataclass(frozen=True)
class StudyListing:
    """What a study has done and what it lacks.

    Attributes:
        status: which cells are done, and an estimate of the time left.
        missing: by the place of a cell in the plan, the first step that is not there.
    """

    status: Status
    missing: dict[int, str]

    def table(self) -> RenderableType:
        """For a terminal: a line for each task and variant, a mark for each seed."""
        return self.status.table()

    def to_json(self) -> dict[str, Any]:
        """{"study", "cells": [{"task", "variant", "seed", "missing"}], "seconds_left"}."""
        cells = [
            {"task": cell.task, "variant": cell.variant, "seed": cell.seed, "missing": self.missing.get(place)}
            for place, cell in enumerate(self.status.plan.cells)
        ]
        return {"study": self.status.plan.study.name, "cells": cells, "seconds_left": self.status.left()}

    def sentences(self) -> list[str]:
        """The first steps to do."""
        first = list(dict.fromkeys(self.missing.values()))
        return [f"to do next: {'; '.join(first[:5])}{' and more' if len(first) > 5 else ''}"] if first else []


def list_study(
    file: str | Path, overrides: list[str] | None = None, workspace: str | Path = "workspace"
) -> StudyListing:
    """Look what a study has done and what it lacks; nothing is trained.

    Args:
        file: the study's YAML file.
        overrides: `key=value` pairs that replace keys of the study.
        workspace: the workspace that it would run in.

    Raises:
        TmkdError: the study, or a recipe of it, cannot work.
    """
    plan, root = load_study(Path(file), overrides), Path(workspace)
    found = look(plan, root)
    return StudyListing(Status(plan, set(found.measured), seconds_of(plan, root)), found.missing)


def run_study(
    file: str | Path,
    overrides: list[str] | None = None,
    workspace: str | Path = "workspace",
    jobs: int = 1,
    labels: str | None = None,
) -> StudyResults:
    """Train and measure every variant of a study with every seed, and write its report to `studies/<name>/`.

    Students that are there are not trained again; an interrupted study continues.

    Args:
        file: the study's YAML file.
        overrides: `key=value` pairs that replace keys of the study.
        workspace: the workspace.
        jobs: processes that train students side by side.
        labels: an address that shares labels between machines, such as s3://bucket/labels.

    Raises:
        TmkdError: the study, or a recipe of it, cannot work.
        Busy: another process runs this study, or removes steps of the workspace.
    """
    plan = load_study(Path(file), overrides)
    place = Workspace(Path(workspace), labels=None if labels is None else Place.at(labels))
    folder = place.root / "studies" / plan.study.name
    cache = RunCache()
    busy = f"study {plan.study.name} is in use by another tmkd process; wait for it"
    with place.locked(), held(folder.with_name(f".{folder.name}.lock"), busy):
        outcome = carry_out(plan, place, cache, jobs)
        outcome = replace(outcome, provenance=_provenance(plan, place, cache))
        with disk_errors(place.root):
            write_study(folder, outcome)
    return outcome


def _provenance(plan: Plan, workspace: Workspace, cache: RunCache) -> dict[str, Any]:
    """As `provenance` gives it, with the recipe of each task's reference variant, and each task's rows."""
    runs: dict[str, RunData] = {}
    for cell in plan.cells:
        if cell.variant == plan.study.reference and cell.task not in runs:
            runs[cell.task] = RunData(cell.recipe, workspace, cache)
    info = {
        f"{task}: {key}" if len(runs) > 1 else key: value
        for task, run in runs.items()
        for key, value in run.task.info.items()
        if key != "note"  # about the test set, which a study does not read
    }
    found = provenance(next(iter(runs.values())).recipe, info)
    del found["recipe"]
    return {
        **found,
        "study": plan.study.model_dump(mode="json"),
        "recipes": {task: run.recipe.model_dump(mode="json") for task, run in runs.items()},
        "rows": {task: {part: one.to_json() for part, one in run.task.counts.items()} for task, run in runs.items()},
    }
