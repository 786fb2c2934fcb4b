"""`tmkd bench soak`: send the server twice what it can answer, for a long time, and kill its scorer meanwhile.

The server passes if every request is answered or refused with the time to come back, if its memory does not grow
between the first half and the end, and if it scores again afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from tmkd.bench.loadgen import Client, Prepared, Reply, closed_loop, open_loop, percentiles, request_bytes
from tmkd.bench.rounds import line_per_number
from tmkd.bench.servers import RunningServer, ServerSpec
from tmkd.core.console import progress
from tmkd.core.files import cache_folder

SIZES = (1, 10, 50, 100)  # passages of a request, in turn
REQUESTS = 40  # that are sent again and again
OVER = 2.0  # times the capacity
GROWTH = 1.2  # most memory of the last quarter of the time, over that of the second quarter
_TEXT = """how do i mount a disk the command prints every file in a directory and exits with status zero"""


@dataclass
class SoakFigures:
    """What `run` measured.

    Attributes:
        capacity: Requests per second that the server answers at most.
        rate: Requests per second that were sent.
        seconds: For how long.
        statuses: How many requests got each status; 0 for no answer.
        no_retry_after: Refusals that do not say when to come back.
        latency: Percentiles of the answered requests, in milliseconds.
        memory: MiB, every second.
        kills: How often the scorer was killed.
        ready: Whether the server scores afterwards.
    """

    capacity: float
    rate: float
    seconds: float
    statuses: dict[int, int]
    no_retry_after: int
    latency: dict[str, float]
    memory: list[float]
    kills: int
    ready: bool

    @property
    def growth(self) -> float:
        """The most memory of the last quarter of the time, over the most of the second quarter.

        The most, because the server has less memory while a killed scorer starts again.
        """
        count = len(self.memory)
        return max(self.memory[-(count // 4 or 1) :]) / max(self.memory[count // 4 : count // 2 + 1])

    @property
    def problems(self) -> list[str]:
        """Why the server fails; empty where it passes."""
        allowed = {200, 429, 503}
        found = [
            f"{count} answers with status {status}" for status, count in self.statuses.items() if status not in allowed
        ]
        found += [f"{self.no_retry_after} refusals without Retry-After"] if self.no_retry_after else []
        found += [f"memory grew {self.growth:.2f} times"] if self.growth > GROWTH else []
        found += [] if self.ready else ["the server does not score afterwards"]
        found += [] if self.statuses.get(200) else ["nothing was answered"]
        return found

    def to_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "bench": "soak", "requests_per_second_at_most": self.capacity, "rate": self.rate, "seconds": self.seconds,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "refusals_without_retry_after": self.no_retry_after, **{f"{k}_ms": v for k, v in self.latency.items()},
            "memory_mib_end": self.memory[-1],
            "memory_mib_most": max(self.memory), "growth": self.growth, "kills": self.kills, "problems": self.problems,
        }  # fmt: skip

    def shown(self) -> list[RenderableType]:
        """One line a number, for a terminal."""
        return line_per_number(self.to_json())


def run(export: Path, seconds: float, *, kills: int = 3, threads: int = 0, flags: tuple[str, ...] = ()) -> SoakFigures:
    """Start a server and send it more than it can answer.

    Args:
        export: What the server serves.
        seconds: How long, after its capacity was measured.
        kills: How often its scorer is killed meanwhile, at equal distances.
        threads: Of the server; 0 for all usable cores.
        flags: More flags of `tmkd serve`.

    Raises:
        Failed: The server does not start.
    """
    spec = ServerSpec("tmkd serve", ("--model", str(export), *flags))
    with RunningServer(spec, cache_folder("bench", "logs") / "soak.log", threads) as server:
        return asyncio.run(_soak(server, seconds, kills))


def mixed_sizes() -> Prepared:
    """Write requests of several sizes."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(REQUESTS):
        size = SIZES[number % len(SIZES)]
        texts = [" ".join(generator.choice(_TEXT.split(), size=60)) for _ in range(size)]
        found.append((request_bytes("/rerank", {"query": "how do i mount a disk", "texts": texts}), size))
    return found


async def _soak(server: RunningServer, seconds: float, kills: int) -> SoakFigures:
    client, requests = Client(server.port), mixed_sizes()
    first = await closed_loop(client, requests, 8, min(10.0, max(1.0, seconds / 4)))
    capacity = sum(reply.status == 200 for reply in first) / min(10.0, max(1.0, seconds / 4))
    statuses: Counter[int] = Counter()
    memory: list[float] = []
    done = 0
    with progress("soak", int(seconds), unit="seconds") as bar:

        async def watch() -> None:
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
    silent = sum(reply.status in (429, 503) and not reply.retry_after for reply in replies)
    return SoakFigures(capacity, rate, seconds, dict(statuses), silent, percentiles(replies), memory, done, ready)
