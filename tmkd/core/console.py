"""What the command line shows on standard error: tmkd's log as plain lines, and progress bars.

Elsewhere in tmkd, modules write to the standard `logging`. A program that uses tmkd as a library sees nothing on
standard error unless it configures logging itself; progress bars are drawn for the command line alone.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_SECONDS = 10.0  # how often a bar prints a line where output is not a terminal
console = Console(stderr=True)
_terminal = sys.stdout is not None and sys.stdout.isatty()  # None: a program without standard output
tables = Console(width=None if _terminal else 140)  # to standard output, wide enough where it is a file
_tmkd = logging.getLogger("tmkd")


class ConsoleHandler(logging.Handler):
    """Prints log records to standard error as plain lines, above a progress bar where one is shown.

    A warning begins with "warning: ". Rich markup in a message is not interpreted, nor is `:a:` an emoji.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            text = self.format(record)
            prefix = "warning: " if record.levelno == logging.WARNING else ""
            console.print(prefix + text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


def set_quiet(quiet: bool) -> None:
    """Show tmkd's log on standard error. For the command line, never for a library: it configures the logger "tmkd".

    Args:
        quiet: show warnings and errors only, and no progress bars.
    """
    if not any(isinstance(handler, ConsoleHandler) for handler in _tmkd.handlers):
        _tmkd.addHandler(ConsoleHandler())
    _tmkd.setLevel(logging.WARNING if quiet else logging.INFO)


def shows_progress() -> bool:
    """Whether progress is drawn: the command line shows the log, and not only its warnings."""
    return _tmkd.isEnabledFor(logging.INFO) and any(isinstance(one, ConsoleHandler) for one in _tmkd.handlers)


def say(text: str) -> None:
    """Log one line of the command line itself."""
    _tmkd.info(text)


def write_json_line(text: str, *, flush: bool = False) -> None:
    """Write a line of JSON to standard output. What its encoding does not have, or UTF-8 cannot carry, is escaped.

    Args:
        text: the JSON, on one line. Characters beyond ASCII stand within its strings only.
        flush: pass it on at once.
    """
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = "".join(one if one.isascii() else json.dumps(one)[1:-1] for one in text)
    sys.stdout.write(text + "\n")
    if flush:
        sys.stdout.flush()


class Bar(Protocol):
    """What a step is handed to report on itself."""

    def advance(self, count: int, note: str = "") -> None:
        """Count finished work.

        Args:
            count: Units of work finished since the last call.
            note: A short text that is shown behind the bar, such as the loss.
        """


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
    if not shows_progress():
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
