"""POST /rerank, /v1/rerank and /v2/rerank: read a request, check it, score it, write the answer."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from tmkd.core.logits import sigmoid
from tmkd.serve.body import parse
from tmkd.serve.refusals import Refusal, json_response, too_large, wrong
from tmkd.serve.schemas import RerankRequest, V1Request, V2Request
from tmkd.serve.server import Server


async def tei(server: Server, request: Request) -> Response:
    """Answer in the form of text-embeddings-inference: `[{index, score, text}]`, best first."""
    async with server.reading(request) as read:
        given = parse(RerankRequest, await read())
        if given.truncation_direction.lower() == "left":
            raise wrong("`Left` is not supported: the student reads the first tokens", "truncation_direction")
        check_texts(server, given.query, given.texts, "query", "texts")
        truncate = server.settings.auto_truncate if given.truncate is None else given.truncate
        scores = await server.rank(request, given.query, given.texts, truncate=truncate)
        with server.metrics.stage.labels("write").time():
            shown = (scores if given.raw_scores else sigmoid(scores)).tolist()
            ranks: list[dict[str, Any]] = [{"index": row, "score": shown[row]} for row in best_first(scores)]
            if given.return_text:
                for rank in ranks:
                    rank["text"] = given.texts[rank["index"]]
            return json_response(ranks)


async def cohere(server: Server, request: Request, version: str) -> Response:
    """Answer in the form of Cohere: `{id, results: [{index, relevance_score, document}], meta}`, best first."""
    async with server.reading(request) as read:
        given: V2Request = parse(V1Request if version == "1" else V2Request, await read())
        documents: list[Any] = list(given.documents)
        fields = given.rank_fields if isinstance(given, V1Request) else None
        texts = [one if isinstance(one, str) else object_text(one, fields, row) for row, one in enumerate(documents)]
        check_texts(server, given.query, texts, "query", "documents")
        scores = await server.rank(request, given.query, texts, truncate=True)
        with server.metrics.stage.labels("write").time():
            shown = sigmoid(scores).tolist()
            results: list[dict[str, Any]] = [
                {"index": row, "relevance_score": shown[row]} for row in best_first(scores)[: given.top_n]
            ]
            if given.return_documents:
                for one in results:
                    document = documents[one["index"]]
                    one["document"] = {"text": document} if isinstance(document, str) else document
            meta = {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
            return json_response({"id": str(uuid.uuid4()), "results": results, "meta": meta})


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


def object_text(document: dict[str, Any], fields: list[str] | None, row: int) -> str:
    """The text of a document that is an object: its `text`, or `name: value` lines of the fields that were named."""
    names = list(dict.fromkeys(fields or ["text"]))  # a field that is named again adds nothing
    for name in names:
        if not isinstance(document.get(name), str | int | float):
            raise wrong(f"`documents[{row}]` has no text in its field `{name[:50]}`", f"documents[{row}].{name[:50]}")
    return str(document[names[0]]) if len(names) == 1 else "\n".join(f"{name}: {document[name]}" for name in names)
