"""Commands that use an exported student: score, index, ask, calibrate."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tmkd import api
from tmkd.cli.options import (
    EXPORT,
    INDEX,
    PAIRS_HELP,
    Backend,
    Candidates,
    IndexFolder,
    JsonFile,
    ModelFolder,
    Quiet,
    QuotingOption,
    Threads,
    give,
    give_lines,
)
from tmkd.core.console import say, tables


def score(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="an exported student, such as workspace/runs/demo/export")
    ],
    pairs: Annotated[Path, typer.Option("--pairs", help=f"pairs: {PAIRS_HELP}")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="file to write; - prints JSON lines to standard output")
    ] = "-",
    question: Annotated[str, typer.Option(help="column of the question")] = "question",
    passage: Annotated[str, typer.Option(help="column of the passage")] = "passage",
    quoting: QuotingOption = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Score a file of pairs with an exported student, without PyTorch.

    Rows keep their order and their other columns. --json tells how many there were, and how many are longer than the
    student reads.

    Example: tmkd score workspace/runs/demo/export --pairs pairs.jsonl --output scored.jsonl
    """
    from tmkd.core.malloc import keep_freed_memory

    if output == "-" and str(json_file) == "-":
        raise typer.BadParameter("--json and --output both mean standard output; name a file for one of them")
    keep_freed_memory()
    columns = {"question": question, "passage": passage}
    done = api.score_file(model, pairs, output, columns=columns, quoting=quoting, backend=backend, threads=threads)
    give(json_file, done.to_json())


def index(
    docs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DOCS",
            help="folders or files: HTML, Markdown, text, POD, JSON lines (plain or .gz), Parquet, BEIR; "
            "or debian-docs",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the index's folder")] = INDEX,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="an exported cached student: compute the states of the passages with it"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="compare the stored states with their checksums, and change nothing")
    ] = False,
    backend: Backend = "auto",
    threads: Threads = None,
    id_field: Annotated[str, typer.Option(help="JSON lines, Parquet: the field that names a document")] = "id",
    title_field: Annotated[str, typer.Option(help="JSON lines, Parquet: the field of its title")] = "title",
    text_field: Annotated[str, typer.Option(help="JSON lines, Parquet: the field of its text")] = "text",
    url_field: Annotated[str, typer.Option(help="JSON lines, Parquet: the field of its address")] = "url",
    url: Annotated[
        str | None, typer.Option(help="address of the folder DOCS; a file's path within DOCS is appended to it")
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, help="skip files, and lines of JSON lines, larger than this")] = 64,
    strict: Annotated[bool, typer.Option("--strict", help="refuse what cannot be read instead of skipping it")] = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Index documents, or bring an index up to date with them.

    Afterwards the index holds DOCS and nothing else. A second call reads all documents, and writes only those that
    were added, changed or removed. Programs that have the index open can go on reading it, and an interrupted call
    leaves the index as it was.

    With --model, a student of the kind `cached` reads every new passage once, and what it needs of them later is stored
    in the index (--model without DOCS computes the states of the passages that the index has). An interrupted call
    goes on where it stopped.

    Example: tmkd index manual/ faq.jsonl --out workspace/index --model workspace/runs/demo/export
    """
    began = time.monotonic()
    if check:
        if docs or model:
            raise typer.BadParameter("--check compares what is stored in --out; leave DOCS and --model out")
        _check(out, json_file)
        return
    if not docs and model is None:
        raise typer.BadParameter("name DOCS to index, or --model to compute the states of what the index has")
    fields = api.Fields(id_field, title_field, text_field, url_field)
    done: dict[str, Any] = {"index": str(out)}
    sentences: list[str] = []
    try:
        if docs:
            reading = api.Reading(fields, url, max_mb << 20, strict)
            changes = api.build_index(docs, out, reading, model=model, backend=backend, threads=threads)
            done, states = {**done, **asdict(changes)}, changes.states
            sentences = [changes.sentence(), *changes.missing(out)]
        else:
            states = api.build_states(out, model or "", backend=backend, threads=threads)
            done["states"] = asdict(states)
    except BaseException as error:
        if not isinstance(error, Exception):  # interrupted
            rest = "finished states are kept, and the same command computes the others"
            say(f"{out} is as it was before this call" if model is None else f"interrupted: {rest}")
        raise
    give(json_file, {**done, "seconds": round(time.monotonic() - began, 3)})
    for sentence in (*sentences, *([] if states is None else [states.sentence()])):
        say(f"{out}: {sentence}")


def _check(out: Path, json_file: Path | None) -> None:
    store = api.check_states(out)
    found = {"model": store.card.model, "passages": store.passages, "texts": len(store), "bytes": store.nbytes}
    give(json_file, {"index": str(out), **found})
    say(f"{out}: the states of {store.passages:,} passages by {store.card.model} are as they were written")


def ask(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="a question; - reads one a line from standard input")
    ],
    model: ModelFolder = EXPORT,
    index: IndexFolder = INDEX,
    top: Annotated[int, typer.Option(min=1, help="answers to show")] = 3,
    candidates: Candidates = 100,
    backend: Backend = "auto",
    threads: Threads = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Answer a question from an index of documents.

    Retrieves passages, ranks them with the student, and marks the sentence that answers best. With --json, each
    question gives one line of JSON.

    Example: tmkd ask "How do I sort a hash by value?" --index workspace/index
    """
    from tmkd.core.malloc import keep_freed_memory

    keep_freed_memory()
    for folder, default, make in ((model, EXPORT, "make demo"), (index, INDEX, "tmkd index debian-docs")):
        if folder == default and not folder.exists():
            option = "--model" if default == EXPORT else "--index"
            raise api.DataError(f"there is no {folder}; make it with `{make}`, or name another with {option}")
    answerer = api.QuestionAnswerer.open(model, index, backend=backend, threads=threads)
    with give_lines(json_file) as write:
        for one in _questions(question):
            answers = answerer.ask(one, top=top, candidates=candidates)
            write(json.dumps(answers.to_json(), ensure_ascii=False))
            if str(json_file) != "-":
                for part in answers.shown():
                    tables.print(part)
                say(answers.timing())


def calibrate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="an exported student; calibration.json is written into it")
    ],
    index: IndexFolder = INDEX,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="labelled pairs for the choice (columns question, passage, label), of passages of the index; "
            "debian-docs' own unless given"
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="labelled pairs of other questions, on which the choice is only measured")
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="largest share of wrong answers; without it, the threshold with the best F1"),
    ] = None,
    quoting: QuotingOption = "auto",
    candidates: Candidates = 100,
    backend: Backend = "auto",
    threads: Threads = None,
    report: Annotated[Path | None, typer.Option(help="write a page with the risk-coverage curves to this file")] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Choose when `tmkd ask` says that nothing answers a question.

    Sets an export's temperature, its no-answer threshold, the weights of retrieval and the share of dense search, on
    development questions. For the threshold every question is asked twice: with the documents that answer it in the
    index, and without them.

    Example: tmkd calibrate workspace/runs/demo/export --index workspace/index
    """
    if test is not None and pairs is None:
        raise typer.BadParameter("--test without --pairs: debian-docs brings its own test questions")
    found = api.calibrate_export(
        model, index, pairs=pairs, test=test, risk=risk, candidates=candidates, quoting=quoting, backend=backend,
        threads=threads,
    )  # fmt: skip
    if report is not None:
        found.write_report(report)
    give(json_file, found.to_json(), verdicts=found.sentences())
    say(f"written to {model / 'calibration.json'}" + (f" and {report}" if report else ""))


def _questions(argument: str) -> Iterator[str]:
    if argument != "-":
        yield _decoded(os.fsencode(argument), "the question", sys.getfilesystemencoding())
        return
    for number, line in enumerate(sys.stdin.buffer, start=1):
        if question := _decoded(line, f"standard input:{number}", sys.stdin.encoding).strip():
            yield question


def _decoded(content: bytes, place: str, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise api.DataError(
            f"{place}: byte 0x{content[error.start]:02x} is not valid {encoding.upper()}; convert it, for example with "
            f"iconv -f latin1 -t utf-8"
        ) from error
