"""The application: its routes, its errors, its description."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from tmkd import __version__
from tmkd.serve import operate, rerank
from tmkd.serve.body import Gone
from tmkd.serve.guard import Guard
from tmkd.serve.pages import page_routes
from tmkd.serve.refusals import Refusal
from tmkd.serve.schemas import (
    AskAnswers,
    AskRequest,
    CohereAnswer,
    CohereError,
    Rank,
    RerankRequest,
    TeiError,
    V1Request,
    V2Request,
)
from tmkd.serve.settings import Settings
from tmkd.serve.state import Server

logger = logging.getLogger(__name__)

ABOUT = """Ranks passages for a question with a distilled student, and answers questions from an index of documents.

Requests wait in one queue and are scored together. Limits are in `/info`; a request beyond one is refused with 413 or
422 and the field's name, one without room with 429, and one whose scorer died or whose time is up with 503; the last
two say in `Retry-After` when to try again."""
_REFUSALS = {
    400: "no valid JSON, or an empty list", 401: "the API key is missing or wrong", 404: "no documents are served",
    408: "the body came too slowly",
    413: "beyond a limit", 415: "not application/json", 421: "another host", 422: "JSON of another shape",
    429: "no room; see Retry-After", 500: "an error of the server", 503: "the scorer is not there; see Retry-After",
}  # fmt: skip
_REQUESTS = (RerankRequest, V1Request, V2Request, AskRequest)


def create_app(settings: Settings) -> FastAPI:
    """The application; its models are opened when it starts and closed when it ends."""
    server = Server(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server:
            yield

    app = FastAPI(
        title="tmkd", version=__version__, description=ABOUT, lifespan=lifespan,
        redirect_slashes=False, docs_url=None, redoc_url=None,
        exception_handlers={Refusal: _refused, Gone: _gone, HTTPException: _no_route, Exception: _broken},
    )  # fmt: skip
    app.state.server = server
    _add_rerank(app, server)
    _add_ask(app, server)
    operate.add_routes(app, server)
    page_routes(app)
    app.add_middleware(Guard, server=server, routes=frozenset(getattr(route, "path", "") for route in app.routes))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    app.openapi = _describer(app, settings)  # type: ignore[method-assign]
    return app


def _add_rerank(app: FastAPI, server: Server) -> None:
    @app.post("/rerank", tags=["rerank"], responses=answers(list[Rank]), openapi_extra=takes(RerankRequest))
    async def rerank_tei(request: Request) -> Response:
        """Rank passages, in text-embeddings-inference's form: best first."""
        return await rerank.tei(server, request)

    cohere = answers(CohereAnswer, CohereError)

    @app.post("/v1/rerank", tags=["rerank"], responses=cohere, openapi_extra=takes(V1Request))
    async def rerank_v1(request: Request) -> Response:
        """Rank documents, in the form of Cohere's first API."""
        return await rerank.cohere(server, request, "1")

    @app.post("/v2/rerank", tags=["rerank"], responses=cohere, openapi_extra=takes(V2Request))
    async def rerank_v2(request: Request) -> Response:
        """Rank documents, in the form of Cohere's second API."""
        return await rerank.cohere(server, request, "2")


def _add_ask(app: FastAPI, server: Server) -> None:
    @app.post("/ask", tags=["answers"], responses=answers(AskAnswers), openapi_extra=takes(AskRequest))
    async def ask(request: Request) -> Response:
        """Answer a question from the indexed documents: retrieve, rank, mark the best sentence."""
        if server.asker is None:
            raise Refusal(404, "NotFound", "this server has no documents; it takes an index as --index")
        return await server.asker.answer(server, request)


def answers(model: Any, error: Any = TeiError, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer, for its description. statuses: those of a refusal; all unless given."""
    found: dict[int | str, dict[str, Any]] = {200: {"model": model}}
    for status in statuses or _REFUSALS:
        found[status] = {"model": error, "description": _REFUSALS[status]}
    return found


def takes(model: Any) -> dict[str, Any]:
    """A request body's description; the bodies are read and checked by `tmkd.serve.body`, not by the framework."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describer(app: FastAPI, settings: Settings) -> Callable[[], dict[str, Any]]:
    """The OpenAPI document, with the requests' schemas and this server's limits in them."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
            _, requests = models_json_schema(
                [(model, "validation") for model in _REQUESTS], ref_template="#/components/schemas/{model}"
            )
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            schemas |= requests["$defs"]
            for model in _REQUESTS:
                for name, field in schemas[model.__name__]["properties"].items():
                    if name in ("texts", "documents"):
                        field |= {"minItems": 1, "maxItems": settings.max_texts}
                    elif name == "query":
                        field["maxLength"] = settings.max_chars
            if settings.api_key is not None:
                found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                found["security"] = [{"key": []}]
            app.openapi_schema = found
        return app.openapi_schema

    return describe


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal.response(request.url.path)


async def _gone(request: Request, _: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; it is what the metrics count


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: "there is nothing here; see /docs", 405: "another method is needed here; see /docs"}
    return Refusal(
        error.status_code, "NotFound", message.get(error.status_code, error.detail), headers=dict(error.headers or {})
    ).response(request.url.path)


async def _broken(request: Request, error: Exception) -> Response:
    # Places and the error's kind, not its message: that may hold what was sent.
    places = "".join(traceback.format_tb(error.__traceback__)[-6:])
    logger.error(f"an error answering {request.scope.get('route', 'a request')}:\n{places}{type(error).__name__}")
    return Refusal(500, "Backend", "an error of the server; its log says more").response(request.url.path)
