"""One progress bar for every step: rate, time left, quiet when asked, one line at a time where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_quiet = False
_PLAIN_SECONDS = 10.0  # how often a bar prints a line where output is not a terminal
console = Console(stderr=True)
tables = Console(width=None if sys.stdout.isatty() else 140)  # to standard output, wide enough where it is a file


def set_quiet(quiet: bool) -> None:
    """Silence bars and notes (errors still print)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether bars and notes are silenced."""
    return _quiet


def say(text: str) -> None:
    """One line to standard error, unless quiet. Rich markup is not interpreted, nor is `:a:` an emoji."""
    if not _quiet:
        console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


class Bar(Protocol):
    """What a step is handed to report on itself."""

    def advance(self, count: int, note: str = "") -> None: ...


class _Silent:
    def advance(self, count: int, note: str = "") -> None:
        return


class _Plain:
    """Lines instead of a bar: name, done/total, rate, time left."""

    def __init__(self, name: str, total: int, unit: str, done: int) -> None:
        self.name, self.total, self.unit, self.done, self.first = name, total, unit, done, done
        self.start = self.printed = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.printed >= _PLAIN_SECONDS or self.done >= self.total:
            self.printed = now
            rate = (self.done - self.first) / max(now - self.start, 1e-9)
            left = (self.total - self.done) / rate if rate > 0 else 0.0
            line = (
                f"{self.name}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.1f} {self.unit}/s, {left:,.0f} s left"
            )
            print(line + (f", {note}" if note else ""), file=sys.stderr, flush=True)


class _Rich:
    def __init__(self, bar: Progress, task: int, unit: str) -> None:
        self.bar, self.task, self.unit = bar, task, unit
        self.start, self.count = time.monotonic(), 0

    def advance(self, count: int, note: str = "") -> None:
        self.count += count
        rate = self.count / max(time.monotonic() - self.start, 1e-9)
        self.bar.update(self.task, advance=count, rate=f"{rate:,.1f} {self.unit}/s", note=note)  # type: ignore[arg-type]


@contextmanager
def progress(name: str, total: int, unit: str = "pairs", done: int = 0) -> Iterator[Bar]:
    """A bar for `total` units of work, `done` of which were finished by an earlier, interrupted call."""
    if _quiet:
        yield _Silent()
    elif not console.is_terminal:
        yield _Plain(name, total, unit, done)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            yield _Rich(bar, bar.add_task(name, total=total, completed=done, rate="", note=""), unit)
