"""Commands that use an exported student: score, index, ask, calibrate."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

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
    backend: Backend = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Score a file of pairs with an exported student, without PyTorch.

    Example: tmkd score workspace/runs/demo/export --pairs pairs.jsonl --output scored.jsonl
    """
    from tmkd.core.malloc import keep_freed_memory
    from tmkd.inference.score_file import score_file

    keep_freed_memory()
    score_file(model, pairs, output, question=question, passage=passage, backend=backend, threads=threads)


def index(
    docs: Annotated[
        list[str],
        typer.Argument(
            metavar="DOCS...",
            help="folders or files: HTML, Markdown, text, POD, JSON lines (plain or .gz), BEIR; or debian-docs",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="the index's folder")] = INDEX,
    id_field: Annotated[str, typer.Option(help="JSON lines: the field that names a document")] = "id",
    title_field: Annotated[str, typer.Option(help="JSON lines: the field of its title")] = "title",
    text_field: Annotated[str, typer.Option(help="JSON lines: the field of its text")] = "text",
    url_field: Annotated[str, typer.Option(help="JSON lines: the field of its address")] = "url",
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

    Example: tmkd index manual/ faq.jsonl --out workspace/index
    """
    from tmkd.data.builtin.corpus import CORPORA
    from tmkd.data.documents.reader import Fields, Reading, index_documents

    began = time.monotonic()
    fields = Fields(id_field, title_field, text_field, url_field)
    try:
        changes = index_documents(docs, out, Reading(fields, url, max_mb << 20, strict), corpora=CORPORA)
    except BaseException as error:
        if not isinstance(error, Exception):  # interrupted
            say(f"{out} is as it was before this call")
        raise
    give(json_file, {"index": str(out), **asdict(changes), "seconds": round(time.monotonic() - began, 3)})
    say(f"{out}: {changes.sentence()}")


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
    from tmkd.core.errors import DataError
    from tmkd.core.malloc import keep_freed_memory
    from tmkd.inference.qa import QuestionAnswerer
    from tmkd.inference.qa.terminal import shown, timing

    keep_freed_memory()
    for folder, default, make in ((model, EXPORT, "make demo"), (index, INDEX, "tmkd index debian-docs")):
        if folder == default and not folder.exists():
            option = "--model" if default == EXPORT else "--index"
            raise DataError(f"there is no {folder}; make it with `{make}`, or name another with {option}")
    answerer = QuestionAnswerer.open(model, index, backend=backend, threads=threads)
    with give_lines(json_file) as write:
        for one in _questions(question):
            answers = answerer.ask(one, top=top, candidates=candidates)
            write(json.dumps(answers.to_json(), ensure_ascii=False))
            if str(json_file) != "-":
                for part in shown(answers):
                    tables.print(part)
                say(timing(answers))


def calibrate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="an exported student; calibration.json is written into it")
    ],
    index: IndexFolder = INDEX,
    pairs: Annotated[
        Path | None,
        typer.Option(help="labelled pairs for the choice, of passages of the index; debian-docs' own unless given"),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="labelled pairs of other questions, on which the choice is only measured")
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="largest share of wrong answers; without it, the threshold with the best F1"),
    ] = None,
    candidates: Candidates = 100,
    backend: Backend = "auto",
    threads: Threads = None,
    report: Annotated[Path | None, typer.Option(help="write a page with the risk-coverage curves to this file")] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Choose when `tmkd ask` says that nothing answers a question.

    Sets an export's temperature, its no-answer threshold and the weight of retrieval, on development questions. Every
    question is asked twice: with the documents that answer it in the index, and without them.

    Example: tmkd calibrate workspace/runs/demo/export --index workspace/index
    """
    from tmkd.core.errors import DataError, needs_extra
    from tmkd.inference.qa import Calibration, QuestionAnswerer
    from tmkd.inference.qa.calibrate import calibrate
    from tmkd.inference.qa.cases import built_in, from_file

    if test is not None and pairs is None:
        raise DataError("--test without --pairs: debian-docs brings its own test questions")
    answerer = QuestionAnswerer.open(model, index, backend=backend, threads=threads, calibration=Calibration())
    files = [from_file(path, answerer.index) for path in (pairs, test) if path is not None]
    dev, *unseen = files or built_in(answerer.index)
    found = calibrate(answerer, dev, unseen[0] if unseen else None, candidates=candidates, risk=risk)
    path = found.save(model)
    if report is not None:
        with needs_extra("train"):
            from tmkd.inference.qa.report import write_report

            write_report(found.to_json(), report)
    give(json_file, found.to_json())
    for sentence in found.sentences():
        say(sentence)
    say(f"written to {path}" + (f" and {report}" if report else ""))


def _questions(argument: str) -> Iterator[str]:
    if argument != "-":
        yield argument
        return
    yield from (line.strip() for line in sys.stdin if line.strip())
