"""`report/`: results.json and report.html, one self-contained file with no outside asset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tmkd.core.files import write_text
from tmkd.evaluation.charts import learning_curves, quality_against_latency
from tmkd.evaluation.comparison import ENSEMBLE, TITLES, Difference, Disagreement, Results, Row

_COSTS = {"layers": "layers", "parameters": "parameters", "bytes": "file", "pairs_per_second": "pairs/s"}


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
        curves: loss by training run (`tmkd.training.trainer.train`).
        parity: rows of the export's parity table.
        disagreements: questions where the student does worse than its teachers.
        recipe_text, environment: what a reader needs to do it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = (
        page_templates()
        .get_template("report.html.jinja")
        .render(
            **_columns(results),
            **_differences(results),
            results=results,
            metrics=results.metrics,
            titles=TITLES,
            ranking_titles="MRR, MAP and nDCG@10",
            headline=headline(results),
            verdicts=results.verdicts(student.name) if (student := _headlined(results)) else [],
            speedup=speedups(results),
            latency_chart=quality_against_latency(results),
            curve_charts=learning_curves(curves or {}),
            parity=list(parity),
            parity_metric=next(
                (TITLES.get(row["metric_name"], "") for row in parity if row.get("metric_name")), "quality"
            ),
            ranked_parity=any(row.get("kendall_tau") is not None for row in parity),
            ndcg_parity=any(row.get("ndcg_pytorch") is not None for row in parity),
            exports=results.exports,
            parity_reasons=any(row.get("reason") for row in parity),
            disagreements=list(disagreements),
            recipe_text=recipe_text,
            environment=dict(environment or {}),
        )
    )
    write_text(folder / "results.json", json.dumps(results.to_json(), indent=2, allow_nan=False) + "\n")
    write_text(folder / "report.html", text)


def page_templates() -> Environment:
    """The pages of this package, with the filters they use."""
    page = Environment(
        loader=PackageLoader("tmkd.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page.filters["count"] = lambda value: f"{value:,.0f}"
    page.filters["quality"] = _quality
    return page


def _quality(row: Mapping[str, Any], whose: str) -> str:
    """The task's metric and nDCG@10 of a parity row, of the `export` or of the `pytorch` student."""
    values = [row.get(f"{metric}_{whose}") for metric in ("metric", "ndcg")]
    return ", ".join(f"{value:.4f}" for value in values if value is not None)


def _columns(results: Results) -> dict[str, Any]:
    """The columns of the table of shares and costs: those that have a number in some row."""
    rows = results.methods
    names = [*dict.fromkeys(("accuracy", *results.shared))]
    return {
        "shares": [name for name in names if any(name in row.kept for row in rows)],
        "chance": [name for name in names if any(name in row.kept_above_chance for row in rows)],
        "recovered": [name for name in results.shared if any(name in row.recovered for row in rows)],
        "costs": {key: title for key, title in _COSTS.items() if any(row.size.get(key) for row in rows)},
    }


def _differences(results: Results) -> dict[str, list[Difference]]:
    """Those that the student of the headline takes part in, and the others."""
    named = [difference for difference in results.differences if difference.metric in results.shared]
    student = _headlined(results)
    own = [difference for difference in named if student and student.name in (difference.first, difference.second)]
    return {"differences": own, "other_differences": [difference for difference in named if difference not in own]}


def _headlined(results: Results) -> Row | None:
    students = [row for row in results.methods if row.kind in ("student", "baseline")]
    return next((row for row in students if row.name == results.taken), students[-1] if students else None)


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
    student = _headlined(results)
    if student is None:
        return ""
    teachers = [row for row in results.methods if row.kind == "teacher"]
    depths = {row.size.get("layers") or 0 for row in teachers}
    text = "1 teacher" if len(teachers) == 1 else f"{len(teachers)} teachers"
    if any(depths):
        text += f" of {'up to ' if len(depths) > 1 else ''}{max(depths)} layers"
    text += " became one student"
    if student.size.get("layers"):
        text += f" of {student.size['layers']} layer{'s' if student.size['layers'] > 1 else ''}"
    whose = "the ensemble's" if results.reference == ENSEMBLE else "the teacher's"
    kept = [f"{student.kept[name]:.1%} of {whose} {TITLES[name]}" for name in results.shared if name in student.kept]
    if kept:
        text += f" that keeps {' and '.join(kept)}"
    every = speedups(results)
    if student.name in every:
        text += f", {every[student.name]:.1f} times as fast as one teacher"
        if ENSEMBLE in every:
            text += f" and {every[student.name] / every[ENSEMBLE]:.1f} times as fast as the ensemble"
        fastest = max(results.exports, key=lambda row: float(row["pairs_per_second"]), default=None)
        if fastest is not None and student.name == results.taken:
            base = (student.size["pairs_per_second"] or 1) / every[student.name]
            text += f"; exported ({fastest['backend']}) {fastest['pairs_per_second'] / base:.1f} times as fast as one"
    return text + "."
