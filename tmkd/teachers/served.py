"""A teacher behind an HTTP endpoint: a rerank API, or a chat model as a judge.

Requests run side by side, in an event loop of their own, so that the server does not wait while answers are stored.
Answers are given as they come, those of half a second together: an interrupted labelling pays for no more than these
and the requests under way again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tmkd.config.teacher_sections import Endpoint
from tmkd.core.cluster import Cluster
from tmkd.core.errors import EndpointError, needs_extra
from tmkd.core.files import digest_of
from tmkd.data.pairs import Pairs, pair_id
from tmkd.teachers.budget import Budget
from tmkd.teachers.interface import Scored, StoredTeacher
from tmkd.teachers.left_out import LeftOut
from tmkd.teachers.scores import imported_logits
from tmkd.teachers.served_forms import form_of

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

_GATHERED = 0.5  # seconds between two times that answers are given: each is a file for the label store
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
_NO_SCORE = (400, 413, 422)  # answers to a request whose texts the endpoint refuses: too long, or filtered

_Answer = tuple[NDArray[np.int64], list[float]]
"""Places of the pairs of a request, and their scores."""


class _UnusableAnswerError(EndpointError):
    """An answer that is no score of the pair, such as a judge's refusal."""


class _NoScoreError(Exception):
    """What an endpoint answers in place of JSON with scores; the status where that is an error."""

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.status = status


class ServedTeacher(StoredTeacher):
    """An HTTP endpoint as a teacher of two classes.

    Attributes:
        endpoint: where it is, and how it is asked.
        name: what messages and reports call the teacher.
        positive: the class of the right passages.
        partial: whether pairs whose answer cannot be used are left out. Too many of them are an error all the same.
        left_out: the pairs that were left out; they are not asked about again.
        budget: the requests that were sent, those that failed included.

    Raises:
        EndpointError: the prompt file cannot be read.
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, endpoint: Endpoint, name: str, positive: int = 1, *, partial: bool = False) -> None:
        with needs_extra("teachers"):
            import httpx
        self.endpoint, self.name, self.positive, self.partial = endpoint, name, positive, partial
        self.left_out = LeftOut()
        self._answered, self._whole = False, 0  # of one labelling: any usable answer; the size of the set
        self._form = form_of(endpoint, self._error)
        address = urlsplit(endpoint.url)
        usual = address._replace(path=self._form.path).geturl()
        self.url = endpoint.url.rstrip("/") if address.path.rstrip("/") else usual
        most = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self._client = functools.partial(httpx.AsyncClient, timeout=endpoint.timeout, limits=most)
        self._failures: tuple[type[Exception], ...] = (httpx.RequestError,)
        self._stop = threading.Event()
        self.budget = Budget(digest_of(self.fingerprint), endpoint.max_requests)

    def key_header(self) -> dict[str, str]:
        """The header of every request that holds the key; empty where the endpoint needs none.

        The key is read when the first request is made: stored scores are read without it.

        Raises:
            EndpointError: the environment has no key, or one that no header can hold.
        """
        name = self.endpoint.api_key_env
        if name is None:
            return {}
        key = os.environ.get(name, "").strip()
        if not key:
            raise self._error(f"the environment has no {name}, which endpoint.api_key_env names")
        if not (key.isascii() and key.isprintable()):
            raise self._error(f"{name} holds a character that no key has: a line break or no ASCII")
        return {"Authorization": f"Bearer {key}"}

    def _error(self, problem: str, status: int | None = None) -> EndpointError:
        return EndpointError(
            f"teacher {self.name}: {self.endpoint.url}: {problem}", url=self.endpoint.url, status=status
        )

    @property
    def fingerprint(self) -> str:
        """A hash over the address, the form of the requests, and what is asked."""
        return digest_of(["served", self.url, self.endpoint.model, self._form.fingerprint])

    @property
    def logits_fingerprint(self) -> str:
        """The same scores are those of class 0 where it is the class of the right passages."""
        return self.fingerprint if self.positive else f"{self.fingerprint} of class 0"

    def scored(self, pairs: Pairs, cluster: Cluster | None = None) -> Iterator[Scored]:
        """Ask for scores, at most `concurrency` requests at a time.

        Raises:
            EndpointError: the endpoint refuses, answers something else, or the budget is spent. Answers of requests
                that were under way are given first.
        """
        answers: SimpleQueue[_Answer | None] = SimpleQueue()
        problems: list[EndpointError] = []
        self._answered = False
        if self.partial:
            self.left_out.begin(pairs.pair_ids, max(self._whole, len(pairs)))
        self._stop.clear()
        with ThreadPoolExecutor(1) as pool:
            try:
                done = pool.submit(asyncio.run, self._ask_all(pairs, answers, problems))
                more, until = True, 0.0
                while more:
                    ready = _gathered(answers, until)
                    more, found = ready[-1] is not None, [one for one in ready if one is not None]
                    if found:
                        scores = np.array([score for _, some in found for score in some], dtype=np.float32)
                        yield np.concatenate([rows for rows, _ in found]), scores[:, None]
                    until = time.monotonic() + _GATHERED
            finally:
                self._stop.set()
        done.result()
        if problems:
            raise problems[0]
        if new := self.left_out.new:
            logger.warning(
                f"teacher {self.name}: {len(new):,} of {len(pairs):,} pairs are left out, since its answer cannot be "
                f"used; the first: {new[0]}"
            )

    async def _ask_all(self, pairs: Pairs, answers: SimpleQueue[_Answer | None], problems: list[EndpointError]) -> None:
        """Ask for the scores of all pairs, until there is a problem; None is the last of the answers."""
        jobs = requests_of(pairs, self._form.batch)

        async def ask() -> None:
            for rows in jobs:
                if self._stop.is_set():
                    break
                some = pairs.take(rows)
                if self.partial and some.pair_ids[0] in self.left_out.reasons:
                    continue
                try:
                    scores = await self._scores(client, some.questions[0], some.passages)
                except _UnusableAnswerError as problem:
                    if (refused := self._refuse(some.pair_ids[0], problem)) is not None:
                        problems.append(refused)
                        self._stop.set()
                except EndpointError as problem:
                    problems.append(problem)
                    self._stop.set()
                else:
                    self._answered = True
                    answers.put((rows, scores))

        try:
            async with self._client() as client:
                await asyncio.gather(*(ask() for _ in range(self.endpoint.concurrency)))
        finally:
            answers.put(None)

    async def _scores(self, client: httpx.AsyncClient, question: str, passages: list[str]) -> list[float]:
        """The raw scores of one request's passages."""
        try:
            answer = await self._ask(client, self._form.request(question, passages))
        except _NoScoreError as error:
            raise self._unusable(question, passages, str(error), error.status) from None
        try:
            return self._form.read(answer, len(passages))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            problem = f"its answer cannot be used: {reason}; it begins {str(answer)[:200]!r}"
            raise self._unusable(question, passages, problem) from error

    def _unusable(
        self, question: str, passages: list[str], problem: str, status: int | None = None
    ) -> _UnusableAnswerError:
        """The error of a request whose answer has no scores: which pair, and what to do."""
        more = f" and {len(passages) - 1} more" if len(passages) > 1 else ""
        fix = "say `partial: true` for the teacher" if self.endpoint.form == "chat" else "leave the pair out"
        advice = f". The answers before are kept; {fix}, or change how the endpoint is asked, to go on"
        return _UnusableAnswerError(
            f"teacher {self.name}: {self.endpoint.url}: {problem}. It was asked about {question[:80]!r} with "
            f"{passages[0][:80]!r} (pair_id {pair_id(question, passages[0])}){more}{'' if self.partial else advice}",
            url=self.endpoint.url,
            status=status,
        )

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        """The JSON that one request is answered with; tried again after 429, 5xx and broken connections."""
        pause, problem, headers = 0.5, "", self.key_header()
        for attempt in range(self.endpoint.retries + 1):
            if attempt and not await self._waited(pause):
                break
            self._count()
            try:
                reply = await client.post(self.url, json=body, headers=headers)
            except self._failures as error:
                problem, status = f"{type(error).__name__}: {error}", None
                pause = min(2 * pause, _LONGEST_WAIT)
                continue
            if reply.is_success:
                try:
                    return reply.json()
                except (ValueError, RecursionError):
                    raise _NoScoreError(f"its answer is no JSON; it begins {reply.text[:200]!r}") from None
            status, problem = reply.status_code, f"answers {reply.status_code}: {reply.text[:200]!r}"
            if status in (401, 403):
                named = self.endpoint.api_key_env
                hint = (
                    f"is the key in {named} right?" if named else "name the variable of its key: endpoint.api_key_env"
                )
                raise self._error(f"{problem}; {hint}", status)
            if status in _NO_SCORE:
                raise _NoScoreError(problem, status)
            if status != 429 and status < 500:
                raise self._error(problem, status)
            asked = reply.headers.get("Retry-After", "")
            pause = min(float(asked) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", asked) else 2 * pause, _LONGEST_WAIT)
            logger.info(f"teacher {self.name}: {problem}; the request is sent again in {pause:g} s")
        raise self._error(
            f"{problem}, after {attempt + 1} tries. What it answered before is kept: run the same command again to go "
            "on",
            status,
        )

    def keep_in(self, folder: Path, whole: int) -> None:
        """See `StoredTeacher`: the pairs that it left out."""
        self._whole = whole
        if self.partial:
            self.left_out.keep_in(folder)

    def _refuse(self, one: str, problem: EndpointError) -> EndpointError | None:
        """Leave a pair out; the error where that is not allowed, or where too many are.

        Args:
            one: its pair_id.
            problem: what is wrong with its answer.
        """
        if not self.partial or self._stop.is_set():
            return problem
        self.left_out.add(one, str(problem))
        if not (many := self.left_out.too_many(answered=self._answered)):
            return None
        self.left_out.ask_again()
        return self._error(
            f"{many}; look at the prompt, and at the model's answers. What was answered is kept. The last: {problem}"
        )

    async def _waited(self, seconds: float) -> bool:
        """Wait; False where nothing is to be asked any more."""
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.1))
        return not self._stop.is_set()

    def _count(self) -> None:
        """Note that a request is sent, if the budget has room for it."""
        if not self.budget.spend():
            raise self._error(
                f"max_requests: {self.endpoint.max_requests:,} requests are spent. What was answered is kept: run "
                "again to go on with as many, or raise endpoint.max_requests"
            )

    def from_raw(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of two classes: what the form of the answers holds, log-odds or probabilities."""
        logits = imported_logits(raw[:, 0].astype(np.float64), self._form.holds).astype(np.float32)
        return logits if self.positive else np.ascontiguousarray(logits[:, ::-1])


def _gathered(answers: SimpleQueue[_Answer | None], until: float) -> list[_Answer | None]:
    """The next answer, as soon as it is there, with those that come until then; None is the last of all."""
    found = [answers.get()]
    with suppress(Empty):
        while found[-1] is not None:
            found.append(answers.get(timeout=max(0.0, until - time.monotonic())))
    return found


def requests_of(pairs: Pairs, batch: int) -> Iterator[NDArray[np.int64]]:
    """The pairs of each request: passages of one question, at most `batch` of them.

    Args:
        pairs: N pairs.
        batch: most passages of a request.

    Yields:
        The places of a request's pairs, in their order; the question that comes first in the pairs first.
    """
    _, question = pairs.groups("question")
    _, first = np.unique(question, return_index=True)
    order = np.argsort(first[question], kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(question[order])) + 1):
        for start in range(0, len(rows), batch):
            yield rows[start : start + batch]
