"""The progress of a study: which cells are done, running and to do, and an estimate of the time left."""

from __future__ import annotations

import logging
import statistics
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tmkd.core.console import console, shows_progress
from tmkd.pipeline.study.plan import Plan

logger = logging.getLogger(__name__)

DONE, RUNNING, TO_DO = "●", "◐", "○"


class Status:
    """The state of every cell of a study.

    Attributes:
        plan: the study's cells.
        done: the places in the plan of the finished cells.
        seconds: how long cells took, by their places, where it is known.
        running: the place of the cell that is being trained.
    """

    def __init__(self, plan: Plan, done: set[int], seconds: dict[int, float]) -> None:
        self.plan, self.done, self.seconds = plan, done, seconds
        self.running: int | None = None

    def left(self) -> float | None:
        """An estimate of the seconds left: each cell counts as the median of the finished cells like it.

        These are the cells of its variant, or else of its task, or else all.

        None before the first cell is finished.
        """
        cells, timed = self.plan.cells, self.seconds
        if not timed:
            return None
        total = 0.0
        for place, cell in enumerate(cells):
            if place in self.done:
                continue
            like = [t for n, t in timed.items() if (cells[n].task, cells[n].variant) == (cell.task, cell.variant)]
            like = like or [t for n, t in timed.items() if cells[n].task == cell.task]
            total += statistics.median(like or timed.values())
        return total

    def sentence(self) -> str:
        """Such as "3 of 25 students are there, about 12 min of work left"."""
        text = f"{len(self.done)} of {len(self.plan.cells)} students are there"
        if len(self.done) == len(self.plan.cells):
            return text
        left = self.left()
        return text + (f", about {duration(left)} of work left" if left is not None else "")

    def table(self) -> Group:
        """A table with a line for each task and variant, and a mark for each seed."""
        shown = Table()
        several = len(self.plan.tasks) > 1
        for column in (["task"] if several else []) + ["variant", "seeds", "done"]:
            shown.add_column(column, justify="right" if column == "done" else "left")
        lines: dict[tuple[str, str], list[int]] = {}
        for place, cell in enumerate(self.plan.cells):
            lines.setdefault((cell.task, cell.variant), []).append(place)
        for (task, variant), places in lines.items():
            marks = "".join(DONE if n in self.done else RUNNING if n == self.running else TO_DO for n in places)
            count = f"{sum(n in self.done for n in places)} of {len(places)}"
            shown.add_row(*([task] if several else []), variant, marks, count)
        head = f"study {self.plan.study.name}: {self.sentence()}  ({DONE} done  {RUNNING} running  {TO_DO} to do)"
        return Group(Text(head), shown)


class Board:
    """Shows a status while a study runs: a table that stays below the log on a terminal, plain lines elsewhere."""

    def __init__(self, status: Status) -> None:
        self.status = status
        shown = console.is_terminal and shows_progress()
        self.live = Live(get_renderable=status.table, console=console, refresh_per_second=2) if shown else None

    def __enter__(self) -> Board:
        if self.live is not None and len(self.status.done) < len(self.status.plan.cells):
            self.live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.status.running = None
        if self.live is not None:
            self.live.stop()

    def start(self, place: int) -> None:
        """Show that a cell begins."""
        self.status.running = place
        self._show(f"{self.status.sentence()}; now {self.status.plan.cells[place]}")

    def finish(self, place: int, seconds: float | None) -> None:
        """Show that a cell is done.

        Args:
            place: its place in the plan.
            seconds: how long it took, if this process trained it.
        """
        self.status.running = None
        self.status.done.add(place)
        if seconds is not None:
            self.status.seconds[place] = seconds
        if len(self.status.done) == len(self.status.plan.cells):
            self._show(self.status.sentence())

    def _show(self, text: str) -> None:
        if self.live is not None:
            self.live.refresh()
        else:
            logger.info(f"study {self.status.plan.study.name}: {text}")


def duration(seconds: float) -> str:
    """A duration such as 45 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
