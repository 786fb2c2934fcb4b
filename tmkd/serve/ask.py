"""A question to its answers. Retrieval runs in a few threads; ranking goes through the queue like every request."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import TmkdError
from tmkd.data.documents.index import DocumentIndex
from tmkd.inference.manifest import read_manifest
from tmkd.inference.qa.answer import Answers, QuestionAnswerer
from tmkd.inference.qa.calibration import Calibration
from tmkd.inference.qa.retrieval import Retriever
from tmkd.inference.state_card import CARD, FOLDER
from tmkd.inference.text_encoder import TextEncoder
from tmkd.serve.queueing import BatchQueue, Read
from tmkd.serve.refusals import overloaded, unavailable, wrong
from tmkd.serve.schemas import AskRequest
from tmkd.serve.watched import Watched

logger = logging.getLogger(__name__)

THREADS, MOST = 8, 64  # questions that are answered at once; those and the ones that wait for a thread


class Errand:
    """One question's deadline, and the scoring that it waits for now. The event loop can call it off.

    Args:
        until: When the question's time is up (`time.monotonic()`).
    """

    def __init__(self, until: float) -> None:
        self.until = until
        self.waiting: Future[Read] | None = None
        self.off = False

    def call_off(self) -> None:
        """Stop: nobody waits for the answers any more."""
        self.off = True
        if self.waiting is not None:
            self.waiting.cancel()


_errand: ContextVar[Errand] = ContextVar("errand")


class QueueScorer:
    """A `tmkd.inference.qa.answer.PairScorer` that scores through a queue.

    It is called from threads, never from the event loop, inside a context that holds an `Errand`.

    Args:
        queue: The queue.
        loop: The event loop.
        reader: Reads questions to the same bits as the scorer behind the queue, which then need not read them again.
        backend: That of the scorer behind the queue.
    """

    def __init__(
        self,
        queue: BatchQueue,
        loop: asyncio.AbstractEventLoop,
        reader: TextEncoder | None = None,
        backend: str | None = None,
    ) -> None:
        self._queue, self._loop, self._reader, self.backend = queue, loop, reader, backend
        self.max_length = queue.max_length

    def scores(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds of every pair, [N] float64.

        Raises:
            Refusal: As `BatchQueue.score`.
        """
        found, start = np.empty(len(questions)), 0
        while start < len(questions):
            stop = start
            while stop < len(questions) and questions[stop] == questions[start]:
                stop += 1
            found[start:stop] = self._score(questions[start], list(passages[start:stop]))
            start = stop
        return found

    def _score(self, question: str, passages: list[str]) -> NDArray[np.float64]:
        errand = _errand.get()
        if errand.off or errand.until <= time.monotonic():
            raise unavailable("the time for this request is up")
        read = None if self._reader is None else self._reader.question(question)  # retrieval has read it already
        scoring = self._queue.score(question, passages, until=errand.until, read=read)
        errand.waiting = asyncio.run_coroutine_threadsafe(scoring, self._loop)
        return errand.waiting.result().scores


class Asker:
    """Answers questions from one index, ranked by the student or by the teacher. Made on the event loop.

    Passages are retrieved by BM25, and by dense search too where the student is a cached one and the index has its
    states; this process then encodes the questions for it.

    Args:
        index: The index's folder.
        rankers: The queue and the model folder of each ranker: `student`, and `teacher` where one is served.
        backend: Of the student, as `tmkd.inference.text_encoder.TextEncoder` takes it.
        scoring: The backend that the student's scoring process uses.

    Attributes:
        rankers: What answers, by the ranker's name.

    Raises:
        TmkdError: The index cannot be used, or the student's calibration is damaged.
    """

    def __init__(
        self, index: Path, rankers: Mapping[str, tuple[BatchQueue, Path]], backend: str = "auto", scoring: str = ""
    ) -> None:
        loop = asyncio.get_running_loop()
        self._index = DocumentIndex.open(index)
        student = rankers["student"][1]
        reader = None
        if read_manifest(student).states is not None:
            reader = TextEncoder.open(student, backend=backend, threads=1)
        same = None if reader is None or reader.backend != scoring else reader  # another one reads other numbers
        self._retriever = Retriever.open(self._index, reader, model=student)
        self._watched = Watched(index / "meta.json", index / FOLDER / CARD)
        self._failed = tuple[int, ...]()
        self._lock = threading.Lock()
        self.rankers = {
            name: QuestionAnswerer(
                QueueScorer(queue, loop, same, scoring or None) if name == "student" else QueueScorer(queue, loop),
                self._index,
                calibration=Calibration.read(model) if name == "student" else Calibration(),
                model=model,
                retriever=self._retriever,
                reader=reader if name == "student" else None,
            )
            for name, (queue, model) in rankers.items()
        }
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tmkd-ask")
        self._asked = 0

    async def answer(self, given: AskRequest, until: float) -> Answers:
        """Answer one question.

        Args:
            given: The question.
            until: When its time is up (`time.monotonic()`).

        Raises:
            Refusal: 422, a blank question or no such ranker; 429, too many questions at once; 503, its time is up.
        """
        if not given.question.strip():
            raise wrong("the question is blank", "question")
        if given.ranker not in self.rankers:
            raise wrong("this server has no teacher; start it with --teacher to have one", "ranker")
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
        """Reopen the index where it was updated."""
        with self._lock:
            if (version := self._watched.changed()) is not None:
                self._refresh(version)

    def _refresh(self, version: tuple[int, ...]) -> None:
        try:
            self._retriever.refresh()
        except TmkdError as error:  # the index is being replaced, or is gone; the one that is open still answers
            if version != self._failed:
                logger.warning(f"the updated index cannot be opened, so answers still come from the old one: {error}")
            self._failed = version
        else:
            self._watched.seen = version

    @property
    def size(self) -> dict[str, int]:
        """Numbers of documents and passages of the index, and of passages whose states are used; 0 without any."""
        store = self._retriever.store
        states = 0 if store is None else store.passages
        return {"documents": self._index.documents, "passages": len(self._index), "states": states}

    def close(self) -> None:
        """End the threads; questions that wait for one are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
