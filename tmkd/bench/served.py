"""`tmkd bench label --served`: pairs per second of a served teacher, and of its server alone.

`tmkd serve` runs on loopback. In turns it answers prepared requests that are sent and not read, and a served teacher
that stores its labels, as a run has it. Both send the same requests, as many at a time.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tmkd.bench.loadgen import HOST, Client, Prepared, request_bytes
from tmkd.bench.material import BenchPairs, Subject
from tmkd.bench.rounds import Result
from tmkd.bench.servers import RunningServer, ServerSpec
from tmkd.bench.speed import SpeedFigures
from tmkd.config.teacher_sections import Endpoint
from tmkd.core.errors import TmkdError
from tmkd.core.files import cache_folder
from tmkd.data.pairs import Pairs
from tmkd.pipeline.steps.label import label_stored
from tmkd.pipeline.store.workspace import Workspace
from tmkd.teachers.served import ServedTeacher, requests_of
from tmkd.teachers.served_forms import form_of

ALONE, TEACHER = "the server alone", "served teacher, labels stored"


def run(subject: Subject, *, count: int = 512, rounds: int = 5, threads: int = 0) -> SpeedFigures:
    """Start the server, and let requests alone and the teacher take turns.

    Args:
        subject: The model, which is exported unless it is an export, and the pairs.
        count: Pairs of one turn.
        rounds: Turns of each; one more warms up.
        threads: Threads of the server; 0 for all usable cores.

    Raises:
        TmkdError: The pairs or the model cannot be used, the server does not start, or it refuses a request.
    """
    export, every = subject.exported(), BenchPairs.read(subject.pairs).pairs
    first = every.take(range(min(count, len(every))))
    pairs = first.take(np.unique(np.array(first.pair_ids), return_index=True)[1])  # as the label store has them
    results = [Result(ALONE, ours=False), Result(TEACHER, ours=True)]
    log = cache_folder("bench", "logs") / "served.log"
    with RunningServer(ServerSpec("tmkd serve", ("--model", str(export))), log, threads) as server:
        endpoint = Endpoint(url=f"http://{HOST}:{server.port}")
        requests = _prepared(endpoint, pairs)
        ways: list[Callable[[], None]] = [
            lambda: asyncio.run(_send(server.port, requests, endpoint.concurrency)),
            lambda: _label(endpoint, pairs),
        ]
        for number in range(rounds + 1):
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                ways[which]()
                if number:
                    rate = len(pairs) / (time.perf_counter() - start)
                    results[which].values.setdefault("pairs/s", []).append(rate)
    return SpeedFigures("label --served", results, {})


def _prepared(endpoint: Endpoint, pairs: Pairs) -> Prepared:
    """The teacher's requests, as bytes."""
    form = form_of(endpoint, TmkdError)
    each = (pairs.take(rows) for rows in requests_of(pairs, form.batch))
    return [(request_bytes(form.path, form.request(some.questions[0], some.passages)), len(some)) for some in each]


async def _send(port: int, requests: Prepared, callers: int) -> None:
    """Send every request once, so many at a time."""
    client, left = Client(port), iter(requests)

    async def caller() -> None:
        for content, count in left:
            reply = await client.timed(content, time.perf_counter(), count)
            if reply.status != 200:
                raise TmkdError(f"the server answered {reply.status}; see its log in {cache_folder('bench', 'logs')}")

    await asyncio.gather(*(caller() for _ in range(callers)))
    client.close()


def _label(endpoint: Endpoint, pairs: Pairs) -> None:
    with tempfile.TemporaryDirectory() as folder:
        label_stored(Workspace(Path(folder)), ServedTeacher(endpoint, "served"), pairs)
