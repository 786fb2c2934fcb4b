"""The report's charts as inline SVG: text stays text, colours follow the page (light or dark), names do not overlap."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.results import Kind, Results
from tmkd.evaluation.significance import TITLES

PASSAGES = 25  # of the question whose latency is drawn
# Placeholder colours that `svg_of` replaces: INK by currentColor, the colour of a kind by the page's CSS variable.
INK = "#123456"
COLOURS: dict[Kind, str] = {"teacher": "#100001", "ensemble": "#100002", "baseline": "#100003", "student": "#100004"}
_LIGHT = {
    "ink": "#1c2430", "teacher": "#5f6b7a", "ensemble": "#2f4f8f", "baseline": "#8a5a12", "student": "#157a4c",
}  # fmt: skip
_MARKS: dict[Kind, str] = {"teacher": "o", "ensemble": "D", "baseline": "s", "student": "^"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tmkd",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_LINE, _LETTER, _DODGE = 13.0, 6.4, 10.0  # in points: height of a name, width of a wide letter, gap between two marks
_WIDTHS = (7.2, 9.0, 11.0, 14.0)  # in inches: the chart takes the first in which no name overlaps a mark


@dataclass
class _Point:
    """One model in the chart; `x` is the position of its mark in points, after marks were moved apart."""

    name: str
    kind: Kind
    milliseconds: float
    value: Interval
    x: float = 0.0


def quality_against_latency(results: Results) -> str:
    """Draw each model's quality against the latency of one question with `PASSAGES` passages.

    Models of the same shape have the same latency: their marks are drawn side by side, with one name per line.

    Args:
        results: the models, those with a latency are drawn.

    Returns:
        The SVG; an empty string where fewer than two models were timed.
    """
    metric = next((name for name in ("mrr", "auc", "accuracy") if name in results.metrics), "")
    points = [
        _Point(row.name, row.kind, row.size["milliseconds"][PASSAGES], row.metrics[metric])
        for row in results.methods
        if PASSAGES in (row.size.get("milliseconds") or {}) and metric in row.metrics
    ]
    if len(points) < 2:
        return ""
    clusters = _clusters(points)
    said = "; ".join(f"{p.name} {p.value.mean:.3f} at {p.milliseconds:.0f} ms" for p in points)
    with matplotlib.rc_context(STYLE):
        for width in _WIDTHS:
            figure, fits = _draw(clusters, width, metric)
            if fits:
                break
        return svg_of(figure, f"{TITLES[metric]} against milliseconds for {PASSAGES} passages: {said}")


def _clusters(points: Sequence[_Point]) -> list[list[_Point]]:
    """Group models whose latencies are within 3%, from fast to slow; inside a group the best model comes first."""
    found: list[list[_Point]] = []
    for point in sorted(points, key=lambda p: p.milliseconds):
        if found and point.milliseconds <= 1.03 * found[-1][0].milliseconds:
            found[-1].append(point)
        else:
            found.append([point])
    return [sorted(cluster, key=lambda p: -p.value.mean) for cluster in found]


def _draw(clusters: list[list[_Point]], width: float, metric: str) -> tuple[Figure, bool]:
    """Return the chart, and whether no two names overlap."""
    figure = Figure(figsize=(width, 4.2))
    axes = figure.add_axes((0.75 / width, 0.13, 1 - 0.85 / width, 0.84))
    axes.set_xscale("log")
    low, high = clusters[0][0].milliseconds, clusters[-1][0].milliseconds
    wide = 72 * (width - 0.85)
    room = 2 * _DODGE + _names_width(clusters[-1])  # right of the slowest
    axes.set_xlim(low * 0.85, high * (high / low * 1.2) ** (room / max(wide - room, 1)))
    values = [p.value for cluster in clusters for p in cluster]
    bottom, top = min(v.low for v in values), max(v.high for v in values)
    margin = 0.06 * (top - bottom) or 0.01
    axes.set_ylim(bottom - margin, top + margin)
    to_points = 72 / figure.dpi
    edges = []
    for cluster in clusters:
        for place, point in enumerate(cluster):
            centre = axes.transData.transform((cluster[0].milliseconds, point.value.mean))[0] * to_points
            point.x = centre + place * _DODGE
        edges.append((cluster[0].x, cluster[-1].x + _DODGE + _names_width(cluster)))
        _draw_cluster(axes, cluster, to_points)
    axes.set_xlabel(f"milliseconds for one question with {PASSAGES} passages (log scale)")
    axes.set_ylabel(f"{TITLES[metric]} (95% interval)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    return figure, all(end + _DODGE / 2 < start for (_, end), (start, _) in pairwise(edges))


def _names_width(cluster: Sequence[_Point]) -> float:
    return _DODGE + _LETTER * max(len(point.name) for point in cluster)


def _draw_cluster(axes: Any, cluster: Sequence[_Point], to_points: float) -> None:
    heights = [axes.transData.transform((p.milliseconds, p.value.mean))[1] * to_points for p in cluster]
    box = axes.get_window_extent()
    lines = spread(heights, _LINE, box.y0 * to_points + _LINE / 2, box.y1 * to_points - _LINE / 2)
    column = cluster[-1].x + _DODGE
    inverse = axes.transData.inverted()
    for point, height, line in zip(cluster, heights, lines, strict=True):
        colour = COLOURS[point.kind]
        x = inverse.transform((point.x / to_points, height / to_points))[0]
        away = [[point.value.mean - point.value.low], [point.value.high - point.value.mean]]
        axes.errorbar(x, point.value.mean, yerr=away, fmt=_MARKS[point.kind], color=colour, capsize=3, markersize=6.5)
        axes.annotate(
            point.name, (x, point.value.mean), xytext=(column - point.x, line - height), textcoords="offset points",
            va="center", color=colour, parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkB": 4},
        )  # fmt: skip


def spread(heights: Sequence[float], apart: float, bottom: float, top: float) -> list[float]:
    """Move heights apart so that no two are nearer than `apart`, in one pass down and one pass up.

    Args:
        heights: in descending order.
        apart: smallest distance between two neighbours.
        bottom: lowest height that is allowed.
        top: highest height that is allowed.

    Returns:
        The new heights, in the same order.
    """
    lines = []
    above = top + apart
    for height in heights:
        above = min(height, above - apart)
        lines.append(above)
    below = bottom - apart
    for place in reversed(range(len(lines))):
        below = max(lines[place], below + apart)
        lines[place] = below
    return lines


def learning_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Draw the training loss over epochs (or steps, where there are no epochs), one chart per training run.

    Args:
        curves: by run, points with "loss" and "epoch" or "step"; a run of a single point is skipped.

    Returns:
        One SVG per run.
    """
    drawn = []
    for name, points in curves.items():
        if len(points) < 2:
            continue
        unit = "epoch" if all("epoch" in point for point in points) else "step"
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(3.2, 2.3), layout="constrained")
            axes = figure.add_subplot()
            axes.plot([p[unit] for p in points], [p["loss"] for p in points], color=COLOURS["ensemble"], linewidth=1.4)
            axes.set_title(name, fontsize=10, parse_math=False)
            axes.set_xlabel(unit)
            axes.set_ylabel("loss")
            axes.set_ylim(bottom=0)
            ends = f"{points[0]['loss']:.3g} at the start, {points[-1]['loss']:.3g} at the end"
            drawn.append(svg_of(figure, f"Training loss of {name}: {ends}"))
    return drawn


def standalone(svg: str) -> str:
    """Make a page's chart a file that can be shown alone: the light page's colours on white."""
    for kind, colour in _LIGHT.items():
        svg = svg.replace(f"var(--{kind})", colour)
    end = svg.index(">") + 1
    return svg[:end].replace("<svg ", f'<svg color="{_LIGHT["ink"]}" ', 1) + (
        '<rect width="100%" height="100%" fill="#ffffff"/>' + svg[end:]
    )


def svg_of(figure: Figure, label: str) -> str:
    """Turn a figure into inline SVG: no ids (several charts share a page), no metadata, colours by CSS variables.

    Args:
        figure: drawn with STYLE and COLOURS.
        label: what a screen reader says of the chart.

    Returns:
        The SVG as text.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace(INK, "currentColor")
    for kind, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{kind})")
    width = 96 * figure.get_figwidth()  # in CSS pixels; below 3/4 of it the text is too small to read
    style = f'style="min-width: {0.75 * width:.0f}px" ' if width > 400 else ""
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" {style}', 1)
