"""From finished steps to `runs/<name>/`: manifest, student, export and report."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import yaml

from tmkd import __version__
from tmkd.core.files import disk_errors
from tmkd.core.hardware import describe
from tmkd.data.writers import write_rows
from tmkd.evaluation.comparison import disagreements
from tmkd.evaluation.report import write_report
from tmkd.evaluation.results import ENSEMBLE, Results
from tmkd.pipeline.parallel import helpers
from tmkd.pipeline.run import Pipeline
from tmkd.pipeline.steps.evaluate import compare_outputs, outputs
from tmkd.pipeline.steps.evaluate_export import evaluate_export
from tmkd.pipeline.steps.finished_run import FinishedRun

logger = logging.getLogger(__name__)


def report(pipeline: Pipeline, jobs: int = 1) -> Results:
    """Every step of the recipe, then the report. Test rows are read here and nowhere else.

    Args:
        jobs: processes that train students side by side.
    """
    pipeline.require_exportable()
    pipeline.label_all()
    with helpers([pipeline.recipe], pipeline.workspace, jobs):
        _ = pipeline.students
    pipeline.write_manifest()
    parity = pipeline.export()
    run = FinishedRun.read(pipeline.run, pipeline.workspace)
    test = pipeline.data.test
    logger.info("measuring every model on the test rows")
    found = outputs(run, test, timed=True)
    results = compare_outputs(run, test, found, task=pipeline.recipe.name)
    results.exports = evaluate_export(pipeline.workspace, pipeline.exported, test, classes=pipeline.recipe.classes)
    by_name = {output.name: output for output in found}
    student = by_name[run.take].logits.mean(axis=0)
    teacher = by_name[ENSEMBLE if ENSEMBLE in by_name else found[0].name].logits[0]
    with disk_errors(pipeline.run):
        write_report(
            pipeline.run / "report",
            results,
            curves=run.curves(),
            parity=parity,
            disagreements=disagreements(test, np.asarray(student), np.asarray(teacher)),
            recipe_text=yaml.safe_dump(pipeline.recipe.model_dump(mode="json"), sort_keys=False),
            environment=environment(pipeline),
        )
        write_rows(pipeline.run / "test.jsonl", test.table.drop_columns(["pair_id"]).to_pylist())
    pipeline.write_manifest()
    return results


def _installed(name: str) -> bool:
    return find_spec(name) is not None


def environment(pipeline: Pipeline) -> dict[str, Any]:
    """Versions, machine and data: what a reader needs to do it again."""
    return {
        "tmkd": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "runs on": describe(pipeline.recipe.precision),
        **{name: version(name) for name in ("torch", "transformers", "onnxruntime", "openvino") if _installed(name)},
        **{f"data: {key}": value for key, value in pipeline.data.info.items()},
    }
