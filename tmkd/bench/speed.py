"""`tmkd bench train|label|score|latency|factors`: how fast contestants do one job, in turns, on the same pairs."""

from __future__ import annotations

import itertools
import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import RenderableType

from tmkd.bench.contestants import (
    PROBE,
    choose,
    factors,
    labelling,
    latency,
    reusing,
    scoring,
    training,
    training_cached,
)
from tmkd.bench.material import BenchPairs, Subject, Weights
from tmkd.bench.rounds import Result, Turn, compete, ratios, table
from tmkd.bench.worker import Contestant, Worker
from tmkd.core.cpu import machine
from tmkd.core.files import cache_folder

logger = logging.getLogger(__name__)

SIZES = (10, 25, 50, 100)  # passages of one question
REUSE = (1, 4, 16)  # pairs that a text occurs in
QUESTIONS = 10  # of each size in one turn of the latency bench
BENCHES: dict[str, Callable[[Weights], list[Contestant]]] = {
    "train": training,
    "train --reuse": training_cached,
    "label": labelling,
    "label --reuse": reusing,
    "score": scoring,
    "latency": latency,
    "factors": factors,
}
EXPORTED = ("score", "latency", "factors")  # benches that need the model as an export


@dataclass(frozen=True)
class SpeedFigures:
    """What `run` measured.

    Attributes:
        bench: Its name, a key of `BENCHES`.
        results: One for each contestant.
        columns: Further columns of the table, by title; each has a text for some of the contestants, by name.
    """

    bench: str
    results: list[Result]
    columns: dict[str, dict[str, str]]

    def shown(self) -> list[RenderableType]:
        """The table for a terminal."""
        return [table(f"tmkd bench {self.bench}: {machine()}", self.results, self.columns)]

    def to_json(self) -> dict[str, Any]:
        """{"bench", "machine", "rows": [{"name", "ours", "unit", "median", "min", "max", ...}]}.

        A row also has the further columns, and, where it is not the fastest of tmkd's own, `slower`: how many times
        slower than that one it is.
        """
        rows = [row for one in self.results for row in one.rows()]
        for row in rows:
            slower = ratios(self.results, row.get("unit", "")).get(row["name"])
            row |= {} if slower is None else {"slower": slower}
            row |= {title: column[row["name"]] for title, column in self.columns.items() if row["name"] in column}
        return {"bench": self.bench, "machine": machine(), "rows": rows}


def run(
    bench: str,
    subject: Subject,
    *,
    count: int = 512,
    rounds: int = 5,
    peers: tuple[str, ...] | None = None,
    threads: int = 0,
) -> SpeedFigures:
    """Run one bench.

    Args:
        bench: A key of `BENCHES`.
        subject: The model and the pairs.
        count: Pairs of one turn; the latency bench has its own number of questions.
        rounds: Turns of each contestant.
        peers: Beginnings of the names of the other tools that take part; None for all. Plain loops always take part.
        threads: Threads of each contestant that does not set its own number; 0 for all usable cores.

    Raises:
        TmkdError: There is no such peer, or the pairs or the model cannot be used.
    """
    pairs, model = subject.prepare(export=bench in EXPORTED)
    contestants = choose(BENCHES[bench](model), peers)
    contestants = [replace(one, threads=one.threads or threads) for one in contestants]
    logs = cache_folder("bench", "logs")
    scores: dict[str, list[float]] = {}
    reuse = _reuse_turn(pairs, count)
    turns = {"latency": _latency_turn(pairs), "train --reuse": reuse, "label --reuse": reuse}
    turn = turns.get(bench) or _rate_turn(pairs, count, scores)
    results = compete(contestants, turn, rounds, logs)
    logger.info(f"bench: the contestants' own output is in {logs}")
    columns: dict[str, dict[str, str]] = {}
    if bench not in turns:
        questions, passages, _ = pairs.first(count)
        per_pair = model.flops(questions, passages) / len(questions) * (3 if bench == "train" else 1)
        columns = _arithmetic(contestants, results, per_pair)
    if bench == "factors":
        columns = {"times the row above": gains(results), **columns}
    if len(scores) > 1:
        columns["scores differ by"] = _differences(scores)
    return SpeedFigures(bench, results, columns)


def _rate_turn(pairs: BenchPairs, count: int, scores: dict[str, list[float]]) -> Turn:
    """A turn that gives pairs per second, or the rate of a probe. Stores each contestant's scores in `scores`."""

    def turn(worker: Worker) -> dict[str, list[float]]:
        one = worker.contestant
        given = pairs.first(max(1, count // one.share))
        seconds, found = worker.run(*given)
        if one.job == PROBE:
            assert found is not None
            return {"GFLOP/s": found}
        if found is not None and one.same_weights:
            scores[one.name] = found
        return {"pairs/s": [len(given[0]) / seconds]}

    return turn


def _reuse_turn(pairs: BenchPairs, count: int) -> Turn:
    """A turn that gives pairs per second, for each number of pairs that a text occurs in."""

    def turn(worker: Worker) -> dict[str, list[float]]:
        found = {}
        for times in REUSE:
            given = pairs.reused(times, count)
            found[f"pairs/s, each text in {times}"] = [len(given[0]) / worker.run(*given)[0]]
        return found

    return turn


def _latency_turn(pairs: BenchPairs) -> Turn:
    """A turn that gives the milliseconds of one question, for each number of passages."""

    def turn(worker: Worker) -> dict[str, list[float]]:
        numbers = range(max(1, QUESTIONS // worker.contestant.share))
        return {
            f"ms, {size} passages": [1000 * worker.run(*pairs.one_question(size, number))[0] for number in numbers]
            for size in SIZES
        }

    return turn


def _arithmetic(contestants: list[Contestant], results: list[Result], per_pair: float) -> dict[str, dict[str, str]]:
    """Useful operations per second, and their share of the best matrix-product rate that the probes measured.

    Args:
        contestants: In the order of `results`.
        results: What they measured.
        per_pair: Useful floating-point operations of one pair.
    """
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


def gains(results: list[Result]) -> dict[str, str]:
    """How many times faster each contestant is than the one before it: the median over rounds of the ratio."""
    rates = [(one.name, one.values["pairs/s"]) for one in results if "pairs/s" in one.values]
    return {
        name: f"{statistics.median(a / b for a, b in zip(after, before, strict=False)):.1f}x"
        for (_, before), (name, after) in itertools.pairwise(rates)
    }


def _differences(scores: dict[str, list[float]]) -> dict[str, str]:
    """The largest difference between each contestant's scores and the first one's.

    The first is plain transformers in fp32 where it takes part.
    """
    first = next(iter(scores.values()))
    return {
        name: f"{np.abs(np.subtract(first, found)).max():.1e}"
        for name, found in scores.items()
        if len(found) == len(first)
    }
