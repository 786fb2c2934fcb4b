"""`tmkd bench serve`: latency against rate, processor time per pair, beside a plain server and a teacher's.

All servers are up at once, idle but for the one that is measured; the bare scorer takes turns with them. First one
request at a time; then each server's capacity by a few callers in a closed loop; then an open loop at shares of that,
or at the rates that were asked for.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.markup import escape
from rich.table import Table

from tmkd.bench.contestants import DEEP, TEACHER
from tmkd.bench.loadgen import Client, Prepared, Reply, closed_loop, open_loop, percentiles, request_bytes
from tmkd.bench.material import Rows, Weights, rows_of, weights
from tmkd.bench.servers import Running, Serving
from tmkd.bench.worker import Contestant, Failed, Worker
from tmkd.core.console import progress, tables
from tmkd.core.errors import TmkdError
from tmkd.core.files import cache_folder

logger = logging.getLogger(__name__)

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)  # of a server's capacity
CALLERS = 4
PLAIN = "FastAPI + CrossEncoder.predict"
EQUAL = 2.5  # times the plain server's median alone: the p99 at which rates are compared


@dataclass(frozen=True)
class Load:
    """What is asked for.

    Attributes:
        model, layers, max_length, pairs: as in the other benches.
        passages: of one request. rounds: requests one at a time. seconds: at each rate. rates: requests per second, for
            every server; empty: shares of its capacity. peers: whether the other servers take part.
    """

    model: str
    layers: int = 3
    max_length: int = 192
    pairs: Path | None = None
    passages: int = 100
    rounds: int = 20
    seconds: float = 20.0
    rates: tuple[float, ...] = ()
    peers: bool = True
    threads: int = 0


@dataclass
class Measured:
    """One server's numbers. alone: ms of each request. rates: what was seen at each."""

    name: str
    ours: bool
    alone: list[float] = field(default_factory=list)
    capacity: float = 0.0
    cpu: float = 0.0
    rates: list[dict[str, float]] = field(default_factory=list)
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the file has it; times in milliseconds."""
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
class Outcome:
    """Everything measured, and what is compared."""

    passages: int
    measured: list[Measured]
    bare: Measured

    @property
    def problems(self) -> list[str]:
        """Servers that did not take part."""
        return [f"{one.name}: {one.error}" for one in self.measured if one.error]

    def to_json(self) -> dict[str, Any]:
        """{"bench", "machine", "passages", "bare", "servers", "compared"}."""
        from tmkd.bench.command import machine

        return {
            "bench": "serve",
            "machine": machine(),
            "passages": self.passages,
            "bare": self.bare.to_json(),
            "servers": [one.to_json() for one in self.measured],
            "compared": self.compared(),
        }

    def compared(self) -> dict[str, float]:
        """Ours against the bare scorer and the plain server; only what was measured."""
        there = {one.name: one for one in self.measured if not one.error}
        ours, plain = there.get("tmkd serve"), there.get(PLAIN)
        found: dict[str, float] = {}
        if ours is not None and self.bare.alone:
            turns = zip(ours.alone, self.bare.alone, strict=False)
            found["p50_of_bare_scorer"] = statistics.median(a / b for a, b in turns)
            if self.bare.cpu:  # the system counts in hundredths of a second
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

    def show(self) -> None:
        """Two tables and the comparison."""
        alone = Table(title=f"one request of {self.passages} passages at a time", title_justify="left")
        for column in ("", "p50 ms", "at most, requests/s", "CPU ms per pair"):
            alone.add_column(column, justify="right" if column else "left")
        for one in [self.bare, *self.measured]:
            if one.error:
                alone.add_row(escape(one.name), escape(one.error))
            else:
                capacity = f"{one.capacity:.2f}" if one.capacity else ""
                alone.add_row(escape(one.name), f"{statistics.median(one.alone):,.1f}", capacity, f"{one.cpu:.3f}")
        loaded = Table(title="at fixed rates", title_justify="left")
        columns = ("requests/s", "answered", "refused", "unanswered", "p50", "p90", "p99")
        for column in ("", *columns):
            loaded.add_column(column, justify="right" if column else "left")
        for one in self.measured:
            for row in one.rates:
                loaded.add_row(
                    escape(one.name), *(f"{row[key]:,.2f}".removesuffix(".00") if key in row else "" for key in columns)
                )
        tables.print(alone)
        tables.print(loaded)
        for name, value in self.compared().items():
            print(f"{name.replace('_', ' ')}: {value:.2f}")


def best_rate(one: Measured, limit: float) -> float:
    """The highest rate measured at which p99 was within `limit` ms and nothing was refused; 0: none."""
    fine = [
        row["requests/s"] for row in one.rates if row.get("p99", limit + 1) <= limit and row["answered"] == row["sent"]
    ]
    return max(fine, default=0.0)


def run(load: Load) -> Outcome:
    """The whole measurement. TmkdError: rows or a model that cannot be used."""
    rows = rows_of(load.pairs)
    model = weights(load.model, load.layers, load.max_length, rows, export=True)
    logs = cache_folder("bench", "logs")
    requests = prepared(rows, load.passages)
    measured = [Measured(one.name, one.ours) for one in servers(model, load.peers)]
    bare = Measured("the bare scorer", True)
    with ExitStack() as stack:
        scorer = Contestant(bare.name, "ours.py", {"do_what": "export", "model": str(model.export), "backend": "auto"})
        worker = stack.enter_context(Worker(scorer, logs / "bare.log"))
        live: list[tuple[Measured, Running]] = []
        for result, what in zip(measured, servers(model, load.peers), strict=True):
            logger.info(f"bench: starting {what.name}")
            try:
                running = stack.enter_context(Running(what, logs / f"server-{len(live)}.log", load.threads))
                live.append((result, running))
            except Failed as error:
                result.error = str(error)
                logger.warning(f"bench: {what.name}: {error}")
        if not live:
            raise TmkdError("no server started")
        asyncio.run(_measure(load, rows, requests, worker, bare, live))
    return Outcome(load.passages, measured, bare)


def servers(model: Weights, peers: bool) -> list[Serving]:
    """Ours, and with `peers` the plain server on the same weights, and on a teacher's size."""
    ours = Serving("tmkd serve", ("--model", str(model.export)))
    plain = {"model": str(model.single), "max_length": model.max_length}
    teacher = {**plain, "config": {**DEEP, **TEACHER}}
    script = {"script": "plain_server.py", "environment": "sentence-transformers"}
    others = [
        Serving(PLAIN, options=plain, **script),  # type: ignore[arg-type]
        Serving(f"{PLAIN}, a teacher of 6 x 384", options=teacher, **script),  # type: ignore[arg-type]
    ]
    return [ours, *(others if peers else [])]


def prepared(rows: Rows, passages: int, count: int = 50) -> Prepared:
    """Requests of one question with so many passages each."""
    found = []
    for turn in range(count):
        questions, texts, _ = rows.one_question(passages, turn)
        found.append((request_bytes("/rerank", {"query": questions[0], "texts": texts}), passages))
    return found


async def _measure(
    load: Load, rows: Rows, requests: Prepared, worker: Worker, bare: Measured, live: list[tuple[Measured, Running]]
) -> None:
    clients = [Client(running.port) for _, running in live]
    with progress("one at a time", load.rounds, unit="rounds") as bar:
        await _alone(load, rows, requests, worker, bare, live, clients, bar.advance)
    with progress("capacity", len(live), unit="servers") as bar:
        for (result, running), client in zip(live, clients, strict=True):
            before = running.cpu()
            replies = await closed_loop(client, requests, CALLERS, load.seconds)
            fine = [reply for reply in replies if reply.status == 200]
            result.capacity = len(fine) / load.seconds
            result.cpu = 1000 * (running.cpu() - before) / max(1, sum(reply.pairs for reply in fine))
            bar.advance(1, result.name)
    turns = [(share, one) for share in load.rates or SHARES for one in range(len(live))]
    with progress("fixed rates", len(turns), unit="turns") as bar:
        for number, (share, place) in enumerate(turns):
            result, _ = live[place]
            rate = share if load.rates else share * result.capacity
            if rate > 0:
                replies = await open_loop(clients[place], requests, rate, load.seconds, seed=number)
                result.rates.append({"requests/s": rate, **_counts(replies), **percentiles(replies)})
            bar.advance(1, result.name)
    for client in clients:
        client.close()


async def _alone(
    load: Load, rows: Rows, requests: Prepared, worker: Worker, bare: Measured, live: list[tuple[Measured, Running]],
    clients: list[Client], advance: Callable[[int], None],
) -> None:  # fmt: skip
    """Rounds of one request each: the bare scorer, then every server; the first round warms up."""
    process = psutil.Process(worker.process.pid)
    pairs, before = 0.0, process.cpu_times()
    for number in range(load.rounds + 1):
        questions, texts, labels = rows.one_question(load.passages, number % len(requests))
        seconds, _ = worker.run(questions, texts, labels)
        if number:
            bare.alone.append(1000 * seconds)
            pairs += len(texts)
        else:
            before = process.cpu_times()  # it idles while the servers have their turn
        for (result, _), client in zip(live, clients, strict=True):
            content, count = requests[number % len(requests)]
            reply = await client.timed(content, time.perf_counter(), count)
            if reply.status != 200:
                raise TmkdError(
                    f"{result.name} answered {reply.status}; see its log in {cache_folder('bench', 'logs')}"
                )
            if number:
                result.alone.append(1000 * reply.seconds)
        if number:
            advance(1)
    after = process.cpu_times()
    bare.cpu = 1000 * (after.user + after.system - before.user - before.system) / max(1.0, pairs)


def _counts(replies: Sequence[Reply]) -> dict[str, float]:
    told = [reply for reply in replies if reply.status in (429, 503)]
    return {
        "sent": len(replies),
        "answered": sum(reply.status == 200 for reply in replies),
        "refused": len(told),
        "unanswered": sum(reply.status == 0 for reply in replies),
    }
