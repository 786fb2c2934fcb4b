"""`tmkd bench soak`: twice the server's capacity for a long time, and a scorer that is killed meanwhile.

Passes where every request got an answer or was told to come back, nothing else, memory did not grow between the first
half and the end, and the server scores again afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmkd.bench.loadgen import Client, Prepared, Reply, closed_loop, open_loop, percentiles, request_bytes
from tmkd.bench.servers import Running, Serving
from tmkd.core.console import progress
from tmkd.core.files import cache_folder

SIZES = (1, 10, 50, 100)  # passages of a request, in turn
OVER = 2.0  # times the capacity
GROWTH = 1.2  # memory at the end, of what it was in the second quarter of the time
_TEXT = """how do i mount a disk the command prints every file in a directory and exits with status zero"""


@dataclass
class Soaked:
    """What came of it. statuses: answers by status, 0 none. memory: MiB every second. kills: of the scorer."""

    capacity: float
    rate: float
    seconds: float
    statuses: dict[int, int]
    untold: int
    latency: dict[str, float]
    memory: list[float]
    kills: int
    ready: bool

    @property
    def growth(self) -> float:
        """The most memory of the last quarter of the time, of the most of the second quarter.

        The most: while a killed scorer is started again there is less.
        """
        count = len(self.memory)
        return max(self.memory[-(count // 4 or 1) :]) / max(self.memory[count // 4 : count // 2 + 1])

    @property
    def problems(self) -> list[str]:
        """What is wrong; empty: nothing."""
        allowed = {200, 429, 503}
        found = [
            f"{count} answers with status {status}" for status, count in self.statuses.items() if status not in allowed
        ]
        found += [f"{self.untold} refusals without Retry-After"] if self.untold else []
        found += [f"memory grew {self.growth:.2f} times"] if self.growth > GROWTH else []
        found += [] if self.ready else ["the server does not score afterwards"]
        found += [] if self.statuses.get(200) else ["nothing was answered"]
        return found

    def to_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "bench": "soak", "requests_per_second_at_most": self.capacity, "rate": self.rate, "seconds": self.seconds,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "refusals_without_retry_after": self.untold, **{f"{k}_ms": v for k, v in self.latency.items()},
            "memory_mib_end": self.memory[-1],
            "memory_mib_most": max(self.memory), "growth": self.growth, "kills": self.kills, "problems": self.problems,
        }  # fmt: skip

    def show(self) -> None:
        """One line a number."""
        for name, value in self.to_json().items():
            print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


def run(export: Path, seconds: float, *, kills: int = 3, threads: int = 0, flags: tuple[str, ...] = ()) -> Soaked:
    """Start a server on the export and soak it. Failed: it does not start.

    Args:
        seconds: how long, besides the measurement of its capacity. kills: how often its scorer is killed meanwhile.
    """
    what = Serving("tmkd serve", ("--model", str(export), *flags))
    with Running(what, cache_folder("bench", "logs") / "soak.log", threads) as server:
        return asyncio.run(_soak(server, seconds, kills))


def prepared(seed: int = 0, count: int = 40) -> Prepared:
    """Requests of several sizes."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        texts = [" ".join(generator.choice(_TEXT.split(), size=60)) for _ in range(size)]
        found.append((request_bytes("/rerank", {"query": "how do i mount a disk", "texts": texts}), size))
    return found


async def _soak(server: Running, seconds: float, kills: int) -> Soaked:
    client, requests = Client(server.port), prepared()
    first = await closed_loop(client, requests, 8, min(10.0, max(1.0, seconds / 4)))
    capacity = sum(reply.status == 200 for reply in first) / min(10.0, max(1.0, seconds / 4))
    statuses: Counter[int] = Counter()
    memory: list[float] = []
    done = 0
    with progress("soak", int(seconds), unit="seconds") as bar:

        async def watch() -> None:
            nonlocal done
            while True:
                memory.append(server.memory())
                note = f"{statuses[200]:,} answered, {statuses[429] + statuses[503]:,} refused, {memory[-1]:,.0f} MiB"
                bar.advance(1 if len(memory) <= seconds else 0, note)
                await asyncio.sleep(1)

        async def strike() -> None:
            nonlocal done
            for _ in range(kills):
                await asyncio.sleep(seconds / (kills + 1))
                done += server.kill_scorer()

        def count(reply: Reply) -> None:
            statuses[reply.status] += 1

        beside = [asyncio.create_task(watch()), asyncio.create_task(strike())]
        rate = max(1.0, OVER * capacity)
        replies = await open_loop(client, requests, rate, seconds, most=10_000_000, on_reply=count)
        for task in beside:
            task.cancel()
    await asyncio.sleep(2)
    memory.append(server.memory())
    ready = False
    for _ in range(60):  # a scorer that was killed last may still be opening
        with contextlib.suppress(OSError):
            ready = (await client.send(requests[0][0])).status == 200
        if ready:
            break
        await asyncio.sleep(0.5)
    client.close()
    untold = sum(reply.status in (429, 503) and not reply.retry_after for reply in replies)
    return Soaked(capacity, rate, seconds, dict(statuses), untold, percentiles(replies), memory, done, ready)
