"""`report/`: results.json and report.html, one self-contained file with no outside asset."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tmkd.evaluation.charts import learning_curves, quality_against_latency
from tmkd.evaluation.compare import METRICS, TITLES, Disagreement, Results, Row

ENSEMBLE = "teacher-ensemble"


def write_report(
    folder: Path,
    results: Results,
    *,
    curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    parity: Sequence[Mapping[str, Any]] = (),
    disagreements: Sequence[Disagreement] = (),
    recipe_text: str = "",
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Write report.html and results.json into `folder`, each beside and renamed.

    Args:
        curves: loss by training run (`tmkd.training.train`).
        parity: rows of the export's parity table.
        disagreements: questions where the student does worse than its teachers.
        recipe_text, environment: what a reader needs to do it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = Environment(
        loader=PackageLoader("tmkd.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page.filters["count"] = lambda value: f"{value:,.0f}"
    text = page.get_template("report.html.jinja").render(
        results=results,
        metrics=[name for name in METRICS if any(name in row.metrics for row in results.methods)],
        titles=TITLES,
        headline=headline(results),
        speedup=speedups(results),
        latency_chart=quality_against_latency(results),
        curves_chart=learning_curves(curves or {}),
        parity=list(parity),
        disagreements=list(disagreements),
        recipe_text=recipe_text,
        environment=dict(environment or {}),
    )
    _write(folder / "results.json", json.dumps(results.to_json(), indent=2, allow_nan=False) + "\n")
    _write(folder / "report.html", text)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def speedups(results: Results) -> dict[str, float]:
    """Pairs per second of every model over those of the deepest teacher (the slowest of the deepest)."""
    teachers = [row for row in results.methods if row.kind == "teacher" and row.size.get("pairs_per_second")]
    if not teachers:
        return {}
    deepest = max(teachers, key=lambda row: (row.size.get("layers") or 0, -row.size["pairs_per_second"]))
    base = deepest.size["pairs_per_second"]
    return {
        row.name: row.size["pairs_per_second"] / base for row in results.methods if row.size.get("pairs_per_second")
    }


def headline(results: Results) -> str:
    """One sentence: what became what, what was kept, how much faster."""
    students = [row for row in results.methods if row.kind == "student"]
    if not students:
        return ""
    student: Row = next((row for row in students if row.name == "tmkd"), students[0])
    teachers = [row for row in results.methods if row.kind == "teacher"]
    deepest = max((row.size.get("layers") or 0 for row in teachers), default=0)
    text = f"{len(teachers)} teachers"
    if deepest:
        text += f" of {deepest} layers"
    text += (
        f" became one student of {student.size['layers']} layers"
        if student.size.get("layers")
        else " became one student"
    )
    kept = [
        f"{student.kept[name]:.1%} of the ensemble's {TITLES[name]}" for name in ("auc", "mrr") if name in student.kept
    ]
    if not kept and "accuracy" in student.kept:
        kept = [f"{student.kept['accuracy']:.1%} of the ensemble's accuracy"]
    if kept:
        text += f" that keeps {' and '.join(kept)}"
    every = speedups(results)
    if student.name in every:
        text += f", {every[student.name]:.1f} times as fast as one teacher"
        if ENSEMBLE in every:
            text += f" and {every[student.name] / every[ENSEMBLE]:.1f} times as fast as the ensemble"
    return text + "."
