"""POST /rerank, /v1/rerank and /v2/rerank: read a request, check it, score it, write the answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from tmkd.core.logits import sigmoid
from tmkd.serve.body import parse
from tmkd.serve.queueing import Read
from tmkd.serve.refusals import Refusal, json_response, too_large, wrong
from tmkd.serve.schemas import RerankRequest, V1Request, V2Request
from tmkd.serve.server import Server

Entry = str | dict[str, Any]
VLLM_KEY = "Bearer fake-api-key"  # what litellm's client for vLLM sends where no key is set


@dataclass(frozen=True)
class Ranked:
    """The entries of a request with what the student gives for them.

    Attributes:
        entries: The documents as the client sent them, N texts or objects.
        texts: The text of each that was ranked.
        read: What the student gives for them.
        order: Their places, best first: `top_n` of them.
    """

    entries: Sequence[Entry]
    texts: list[str]
    read: Read
    order: list[int]

    def results(self, score: str, *, raw: bool) -> list[dict[str, Any]]:
        """Index and score of each, best first; `truncated` where a part of the pair was not read.

        Args:
            score: The name of the field of the score.
            raw: Log-odds instead of probabilities.
        """
        shown = (self.read.scores if raw else sigmoid(self.read.scores)).tolist()
        results: list[dict[str, Any]] = [{"index": row, score: shown[row]} for row in self.order]
        for one in results:
            if self.read.cut[one["index"]]:
                one["truncated"] = True
        return results

    def warnings(self, most: int, *, apart: bool) -> list[str]:
        """Sentences about what the scores do not say.

        Args:
            most: Tokens of a pair that the student reads; of each of its two texts where `apart` is true.
            apart: Whether the student reads query and document each by itself.
        """
        count = int(self.read.cut.sum())
        if not count:
            return []
        who = f"{count} of {len(self.texts)} documents"
        if apart:
            has = (
                f"{who}, or the query beside them, have more than the {most} tokens that the student reads of each text"
            )
        else:
            has = f"{who} have, with the query, more than the {most} tokens that the student reads"
        return [f"{has}; the rest of them was not read"]


async def tei(server: Server, request: Request) -> Response:
    """Answer in the form of text-embeddings-inference: `[{index, score, text}]`, best first.

    Where the request has `documents` in place of `texts`, the answer is infinity's.
    """
    async with server.reading(request) as read:
        given = parse(RerankRequest, await read())
        if given.truncation_direction.lower() == "left":
            raise wrong("`Left` is not supported: the student reads the first tokens", "truncation_direction")
        if given.texts is not None and given.documents is not None:
            raise wrong("give `texts` or `documents`, not both", "documents")
        if given.texts is None and given.documents is None:
            raise wrong("texts: Field required", "texts")
        truncate = server.settings.auto_truncate if given.truncate is None else given.truncate
        ranked = await _rank(server, request, given, truncate)
        with server.metrics.stage.labels("write").time():
            if given.documents is not None:
                return json_response(_infinity(server, request, given, ranked))
            ranks = ranked.results("score", raw=given.raw_scores)
            if given.return_text:
                for rank in ranks:
                    rank["text"] = ranked.texts[rank["index"]]
            return json_response(ranks)


def _infinity(server: Server, request: Request, given: RerankRequest, ranked: Ranked) -> dict[str, Any]:
    """The answer of infinity. Its clients read `document` as a text; those of vLLM, on the same path, as an object."""
    results = ranked.results("relevance_score", raw=given.raw_scores)
    if given.return_documents or given.return_text:
        vllm = request.headers.get("authorization") == VLLM_KEY
        for one in results:
            text = ranked.texts[one["index"]]
            one["document"] = {"text": text} if vllm else text
    most = server.queues["student"].max_length
    tokens = int(np.minimum(ranked.read.tokens, most).sum())
    return {
        "id": str(uuid.uuid4()), "object": "rerank", "model": server.name, "created": int(time.time()),
        "results": results, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }  # fmt: skip


async def cohere(server: Server, request: Request, version: str) -> Response:
    """Answer in the form of Cohere: `{id, results: [{index, relevance_score, document}], meta}`, best first."""
    async with server.reading(request) as read:
        given: V2Request = parse(V1Request if version == "1" else V2Request, await read())
        ranked = await _rank(server, request, given, truncate=True)
        with server.metrics.stage.labels("write").time():
            results = ranked.results("relevance_score", raw=False)
            if given.return_documents:
                for one in results:
                    entry, text = ranked.entries[one["index"]], ranked.texts[one["index"]]
                    one["document"] = {"text": text} if isinstance(entry, str) else {"text": text, **entry}
            meta: dict[str, Any] = {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
            queue = server.queues["student"]
            if warnings := ranked.warnings(queue.max_length, apart=queue.apart):
                meta["warnings"] = warnings
            return json_response({"id": str(uuid.uuid4()), "results": results, "meta": meta})


async def _rank(server: Server, request: Request, given: RerankRequest | V2Request, truncate: bool) -> Ranked:
    """Check the documents of a request and rank them."""
    field, entries = "documents", given.documents
    if entries is None:
        assert isinstance(given, RerankRequest)
        assert given.texts is not None
        field, entries = "texts", given.texts
    texts = [
        one if isinstance(one, str) else object_text(one, given.rank_fields, f"{field}[{row}]")
        for row, one in enumerate(entries)
    ]
    check_texts(server, given.query, texts, "query", field)
    read = await server.rank(request, given.query, texts, truncate=truncate)
    return Ranked(entries, texts, read, best_first(read.scores)[: given.top_n])


def best_first(scores: NDArray[np.float64]) -> list[int]:
    """Places of the scores from the highest to the lowest; equal scores stay in their order."""
    found: list[int] = np.argsort(-scores, kind="stable").tolist()
    return found


def check_texts(server: Server, query: str, texts: list[str], query_field: str, field: str) -> None:
    """Refuse an empty list, too many texts, or a text that is too long."""
    limits = server.settings
    if not texts:
        raise Refusal(400 if field == "texts" else 422, "Empty", f"`{field}` cannot be empty", field=field)
    if len(texts) > limits.max_texts:
        raise too_large(f"`{field}` has {len(texts):,} entries, the limit is {limits.max_texts:,}", field)
    check_length(server, query, query_field)
    for row, text in enumerate(texts):
        if len(text) > limits.max_chars:
            check_length(server, text, f"{field}[{row}]")


def check_length(server: Server, text: str, field: str) -> None:
    """Refuse a text that is too long."""
    limit = server.settings.max_chars
    if len(text) > limit:
        raise too_large(f"`{field}` has {len(text):,} characters, the limit is {limit:,}", field)


def object_text(document: dict[str, Any], fields: list[str] | None, place: str) -> str:
    """The text of a document that is an object: its `text`, or `name: value` lines of the fields that were named.

    Args:
        document: The object.
        fields: The fields that were named, if any.
        place: Where it stands in the request, such as `documents[0]`.

    Raises:
        Refusal: 422, it has no such field, or something else than a text or a number in it.
    """
    names = list(dict.fromkeys(fields or ["text"]))  # a field that is named again adds nothing
    for name in names:
        if not isinstance(document.get(name), str | int | float):
            raise wrong(f"`{place}` has no text in its field `{name[:50]}`", f"{place}.{name[:50]}")
    return str(document[names[0]]) if len(names) == 1 else "\n".join(f"{name}: {document[name]}" for name in names)
