"""What one server holds: its scoring processes, their queues, its limits and metrics; and how a request uses them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.requests import Request

from tmkd.core.errors import ExportError
from tmkd.inference.manifest import read_manifest
from tmkd.serve.ask import Asker
from tmkd.serve.body import Bodies, unless_gone
from tmkd.serve.metrics import Metrics
from tmkd.serve.queueing import BatchQueue, Read
from tmkd.serve.scorer_process import ScorerProcess, StatePlaces
from tmkd.serve.settings import Settings
from tmkd.serve.worker import holds

STATES = 8192  # bytes of a passage's states, roughly


class Server:
    """One server. It is an async context manager, which opens the models and ends their processes.

    Attributes:
        name: What /info calls the model.
        scorers: The scoring process of the `student`, and of the `teacher` where one is served.
        student_kind: `cached` for a student that reads every passage once, else `layers`; empty until it is open.
        queues: The queue of each scorer, by the same names, once it is open.
        asker: What answers questions; None without an index.
        stopping: Whether the server is being stopped.
        problem: Why it did not start; empty if it did.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.name = settings, settings.name
        self.metrics = Metrics()
        self.bodies = Bodies(settings, self.metrics)
        self.scorers = {
            "student": ScorerProcess(
                "student",
                settings.model,
                backend=settings.backend,
                threads=settings.threads,
                stall=settings.stall,
                states=StatePlaces(settings.state_cache << 20, settings.index),
            )
        }
        if settings.teacher is not None:
            self.scorers["teacher"] = ScorerProcess(
                "teacher", settings.teacher, threads=settings.threads, stall=settings.stall,
                positive=read_manifest(settings.model).positive,  # a teacher's folder does not say it
            )  # fmt: skip
        self.queues: dict[str, BatchQueue] = {}
        self.asker: Asker | None = None
        self.student_kind = ""
        self.stopping = False
        self.problem = ""

    async def __aenter__(self) -> Server:
        opened: dict[str, str] = {}  # the digests of the models
        try:
            for name, scorer in self.scorers.items():
                hello = await scorer.start()
                opened[name] = hello.digest
                queue = BatchQueue(
                    scorer,
                    self.metrics,
                    max_length=hello.max_length,
                    batch_tokens=self.settings.batch_tokens,
                    batch_wait=self.settings.batch_wait / 1000,
                    max_queue=self.settings.max_queue,
                    name=name,
                )
                if hello.apart:
                    queue.read_apart((self.settings.state_cache << 20) // STATES)
                scorer.on_up = queue.renew
                queue.start()
                self.queues[name] = queue
                self.metrics.up.labels(name).set_function(partial(_up, scorer))
                self.metrics.restarts.labels(name).set_function(partial(_restarts, scorer))
            student = self.scorers["student"]
            self.student_kind = "cached" if self.queues["student"].apart else "layers"
            if self.queues["student"].apart:
                self.metrics.count_states((0, 0, 0))  # so that all three are shown from the start
                student.on_states = self.metrics.count_states
                self.metrics.cache_bytes.set_function(lambda: float(student.cached))
            if self.settings.index is not None:
                models = {"student": self.settings.model, "teacher": self.settings.teacher}
                rankers = {
                    name: (queue, model) for name, queue in self.queues.items() if (model := models[name]) is not None
                }
                scoring = "" if student.hello is None else student.hello.backend
                self.asker = Asker(self.settings.index, rankers, self.settings.backend, scoring)
                for name, (_, model) in rankers.items():
                    _require_same(model, opened[name])
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
        """Whether a request that comes now would be scored."""
        return not self.stopping and self.scorers["student"].hello is not None

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
        """Give the function that reads a request's body. Its bytes count as held until the end of the block.

        Also sets `request.state.until`, when the request's time is up (`time.monotonic()`).
        """
        start = time.monotonic()
        request.state.until = start + self.settings.timeout
        with self.bodies.holding() as held:

            async def read() -> bytes:
                body = await self.bodies.read(request, held, request.state.until)
                self.metrics.stage.labels("read").observe(time.monotonic() - start)
                return body

            yield read

    async def rank(self, request: Request, query: str, texts: Sequence[str], *, truncate: bool) -> Read:
        """What the student gives for each text and a query.

        Raises:
            Refusal: As `BatchQueue.score`.
            Gone: The client hung up.
        """
        scoring = self.queues["student"].score(query, texts, until=request.state.until, truncate=truncate)
        return await unless_gone(request, scoring)


def _require_same(folder: Path, digest: str) -> None:
    """Check that a folder still holds the model that the scoring process opened: this process has read it, too.

    Raises:
        ExportError: It was replaced.
    """
    if not holds(folder, digest):
        raise ExportError(
            f"{folder} was replaced while the server started; start it again when all of its files are there"
        )


def _up(scorer: ScorerProcess) -> float:
    return float(scorer.hello is not None)


def _restarts(scorer: ScorerProcess) -> float:
    return float(scorer.restarts)
