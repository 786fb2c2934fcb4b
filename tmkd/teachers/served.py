"""A teacher behind an HTTP endpoint: a rerank API, or a chat model as a judge.

Requests run side by side, answers are given as they come, and what was answered is stored before more is asked: an
interrupted labelling pays for nothing twice.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tmkd.config.teacher_sections import Endpoint
from tmkd.core.errors import EndpointError, needs_extra
from tmkd.core.files import digest_of
from tmkd.data.pairs import Pairs
from tmkd.teachers.interface import Scored, StoredTeacher
from tmkd.teachers.scores import imported_logits
from tmkd.teachers.served_forms import form_of

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for


class ServedTeacher(StoredTeacher):
    """An HTTP endpoint as a teacher of two classes.

    Attributes:
        endpoint: where it is, and how it is asked.
        name: what messages and reports call the teacher.
        positive: the class of the right passages.
        sent: how many requests this object has sent, those that failed included.

    Raises:
        EndpointError: the environment has no key, or the prompt file cannot be read.
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, endpoint: Endpoint, name: str, positive: int = 1) -> None:
        with needs_extra("teachers"):
            import httpx
        self.endpoint, self.name, self.positive = endpoint, name, positive
        self._form = form_of(endpoint, self._error)
        path = urlsplit(endpoint.url).path.rstrip("/")
        self.url = endpoint.url.rstrip("/") if path else endpoint.url.rstrip("/") + self._form.path
        headers = {}
        if endpoint.api_key_env is not None:
            key = os.environ.get(endpoint.api_key_env)
            if not key:
                raise self._error(f"the environment has no {endpoint.api_key_env}, which endpoint.api_key_env names")
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(timeout=endpoint.timeout, headers=headers)
        self._failures: tuple[type[Exception], ...] = (httpx.TransportError,)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.sent = 0

    def _error(self, problem: str, status: int | None = None) -> EndpointError:
        return EndpointError(
            f"teacher {self.name}: {self.endpoint.url}: {problem}", url=self.endpoint.url, status=status
        )

    @property
    def fingerprint(self) -> str:
        """A hash over the address, the form of the requests, and what is asked."""
        return digest_of(["served", self.url, self.endpoint.model, self._form.fingerprint])

    def scored(self, pairs: Pairs) -> Iterator[Scored]:
        """Ask for scores, at most `concurrency` requests at a time.

        Raises:
            EndpointError: the endpoint refuses, answers something else, or the budget is spent. Answers of requests
                that were under way are given first.
        """
        jobs = iter(_jobs(pairs.questions, self._form.batch))
        questions, passages = pairs.questions, pairs.passages
        self._stop.clear()
        problem: EndpointError | None = None
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            running: dict[Future[list[float]], list[int]] = {}
            try:
                while True:
                    while problem is None and len(running) < self.endpoint.concurrency and (rows := next(jobs, None)):
                        texts = [passages[row] for row in rows]
                        running[pool.submit(self._scores, questions[rows[0]], texts)] = rows
                    if not running:
                        break
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    answered: list[int] = []
                    scores: list[float] = []
                    for future in done:
                        rows = running.pop(future)
                        try:
                            scores += future.result()
                            answered += rows
                        except EndpointError as error:
                            problem = problem or error
                            self._stop.set()
                    if answered:
                        yield np.array(answered), np.array(scores, dtype=np.float32)[:, None]
            finally:
                self._stop.set()
        if problem is not None:
            raise problem

    def _scores(self, question: str, passages: list[str]) -> list[float]:
        """The raw scores of one request's passages."""
        answer = self._ask(self._form.request(question, passages))
        try:
            return self._form.read(answer, len(passages))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise self._error(f"its answer cannot be used: {reason}; it begins {str(answer)[:200]!r}") from error

    def _ask(self, body: dict[str, Any]) -> Any:
        """The JSON that one request is answered with; tried again after 429, 5xx and broken connections."""
        pause, problem = 0.5, ""
        for attempt in range(self.endpoint.retries + 1):
            if attempt and self._stop.wait(pause):
                break
            self._count()
            try:
                reply = self._client.post(self.url, json=body)
            except self._failures as error:
                problem, status = f"{type(error).__name__}: {error}", None
                pause = min(2 * pause, _LONGEST_WAIT)
                continue
            if reply.is_success:
                try:
                    return reply.json()
                except ValueError:
                    raise self._error(f"its answer is no JSON; it begins {reply.text[:200]!r}") from None
            status, problem = reply.status_code, f"answers {reply.status_code}: {reply.text[:200]!r}"
            if status in (401, 403):
                named = self.endpoint.api_key_env
                hint = (
                    f"is the key in {named} right?" if named else "name the variable of its key: endpoint.api_key_env"
                )
                raise self._error(f"{problem}; {hint}", status)
            if status != 429 and status < 500:
                raise self._error(problem, status)
            asked = reply.headers.get("Retry-After", "")
            pause = min(float(asked) if asked.replace(".", "", 1).isdigit() else 2 * pause, _LONGEST_WAIT)
            logger.info(f"teacher {self.name}: {problem}; the request is sent again in {pause:g} s")
        raise self._error(
            f"{problem}, after {attempt + 1} tries. What it answered before is kept: run the same command again to go "
            "on",
            status,
        )

    def _count(self) -> None:
        """Note that a request is sent, if the budget has room for it."""
        with self._lock:
            most = self.endpoint.max_requests
            if most is not None and self.sent >= most:
                raise self._error(
                    f"max_requests: {most:,} requests are spent. What was answered is kept: run again to go on with as "
                    "many, or raise endpoint.max_requests"
                )
            self.sent += 1

    def from_raw(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of two classes: what the form of the answers holds, log-odds or probabilities."""
        logits = imported_logits(raw[:, 0].astype(np.float64), self._form.holds).astype(np.float32)
        return logits if self.positive else logits[:, ::-1]


def _jobs(questions: list[str], batch: int) -> Iterator[list[int]]:
    """The pairs (indices) of each request: passages of one question, at most `batch` of them."""
    rows_of: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows_of.setdefault(question, []).append(row)
    for rows in rows_of.values():
        for start in range(0, len(rows), batch):
            yield rows[start : start + batch]
