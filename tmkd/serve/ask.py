"""POST /ask: a question to its answers. Retrieval runs in a few threads, ranking passes through the queue."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from tmkd.core.errors import TmkdError
from tmkd.inference.qa import Answers, Calibration, DocumentIndex, QuestionAnswerer
from tmkd.serve.body import parse
from tmkd.serve.queueing import BatchQueue
from tmkd.serve.refusals import json_response, overloaded, unavailable, wrong
from tmkd.serve.schemas import AskRequest
from tmkd.serve.state import Server, unless_gone

logger = logging.getLogger(__name__)

THREADS, MOST = 8, 64  # questions answered at once; with those that wait for a thread
LOOK = 2.0  # seconds between two looks whether the index was updated


class Errand:
    """One question's deadline, and what it waits for now: it can be called off from the event loop."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.waiting: Future[NDArray[np.float64]] | None = None
        self.off = False

    def call_off(self) -> None:
        """Nobody waits for the answers any more."""
        self.off = True
        if self.waiting is not None:
            self.waiting.cancel()


_errand: ContextVar[Errand] = ContextVar("errand")


class QueueScorer:
    """A `tmkd.inference.qa.PairScorer` that stands before a queue; called from threads, never from the event loop."""

    def __init__(self, queue: BatchQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue, self._loop = queue, loop
        self.max_length = queue.max_length

    def scores(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds, [N] float64. Refusal: as the queue gives it."""
        found, start = np.empty(len(questions)), 0
        while start < len(questions):
            stop = start
            while stop < len(questions) and questions[stop] == questions[start]:
                stop += 1
            found[start:stop] = self._ask(questions[start], list(passages[start:stop]))
            start = stop
        return found

    def _ask(self, question: str, passages: list[str]) -> NDArray[np.float64]:
        errand = _errand.get()
        if errand.off or errand.until <= time.monotonic():
            raise unavailable("the time for this request is up")
        scoring = self._queue.score(question, passages, until=errand.until)
        errand.waiting = asyncio.run_coroutine_threadsafe(scoring, self._loop)
        return errand.waiting.result()


class Asker:
    """Answers questions with each ranker (`student`, `teacher`) from one index.

    Raises:
        TmkdError: no usable index, or a damaged calibration.
    """

    def __init__(self, server: Server, index: Path) -> None:
        loop = asyncio.get_running_loop()
        self._index = DocumentIndex.open(index)
        self._meta = index / "meta.json"
        self._seen, self._failed = self._version(), -1
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        models = {"student": server.settings.model, "teacher": server.settings.teacher}
        self.rankers = {
            name: QuestionAnswerer(
                QueueScorer(queue, loop),
                self._index,
                calibration=Calibration.read(model) if name == "student" else Calibration(),
                model=model,
            )
            for name, queue in server.queues.items()
            if (model := models[name]) is not None
        }
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tmkd-ask")
        self._asked = 0

    async def answer(self, server: Server, request: Request) -> Response:
        """One question."""
        async with server.reading(request) as read:
            given = parse(AskRequest, await read())
            if not given.question.strip():
                raise wrong("the question is blank", "question")
            if given.ranker not in self.rankers:
                raise wrong("no teacher is loaded; the server takes one as --teacher", "ranker")
            answers = await unless_gone(request, self._in_thread(given, request.state.until))
            for stage in ("retrieve", "rank", "mark"):
                server.metrics.stage.labels(stage).observe(answers.milliseconds.get(stage, 0.0) / 1000)
            return json_response({"ranker": given.ranker, **answers.to_json()})

    async def _in_thread(self, given: AskRequest, until: float) -> Answers:
        if self._asked >= MOST:
            raise overloaded(f"{self._asked} questions are being answered already; try again in a moment", 1.0)
        self._asked += 1
        errand = Errand(until)
        _errand.set(errand)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await loop.run_in_executor(self._pool, copy_context().run, self._ask, given)
        except TimeoutError:
            raise unavailable("the time for this request is up") from None
        finally:
            errand.call_off()
            self._asked -= 1

    def _ask(self, given: AskRequest) -> Answers:
        self._look()
        return self.rankers[given.ranker].ask(given.question, top=given.top, candidates=given.candidates)

    def _look(self) -> None:
        """Go on with the index as it is now, where it was updated."""
        with self._lock:
            if time.monotonic() - self._looked > LOOK:
                self._looked = time.monotonic()
                if (version := self._version()) != self._seen:
                    self._refresh(version)

    def _refresh(self, version: int) -> None:
        try:
            self._index.refresh()
        except TmkdError as error:  # it is being made anew, or gone: what was opened still answers
            if version != self._failed:
                logger.warning(f"answers come from the index as it was: {error}")
            self._failed = version
        else:
            self._seen = version

    def _version(self) -> int:
        try:
            return self._meta.stat().st_mtime_ns
        except OSError:
            return 0

    @property
    def size(self) -> dict[str, int]:
        """Documents and passages of the index."""
        return {"documents": self._index.documents, "passages": len(self._index)}

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
