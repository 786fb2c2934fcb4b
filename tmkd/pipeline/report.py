"""From finished models to the report of a run: every model measured on the test pairs, compared and written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tmkd.core.files import disk_errors
from tmkd.data.measured import spelled_rows
from tmkd.data.row_counts import RowCounts
from tmkd.data.writers import write_rows
from tmkd.evaluation.comparison import disagreements
from tmkd.evaluation.report import write_report
from tmkd.evaluation.results import Results
from tmkd.pipeline.followed import followed
from tmkd.pipeline.preflight_teachers import coverage_of
from tmkd.pipeline.provenance import as_lines, provenance
from tmkd.pipeline.run_data import RunData
from tmkd.pipeline.seen import warn_of_seen
from tmkd.pipeline.steps.evaluate import compare_outputs, evaluate, outputs
from tmkd.pipeline.steps.evaluate_export import evaluate_export
from tmkd.pipeline.steps.finished_run import FinishedRun
from tmkd.pipeline.store.workspace import Step
from tmkd.pipeline.teacher_labels import TeacherLabels

logger = logging.getLogger(__name__)


def report(labels: TeacherLabels, folder: Path, export: Step, parity: Sequence[Mapping[str, Any]]) -> Results:
    """Compare every model of a run on its test pairs and write `report/` and `test.jsonl` into its folder.

    The test pairs are read here and nowhere else.

    Args:
        labels: the teachers of the run and their labels, with its pairs.
        folder: the run's folder, with its manifest.
        export: the step that exported the student.
        parity: how each backend of the export compares with the student.
    """
    data, recipe = labels.data, labels.recipe
    run = FinishedRun.read(folder, data.workspace)
    curves = run.curves()
    logger.info("measuring every model on the test set")
    found, unmeasured = outputs(run, data.test, timed=True, own=True, opened=data.cache.stored_teachers)
    results = compare_outputs(run, data.test, found, task=recipe.name, unmeasured=unmeasured)
    results.data = {part: counts.to_json() for part, counts in data.task.counts.items()}
    results.coverage = coverage_of(data)
    results.provenance = provenance(recipe, data.task.info)
    results.exports = evaluate_export(
        data.workspace, export, data.test, classes=recipe.classes, positive=recipe.positive_class
    )
    by_name = {output.name: output for output in found}
    results.followed = followed(labels, run, run.take, {name: output.logits[0] for name, output in by_name.items()})
    student = by_name[run.take].logits.mean(axis=0)
    teacher = by_name[results.relative_to if results.relative_to in by_name else found[0].name].logits[0]
    with disk_errors(folder):
        write_report(
            folder / "report",
            results,
            curves=curves,
            parity=parity,
            disagreements=disagreements(
                data.test, np.asarray(student), np.asarray(teacher), positive=recipe.positive_class
            ),
            recipe_text=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
            environment=as_lines(results.provenance),
        )
        write_rows(folder / "test.jsonl", spelled_rows(data.test, recipe.data))
    return results


def report_on_others(data: RunData, folder: Path) -> dict[str, Results]:
    """Measure every model on the development set of each task that the pool was mined from, in `report/TASK/`.

    Args:
        data: the pairs of the run.
        folder: the run's folder, with its manifest.

    Returns:
        The comparisons by the task's name; empty for a run whose pool is of no other task.
    """
    if not data.others:
        return {}
    run, found = FinishedRun.read(folder, data.workspace), dict[str, Results]()
    learned = ", ".join(teacher.name for teacher in data.recipe.used_teachers if teacher.other_tasks)
    for other in data.others.values():
        logger.info(f"measuring every model on the development set of {other.name}")
        task, opened = f"{other.name} (development set)", data.cache.stored_teachers
        results = evaluate(run, other.data.dev, timed=False, task=task, opened=opened)
        counts = RowCounts(f"development set of {other.name}", read=len(other.data.dev))
        warn_of_seen(folder, other.data.dev, counts, f"the run {data.recipe.name}")
        about = other.data.counts["dev"].to_json()
        results.data = {"dev": {**about, "warnings": [*about["warnings"], *counts.warnings]}}
        seen = {"training labels learned by": learned} if learned else {}
        results.provenance = provenance(data.recipe, {**other.data.info, **seen})
        with disk_errors(folder):
            write_report(folder / "report" / other.name, results, environment=as_lines(results.provenance))
        found[other.name] = results
    return found
