"""The charts of a study, as inline SVG in the style of the report's (tmkd/evaluation/charts.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.charts import COLOURS, INK, STYLE, svg_of
from tmkd.evaluation.results import Kind
from tmkd.evaluation.significance import TITLES, Difference

Points = Sequence[tuple[float, Interval]]
DECADES = 20.0  # highest over lowest value from which the axis is logarithmic
_ORDER: tuple[Kind, ...] = ("student", "ensemble", "baseline", "teacher")  # colours of the lines, in turn
_LOOKS = [(mark, dash) for dash in ("-", "--", ":") for mark in "o^sD"]


def metric_over_values(lines: Mapping[str, Points], key: str, by: str, metric: str) -> str:
    """Draw a metric over the numbers that a key takes, with one line for each value of a second key.

    Args:
        lines: Points (value of the key, interval of the metric) by the second key's value; one line named "" where
            there is no second key.
        key: The key on the x axis.
        by: The second key, which is the legend's title.
        metric: The metric on the y axis.

    Returns:
        The figure as SVG.
    """
    values = sorted({x for points in lines.values() for x, _ in points})
    logarithmic = values[0] > 0 and values[-1] / values[0] >= DECADES
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log" if logarithmic else "linear")
        for place, (name, points) in enumerate(lines.items()):
            aside = 0.008 * (place - (len(lines) - 1) / 2)  # of the axis: intervals of two lines do not meet
            shifted = [
                (x * (values[-1] / values[0]) ** aside if logarithmic else x + (values[-1] - values[0]) * aside, value)
                for x, value in sorted(points, key=lambda point: point[0])
            ]
            _draw_line(axes, name, shifted, place)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(values, logarithmic)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}" if x < 1e6 else f"{x:,.0f}"))
        axes.set_xlabel(f"{key}{' (log scale)' if logarithmic else ''}", parse_math=False)
        axes.set_ylabel(f"{TITLES[metric]} (95% interval)")
        if len(lines) > 1:
            axes.legend(title=by, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        said = "; ".join(f"{name}{' ' * bool(name)}{_said(points)}" for name, points in lines.items())
        return svg_of(figure, f"{TITLES[metric]} over {key}: {said}")


def _draw_line(axes: Any, name: str, points: Points, place: int) -> None:
    mark, dash = _LOOKS[place % len(_LOOKS)]
    away = [[v.mean - v.low for _, v in points], [v.high - v.mean for _, v in points]]
    axes.errorbar(
        [x for x, _ in points], [v.mean for _, v in points], yerr=away, fmt=mark + dash, capsize=3, markersize=5.5,
        linewidth=1.3, elinewidth=1.0, color=COLOURS[_ORDER[place % len(_ORDER)]], label=name,
    )  # fmt: skip


def _ticks(values: Sequence[float], logarithmic: bool) -> list[float]:
    """The values themselves, but for those that would run into the one before."""
    places = [log10(value) for value in values] if logarithmic else list(values)
    room = (places[-1] - places[0]) / 12
    kept: list[int] = []
    for number, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= room:
            kept.append(number)
    return [values[number] for number in kept]


def _said(points: Points) -> str:
    return ", ".join(f"{value.mean:.3f} at {x:g}" for x, value in points)


def differences_chart(differences: Sequence[Difference]) -> str:
    """Every variant minus the reference: a dot with its 95% interval, hollow and grey if it is not significant.

    Args:
        differences: of one metric, all against the same second.
    """
    metric, reference = differences[0].metric, differences[0].second
    names = [difference.first for difference in differences]
    wide = min(0.085 * max(len(name) for name in names) + 0.3, 4.0)  # inches for the names
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 + wide, 0.75 + 0.3 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
        for place, difference in enumerate(differences):
            value = difference.value
            significant = difference.significant
            kind: Kind = "teacher" if not significant else "student" if value.mean > 0 else "baseline"
            axes.errorbar(
                value.mean, place, xerr=[[value.mean - value.low], [value.high - value.mean]], fmt="o", capsize=3,
                color=COLOURS[kind], markersize=6, markerfacecolor=COLOURS[kind] if significant else "none",
            )  # fmt: skip
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(f"{TITLES[metric]} against {reference} (95% interval, paired)", parse_math=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+.3f}" if x else "0"))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
        said = "; ".join(f"{d.first} {d.value.mean:+.3f}" for d in differences)
        return svg_of(figure, f"{TITLES[metric]} against {reference}: {said}")
