"""What one server holds: its scorers, queues, limits and instruments, and how a request passes through them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from tmkd.serve.body import Bodies, Gone
from tmkd.serve.metrics import Metrics
from tmkd.serve.queueing import BatchQueue
from tmkd.serve.scorer import ScorerProcess
from tmkd.serve.settings import Settings

if TYPE_CHECKING:
    from tmkd.serve.ask import Asker

Result = TypeVar("Result")


class Server:
    """The parts of one server. Use as an async context manager: it opens the models and ends their processes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.bodies = Bodies(settings, self.metrics)
        self.scorers = {
            "student": ScorerProcess(
                "student", settings.model, backend=settings.backend, threads=settings.threads, stall=settings.stall
            )
        }
        if settings.teacher is not None:
            self.scorers["teacher"] = ScorerProcess(
                "teacher", settings.teacher, threads=settings.threads, stall=settings.stall
            )
        self.queues: dict[str, BatchQueue] = {}
        self.asker: Asker | None = None
        self.stopping = False
        self.problem = ""  # what kept it from starting

    async def __aenter__(self) -> Server:
        try:
            for name, scorer in self.scorers.items():
                hello = await scorer.start()
                queue = BatchQueue(
                    scorer,
                    self.metrics,
                    max_length=hello.max_length,
                    batch_tokens=self.settings.batch_tokens,
                    batch_wait=self.settings.batch_wait,
                    max_queue=self.settings.max_queue,
                    name=name,
                )
                scorer.on_up = queue.wake
                queue.start()
                self.queues[name] = queue
                self.metrics.up.labels(name).set_function(partial(_up, scorer))
                self.metrics.restarts.labels(name).set_function(partial(_restarts, scorer))
            if self.settings.index is not None:
                from tmkd.serve.ask import Asker

                self.asker = Asker(self, self.settings.index)
        except BaseException as error:
            self.problem = str(error)
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping = True
        if self.asker is not None:
            self.asker.close()
        for queue in self.queues.values():
            await queue.close()
        for scorer in self.scorers.values():
            await scorer.close()

    @property
    def ready(self) -> bool:
        """Whether a request would be scored now."""
        return not self.stopping and self.scorers["student"].hello is not None

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
        """Give the function that reads the body; the bytes count as held until the end of the block."""
        start = time.monotonic()
        request.state.until = start + self.settings.timeout
        with self.bodies.holding() as held:

            async def read() -> bytes:
                body = await self.bodies.read(request, held, request.state.until)
                self.metrics.stage.labels("read").observe(time.monotonic() - start)
                return body

            yield read

    async def rank(self, request: Request, query: str, texts: Sequence[str], *, truncate: bool) -> NDArray[np.float64]:
        """The student's log-odds, [N] float64. Refusal: as the queue. Gone: the client hung up."""
        scoring = self.queues["student"].score(query, texts, until=request.state.until, truncate=truncate)
        return await unless_gone(request, scoring)


def _up(scorer: ScorerProcess) -> float:
    return float(scorer.hello is not None)


def _restarts(scorer: ScorerProcess) -> float:
    return float(scorer.restarts)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client hangs up. Gone: it did."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # the body is read: the next message is the end
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
