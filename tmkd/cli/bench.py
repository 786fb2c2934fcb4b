"""The commands `tmkd bench ...`: flags to settings. The measurements are in `tmkd.bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmkd.cli.options import (
    EXPORT,
    PAIRS_HELP,
    Candidates,
    Command,
    JsonFile,
    ModelFolder,
    Quiet,
    RayAddress,
    Sections,
    give,
)
from tmkd.core.errors import TmkdError, needs_extra

if TYPE_CHECKING:
    from tmkd.bench.material import Subject

BUILTIN = "builtin:minilm-l6"

bench = typer.Typer(
    cls=Sections,
    help="Measure tmkd beside other tools: speed, answers, and the server under load.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Option("--model", "-m", help="an export, a model folder, builtin:NAME or a hub id")]
Layers = Annotated[int, typer.Option(min=1, help="layers to keep, where the model is not an export")]
MaxLength = Annotated[int, typer.Option(min=8, help="longest pair in tokens, where the model is not an export")]
PairsFile = Annotated[Path | None, typer.Option("--pairs", help=f"pairs: {PAIRS_HELP}; built-in ones unless given")]
Cached = Annotated[
    Path | None,
    typer.Option(help="the export of a student that reads passages once (cached), measured beside the model"),
]
Count = Annotated[int, typer.Option(min=8, help="pairs of one turn")]
Rounds = Annotated[int, typer.Option(min=1, help="turns of each contestant")]
Peers = Annotated[
    str | None,
    typer.Option(
        help="other tools that take part: beginnings of their names, with commas, or `none`; all unless given"
    ),
]
Cores = Annotated[int, typer.Option("--threads", min=0, help="threads of each contestant; 0 for all usable cores")]


@bench.command(cls=Command, rich_help_panel="Speed")
def train(
    model: Model = BUILTIN,
    layers: Layers = 3,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    count: Count = 512,
    rounds: Rounds = 5,
    peers: Peers = None,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse",
            help="a student that reads passages once and trains its encoder: in random steps, and by passage; each "
            "text in 1, 4 and 16 pairs",
        ),
    ] = False,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure training, in pairs per second.

    Contestants train on the same pairs from the same weights and take turns, so that a machine that slows down slows
    all of them. Other tools run in Python environments of their own, which are built once in the cache folder.

    Example: tmkd bench train --count 256 --rounds 5
    """
    if reuse and peers is not None:
        raise typer.BadParameter("give one of --reuse and --peers", param_hint="--reuse")
    subject = _subject(model, layers, max_length, pairs)
    bench_name = "train --reuse" if reuse else "train"
    _speed(bench_name, subject, json_file, count=count, rounds=rounds, peers=_names(peers), threads=threads)


@bench.command(cls=Command, rich_help_panel="Speed")
def label(
    model: Model = BUILTIN,
    layers: Layers = 6,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    count: Count = 512,
    rounds: Rounds = 5,
    peers: Peers = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="a cross-encoder beside MiniLM's cosine; each text in 1, 4 and 16 pairs")
    ] = False,
    served: Annotated[
        bool, typer.Option("--served", help="a served teacher beside its server alone, with an export of the model")
    ] = False,
    ray: RayAddress = None,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure labelling with a teacher, in pairs per second; with one in PyTorch unless --served is given.

    Example: tmkd bench label --count 256 --rounds 5
    """
    if sum((reuse, served, ray is not None, peers is not None)) > 1:
        raise typer.BadParameter(
            "give one of --reuse, --served, --ray and --peers", param_hint="--reuse, --served, --ray"
        )
    subject = _subject(model, layers, max_length, pairs)
    if ray is not None:
        from tmkd.bench import on_ray

        _give(json_file, on_ray.run(subject, ray, count=count, rounds=rounds, threads=threads))
        return
    if served:
        from tmkd.bench.served import run

        _give(json_file, run(subject, count=count, rounds=rounds, threads=threads))
        return
    if reuse:
        _speed("label --reuse", subject, json_file, count=count, rounds=rounds, threads=threads)
        return
    _speed("label", subject, json_file, count=count, rounds=rounds, peers=_names(peers), threads=threads)


@bench.command(cls=Command, rich_help_panel="Speed")
def score(
    model: Model = BUILTIN,
    layers: Layers = 3,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    cached: Cached = None,
    count: Count = 512,
    rounds: Rounds = 5,
    peers: Peers = None,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure scoring with an exported student, in pairs per second.

    Also shows how far each contestant's scores are from plain transformers in fp32.

    Example: tmkd bench score --model workspace/runs/demo/export --peers FlashRank,sentence
    """
    subject = _subject(model, layers, max_length, pairs, cached)
    _speed("score", subject, json_file, count=count, rounds=rounds, peers=_names(peers), threads=threads)


@bench.command(cls=Command, rich_help_panel="Speed")
def latency(
    model: Model = BUILTIN,
    layers: Layers = 3,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    cached: Cached = None,
    rounds: Rounds = 5,
    peers: Peers = None,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure the milliseconds for one question with 10, 25, 50 and 100 passages.

    Example: tmkd bench latency --model workspace/runs/demo/export --peers none

    With `--cached` two rows show the same for a student that reads passages once: with the states of the passages in
    memory, and with states that are computed in the call.
    """
    subject = _subject(model, layers, max_length, pairs, cached)
    _speed("latency", subject, json_file, rounds=rounds, peers=_names(peers), threads=threads)


@bench.command(cls=Command, rich_help_panel="Speed")
def factors(
    model: Model = BUILTIN,
    layers: Layers = 3,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    count: Count = 512,
    rounds: Rounds = 5,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure where the speed comes from: each row changes one thing.

    The first row is a teacher of 24 layers in a plain loop, the last one the export on all cores.

    Example: tmkd bench factors --model workspace/runs/demo/export --count 256 --rounds 3
    """
    subject = _subject(model, layers, max_length, pairs)
    _speed("factors", subject, json_file, count=count, rounds=rounds, threads=threads)


@bench.command(cls=Command, rich_help_panel="Speed")
def profile(
    model: Model = BUILTIN,
    layers: Layers = 3,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    count: Count = 512,
    rounds: Rounds = 5,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure which operations the time of training and scoring goes to.

    Example: tmkd bench profile --model workspace/runs/demo/export --count 256
    """
    subject = _subject(model, layers, max_length, pairs)
    with needs_extra("train"):
        from tmkd.bench.profile import run
    _give(json_file, run(subject, count=count, rounds=rounds, threads=threads))


@bench.command(cls=Command, rich_help_panel="Speed")
def scale(
    pairs: Annotated[int, typer.Option(min=100, help="synthetic pairs; each takes about 1 kB of the disk")] = 1_000_000,
    folder: Annotated[
        Path | None, typer.Option(help="where they are written until the end; the cache folder unless given")
    ] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure whether reading, labels and batches keep up with many pairs, and their memory.

    Texts, token ids and logits are made up, and real code stores, joins and batches them. The share of the label store
    is that of labelling with MiniLM on this machine.

    Example: tmkd bench scale --pairs 1000000 --json scale.json
    """
    with needs_extra("train"):
        from tmkd.bench.scale import run
    _give(json_file, run(pairs, folder))


@bench.command(cls=Command, rich_help_panel="Answers")
def qa(
    model: ModelFolder = EXPORT,
    index: Annotated[
        Path | None, typer.Option("--index", "-i", help="an index; one of debian-docs is made unless given")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="labelled pairs, which need --index; debian-docs' test questions")
    ] = None,
    candidates: Candidates = 100,
    wrong: Annotated[
        Path | None, typer.Option(help="write the first passages that are labelled wrong to this file")
    ] = None,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure answers on questions whose answers are known.

    Compares retrieval and ranking with BM25 alone, dense search alone and both together, and times each stage.

    Example: tmkd bench qa --model workspace/runs/demo/export --json qa.json
    """
    with needs_extra("train"):
        from tmkd.bench.qa import run
    figures = run(model, index, pairs, candidates=candidates, threads=threads or None)
    _give(json_file, figures)
    if wrong is not None:
        figures.write_wrong(wrong)


@bench.command(cls=Command, rich_help_panel="The server")
def serve(
    model: Model = BUILTIN,
    layers: Layers = 3,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    passages: Annotated[int, typer.Option(min=1, help="passages of a request")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="requests that are sent one at a time")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="seconds at each rate")] = 20.0,
    rates: Annotated[
        str, typer.Option(help="requests per second, with commas; shares of each server's capacity unless given")
    ] = "",
    peers: Peers = None,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure the server's latency against the rate of requests.

    Example: tmkd bench serve --model workspace/runs/demo/export --rates 1,2,5 --seconds 8
    """
    at = _rates(rates)
    subject = _subject(model, layers, max_length, pairs)
    from tmkd.bench.serve import Load, run

    load = Load(subject, passages, rounds, seconds, at, peers=_names(peers) != (), threads=threads)
    _give(json_file, run(load), "serve")


@bench.command(cls=Command, rich_help_panel="The server")
def soak(
    model: Model = BUILTIN,
    layers: Layers = 3,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    seconds: Annotated[float, typer.Option(min=1, help="how long, in seconds")] = 20.0,
    kills: Annotated[int, typer.Option(min=0, help="how often the scoring process is killed")] = 3,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Send the server twice what it can answer, and kill its scorer.

    Fails unless each request is answered or refused with a time to come back.

    Example: tmkd bench soak --model workspace/runs/demo/export --seconds 1800 --kills 5
    """
    subject = _subject(model, layers, max_length, pairs)
    from tmkd.bench.soak import run

    _give(json_file, run(subject.exported(), seconds, kills=kills, threads=threads), "soak")


@bench.command(cls=Command, rich_help_panel="The server")
def fuzz(
    model: Model = BUILTIN,
    layers: Layers = 3,
    max_length: MaxLength = 192,
    pairs: PairsFile = None,
    count: Annotated[int, typer.Option(min=8, help="requests")] = 512,
    schema: Annotated[
        bool, typer.Option("--schema/--no-schema", help="half of them by schemathesis, from the OpenAPI description")
    ] = True,
    threads: Cores = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Send the server malformed and hostile requests.

    Example: tmkd bench fuzz --model workspace/runs/demo/export --count 100000
    """
    subject = _subject(model, layers, max_length, pairs)
    from tmkd.bench.fuzz import run

    _give(json_file, run(subject.exported(), count, schema=schema, threads=threads), "fuzz")


def _names(peers: str | None) -> tuple[str, ...] | None:
    return None if peers is None else tuple(name for name in peers.split(",") if name not in ("", "none"))


def _rates(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(one) for one in text.split(",") if one.strip())
    except ValueError:
        found = (-1.0,)
    if any(not 0 < rate < 1e5 for rate in found):
        raise typer.BadParameter(
            f"{text!r}: give requests per second, with commas, such as 1,2.5,10", param_hint="--rates"
        )
    return found


def _subject(model: str, layers: int, max_length: int, pairs: Path | None, cached: Path | None = None) -> Subject:
    with needs_extra("train"):
        from tmkd.bench.material import Subject
    return Subject(model, layers, max_length, pairs, cached)


def _speed(bench_name: str, subject: Subject, json_file: Path | None, **options: Any) -> None:
    from tmkd.bench.speed import run

    _give(json_file, run(bench_name, subject, **options))


def _give(json_file: Path | None, figures: Any, fails_as: str = "") -> None:
    """Show figures; those of a bench that can fail end the command with an error where there are problems."""
    give(json_file, figures.to_json(), figures.shown())
    if fails_as and figures.problems:
        raise TmkdError(f"bench {fails_as}: {'; '.join(figures.problems)}")
