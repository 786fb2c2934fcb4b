"""Rounds in which contestants take turns, and their results: medians, spreads, ratios, table."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tmkd.bench.worker import Contestant, Failed, Worker
from tmkd.core.console import progress

logger = logging.getLogger(__name__)

Turn = Callable[[Worker], dict[str, list[float]]]
"""Gives a contestant one turn, and returns the measured values by unit. A unit may name a case: `ms, 100 passages`."""


@dataclass
class Result:
    """What one contestant measured.

    Attributes:
        name: The contestant's name.
        ours: Whether it is tmkd.
        values: By unit, one or more numbers a round.
        error: Why there are no values; empty where there are.
    """

    name: str
    ours: bool
    values: dict[str, list[float]] = field(default_factory=dict)
    error: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the JSON: one for each unit, or one with the error."""
        if self.error:
            return [{"name": self.name, "ours": self.ours, "error": self.error}]
        found = []
        for unit, values in self.values.items():
            numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            if unit.startswith("ms"):
                numbers["p99"] = float(np.percentile(values, 99))
            found.append({"name": self.name, "ours": self.ours, "unit": unit, **numbers})
        return found


def compete(contestants: Sequence[Contestant], turn: Turn, rounds: int, logs: Path) -> list[Result]:
    """Start all contestants, give each a turn to warm up, then let them take turns.

    A contestant that fails gets a result that says why, and the others continue.

    Args:
        contestants: Who takes part.
        turn: Gives one contestant a turn.
        rounds: Turns of each contestant after the warm-up. Each round begins with another contestant.
        logs: A folder for the contestants' own output.

    Returns:
        One result for each contestant, in their order.
    """
    results = {one.name: Result(one.name, one.ours) for one in contestants}
    with ExitStack() as stack:
        live: list[Worker] = []
        with progress("load and warm up", len(contestants), unit="contestants") as bar:
            for number, one in enumerate(contestants):
                bar.advance(0, one.name)
                try:
                    worker = stack.enter_context(Worker(one, logs / f"{number:02d}.log"))
                    turn(worker)
                    live.append(worker)
                except Failed as error:
                    _fail(results[one.name], error)
                bar.advance(1, one.name)
        with progress("rounds", rounds * len(live), unit="turns") as bar:
            for number in range(rounds):
                first = number % len(live) if live else 0
                for worker in [*live[first:], *live[:first]]:
                    result = results[worker.contestant.name]
                    bar.advance(0, result.name)
                    if not result.error:
                        try:
                            for unit, values in turn(worker).items():
                                result.values.setdefault(unit, []).extend(values)
                        except Failed as error:
                            _fail(result, error)
                    bar.advance(1, result.name)
    return list(results.values())


def _fail(result: Result, error: Failed) -> None:
    result.error = str(error)
    logger.warning(f"bench: {result.name}: {error}")


def ratios(results: Sequence[Result], unit: str) -> dict[str, float]:
    """How many times faster tmkd's best contestant is than each other one: the median over rounds of the ratio.

    Args:
        results: All contestants' results.
        unit: The unit to compare; units other than pairs/s and ms give no ratios.

    Returns:
        The ratio by the contestant's name.
    """
    ours = [one for one in results if one.ours and unit in one.values]
    if not ours or not unit.startswith(("pairs/s", "ms")):
        return {}
    rate = unit.startswith("pairs/s")
    best = (max if rate else min)(ours, key=lambda one: statistics.median(one.values[unit]))
    found = {}
    for peer in results:
        if unit in peer.values and peer is not best:
            turns = zip(best.values[unit], peer.values[unit], strict=False)
            found[peer.name] = statistics.median(a / b if rate else b / a for a, b in turns)
    return found


def line_per_number(numbers: dict[str, Any]) -> list[RenderableType]:
    """Numbers of which each has its own name, one line each, for a terminal."""
    return [
        f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}" for name, value in numbers.items()
    ]


def table(title: str, results: Sequence[Result], extra: dict[str, dict[str, str]]) -> Table:
    """Medians and spreads as a table for a terminal.

    Args:
        title: The table's title.
        results: All contestants' results.
        extra: Further columns by title; each has a text for some of the contestants, by name.
    """
    shown = Table(title=title, title_justify="left")
    rows = [row for one in results if not one.error for row in one.rows()]
    keys = ["median", "min", "max", *(["p99"] if any("p99" in row for row in rows) else [])]
    for column in ("", "unit", *keys, "best of ours is", *extra):
        shown.add_column(column, justify="left" if column in ("", "unit") else "right", no_wrap=not column)
    for one in results:
        style = "bold" if one.ours else None
        if one.error:
            shown.add_row(escape(one.name), Text(one.error, style="red"))
        for row in one.rows() if not one.error else []:
            faster = ratios(results, row["unit"]).get(one.name)
            numbers = [f"{row[key]:,.1f}" for key in keys]
            more = [column.get(one.name, "") for column in extra.values()]
            ratio = "" if faster is None else f"{faster:.1f}x"
            shown.add_row(escape(one.name), row["unit"], *numbers, ratio, *more, style=style)
    return shown
