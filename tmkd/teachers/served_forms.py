"""The forms of requests and answers that served teachers know: rerank as TEI and Cohere have it, and chat."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from tmkd.config.teacher_sections import Endpoint, plain_answer
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
            ValueError, LookupError, TypeError, AttributeError, ArithmeticError: the answer is of another form.
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
        self.holds: Literal["logit", "probability"] = endpoint.holds or ("logit" if self._tei else "probability")
        usual = (self.holds == "logit") == self._tei
        self.fingerprint = endpoint.form if usual else f"{endpoint.form} {self.holds}"

    def request(self, question: str, passages: list[str]) -> dict[str, Any]:
        if self._tei:
            return {"query": question, "texts": passages, "raw_scores": True, "truncate": True}
        named = {} if self._model is None else {"model": self._model}
        return {"query": question, "documents": passages, "top_n": len(passages), **named}

    def read(self, answer: Any, count: int) -> list[float]:
        if isinstance(answer, list) != self._tei:
            mine, other = ("tei", "cohere") if self._tei else ("cohere", "tei")
            raise ValueError(f"it is not of form {mine}; if its address is right, try form: {other}")
        rows = answer if self._tei else answer["results"]
        scores = {row["index"]: row["score" if self._tei else "relevance_score"] for row in rows}
        if len(rows) != count or scores.keys() != set(range(count)):
            raise ValueError(f"{count} passages were sent, and {len(rows)} scores came, for {[*scores][:8]}")
        found = [_finite(scores[index]) for index in range(count)]
        if self.holds == "probability" and (
            outside := [score for score in found if not -_ROUNDING <= score <= 1 + _ROUNDING]
        ):
            raise ValueError(
                f"the score {outside[0]:g} is no probability from 0 to 1; if the endpoint gives log-odds, say "
                "endpoint.holds: logit"
            )
        return found


class _Chat:
    """`POST /v1/chat/completions`: one pair a request, answered with a label or a number."""

    path = "/v1/chat/completions"
    batch = 1
    holds: Literal["logit", "probability"] = "probability"

    def __init__(self, endpoint: Endpoint, prompt: str) -> None:
        self._model, self._prompt, self._scale = endpoint.model, prompt, endpoint.scale
        self._answers = {plain_answer(name): value for name, value in (endpoint.answers or {}).items()}
        version = [_WEIGHED] if self._answers else []
        self.fingerprint = digest_of(["chat", prompt, sorted(self._answers.items()), endpoint.scale, *version])

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
        text = choice["message"]["content"]
        if not isinstance(text, str):
            refusal = choice["message"].get("refusal")
            raise ValueError(f"the content is {text!r}" + (f", with the refusal {refusal[:200]!r}" if refusal else ""))
        if self._answers:
            tokens = (choice.get("logprobs") or {}).get("content") or [{}]
            return [self._value(text, tokens[0] or {})]
        assert self._scale is not None
        low, high = self._scale
        try:
            found = _finite(float(text.strip()))
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if "_" in text:
            raise ValueError(f"{text!r} is not a number")
        if not low <= found <= high:
            raise ValueError(f"{found:g} is not in the scale from {low:g} to {high:g}")
        return [(found - low) / (high - low)]

    def _value(self, text: str, first: dict[str, Any]) -> float:
        """The value of the answer that a text begins with; weighed by what else its first token might have been.

        Args:
            text: what the model says.
            first: the first token with its alternatives (`top_logprobs`); empty where the endpoint gives none.

        Raises:
            ValueError: the text begins with none of the answers, such as a refusal.
        """
        said = self._said(text)
        if said is None:
            raise ValueError(f"{text!r} is none of the answers {', '.join(self._answers)}")
        token = plain_answer(str(first.get("token", "")))
        if not token or self._meant(token) != said:
            return self._answers[said]  # no probabilities, or those of something else, such as what it thinks first
        total = value = 0.0
        for one in first.get("top_logprobs") or ():
            if (name := self._meant(plain_answer(str(one["token"])))) is not None:
                p = math.exp(min(_finite(one["logprob"]), 0.0))
                total, value = total + p, value + p * self._answers[name]
        return value / total if total > 0 else self._answers[said]

    def _said(self, text: str) -> str | None:
        """The answer that a text is, or that stands in it before the first punctuation mark or line end; else None."""
        begin = re.split(r"[;!?…(\n—–]|[.,:](?!\d)| - ", text.strip(), maxsplit=1)[0]
        return next((name for name in map(plain_answer, (text, begin)) if name in self._answers), None)

    def _meant(self, token: str) -> str | None:
        """The only answer that begins with a token; None where none or several do. One letter must be the answer."""
        begun = [name for name in self._answers if token and name.startswith(token)]
        return begun[0] if len(begun) == 1 and (len(token) > 1 or token in begun) else None


_ROUNDING = 1e-6  # a cosine may be above 1 by so much
_WEIGHED = 2  # raised when answers are weighed in another way, so that scores stored before are not taken


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
