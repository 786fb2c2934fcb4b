"""The report's charts as inline SVG: text stays text, colours follow the page (light or dark)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from tmkd.evaluation.compare import METRICS, TITLES, Results

COLOURS = {"teacher": "#7a8ba3", "ensemble": "#3b5b92", "baseline": "#b07d3c", "student": "#1f8a5b"}
_INK = "#123456"  # replaced by currentColor, so that axes and labels follow the page
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tmkd",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def quality_against_latency(results: Results, passages: int = 25) -> str:
    """Each model's quality over the time of one question with so many passages; empty where nothing was timed."""
    points = []
    metric = next(
        (name for name in ("mrr", "auc", "accuracy") if any(name in row.metrics for row in results.methods)), ""
    )
    for row in results.methods:
        times = row.size.get("milliseconds") or {}
        if passages in times and metric in row.metrics:
            points.append((times[passages], row.metrics[metric], row.name, row.kind))
    if len(points) < 2:
        return ""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.8))
        axes.set_xscale("log")
        labels = _grouped_labels(points)
        for x, value, name, kind in points:
            spread = [[value.mean - value.low], [value.high - value.mean]]
            axes.errorbar(x, value.mean, yerr=spread, fmt="o", color=COLOURS[kind], capsize=3, markersize=7, alpha=0.9)
            if name in labels:
                axes.annotate(
                    labels[name],
                    (x, value.mean),
                    xytext=(9, 0),
                    textcoords="offset points",
                    va="center",
                    color=COLOURS[kind],
                )
        axes.set_xlabel(f"milliseconds for one question with {passages} passages (log scale)")
        axes.set_ylabel(f"{TITLES[metric]} (95% interval)")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.15, high * 1.9)  # room for the names
        axes.set_xticks(
            [x for x in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low / 1.15 <= x <= high * 1.9]
        )
        axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        return _svg(figure, "Quality against latency of every model")


def _grouped_labels(points: Sequence[Any]) -> dict[str, str]:
    """One name per model; teachers stand close together and share one."""
    teachers = [point for point in points if point[3] == "teacher"]
    labels = {point[2]: point[2] for point in points if point[3] != "teacher"}
    if teachers:
        middle = sorted(teachers, key=lambda point: point[1].mean)[len(teachers) // 2]
        labels[middle[2]] = "teachers" if len(teachers) > 1 else middle[2]
    return labels


def learning_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Loss over the epochs of every training run."""
    drawn = {name: points for name, points in curves.items() if len(points) > 1}
    if not drawn:
        return ""
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(lines, columns, figsize=(3.2 * columns, 2.4 * lines), squeeze=False)
        for place, (name, points) in zip(axes.flat, drawn.items(), strict=False):
            place.plot(
                [p["epoch"] for p in points], [p["loss"] for p in points], color=COLOURS["ensemble"], linewidth=1.4
            )
            place.set_title(name, fontsize=10)
            place.set_xlabel("epoch")
            place.set_ylim(bottom=0)
        for place in list(axes.flat)[len(drawn) :]:
            place.set_visible(False)
        return _svg(figure, "Training loss over epochs of every model")


def _svg(figure: Any, label: str) -> str:
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


__all__ = ["COLOURS", "METRICS", "learning_curves", "quality_against_latency"]
