"""The queue in front of a scorer. Requests wait here and leave in batches.

A batch holds pairs of several requests, up to a number of tokens. It leaves when it is full (a quarter full if the
scorer is idle), or when its oldest request has waited for a few milliseconds. Two batches are with the scorer at once,
so that it tokenizes one while it scores the other. A request that is larger than a batch leaves in pieces, and other
requests go between them. The queue is bounded: a request that would wait longer than its time limit is refused at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.inference.text_encoder import ReadQuestion
from tmkd.serve.messages import Group, Scored
from tmkd.serve.metrics import Metrics
from tmkd.serve.refusals import Refusal, overloaded, too_large, unavailable

UNDER_WAY = 2  # batches that are with the scorer at once
IDLE = 4  # an idle scorer gets a batch of one IDLE-th of the budget, rather than waits for a full one
CHARACTERS = 4  # of a token, roughly; the scorer counts tokens exactly for its micro-batches
KNOWN = 24  # a text whose states are there costs about a 24th of one that is read (16 to 46 were measured)
TOKENISING = 16  # text that is cut off is only tokenized, at about a sixteenth of the cost of scoring it


class JobScorer(Protocol):
    """Anything that scores a batch, such as a `ScorerProcess`."""

    async def score(self, groups: list[Group]) -> Scored:
        """Score a batch.

        Args:
            groups: The pairs of each request.
        """
        ...


class TooLong(Exception):
    """A pair that must not be cut has more tokens than the model reads.

    Attributes:
        row: Which of the request's texts.
        tokens: The tokens of the pair.
    """

    def __init__(self, row: int, tokens: int) -> None:
        super().__init__(row, tokens)
        self.row, self.tokens = row, tokens


@dataclass(frozen=True)
class Read:
    """What the model gives for the texts of one request.

    Attributes:
        scores: Log-odds of each text, [N] float64.
        tokens: Tokens of each pair before it was cut, [N] int64.
        cut: Whether the pair is longer than the model reads, [N] bool.
    """

    scores: NDArray[np.float64]
    tokens: NDArray[np.int64]
    cut: NDArray[np.bool_]


@dataclass(eq=False)
class Waiting:
    """One request in the queue.

    Attributes:
        query: The query.
        texts: The texts to rank for it, each once.
        truncate: Whether pairs beyond the student's length are cut; if not, they are refused.
        costs: Estimated tokens of each pair.
        until: When the caller gives up (`time.monotonic()`).
        answer: Done when all scores are there.
        scores: The scores so far, [N] float64.
        tokens: The tokens of each pair so far, [N] int64.
        read: The query, where it was read already.
        since: When the request came.
        at: The first pair that has not left the queue.
        missing: How many scores are missing.
    """

    query: str
    texts: Sequence[str]
    truncate: bool
    costs: list[int]
    until: float
    answer: asyncio.Future[None]
    scores: NDArray[np.float64]
    tokens: NDArray[np.int64]
    read: ReadQuestion | None = None
    since: float = field(default_factory=time.monotonic)
    at: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Piece:
    """The pairs of a request from `start` to before `stop`."""

    of: Waiting
    start: int
    stop: int


class BatchQueue:
    """The queue of one model.

    Args:
        scorer: What scores the batches.
        metrics: Where they are counted.
        max_length: Tokens of a pair that the model reads; of each of its two texts where `apart` is true.
        batch_tokens: Estimated tokens of a full batch.
        batch_wait: Seconds that a batch waits for more pairs.
        max_queue: Most pairs that wait.
        name: The model's name in the metrics.

    Attributes:
        apart: Whether the model reads query and text each by itself, as a cached student does.
    """

    def __init__(
        self, scorer: JobScorer, metrics: Metrics, *, max_length: int, batch_tokens: int, batch_wait: float,
        max_queue: int, name: str = "student",
    ) -> None:  # fmt: skip
        self._scorer, self._metrics, self._name, self.apart = scorer, metrics, name, False
        self.max_length, self._budget, self._wait, self._room = max_length, batch_tokens, batch_wait, max_queue
        self._requests: deque[Waiting] = deque()
        self._tokens = 0
        self.pairs = 0
        self._rate = 0.0  # recent tokens per second
        self._known: OrderedDict[int, None] = (
            OrderedDict()
        )  # hashes of texts whose states are there, as far as it knows
        self._most_known = 0
        self._busy = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def read_apart(self, remembered: int) -> None:
        """Estimate costs for a cached student: a text that it has read costs little the next time.

        Args:
            remembered: Texts whose states it keeps, roughly.
        """
        self.apart, self._most_known = True, remembered

    def renew(self) -> None:
        """The scorer was started anew, so that its cache is empty."""
        self._known.clear()
        self.wake()

    def start(self) -> None:
        """Start to send batches."""
        self._keep(asyncio.create_task(self._send(), name=f"{self._name} queue"))

    async def close(self) -> None:
        """Stop, and refuse the requests that wait."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._requests:
            _fail(self._requests.popleft(), unavailable("the server is stopping"))

    def wake(self) -> None:
        """Look again: a request came, a batch is done, or the scorer is open."""
        self._wake.set()

    async def score(
        self, query: str, texts: Sequence[str], *, until: float, truncate: bool = True, read: ReadQuestion | None = None
    ) -> Read:
        """Score each text. Texts that are equal are scored once, so that chance does not rank them.

        Args:
            query: The query.
            texts: The texts, N of them.
            until: When the caller gives up (`time.monotonic()`).
            truncate: Whether pairs beyond the student's length are cut; if not, the request is refused.
            read: The query as the scorer's model and backend read it, so that it is not read again.

        Raises:
            Refusal: 429, there is no room; 503, its time is up or the scorer died; 413, a pair is too long.
        """
        places: dict[str, int] = {}
        place = np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64)
        try:
            one = await self._scored(query, list(places), until, truncate, read)
        except TooLong as error:
            row = int(np.flatnonzero(place == error.row)[0])
            has = f"pair {row} has {error.tokens} tokens, {self.max_length} are read"
            if self.apart:
                has = (
                    f"the query or the text of pair {row} has {error.tokens} tokens, {self.max_length} are read of each"
                )
            raise too_large(f"{has}; shorten it or set `truncate`", f"texts[{row}]") from None
        tokens = one.tokens[place]
        cut = tokens > self.max_length
        self._metrics.truncated.labels(self._name).inc(int(cut.sum()))
        return Read(one.scores[place], tokens, cut)

    async def _scored(
        self, query: str, texts: list[str], until: float, truncate: bool, read: ReadQuestion | None
    ) -> Waiting:
        self._admit(len(texts), until)
        loop = asyncio.get_running_loop()
        count = len(texts)
        scores, tokens = np.empty(count), np.empty(count, dtype=np.int64)
        costs = self._costs(query, texts)
        one = Waiting(query, texts, truncate, costs, until, loop.create_future(), scores, tokens, read)
        one.missing = count
        self._requests.append(one)
        self._count(count, sum(one.costs))
        self.wake()
        try:
            async with asyncio.timeout_at(loop.time() + until - time.monotonic()):
                await one.answer
                return one
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
        """Seconds until all waiting pairs are scored, at the recent rate."""
        return self._tokens / self._rate if self._rate else 0.0

    def _costs(self, query: str, texts: Sequence[str]) -> list[int]:
        costs = self._reading(query, texts)
        if not self._known:
            return costs
        return [
            max(1, cost // KNOWN) if hash(text) in self._known else cost
            for text, cost in zip(texts, costs, strict=True)
        ]

    def _reading(self, query: str, texts: Sequence[str]) -> list[int]:
        """The tokens that are read of each pair, where none of the texts is known."""
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
        """Take a request out of the queue, because it is answered or nobody waits for it any more."""
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
        """The next batch: pieces of the waiting requests, in turn, up to the number of tokens."""
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
            groups = [
                Group(one.of.query, list(one.of.texts[one.start : one.stop]), one.of.truncate, one.of.read)
                for one in batch
            ]
            scored = await self._scorer.score(groups)
            self._give(batch, scored)
            self._learn(self._spent(groups, scored) if self.apart else tokens, time.monotonic() - start)
            self._metrics.stage.labels("score").observe(time.monotonic() - start)
            self._metrics.pairs.labels(self._name).inc(count)
        except Refusal as refusal:
            for piece in batch:
                _fail(piece.of, refusal)
        finally:
            self._busy -= 1
            self.wake()

    def _spent(self, groups: Sequence[Group], scored: Scored) -> float:
        """What a batch cost, by the number of texts that the scorer had to read. From now on their states are known."""
        full = sum(sum(self._reading(query, texts)) for query, texts, *_ in groups)
        for group in groups:
            for text in group.texts:
                self._known[hash(text)] = None
                self._known.move_to_end(hash(text))
        while len(self._known) > self._most_known:
            self._known.popitem(last=False)
        share = scored.states[2] / max(1, sum(scored.states))  # of texts that were read
        return full * (share + (1 - share) / KNOWN)

    def _learn(self, tokens: float, seconds: float) -> None:
        """Update the smoothed tokens per second. With two batches at the scorer, each takes about twice as long."""
        rate = tokens / max(seconds, 1e-4) * max(1, self._busy)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate

    def _give(self, batch: list[Piece], scored: Scored) -> None:
        scores, tokens = np.frombuffer(scored.scores, np.float64), np.frombuffer(scored.tokens, np.int64)
        start = 0
        for piece in batch:
            one, stop = piece.of, start + piece.stop - piece.start
            one.scores[piece.start : piece.stop] = scores[start:stop]
            one.tokens[piece.start : piece.stop] = tokens[start:stop]
            for place, length in scored.too_long:
                if start <= place < stop:
                    _fail(one, TooLong(piece.start + place - start, length))
            one.missing -= stop - start
            if not one.missing and not one.answer.done():
                one.answer.set_result(None)
            start = stop

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _fail(one: Waiting, refusal: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(refusal)
