"""The command that mines a pool of stage 1 from a corpus: mine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tmkd import api
from tmkd.cli.options import JsonFile, Quiet, QuotingOption, RayAddress, RayCores, give, ray_cluster
from tmkd.core.console import say


def mine(
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CORPUS",
            help="files or folders, as `tmkd index` reads them: JSON lines, Parquet, BEIR, HTML, Markdown, text; or "
            "debian-docs. Without any, --index is used as it is",
        ),
    ] = None,
    *,
    questions: Annotated[
        Path,
        typer.Option(
            "--questions", help="questions: .txt (one a line), JSONL, CSV, TSV, Parquet, plain or .gz, or a BEIR folder"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the pool: .parquet, or .jsonl, plain or .gz")] = ...,  # type: ignore[assignment]
    index: Annotated[
        Path | None,
        typer.Option("--index", "-i", help="the index's folder; unless given, pool.index beside pool.parquet"),
    ] = None,
    passages: Annotated[int, typer.Option(min=1, help="passages for each question, at most")] = 30,
    sampling: Annotated[
        Literal["top", "stratified"],
        typer.Option(help="top: the best of BM25; stratified: as many from every quantile of the first --depth ranks"),
    ] = "top",
    depth: Annotated[int, typer.Option(min=1, help="ranks of BM25 that are read for a question, at most")] = 200,
    quantiles: Annotated[int, typer.Option(min=2, help="of stratified: quantiles that the ranks are cut into")] = 4,
    most: Annotated[
        int | None, typer.Option(min=1, help="pairs that one passage is in, at most; any number unless given")
    ] = None,
    seed: Annotated[int, typer.Option(help="of stratified: another seed chooses other passages of a quantile")] = 0,
    without: Annotated[
        list[Path] | None,
        typer.Option(help="pairs (development, test) whose texts are left out of the pool; may be repeated"),
    ] = None,
    without_question: Annotated[
        str | None, typer.Option(help="of --without: column of the question; question unless given")
    ] = None,
    without_passage: Annotated[
        str | None, typer.Option(help="of --without: column of the passage; passage unless given")
    ] = None,
    without_label: Annotated[
        str | None,
        typer.Option(help="of --without: column of the label; label unless given. Without one every passage is right"),
    ] = None,
    question_column: Annotated[
        str | None, typer.Option(help="column of the question; unless given, question (in BEIR's queries.jsonl text)")
    ] = None,
    quoting: QuotingOption = "auto",
    cut: Annotated[
        bool,
        typer.Option("--cut", help="rows of CORPUS are documents: cut them into passages of about 70 words"),
    ] = False,
    id_field: Annotated[str, typer.Option(help="rows of CORPUS: the field that names a passage")] = "id",
    title_field: Annotated[str, typer.Option(help="rows of CORPUS: the field of its title")] = "title",
    text_field: Annotated[str, typer.Option(help="rows of CORPUS: the field of its text")] = "text",
    ray: RayAddress = None,
    ray_cores: RayCores = 1,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Mine a pool for stage 1: unlabelled pairs of a file of questions with passages of a corpus.

    CORPUS is indexed; an index that is there is brought up to date with it and then holds nothing else. Each question
    gets passages that BM25 finds; passages that contain the question or repeat another are left out, and counted.
    Memory does not grow with the corpus or the pool. A recipe reads the pool as data.pool.

    Finished parts are kept in a folder beside the output (pool.parquet.parts) until the pool is whole: a call that was
    interrupted continues if it is repeated as it was, and is refused with other options or texts.

    With --ray the workers of a Ray cluster search the index, which all its nodes must see. The pool is the same.

    Example: tmkd mine corpus.jsonl --questions queries.txt --output pool.parquet --without test.jsonl
    """
    columns = {"question": without_question, "passage": without_passage, "label": without_label}
    named = {what: name for what, name in columns.items() if name is not None}
    try:
        mining = api.Mining(
            passages, sampling, depth, quantiles, most, seed, question_column, quoting, without or (), named
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    reading = api.Reading(api.Fields(id_field, title_field, text_field), whole=not cut)
    with ray_cluster(ray, ray_cores) as cluster:
        done = api.mine_pool(
            questions, output, corpus or (), index=index, reading=reading, mining=mining, cluster=cluster
        )
    give(json_file, done.to_json())
    for sentence in done.sentences():
        say(f"{output}: {sentence}")
