"""Every backend of an export on labelled pairs, as a step of the workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmkd.core.console import progress
from tmkd.core.files import read_json, write_json
from tmkd.data.pairs import Pairs
from tmkd.evaluation.comparison import point_metrics
from tmkd.evaluation.results import ModelOutput
from tmkd.evaluation.speed import measure_speed
from tmkd.inference.engines import installed
from tmkd.inference.manifest import read_manifest
from tmkd.inference.scorer import Scorer
from tmkd.pipeline.steps.speed import machine, speed_sample
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Step, Workspace


def evaluate_export(
    workspace: Workspace, export: Step, pairs: Pairs, *, classes: int, positive: int
) -> list[dict[str, Any]]:
    """Measure every backend of an export through the runtime, once for these pairs on this machine.

    Args:
        workspace: keeps the measurements.
        export: the export's step.
        pairs: labelled pairs.
        classes: the number of classes, C.
        positive: of two classes, the one of the right passages.

    Returns:
        One mapping for each backend: `backend`, the metrics of the task without intervals, and
        `pairs_per_second` (with tokenization; all backends are timed in turn on the same pairs).
    """
    content = depends_on(
        settings={"machine": machine("auto"), "positive": None if positive == 1 else positive},
        inputs={"export": export, "pairs": pairs},
    )

    def build(folder: Path) -> None:
        write_json(folder / "exports.json", _measured(export.folder / "export", pairs, classes, positive))

    step = workspace.step("exports", content, build, label="measure the export")
    found: list[dict[str, Any]] = read_json(step.folder / "exports.json")
    return found


def _measured(folder: Path, pairs: Pairs, classes: int, positive: int) -> list[dict[str, Any]]:
    scorers = {name: Scorer(folder, backend=name) for name in read_manifest(folder).backends if installed(name)}
    sample = speed_sample(pairs)
    timed = {name: scorer.logits for name, scorer in scorers.items()}
    speeds = measure_speed(timed, sample.questions, sample.passages, sizes=())
    found: list[dict[str, Any]] = []
    for name, scorer in scorers.items():
        with progress(f"{name} on the test set", len(pairs)) as bar:
            logits = scorer.logits(pairs.questions, pairs.passages, bar.advance)
        output = ModelOutput(name, "student", logits[None])
        metrics = point_metrics(pairs, [output], classes=classes, positive=positive)[name]
        found.append({"backend": name, **metrics, "pairs_per_second": speeds[name].pairs_per_second})
    return found
