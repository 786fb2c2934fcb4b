"""The forms of requests and answers that served teachers know: rerank as TEI and Cohere have it, and chat."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from tmkd.config.teacher_sections import Endpoint
from tmkd.core.files import digest_of


class Form(Protocol):
    """How an endpoint is asked, and what it answers.

    Attributes:
        path: of the request, where the address has none.
        batch: passages of one request.
        holds: what its scores are, log-odds or probabilities of relevance.
        fingerprint: depends on everything that decides what is asked.
    """

    path: str
    batch: int
    holds: Literal["logit", "probability"]
    fingerprint: str

    def request(self, question: str, passages: list[str]) -> dict[str, Any]:
        """The body of the request for some passages."""

    def read(self, answer: Any, count: int) -> list[float]:
        """The scores in an answer, in the order of the passages.

        Raises:
            ValueError, KeyError, TypeError, IndexError: the answer is of another form.
        """


def form_of(endpoint: Endpoint, error: Callable[[str], Exception]) -> Form:
    """The form that an endpoint has (`endpoint.form`).

    Args:
        endpoint: the recipe's section.
        error: makes the exception for a prompt file that cannot be used.
    """
    if endpoint.form != "chat":
        return _Rerank(endpoint)
    assert endpoint.prompt is not None
    try:
        prompt = Path(endpoint.prompt).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"the prompt {endpoint.prompt} cannot be read: {problem}") from problem
    for name in ("{question}", "{passage}"):
        if name not in prompt:
            raise error(f"the prompt {endpoint.prompt} has no {name}, where the text is to be put")
    return _Chat(endpoint, prompt)


class _Rerank:
    """`POST /rerank` of text-embeddings-inference, or `POST /v2/rerank` of Cohere."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._tei, self._model = endpoint.form == "tei", endpoint.model
        self.path = "/rerank" if self._tei else "/v2/rerank"
        self.batch = endpoint.request_size
        self.holds: Literal["logit", "probability"] = "logit" if self._tei else "probability"
        self.fingerprint: str = endpoint.form

    def request(self, question: str, passages: list[str]) -> dict[str, Any]:
        if self._tei:
            return {"query": question, "texts": passages, "raw_scores": True, "truncate": True}
        named = {} if self._model is None else {"model": self._model}
        return {"query": question, "documents": passages, "top_n": len(passages), **named}

    def read(self, answer: Any, count: int) -> list[float]:
        rows = answer if self._tei else answer["results"]
        scores = {row["index"]: row["score" if self._tei else "relevance_score"] for row in rows}
        if len(rows) != count or scores.keys() != set(range(count)):
            raise ValueError(f"{count} passages were sent, and {len(rows)} scores came, for {sorted(scores)[:8]}")
        return [_finite(scores[index]) for index in range(count)]


class _Chat:
    """`POST /v1/chat/completions`: one pair a request, answered with a label or a number."""

    path = "/v1/chat/completions"
    batch = 1
    holds: Literal["logit", "probability"] = "probability"

    def __init__(self, endpoint: Endpoint, prompt: str) -> None:
        self._model, self._prompt, self._scale = endpoint.model, prompt, endpoint.scale
        self._answers = {_plain(name): value for name, value in (endpoint.answers or {}).items()}
        self.fingerprint = digest_of(["chat", prompt, sorted(self._answers.items()), endpoint.scale])

    def request(self, question: str, passages: list[str]) -> dict[str, Any]:
        text = re.sub(
            r"\{(question|passage)\}", lambda m: question if m[1] == "question" else passages[0], self._prompt
        )
        wanted = {"logprobs": True, "top_logprobs": 20} if self._answers else {}
        return {
            "model": self._model, "messages": [{"role": "user", "content": text}], "temperature": 0,
            "max_tokens": 8, **wanted,
        }  # fmt: skip

    def read(self, answer: Any, count: int) -> list[float]:
        choice = answer["choices"][0]
        text = str(choice["message"]["content"])
        if self._answers:
            weighed = self._weighed(((choice.get("logprobs") or {}).get("content") or [{}])[0])
            if weighed is not None:
                return [weighed]
            if _plain(text) not in self._answers:
                raise ValueError(f"{text!r} is none of the answers {', '.join(self._answers)}")
            return [self._answers[_plain(text)]]
        assert self._scale is not None
        low, high = self._scale
        try:
            found = _finite(float(text.strip()))
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not low <= found <= high:
            raise ValueError(f"{found:g} is not in the scale from {low:g} to {high:g}")
        return [(found - low) / (high - low)]

    def _weighed(self, first: dict[str, Any]) -> float | None:
        """The mean of the answers' values, weighed by the probabilities of the first token; None without them."""
        total = value = 0.0
        for one in first.get("top_logprobs") or ():
            name = _plain(str(one["token"]))
            if name in self._answers:
                p = math.exp(_finite(one["logprob"]))
                total, value = total + p, value + p * self._answers[name]
        return value / total if total > 0 else None


def _plain(text: str) -> str:
    return text.strip().strip(".!\"'").strip().lower()


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
