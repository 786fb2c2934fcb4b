"""Measure how fast models are: all of them in turn on the same texts, medians over several rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tmkd.core.console import progress

SIZES = (10, 25, 50, 100)


@dataclass(frozen=True)
class Speed:
    """The speed of one model.

    Attributes:
        pairs_per_second: throughput on many pairs.
        milliseconds: latency of one question, by its number of passages.
    """

    pairs_per_second: float
    milliseconds: Mapping[int, float]


def measure_speed(
    scorers: Mapping[str, Callable[[Sequence[str], Sequence[str]], object]],
    questions: Sequence[str],
    passages: Sequence[str],
    *,
    repeats: int = 3,
    sizes: Sequence[int] = SIZES,
) -> dict[str, Speed]:
    """Time every scorer, tokenizing included.

    Args:
        scorers: by name; each takes two sequences of equal length, questions and passages.
        questions: N questions; the first eight pairs are scored once before the clock starts.
        passages: N passages.
        repeats: rounds; every scorer runs once in each, so a machine that slows down does so for all of them.
        sizes: numbers of passages for which the latency of one question is measured.

    Returns:
        The speed of each scorer, by name.
    """
    bulk: dict[str, list[float]] = {name: [] for name in scorers}
    single: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in scorers}
    for scorer in scorers.values():
        scorer(questions[:8], passages[:8])
    with progress("measure speed", repeats * len(scorers), "rounds") as bar:
        for _ in range(repeats):
            for name, scorer in scorers.items():
                bulk[name].append(_seconds(scorer, questions, passages))
                for size in sizes:
                    some = [passages[i % len(passages)] for i in range(size)]
                    single[name][size].append(_seconds(scorer, [questions[0]] * size, some))
                bar.advance(1)
    return {
        name: Speed(
            len(questions) / statistics.median(bulk[name]),
            {size: 1000 * statistics.median(times) for size, times in single[name].items()},
        )
        for name in scorers
    }


def _seconds(
    scorer: Callable[[Sequence[str], Sequence[str]], object], questions: Sequence[str], passages: Sequence[str]
) -> float:
    start = time.perf_counter()
    scorer(questions, passages)
    return time.perf_counter() - start
