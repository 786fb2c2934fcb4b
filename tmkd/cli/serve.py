"""The command `serve`: flags to settings. Nothing heavy is imported before they are checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tmkd.core.console import set_quiet
from tmkd.core.errors import TmkdError, needs_extra
from tmkd.serve.settings import MEBI, Settings


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def serve(
    model: Annotated[
        Path, typer.Option(envvar="TMKD_MODEL", help="an exported student, such as workspace/runs/demo/export")
    ],
    index: Annotated[
        Path | None, typer.Option(envvar="TMKD_INDEX", help="an index made by `tmkd index`, for /ask and the page")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(envvar="TMKD_TEACHER", help="a model folder to show beside; needs PyTorch")
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="TMKD_HOST", help="address to listen on; 0.0.0.0: all of this machine's")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TMKD_PORT", min=0, max=65535, help="0: any free one")] = 8080,
    api_key: Annotated[
        str | None, typer.Option(envvar="TMKD_API_KEY", help="asked for as Authorization: Bearer; set it as a variable")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(envvar="TMKD_API_KEY_FILE", help="a file that holds the key")
    ] = None,
    cors_origins: Annotated[
        str | None, typer.Option(envvar="TMKD_CORS_ORIGINS", help="web origins that may call it, with commas; none")
    ] = None,
    allowed_hosts: Annotated[
        str | None,
        typer.Option(envvar="TMKD_ALLOWED_HOSTS", help="Host headers answered, with commas; loopback: its names"),
    ] = None,
    backend: Annotated[
        str, typer.Option(envvar="TMKD_BACKEND", help="auto, or one of the export's back ends")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(envvar="TMKD_THREADS", min=1, help="of the scorer; all cores unless given")
    ] = None,
    max_body: Annotated[int, typer.Option(envvar="TMKD_MAX_BODY", min=1, help="KiB of one request")] = 4096,
    max_buffered: Annotated[
        int, typer.Option(envvar="TMKD_MAX_BUFFERED", min=1, help="MiB of all requests held at once")
    ] = 64,
    max_texts: Annotated[int, typer.Option(envvar="TMKD_MAX_TEXTS", min=1, help="texts of one request")] = 1000,
    max_chars: Annotated[int, typer.Option(envvar="TMKD_MAX_CHARS", min=1, help="characters of one text")] = 65_536,
    max_queue: Annotated[int, typer.Option(envvar="TMKD_MAX_QUEUE", min=1, help="pairs that may wait")] = 8000,
    max_connections: Annotated[int, typer.Option(envvar="TMKD_MAX_CONNECTIONS", min=1, help="open connections")] = 1000,
    timeout: Annotated[float, typer.Option(envvar="TMKD_TIMEOUT", help="seconds for one request")] = 30.0,
    idle_timeout: Annotated[
        float, typer.Option(envvar="TMKD_IDLE_TIMEOUT", help="seconds for headers to arrive, and for idle connections")
    ] = 10.0,
    batch_tokens: Annotated[
        int, typer.Option(envvar="TMKD_BATCH_TOKENS", min=1, help="estimated tokens of one batch")
    ] = 16_384,
    batch_wait: Annotated[
        float, typer.Option(envvar="TMKD_BATCH_WAIT", min=0, help="milliseconds that a batch waits to be filled")
    ] = 2.0,
    stall: Annotated[
        float, typer.Option(envvar="TMKD_STALL", help="seconds for one batch before the scorer is started anew")
    ] = 60.0,
    auto_truncate: Annotated[
        bool, typer.Option(envvar="TMKD_AUTO_TRUNCATE", help="cut pairs that are too long where /rerank does not say")
    ] = True,
    model_name: Annotated[
        str, typer.Option(envvar="TMKD_MODEL_NAME", help="what /info calls the model; the folder's name unless given")
    ] = "",
    log_requests: Annotated[
        bool, typer.Option("--log-requests", envvar="TMKD_LOG_REQUESTS", help="a line a request; never its content")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", envvar="TMKD_QUIET", help="no notes")] = False,
) -> None:
    """Serve a student over HTTP: /rerank, /v1/rerank, /v2/rerank, /ask, and a page to ask from.

    Every option is an environment variable too. Limits that are passed are answered with 413, 422, 429 or 503.

    Example: tmkd serve --model workspace/runs/demo/export --port 8080
    """
    set_quiet(quiet)
    settings = Settings(
        model=model, index=index, teacher=teacher, backend=backend, threads=threads, host=host, port=port,
        api_key=_key(api_key, api_key_file), cors_origins=_names(cors_origins), allowed_hosts=_names(allowed_hosts),
        max_body=max_body << 10, max_buffered=max_buffered * MEBI, max_texts=max_texts, max_chars=max_chars,
        max_queue=max_queue, max_connections=max_connections, timeout=timeout, idle_timeout=idle_timeout,
        batch_tokens=batch_tokens, batch_wait=batch_wait / 1000, stall=stall, auto_truncate=auto_truncate,
        model_name=model_name, log_requests=log_requests,
    )  # fmt: skip
    with needs_extra("serve"):
        from tmkd.serve.run import run as run_server
    run_server(settings)


def _key(given: str | None, file: Path | None) -> str | None:
    """The key without the line end that files and secrets come with. One that is set and empty is a mistake."""
    if given is not None:
        return given.strip()
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise TmkdError(f"the key's file {file} cannot be read: {error.strerror}") from error
    if "TMKD_API_KEY" in os.environ:
        raise TmkdError("TMKD_API_KEY is set and empty; give it a key, or unset it to serve without one")
    return None
