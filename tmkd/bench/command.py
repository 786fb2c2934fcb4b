"""A bench from its options to its table: who takes part, what one turn is, what the table says besides."""

from __future__ import annotations

import itertools
import logging
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tmkd.bench.contestants import PROBE, factors, labelling, latency, scoring, training
from tmkd.bench.material import Rows, Weights, rows_of, weights
from tmkd.bench.rounds import Measure, Result, compete, ratios, table
from tmkd.bench.worker import Contestant, Worker
from tmkd.core.console import tables
from tmkd.core.cpu import cpu_flags
from tmkd.core.errors import TmkdError
from tmkd.core.files import cache_folder

logger = logging.getLogger(__name__)

SIZES = (10, 25, 50, 100)  # passages of one question
BENCHES: dict[str, Callable[[Weights], list[Contestant]]] = {
    "train": training,
    "label": labelling,
    "score": scoring,
    "latency": latency,
    "factors": factors,
}
EXPORTED = ("score", "latency", "factors")


@dataclass(frozen=True)
class Options:
    """What a bench is asked to do.

    Attributes:
        model: an export, a checkpoint, a builtin or a hub id. layers: how many are kept, where it is no export; None:
            a teacher's 6 to label with, else a student's 3.
        count: pairs of one turn. pairs: a file of them; None: the built-in ones.
        peers: beginnings of the peers' names to keep; None: all; empty: none. The plain loops always stay.
        threads: of every contestant that does not say its own; 0: all usable cores.
    """

    bench: str
    model: str = "builtin:minilm-l6"
    layers: int | None = None
    max_length: int = 192
    count: int = 512
    rounds: int = 5
    pairs: Path | None = None
    peers: tuple[str, ...] | None = None
    threads: int = 0


@dataclass(frozen=True)
class Outcome:
    """Results, and per contestant the columns that go beside them."""

    bench: str
    results: list[Result]
    beside: dict[str, dict[str, str]]

    def show(self) -> None:
        """The table on standard output."""
        tables.print(table(f"tmkd bench {self.bench}: {machine()}", self.results, self.beside))

    def to_json(self) -> dict[str, Any]:
        """{"bench", "machine", "rows": [{"name", "ours", "unit", "median", "min", "max", ...}]}.

        A row has too: `slower`, by what factor it is slower than the best of ours, and the columns beside the table.
        """
        rows = [row for one in self.results for row in one.rows()]
        for row in rows:
            slower = ratios(self.results, row.get("unit", "")).get(row["name"])
            row |= {} if slower is None else {"slower": slower}
            row |= {title: column[row["name"]] for title, column in self.beside.items() if row["name"] in column}
        return {"bench": self.bench, "machine": machine(), "rows": rows}


def run(options: Options) -> Outcome:
    """One bench, start to end.

    Raises:
        TmkdError: an unknown peer, rows or a model that cannot be used.
    """
    rows = rows_of(options.pairs)
    exported = options.bench in EXPORTED
    layers = options.layers or (6 if options.bench == "label" else 3)
    model = weights(options.model, layers, options.max_length, rows, export=exported)
    contestants = _chosen(BENCHES[options.bench](model), options.peers)
    contestants = [replace(one, threads=one.threads or options.threads) for one in contestants]
    logs = cache_folder("bench", "logs")
    scores: dict[str, list[float]] = {}
    turn = _latency_turn(rows) if options.bench == "latency" else _rate_turn(rows, options.count, scores)
    results = compete(contestants, turn, options.rounds, logs)
    logger.info(f"bench: what the contestants printed is in {logs}")
    beside: dict[str, dict[str, str]] = {}
    if options.bench != "latency":
        questions, passages, _ = rows.first(options.count)
        per_pair = model.flops(questions, passages) / len(questions) * (3 if options.bench == "train" else 1)
        beside = _arithmetic(contestants, results, per_pair)
    if options.bench == "factors":
        beside = {"times the row above": steps(results), **beside}
    if len(scores) > 1:
        beside["scores differ by"] = _differences(scores)
    return Outcome(options.bench, results, beside)


def _chosen(contestants: list[Contestant], wanted: tuple[str, ...] | None) -> list[Contestant]:
    if wanted is None:
        return contestants
    peers = [one.name for one in contestants if not (one.ours or one.baseline)]
    for beginning in wanted:
        if not any(name.startswith(beginning) for name in peers):
            raise TmkdError(f"no peer {beginning!r} in this bench; there are: {', '.join(peers)}")
    return [one for one in contestants if one.ours or one.baseline or one.name.startswith(wanted)]


def _rate_turn(rows: Rows, count: int, scores: dict[str, list[float]]) -> Measure:
    """Pairs per second; of a probe, the rate that it gives. Keeps everyone's scores of the same rows."""

    def measure(worker: Worker) -> dict[str, list[float]]:
        one = worker.contestant
        given = rows.first(max(1, count // one.share))
        seconds, found = worker.run(*given)
        if one.script_does == PROBE:
            assert found is not None
            return {"GFLOP/s": found}
        if found is not None and one.same_weights:
            scores[one.name] = found
        return {"pairs/s": [len(given[0]) / seconds]}

    return measure


def _latency_turn(rows: Rows, repeats: int = 10) -> Measure:
    """Milliseconds of one question, by its number of passages, for `repeats` questions a turn."""

    def measure(worker: Worker) -> dict[str, list[float]]:
        turns = max(1, repeats // worker.contestant.share)
        return {
            f"ms, {size} passages": [1000 * worker.run(*rows.one_question(size, turn))[0] for turn in range(turns)]
            for size in SIZES
        }

    return measure


def _arithmetic(contestants: list[Contestant], results: list[Result], per_pair: float) -> dict[str, dict[str, str]]:
    """Useful operations per second, and their share of the machine's best matrix-product rate in the same run."""
    probes = [value for one in results for value in one.values.get("GFLOP/s", [])]
    useful = {
        one.name: statistics.median(result.values["pairs/s"]) * per_pair / 1e9
        for one, result in zip(contestants, results, strict=True)
        if one.same_weights and "pairs/s" in result.values
    }
    found = {"useful GFLOP/s": {name: f"{rate:,.0f}" for name, rate in useful.items()}}
    if probes:
        found["of the machine's best"] = {name: f"{rate / max(probes):.0%}" for name, rate in useful.items()}
    return found


def steps(results: list[Result]) -> dict[str, str]:
    """What each row gains over the one above it: median of the rounds' own ratios."""
    rates = [(one.name, one.values["pairs/s"]) for one in results if "pairs/s" in one.values]
    return {
        name: f"{statistics.median(a / b for a, b in zip(after, before, strict=False)):.1f}x"
        for (_, before), (name, after) in itertools.pairwise(rates)
    }


def _differences(scores: dict[str, list[float]]) -> dict[str, str]:
    """Largest difference of a score from the first contestant's: plain transformers in fp32, where it takes part."""
    first = next(iter(scores.values()))
    return {
        name: f"{np.abs(np.subtract(first, found)).max():.1e}"
        for name, found in scores.items()
        if len(found) == len(first)
    }


def machine() -> str:
    """One line: processor, cores, what its arithmetic offers."""
    info = Path("/proc/cpuinfo")
    lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line] if info.is_file() else []
    found = {key.strip(): value.strip() for key, value in lines}
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    offers = [flag for flag in known if flag in cpu_flags()]
    model = found.get("model name") or platform.processor() or platform.machine()
    return ", ".join([model, f"{len(os.sched_getaffinity(0))} cores", *offers])
