"""The application: its routes, its pages, its errors, its description."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from tmkd.serve import health, rerank
from tmkd.serve.body import Gone, parse, unless_gone
from tmkd.serve.guard import Guard
from tmkd.serve.refusals import Refusal, json_response
from tmkd.serve.schemas import (
    AskAnswers,
    AskRequest,
    CohereAnswer,
    CohereError,
    InfinityAnswer,
    Rank,
    RerankRequest,
    TeiError,
    V1Request,
    V2Request,
)
from tmkd.serve.server import Server
from tmkd.serve.settings import PREFIX_PATH, Settings

logger = logging.getLogger(__name__)

ABOUT = """Ranks passages for a question with a distilled student, and answers questions from an index of documents.

Requests wait in one queue and are scored together. `/info` lists the limits. A request beyond one is refused with 413
or 422 and the name of the field. A request for which there is no room is refused with 429, and one whose scorer died
or whose time is up with 503; both answers carry `Retry-After`, the seconds after which to try again."""
_REFUSALS = {
    400: "the body is no valid JSON, or a list in it is empty",
    401: "the API key is missing or wrong",
    404: "the server has no documents",
    408: "the body came too slowly",
    413: "the request is beyond a limit",
    415: "the body is not application/json",
    421: "the server does not answer to this Host",
    422: "a field is missing or has a wrong value",
    429: "there is no room; Retry-After says when to try again",
    500: "the server failed",
    503: "the scorer is not there; Retry-After says when to try again",
}
_REQUESTS = (RerankRequest, V1Request, V2Request, AskRequest)
_PAGES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/app.js": ("app.js", "text/javascript"),
    "/page/docs.js": ("docs.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}


def create_app(settings: Settings) -> FastAPI:
    """The application. It opens its models when it starts and closes them when it ends."""
    server = Server(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server:
            yield

    app = FastAPI(
        title="tmkd", version=version("tmkd"), description=ABOUT, lifespan=lifespan,
        redirect_slashes=False, docs_url=None, redoc_url=None,
        exception_handlers={Refusal: _refused, Gone: _gone, HTTPException: _no_route, Exception: _broken},
    )  # fmt: skip
    app.state.server = server
    _add_rerank(app, server)
    _add_ask(app, server)
    health.add_routes(app, server)
    _add_pages(app, settings.root_path)
    routes = frozenset(getattr(route, "path", "") for route in app.routes)
    app.add_middleware(Guard, settings=settings, metrics=server.metrics, routes=routes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"], expose_headers=["Retry-After"],  # clients of both APIs send headers of their own
        )  # fmt: skip
    app.openapi = _describer(app, settings)  # type: ignore[method-assign]
    return app


def _add_rerank(app: FastAPI, server: Server) -> None:
    either = _answers(list[Rank] | InfinityAnswer)

    @app.post("/rerank", tags=["rerank"], responses=either, openapi_extra=_takes(RerankRequest))
    async def rerank_tei(request: Request) -> Response:
        """Rank passages, best first: `texts` as text-embeddings-inference does, `documents` as infinity does."""
        return await rerank.tei(server, request)

    cohere = _answers(CohereAnswer, CohereError)

    @app.post("/v1/rerank", tags=["rerank"], responses=cohere, openapi_extra=_takes(V1Request))
    async def rerank_v1(request: Request) -> Response:
        """Rank documents, best first, in the form of Cohere's first API."""
        return await rerank.cohere(server, request, "1")

    @app.post("/v2/rerank", tags=["rerank"], responses=cohere, openapi_extra=_takes(V2Request))
    async def rerank_v2(request: Request) -> Response:
        """Rank documents, best first, in the form of Cohere's second API."""
        return await rerank.cohere(server, request, "2")


def _add_ask(app: FastAPI, server: Server) -> None:
    @app.post("/ask", tags=["answers"], responses=_answers(AskAnswers), openapi_extra=_takes(AskRequest))
    async def ask(request: Request) -> Response:
        """Answer a question from the indexed documents: retrieve passages, rank them, mark the best sentence."""
        if server.asker is None:
            raise Refusal(404, "NotFound", "this server has no documents; start it with --index to have some")
        async with server.reading(request) as read:
            given = parse(AskRequest, await read())
            answers = await unless_gone(request, server.asker.answer(given, request.state.until))
            for stage in ("retrieve", "rank", "mark"):
                server.metrics.stage.labels(stage).observe(answers.milliseconds.get(stage, 0.0) / 1000)
            return json_response({"ranker": given.ranker, **answers.to_json()})


def _add_pages(app: FastAPI, root: str) -> None:
    """Add the pages and their files, which are read once. They load nothing from anywhere else."""
    folder = files("tmkd.serve") / "page"
    for path, (name, kind) in _PAGES.items():
        app.add_api_route(path, _page((folder / name).read_bytes(), kind, root), include_in_schema=False)


def _page(content: bytes, kind: str, root: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        """Answer a file; links of a page begin with the proxy's path where that is known, and are relative if not."""
        given = request.headers.get("x-forwarded-prefix", "").rstrip("/")
        prefix = given if PREFIX_PATH.match(given) else root
        shown = content.replace(b"{root}", f"{prefix}/".encode() if prefix else b"") if kind == "text/html" else content
        return Response(shown, media_type=kind, headers={"Cache-Control": "no-cache", "Vary": "X-Forwarded-Prefix"})

    return answer


def _answers(model: Any, error: Any = TeiError) -> dict[int | str, dict[str, Any]]:
    """The answers of a route, for its description: a result, or one of the refusals."""
    found: dict[int | str, dict[str, Any]] = {200: {"model": model}}
    found |= {status: {"model": error, "description": text} for status, text in _REFUSALS.items()}
    return found


def _takes(model: Any) -> dict[str, Any]:
    """The description of a request's body. `tmkd.serve.body` reads and checks bodies, not the framework."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describer(app: FastAPI, settings: Settings) -> Callable[[], dict[str, Any]]:
    """A function that gives the OpenAPI document, with the schemas of requests and this server's limits in it."""

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
            if settings.root_path:
                found["servers"] = [{"url": settings.root_path}]
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
    message = {404: "there is nothing here; see /docs", 405: "this route takes another method; see /docs"}
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # see `Guard`
    return Refusal(
        error.status_code, "NotFound", message.get(error.status_code, error.detail), headers=headers
    ).response(request.url.path)


async def _broken(request: Request, error: Exception) -> Response:
    # Log where it failed and the kind of error, but not its message, which may hold what the client sent.
    places = "".join(traceback.format_tb(error.__traceback__)[-6:])
    logger.error(f"an error while answering {request.scope.get('route', 'a request')}:\n{places}{type(error).__name__}")
    return Refusal(500, "Backend", "the server failed; its log says more").response(request.url.path)
