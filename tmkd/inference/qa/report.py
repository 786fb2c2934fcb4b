"""The page of `tmkd calibrate --report`: the numbers that were chosen, how good they are, risk-coverage curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tmkd.core.files import write_text
from tmkd.evaluation.charts import COLOURS, STYLE, svg_of
from tmkd.evaluation.report import page_templates

_ROWS = (
    ("f1", "F1 of answered-and-right"),
    ("precision", "share of the answers that are right"),
    ("recall", "share of the questions with their sources that are answered right"),
    ("right_first_without_threshold", "the share above, without a threshold"),
    ("answered_without_sources", "share of the questions without their sources that are still answered"),
)
Curve = Mapping[str, Sequence[float]]
"""A line's points: "coverage" and "risk"."""


def write_report(content: dict[str, Any], path: Path) -> None:
    """Write the page, and make its folder.

    Args:
        content: The content of calibration.json.
        path: The page's file, which is replaced as a whole.
    """
    parts = [content[name] for name in ("development", "test") if name in content]
    curves = {}
    for part in parts:
        curves[f"{part['data']}, sources in"] = part["risk_coverage_with_sources"]
        curves[f"{part['data']}, sources out for half"] = part["risk_coverage"]
    points = [(one["coverage"]["mean"], 1 - one["precision"]["mean"]) for one in parts if one["precision"]]
    page = page_templates().get_template("answering.html.jinja")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page.render(content=content, parts=parts, rows=_ROWS, chart=_chart(curves, points)))


def _chart(curves: Mapping[str, Curve], points: Sequence[tuple[float, float]]) -> str:
    """A chart of the share of wrong answers over the share of questions answered, as SVG."""
    colours = (COLOURS["ensemble"], COLOURS["student"])
    ends = ((name, curve["risk"][-1], curve["coverage"][-1]) for name, curve in curves.items())
    said = "; ".join(f"{name}: {risk:.2f} at {coverage:.2f}" for name, risk, coverage in ends)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.add_subplot()
        for place, (name, curve) in enumerate(curves.items()):
            colour, dashes = colours[place // 2 % 2], "-" if place % 2 == 0 else "--"
            axes.plot(curve["coverage"], curve["risk"], dashes, color=colour, linewidth=1.6, label=name)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("share of the questions that are answered")
        axes.set_ylabel("share of those answers that are wrong")
        for place, (coverage, risk) in enumerate(points):
            axes.plot(coverage, risk, "o", color=colours[place % 2], markersize=7)
        figure.legend(frameon=False, loc="outside upper left", ncols=2)
        return svg_of(figure, f"Risk over coverage; {said}")
