"""The one queue in front of a scorer: requests wait here, and leave in batches.

A batch is filled across requests up to a token budget. It leaves when it is full (for an idle scorer: a quarter full),
or when its oldest request has waited for a few milliseconds. Two are under way at once, so that the scorer tokenises
one while it scores the other. A request beyond the budget goes piece by piece, and others pass between its pieces. The
queue is bounded: who would wait longer than the time limit is told at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.serve.messages import Scored
from tmkd.serve.metrics import Metrics
from tmkd.serve.refusals import Refusal, overloaded, too_large, unavailable

UNDER_WAY = 2  # batches at once
IDLE = 4  # an idle scorer is given a batch that is this part of a full one, rather than wait for more
CHARACTERS = 4  # of a token, about: exact counts belong to the scorer, whose micro-batches keep to them
TOKENISING = 16  # what is cut off costs its tokenising, about a sixteenth of scoring it


class JobScorer(Protocol):
    """What scores a batch (a ScorerProcess)."""

    async def score(self, groups: list[tuple[str, list[str], bool]]) -> Scored: ...


@dataclass(eq=False)
class Waiting:
    """One request in the queue. costs: estimated tokens of each pair. at: the first pair that has not left yet."""

    query: str
    texts: Sequence[str]
    truncate: bool
    costs: list[int]
    until: float
    answer: asyncio.Future[NDArray[np.float64]]
    scores: NDArray[np.float64]
    since: float = field(default_factory=time.monotonic)
    at: int = 0
    missing: int = 0
    left: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Pairs start to stop of a request."""

    of: Waiting
    start: int
    stop: int


class BatchQueue:
    """Args: as in Settings. name: of the model, in the metrics."""

    def __init__(
        self, scorer: JobScorer, metrics: Metrics, *, max_length: int, batch_tokens: int, batch_wait: float,
        max_queue: int, name: str = "student",
    ) -> None:  # fmt: skip
        self._scorer, self._metrics, self._name = scorer, metrics, name
        self.max_length, self._budget, self._wait, self._room = max_length, batch_tokens, batch_wait, max_queue
        self._requests: deque[Waiting] = deque()
        self._tokens = 0
        self.pairs = 0
        self._rate = 0.0  # pairs per second of late
        self._busy = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to send batches."""
        self._keep(asyncio.create_task(self._send(), name=f"{self._name} queue"))

    async def close(self) -> None:
        """Stop; what waits is refused."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._requests:
            _fail(self._requests.popleft(), unavailable("the server is stopping"))

    def wake(self) -> None:
        """Something changed: a request came, a batch is done, the scorer is up."""
        self._wake.set()

    async def score(
        self, query: str, texts: Sequence[str], *, until: float, truncate: bool = True
    ) -> NDArray[np.float64]:
        """Log-odds of each text, [N] float64.

        Args:
            until: when the caller gives up (time.monotonic()).
            truncate: False refuses a pair beyond the student's length.

        Raises:
            Refusal: 429, no room; 503, time is up or the scorer died; 413, a pair is too long.
        """
        self._admit(len(texts), until)
        loop = asyncio.get_running_loop()
        count = len(texts)
        one = Waiting(query, texts, truncate, self._costs(query, texts), until, loop.create_future(), np.empty(count))
        one.missing = count
        self._requests.append(one)
        self._count(count, sum(one.costs))
        self.wake()
        try:
            async with asyncio.timeout_at(loop.time() + until - time.monotonic()):
                return await one.answer
        except TimeoutError:
            self._metrics.rejected.labels("timeout").inc()
            raise unavailable("the time for this request is up", self._expected()) from None
        finally:
            self._forget(one)

    def _admit(self, count: int, until: float) -> None:
        expected = self._expected()
        if self.pairs and (self.pairs + count > self._room or time.monotonic() + expected > until):
            self._metrics.rejected.labels("queue").inc()
            raise overloaded(f"{self.pairs} pairs are waiting already; try again in a moment", expected)

    def _expected(self) -> float:
        """Seconds until what waits now is scored, at the rate of late."""
        return self.pairs / self._rate if self._rate else 0.0

    def _costs(self, query: str, texts: Sequence[str]) -> list[int]:
        asked = 3 + len(query) // CHARACTERS
        longest, costs = self.max_length, []
        for text in texts:
            tokens = asked + len(text) // CHARACTERS
            costs.append(tokens if tokens <= longest else longest + (tokens - longest) // TOKENISING)
        return costs

    def _count(self, pairs: int, tokens: int) -> None:
        self.pairs += pairs
        self._tokens += tokens
        self._metrics.waiting.labels(self._name).set(self.pairs)

    def _forget(self, one: Waiting) -> None:
        """Take a request out of the queue: it is answered, or nobody waits for it any more."""
        if one.at < len(one.texts):
            self._count(one.at - len(one.texts), -sum(one.costs[one.at :]))
            one.at = len(one.texts)
            if one in self._requests:
                self._requests.remove(one)

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._requests and self._busy < UNDER_WAY and self._scorer_up():
                pause = self._requests[0].since + self._wait - time.monotonic()
                enough = self._budget if self._busy else self._budget // IDLE
                if self._tokens < enough and pause > 0:
                    await asyncio.sleep(pause)
                    continue
                batch = self._take()
                if batch:
                    self._busy += 1
                    self._keep(asyncio.create_task(self._run(batch)))

    def _scorer_up(self) -> bool:
        return getattr(self._scorer, "hello", True) is not None

    def _take(self) -> list[Piece]:
        """The next batch: pieces of waiting requests in turn, within the budget."""
        batch: list[Piece] = []
        room, now = self._budget, time.monotonic()
        for _ in range(len(self._requests)):
            if room <= 0:
                break
            one = self._requests.popleft()
            start = stop = one.at
            while stop < len(one.texts) and (one.costs[stop] <= room or (not batch and stop == start)):
                room -= one.costs[stop]
                stop += 1
            if start == stop:
                self._requests.appendleft(one)
                break
            if not start:
                self._metrics.stage.labels("queue").observe(now - one.since)
            one.at = stop
            self._count(start - stop, -sum(one.costs[start:stop]))
            batch.append(Piece(one, start, stop))
            if stop < len(one.texts):  # the batch is full; next time the others come first
                self._requests.append(one)
                break
        return batch

    async def _run(self, batch: list[Piece]) -> None:
        count = sum(piece.stop - piece.start for piece in batch)
        tokens = sum(sum(piece.of.costs[piece.start : piece.stop]) for piece in batch)
        self._metrics.fill.labels(self._name).observe(tokens / self._budget)
        self._metrics.batch_pairs.labels(self._name).observe(count)
        start = time.monotonic()
        try:
            groups = [(one.of.query, list(one.of.texts[one.start : one.stop]), one.of.truncate) for one in batch]
            self._give(batch, await self._scorer.score(groups))
            self._learn(count, time.monotonic() - start)
            self._metrics.stage.labels("score").observe(time.monotonic() - start)
            self._metrics.pairs.labels(self._name).inc(count)
        except Refusal as refusal:
            for piece in batch:
                _fail(piece.of, refusal)
        finally:
            self._busy -= 1
            self.wake()

    def _learn(self, count: int, seconds: float) -> None:
        """Pairs per second, smoothed; with two batches under way each one takes about twice its share."""
        rate = count / max(seconds, 1e-4) * max(1, self._busy)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate

    def _give(self, batch: list[Piece], scored: Scored) -> None:
        found = np.frombuffer(scored.scores, dtype=np.float64)
        start = 0
        for piece in batch:
            one, count = piece.of, piece.stop - piece.start
            one.scores[piece.start : piece.stop] = found[start : start + count]
            for place, tokens in scored.too_long:
                if start <= place < start + count:
                    row = piece.start + place - start
                    _fail(one, too_large(
                        f"pair {row} has {tokens} tokens, {self.max_length} are read; shorten it or set `truncate`",
                        f"texts[{row}]",
                    ))  # fmt: skip
            start += count
            one.missing -= count
            if not one.missing and not one.answer.done():
                one.answer.set_result(one.scores)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _fail(one: Waiting, refusal: Refusal) -> None:
    if not one.answer.done():
        one.answer.set_exception(refusal)
