"""GET /health, /ready, /info and /metrics: for programs that run and watch the server."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from tmkd.core.cpu import usable_cores
from tmkd.serve.refusals import json_response, unavailable
from tmkd.serve.server import Server


def add_routes(app: FastAPI, server: Server) -> None:
    """Add these routes to the application."""

    @app.get("/health", tags=["operation"])
    async def health() -> Response:
        """Whether the server runs. It also answers while the scorer is being started."""
        return json_response({"status": "alive", "student_kind": server.student_kind})

    @app.get("/ready", tags=["operation"], responses={503: {"description": "the scorer is being started"}})
    async def ready() -> Response:
        """Whether a request that comes now would be scored."""
        if not server.ready:
            raise unavailable("the scorer is being started")
        return json_response({"status": "ready", "student_kind": server.student_kind})

    @app.get("/info", tags=["operation"])
    async def info() -> Response:
        """The model and the limits: the fields of text-embeddings-inference, and more."""
        return json_response(about(server))

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """The metrics, in the format of Prometheus."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def about(server: Server) -> dict[str, Any]:
    """What /info answers."""
    settings, hello = server.settings, server.scorers["student"].hello
    labels = hello.labels if hello is not None else ("0", "1")
    return {
        "model_id": server.name,
        "model_sha": hello.digest if hello is not None else None,
        "model_dtype": hello.backend.rpartition("-")[2] if hello is not None else "",
        "model_type": {
            "reranker": {
                "id2label": {str(row): name for row, name in enumerate(labels)},
                "label2id": {name: row for row, name in enumerate(labels)},
            }
        },
        "max_concurrent_requests": settings.max_connections,
        "max_input_length": server.queues["student"].max_length,
        "max_batch_tokens": settings.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_texts,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": hello.threads if hello is not None else usable_cores(),
        "version": version("tmkd"),
        "sha": None,
        "docker_label": None,
        "backend": hello.backend if hello is not None else None,
        "student_kind": server.student_kind,
        "state_cache_bytes": settings.state_cache << 20 if server.student_kind == "cached" else None,
        "index": None if server.asker is None else server.asker.size,
        "teacher": settings.teacher is not None,
        "max_body_bytes": settings.body_bytes,
        "max_text_characters": settings.max_chars,
        "timeout_seconds": settings.timeout,
    }
