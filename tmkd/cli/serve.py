"""The verbs `serve` and `bench`: flags to settings. Nothing heavy is imported before they are checked."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tmkd.core.console import set_quiet
from tmkd.core.errors import TmkdError, needs_extra
from tmkd.core.files import write_numbers
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


class Bench(StrEnum):
    """What can be measured."""

    train = "train"
    label = "label"
    score = "score"
    latency = "latency"
    factors = "factors"
    profile = "profile"
    qa = "qa"
    serve = "serve"
    soak = "soak"
    fuzz = "fuzz"


def bench(
    what: Annotated[Bench, typer.Argument(help="what is measured")],
    model: Annotated[str, typer.Option(help="an export, a checkpoint, a builtin or a hub id")] = "builtin:minilm-l6",
    layers: Annotated[
        int | None, typer.Option(min=1, help="layers kept, where the model is no export: 6 to label, else 3")
    ] = None,
    count: Annotated[int, typer.Option(min=8, help="pairs of one turn")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each contestant")] = 5,
    max_length: Annotated[int, typer.Option(min=8, help="tokens of a pair, where the model is no export")] = 192,
    pairs: Annotated[Path | None, typer.Option(help="a file of pairs; the built-in ones unless given")] = None,
    peers: Annotated[
        str | None, typer.Option(help="beginnings of names, with commas; `none`; all unless given")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="of each contestant; 0: all usable cores")] = 0,
    index: Annotated[Path | None, typer.Option(help="qa: an index; debian-docs unless given")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="qa: passages retrieved and ranked")] = 100,
    wrong: Annotated[Path | None, typer.Option(help="qa: write first passages that are labelled wrong")] = None,
    passages: Annotated[int, typer.Option(min=1, help="serve: passages of a request")] = 100,
    seconds: Annotated[float, typer.Option(min=1, help="serve: at each rate; soak: in all")] = 20.0,
    rates: Annotated[str, typer.Option(help="serve: requests per second, with commas; shares of capacity")] = "",
    kills: Annotated[int, typer.Option(min=0, help="soak: how often the scorer is killed")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the numbers there too (- for standard output)")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no bars, no notes")] = False,
) -> None:
    """Measure tmkd beside what people use today: interleaved rounds, the same weights and rows, medians and spreads.

    Peers run in environments of their own, built once in the cache folder. `qa` asks questions whose answers are known
    (the built-in test questions, or those of --pairs) with an export: against BM25 alone on the same candidates, and
    how long each stage takes. `profile` says which operations the time goes to. `serve` is latency against rate over
    HTTP, `soak` twice the capacity for --seconds with a scorer that is killed, `fuzz` --count hostile requests.

    Example: tmkd bench score --model workspace/runs/demo/export --peers FlashRank,sentence --json score.json
    """
    set_quiet(quiet)
    with needs_extra("train"):
        from tmkd.bench import profile, qa
        from tmkd.bench.command import Options, run
        from tmkd.bench.serving import Serve, run_serving
        from tmkd.data.readers import write_rows

    chosen = None if peers is None else tuple(name for name in peers.split(",") if name not in ("", "none"))
    options = Options(what.value, model, layers, max_length, count, rounds, pairs, chosen, threads)
    serving = what in (Bench.serve, Bench.soak, Bench.fuzz)
    outcome: Any
    if what is Bench.qa:
        outcome = qa.measure(Path(model), index, pairs, candidates=candidates, threads=threads or None)
    elif what is Bench.profile:
        outcome = profile.run(options)
    elif serving:
        outcome = run_serving(options, Serve(passages, seconds, rates, kills))
    else:
        outcome = run(options)
    if str(json_file) != "-":
        outcome.show()
    write_numbers(json_file, outcome.to_json())
    if what is Bench.qa and wrong is not None:
        write_rows(wrong, outcome.wrong)
    if serving and outcome.problems:
        raise TmkdError(f"bench {what.value}: {'; '.join(outcome.problems)}")
