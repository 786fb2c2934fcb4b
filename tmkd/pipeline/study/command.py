"""`tmkd study`: list it, or run it and write its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import RenderableType

from tmkd.core.files import disk_errors
from tmkd.pipeline.report import environment
from tmkd.pipeline.run_data import RunCache, RunData
from tmkd.pipeline.store.workspace import Workspace, held
from tmkd.pipeline.study.board import Status
from tmkd.pipeline.study.page import write_study
from tmkd.pipeline.study.plan import load_study
from tmkd.pipeline.study.run import look, run_study, seconds_of


def list_study(file: Path, overrides: list[str] | None, root: Path) -> tuple[RenderableType, dict[str, Any], list[str]]:
    """What is there and what is missing; nothing is run. Table, JSON-like content, notes."""
    plan = load_study(file, overrides)
    found = look(plan, root)
    cells = [
        {"task": cell.task, "variant": cell.variant, "seed": cell.seed, "missing": found.missing.get(place)}
        for place, cell in enumerate(plan.cells)
    ]
    status = Status(plan, set(found.measured), seconds_of(plan, root))
    first = list(dict.fromkeys(found.missing.values()))
    notes = [f"to do next: {'; '.join(first[:5])}{' and more' if len(first) > 5 else ''}"] if first else []
    return status.table(), {"study": plan.study.name, "cells": cells, "seconds_left": status.left()}, notes


def study_and_report(
    file: Path, overrides: list[str] | None, root: Path, jobs: int = 1
) -> tuple[RenderableType, dict[str, Any], list[str]]:
    """Run what is missing and write studies/<name>/. Table, JSON-like content, notes."""
    plan, workspace = load_study(file, overrides), Workspace(root)
    folder = root / "studies" / plan.study.name
    cache = RunCache()
    busy = f"study {plan.study.name} is in use by another tmkd process; wait for it"
    with workspace.locked(), held(folder.with_name(f".{folder.name}.lock"), busy):
        outcome = run_study(plan, workspace, cache, jobs)
        with disk_errors(root):
            told = environment(RunData(plan.cells[0].recipe, workspace, cache))
            told.pop("data: note", None)  # about test rows, which a study does not read
            write_study(folder, outcome, {key: value for key, value in told.items() if value is not None})
    return outcome.table(), outcome.to_json(), [*outcome.sentences(), f"report: {folder / 'report.html'}"]
