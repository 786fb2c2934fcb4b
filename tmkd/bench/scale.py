"""`tmkd bench scale`: whether the data side of labelling and training keeps up with many pairs, and in how much memory.

Pairs, token ids and logits are synthetic (`tmkd.bench.scale_material`); the code that stores, joins and batches them is
that of a run. Each part is a process of its own with one thread (`tmkd.bench.scale_parts`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import RenderableType
from rich.table import Table

from tmkd.bench.scale_material import BYTES
from tmkd.core.console import progress
from tmkd.core.cpu import machine
from tmkd.core.errors import NoRoomError, TmkdError
from tmkd.core.files import cache_folder

logger = logging.getLogger(__name__)

PARTS = ("material", "store", "batches", "teacher")
_GIB = 1 << 30


class Figure(NamedTuple):
    """A figure that has to be kept.

    Attributes:
        name: What is measured.
        unit: Its unit.
        needed: The bound.
        least: Whether the bound is the least value; otherwise the measured one has to be below it.
        measured: The value.
    """

    name: str
    unit: str
    needed: float
    least: bool
    measured: float

    @property
    def kept(self) -> bool:
        """Whether it is within the bound."""
        return self.measured >= self.needed if self.least else self.measured < self.needed


@dataclass(frozen=True)
class ScaleFigures:
    """What `run` measured.

    Attributes:
        pairs: How many pairs there were.
        parts: What each part said (`tmkd.bench.scale_parts`).
    """

    pairs: int
    parts: dict[str, dict[str, Any]]

    @property
    def figures(self) -> list[Figure]:
        """The figures that have to be kept."""
        batches, teacher = self.parts["batches"], self.parts["teacher"]
        rate, resident = self.pairs / batches["cpu_seconds"], batches["memory"]["resident"] / _GIB
        found = [
            Figure("cached pairs into batches", "pairs/s of a core", 100_000, True, rate),
            Figure("resident memory while an epoch's batches are made, at most", "GiB", 1.5, False, resident),
        ]
        for layers in ("3 layers", "6 layers"):
            share = 100 * overhead(self.store_seconds, self.pairs / teacher[layers])
            name = f"the store's share of labelling with a cross-encoder of {layers}"
            found.append(Figure(name, "% of the time", 3, False, share))
        return found

    @property
    def store_seconds(self) -> float:
        """The seconds of everything but the model for the labels of one teacher, the mean of the teachers."""
        seconds: list[float] = self.parts["store"]["seconds"]
        return sum(seconds) / len(seconds)

    def to_json(self) -> dict[str, Any]:
        """The figures, and what each part measured."""
        figures = [{**one._asdict(), "kept": one.kept} for one in self.figures]
        about = {"version": version("tmkd"), "machine": machine(), "pairs": self.pairs}
        return {**about, "figures": figures, "parts": self.parts}

    def shown(self) -> list[RenderableType]:
        """The table of the figures, and what else was measured."""
        table = Table(title=f"{self.pairs:,} synthetic pairs", title_justify="left")
        for column in ("", "needed", "measured", ""):
            table.add_column(column)
        for one in self.figures:
            needed = f"{'at least' if one.least else 'below'} {one.needed:,g}"
            measured = f"{one.measured:,.0f}" if one.least else f"{one.measured:.2f}"
            table.add_row(one.name, needed, f"{measured} {one.unit}", "" if one.kept else "not kept")
        return [table, *self._more()]

    def _more(self) -> list[str]:
        batches, teacher, memory = (self.parts[name] for name in ("batches", "teacher", "store"))
        used, labelled = batches["memory"], self.pairs / self.store_seconds
        return [
            f"batches: {self.pairs / batches['seconds']:,.0f} pairs/s by the clock, which other processes slow down",
            f"memory: {used['before'] / _GIB:.2f} GiB before any data, that is the imports; "
            f"{used['resident'] / _GIB:.2f} at most, of which no file backs {used['anonymous'] / _GIB:.2f}; "
            f"while labels are stored {memory['memory']['resident'] / _GIB:.2f}",
            f"store: {labelled:,.0f} pairs/s by the clock for the labels of one teacher; teachers of 3 and 6 layers "
            f"label {teacher['3 layers']:,.0f} and {teacher['6 layers']:,.0f} in a second of a core "
            f"({teacher['where']}); texts are tokenized at {teacher['tokenized']:,.0f}, once for all teachers with one "
            "tokenizer",
            "texts, token ids and logits are made up; no text of these pairs was tokenized, but for that rate",
        ]


def overhead(store: float, model: float) -> float:
    """The store's share of the time of labelling, from the seconds of the store and of the model."""
    return store / (store + model)


def run(pairs: int, folder: Path | None = None) -> ScaleFigures:
    """Write pairs, store labels for them, and make batches; everything that was written is removed.

    Args:
        pairs: How many.
        folder: Where they are written; the cache folder unless given.

    Raises:
        NoRoomError: There is no room for them; nothing was written.
        TmkdError: A part fails, or this is not Linux.
    """
    if not Path("/proc/self/status").is_file():
        raise TmkdError("bench scale reads the memory of processes from /proc, which only Linux has")
    root, needed = folder or cache_folder("bench"), BYTES * pairs
    if not root.is_dir():
        raise TmkdError(f"{root}: there is no such folder")
    free = shutil.disk_usage(root).free
    logger.info(
        f"{pairs:,} pairs take about {needed / 1e9:,.1f} GB in {root} until the end; {free / 1e9:,.1f} are free"
    )
    if free < needed:
        raise NoRoomError(root, f"{pairs:,} pairs do not fit", needed=needed, free=free)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=root) as place, progress("scale", 4, unit="parts") as bar:
        found = {}
        for name in PARTS:
            bar.advance(0, name)
            found[name] = _measured(name, Path(place), *([str(pairs)] if name == "material" else []))
            bar.advance(1, name)
    return ScaleFigures(pairs, found)


def _measured(name: str, folder: Path, *more: str) -> dict[str, Any]:
    """Run one part in a process of its own."""
    command = [sys.executable, "-m", "tmkd.bench.scale_parts", name, str(folder), *more]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise TmkdError(f"bench scale: the part {name} ended with {done.returncode}: {said}")
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    logger.info(f"{name}: {content}")
    return content
