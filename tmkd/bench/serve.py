"""`tmkd bench serve`: latency against the rate of requests, and processor time per pair.

It compares `tmkd serve` with a plain server on the same weights and on a teacher's size. All servers are up at once,
and those that are not measured are idle. First each server gets one request at a time, in turns with the scorer
without a server; then a few callers at once find its capacity; then requests come at fixed rates, which are shares of
its capacity or those that you give.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psutil
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tmkd.bench.contestants import DEEP, TEACHER
from tmkd.bench.loadgen import Client, Prepared, Reply, closed_loop, open_loop, percentiles, request_bytes
from tmkd.bench.material import BenchPairs, Subject, Weights
from tmkd.bench.servers import RunningServer, ServerSpec
from tmkd.bench.worker import Contestant, Failed, Worker
from tmkd.core.console import progress
from tmkd.core.cpu import machine
from tmkd.core.errors import TmkdError
from tmkd.core.files import cache_folder

logger = logging.getLogger(__name__)

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)  # of a server's capacity
REQUESTS = 50  # that are sent again and again
CALLERS = 4  # requests at once while the capacity is measured
OURS, PLAIN, BARE = "tmkd serve", "FastAPI + CrossEncoder.predict", "the bare scorer"
EQUAL = 2.5  # rates are compared where p99 is this many times the plain server's median for one request at a time


@dataclass(frozen=True)
class Load:
    """What to measure.

    Attributes:
        subject: The model and the pairs.
        passages: Passages of one request.
        rounds: Requests that are sent one at a time.
        seconds: How long each rate lasts, and the measurement of the capacity.
        rates: Requests per second for every server; empty for shares of its capacity.
        peers: Whether the other servers take part.
        threads: Threads of each server; 0 for all usable cores.
    """

    subject: Subject
    passages: int = 100
    rounds: int = 5
    seconds: float = 20.0
    rates: tuple[float, ...] = ()
    peers: bool = True
    threads: int = 0


@dataclass
class ServerResult:
    """What was measured of one server, or of the scorer without a server.

    Attributes:
        name: Its name in the tables.
        ours: Whether it is tmkd.
        alone: Milliseconds of each request, one at a time.
        capacity: Requests per second that a few callers get answered.
        cpu: Milliseconds of processor time for one pair.
        rates: One entry for each rate: its counts and its percentiles in milliseconds.
        error: Why nothing was measured; empty where something was.
    """

    name: str
    ours: bool
    alone: list[float] = field(default_factory=list)
    capacity: float = 0.0
    cpu: float = 0.0
    rates: list[dict[str, float]] = field(default_factory=list)
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Every number; times are in milliseconds."""
        if self.error:
            return {"name": self.name, "error": self.error}
        return {
            "name": self.name,
            "alone_p50": statistics.median(self.alone),
            "alone": self.alone,
            "requests_per_second_at_most": self.capacity,
            "cpu_ms_per_pair": self.cpu,
            "rates": self.rates,
        }


@dataclass
class ServeFigures:
    """What `run` measured.

    Attributes:
        passages: Passages of one request.
        servers: One result for each server.
        bare: The result of the scorer without a server.
    """

    passages: int
    servers: list[ServerResult]
    bare: ServerResult

    @property
    def problems(self) -> list[str]:
        """Why the measurement counts as failed: servers that did not take part."""
        return [f"{one.name}: {one.error}" for one in self.servers if one.error]

    def to_json(self) -> dict[str, Any]:
        """{"bench", "machine", "passages", "bare", "servers", "compared"}."""
        return {
            "bench": "serve",
            "machine": machine(),
            "passages": self.passages,
            "bare": self.bare.to_json(),
            "servers": [one.to_json() for one in self.servers],
            "compared": self.compared(),
        }

    def compared(self) -> dict[str, float]:
        """`tmkd serve` against the scorer without a server and against the plain server, where they were measured."""
        there = {one.name: one for one in self.servers if not one.error}
        ours, plain = there.get(OURS), there.get(PLAIN)
        found: dict[str, float] = {}
        if ours is not None and self.bare.alone:
            turns = zip(ours.alone, self.bare.alone, strict=False)
            found["p50_of_bare_scorer"] = statistics.median(a / b for a, b in turns)
            if self.bare.cpu:  # 0 in a short run: the system counts in hundredths of a second
                found["cpu_of_bare_scorer"] = ours.cpu / self.bare.cpu
        if ours is not None and plain is not None:
            turns = zip(plain.alone, ours.alone, strict=False)
            found["p50_faster_than_plain"] = statistics.median(a / b for a, b in turns)
            limit = EQUAL * statistics.median(plain.alone)
            mine, theirs = (best_rate(one, limit) for one in (ours, plain))
            found |= {"p99_limit_ms": limit, "rate_at_limit": mine, "plain_rate_at_limit": theirs}
            if theirs:
                found["rate_of_plain"] = mine / theirs
        return found

    def shown(self) -> list[RenderableType]:
        """Two tables and the comparison, for a terminal."""
        alone = Table(title=f"one request of {self.passages} passages at a time", title_justify="left")
        for column in ("", "p50 ms", "at most, requests/s", "CPU ms per pair"):
            alone.add_column(column, justify="right" if column else "left")
        for one in [self.bare, *self.servers]:
            if one.error:
                alone.add_row(escape(one.name), escape(one.error))
            else:
                capacity = f"{one.capacity:.2f}" if one.capacity else ""
                alone.add_row(escape(one.name), f"{statistics.median(one.alone):,.1f}", capacity, f"{one.cpu:.3f}")
        loaded = Table(title="at fixed rates", title_justify="left")
        columns = ("requests/s", "answered", "refused", "unanswered", "p50", "p90", "p99")
        for column in ("", *columns):
            loaded.add_column(column, justify="right" if column else "left")
        for one in self.servers:
            for rate in one.rates:
                cells = (f"{rate[key]:,.2f}".removesuffix(".00") if key in rate else "" for key in columns)
                loaded.add_row(escape(one.name), *cells)
        return [alone, loaded, *(f"{name.replace('_', ' ')}: {value:.2f}" for name, value in self.compared().items())]


def best_rate(server: ServerResult, limit: float) -> float:
    """The highest rate at which p99 was within `limit` milliseconds and every request was answered; 0 for none."""
    fine = [
        rate["requests/s"]
        for rate in server.rates
        if rate.get("p99", limit + 1) <= limit and rate["answered"] == rate["sent"]
    ]
    return max(fine, default=0.0)


def run(load: Load) -> ServeFigures:
    """Start the servers and measure them. A server that does not start gets a result that says why.

    Raises:
        TmkdError: The pairs or the model cannot be used, no server starts, or one refuses a single request.
    """
    pairs, model = load.subject.prepare(export=True)
    specs = servers(model, load.peers)
    results = [ServerResult(one.name, one.ours) for one in specs]
    logs = cache_folder("bench", "logs")
    with ExitStack() as stack:
        scorer = Contestant(BARE, "ours.py", {"do_what": "export", "model": str(model.export), "backend": "auto"})
        worker = stack.enter_context(Worker(scorer, logs / "bare.log"))
        live: list[_Live] = []
        for result, spec in zip(results, specs, strict=True):
            logger.info(f"bench: starting {spec.name}")
            try:
                process = stack.enter_context(RunningServer(spec, logs / f"server-{len(live)}.log", load.threads))
                live.append(_Live(result, process, Client(process.port)))
            except Failed as error:
                result.error = str(error)
                logger.warning(f"bench: {spec.name}: {error}")
        if not live:
            raise TmkdError("no server started")
        measurement = _Measurement(load, pairs, worker, live)
        asyncio.run(measurement.run())
    return ServeFigures(load.passages, results, measurement.bare)


def servers(model: Weights, peers: bool) -> list[ServerSpec]:
    """`tmkd serve`; with `peers` also the plain server, on the same weights and on a teacher's size."""
    ours = ServerSpec(OURS, ("--model", str(model.export)))
    plain = {"model": str(model.single), "max_length": model.max_length}
    teacher = {**plain, "config": {**DEEP, **TEACHER}}
    script, environment = "plain_server.py", "sentence-transformers"
    others = [
        ServerSpec(PLAIN, script=script, environment=environment, options=plain),
        ServerSpec(f"{PLAIN}, a teacher of 6 x 384", script=script, environment=environment, options=teacher),
    ]
    return [ours, *(others if peers else [])]


def one_question_each(pairs: BenchPairs, passages: int) -> Prepared:
    """Write requests of one question each, with so many passages."""
    found = []
    for turn in range(REQUESTS):
        questions, texts, _ = pairs.one_question(passages, turn)
        found.append((request_bytes("/rerank", {"query": questions[0], "texts": texts}), passages))
    return found


@dataclass(frozen=True)
class _Live:
    """A running server: its result, its process and the connections to it."""

    result: ServerResult
    process: RunningServer
    client: Client


class _Measurement:
    """The measurement of servers that run, beside a worker that scores without a server."""

    def __init__(self, load: Load, pairs: BenchPairs, worker: Worker, live: Sequence[_Live]) -> None:
        self.load, self.pairs, self.worker, self.live = load, pairs, worker, live
        self.requests = one_question_each(pairs, load.passages)
        self.bare = ServerResult(BARE, True)

    async def run(self) -> None:
        """Fill the results."""
        await self._one_at_a_time()
        await self._capacity()
        await self._fixed_rates()
        for one in self.live:
            one.client.close()

    async def _one_at_a_time(self) -> None:
        """Rounds of one request each: the bare scorer, then every server. The first round warms up."""
        process = psutil.Process(self.worker.process.pid)
        pairs, before = 0, process.cpu_times()
        with progress("one at a time", self.load.rounds, unit="rounds") as bar:
            for number in range(self.load.rounds + 1):
                questions, texts, labels = self.pairs.one_question(self.load.passages, number % len(self.requests))
                seconds, _ = self.worker.run(questions, texts, labels)
                if number:
                    self.bare.alone.append(1000 * seconds)
                    pairs += len(texts)
                else:
                    before = process.cpu_times()  # it idles while the servers have their turns
                for one in self.live:
                    milliseconds = await self._one_request(one, number)
                    if number:
                        one.result.alone.append(milliseconds)
                if number:
                    bar.advance(1)
        after = process.cpu_times()
        self.bare.cpu = 1000 * (after.user + after.system - before.user - before.system) / max(1, pairs)

    async def _one_request(self, server: _Live, number: int) -> float:
        content, count = self.requests[number % len(self.requests)]
        reply = await server.client.timed(content, time.perf_counter(), count)
        if reply.status != 200:
            logs = cache_folder("bench", "logs")
            raise TmkdError(f"{server.result.name} answered {reply.status}; see its log in {logs}")
        return 1000 * reply.seconds

    async def _capacity(self) -> None:
        """A few callers at once, for each server."""
        with progress("capacity", len(self.live), unit="servers") as bar:
            for one in self.live:
                before = one.process.cpu()
                replies = await closed_loop(one.client, self.requests, CALLERS, self.load.seconds)
                fine = [reply for reply in replies if reply.status == 200]
                one.result.capacity = len(fine) / self.load.seconds
                one.result.cpu = 1000 * (one.process.cpu() - before) / max(1, sum(reply.pairs for reply in fine))
                bar.advance(1, one.result.name)

    async def _fixed_rates(self) -> None:
        """Each rate, for each server."""
        turns = [(share, one) for share in self.load.rates or SHARES for one in self.live]
        with progress("fixed rates", len(turns), unit="turns") as bar:
            for number, (share, one) in enumerate(turns):
                rate = share if self.load.rates else share * one.result.capacity
                if rate > 0:
                    replies = await open_loop(one.client, self.requests, rate, self.load.seconds, seed=number)
                    one.result.rates.append({"requests/s": rate, **_counts(replies), **percentiles(replies)})
                bar.advance(1, one.result.name)


def _counts(replies: Sequence[Reply]) -> dict[str, float]:
    return {
        "sent": len(replies),
        "answered": sum(reply.status == 200 for reply in replies),
        "refused": sum(reply.status in (429, 503) for reply in replies),
        "unanswered": sum(reply.status == 0 for reply in replies),
    }
