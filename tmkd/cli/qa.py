"""The verbs of question answering: index, ask, calibrate. As thin as those of tmkd.cli.main, and as late with
imports."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmkd.core.console import say, set_quiet, tables

if TYPE_CHECKING:
    from tmkd.inference.qa import Answers

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no bars, no notes")]
INDEX, EXPORT = Path("workspace/index"), Path("workspace/runs/demo/export")
ModelFolder = Annotated[Path, typer.Option("--model", "-m", help="an exported student")]
IndexFolder = Annotated[Path, typer.Option("--index", "-i", help="an index, as `tmkd index` writes it")]


def index(
    docs: Annotated[
        list[str],
        typer.Argument(
            metavar="DOCS...",
            help="folders or files: HTML, Markdown, text, POD, JSON lines (plain or .gz), BEIR; or debian-docs",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="the index's folder")] = INDEX,
    id_field: Annotated[str, typer.Option(help="JSON lines: what names a document")] = "id",
    title_field: Annotated[str, typer.Option(help="JSON lines: its title")] = "title",
    text_field: Annotated[str, typer.Option(help="JSON lines: its text")] = "text",
    url_field: Annotated[str, typer.Option(help="JSON lines: its address")] = "url",
    url: Annotated[
        str | None, typer.Option(help="what goes before a file's path within DOCS to make its address")
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, help="a larger file, or line of JSON lines, is not read")] = 64,
    strict: Annotated[bool, typer.Option("--strict", help="refuse what cannot be read, rather than skip it")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the counts as JSON")] = False,
    quiet: Quiet = False,
) -> None:
    """Make an index of documents, or bring it up to date: it then holds DOCS and nothing else.

    A later call reads all documents but writes only those that were added, have changed or are gone. Who has the index
    open meanwhile is not disturbed, and an interrupted call leaves it as it was.

    Example: tmkd index manual/ faq.jsonl --out workspace/index
    """
    set_quiet(quiet)
    from tmkd.data.documents.collect import Fields, Reading, index_documents

    began = time.monotonic()
    fields = Fields(id_field, title_field, text_field, url_field)
    try:
        changes = index_documents(docs, out, Reading(fields, url, max_mb << 20, strict))
    except BaseException as error:
        if not isinstance(error, Exception):  # interrupted
            say(f"{out} is as it was before this call")
        raise
    if as_json:
        print(json.dumps({"index": str(out), **asdict(changes), "seconds": round(time.monotonic() - began, 3)}))
    else:
        say(f"{out}: {changes.sentence()}")


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="- reads one a line from standard input")],
    model: ModelFolder = EXPORT,
    index: IndexFolder = INDEX,
    top: Annotated[int, typer.Option(min=1, help="answers shown")] = 3,
    candidates: Annotated[int, typer.Option(min=1, help="passages that are retrieved and ranked")] = 100,
    backend: Annotated[str, typer.Option(help="auto, or one of the export's back ends")] = "auto",
    threads: Annotated[int | None, typer.Option(help="threads; all cores unless given")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object for each question")] = False,
    quiet: Quiet = False,
) -> None:
    """Answer a question from an index: retrieve passages, rank them with a student, mark the best sentence.

    Example: tmkd ask "How do I sort a hash by value?" --index workspace/index
    """
    set_quiet(quiet)
    from tmkd.core.errors import DataError
    from tmkd.core.malloc import keep_freed_memory
    from tmkd.inference.qa import QuestionAnswerer

    keep_freed_memory()
    for folder, default, make in ((model, EXPORT, "make demo"), (index, INDEX, "tmkd index debian-docs")):
        if folder == default and not folder.exists():
            option = "--model" if default == EXPORT else "--index"
            raise DataError(f"there is no {folder}; make it with `{make}`, or name another with {option}")
    answerer = QuestionAnswerer.open(model, index, backend=backend, threads=threads)
    for one in _questions(question):
        answers = answerer.ask(one, top=top, candidates=candidates)
        if as_json:
            print(json.dumps(answers.to_json(), ensure_ascii=False), flush=True)
        else:
            show(answers)


def calibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="an exported student; calibration.json goes into it")],
    index: IndexFolder = INDEX,
    pairs: Annotated[
        Path | None,
        typer.Option(help="labelled development pairs of passages of the index; debian-docs' own unless given"),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="labelled pairs of other questions, only measured")] = None,
    risk: Annotated[
        float | None, typer.Option(min=0, max=1, help="share of wrong answers to keep within; best F1 unless given")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="passages that are retrieved and ranked")] = 100,
    backend: Annotated[str, typer.Option(help="auto, or one of the export's back ends")] = "auto",
    threads: Annotated[int | None, typer.Option(help="threads; all cores unless given")] = None,
    report: Annotated[Path | None, typer.Option(help="write a page with the risk-coverage curves there")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print calibration.json")] = False,
    quiet: Quiet = False,
) -> None:
    """Choose an export's temperature, no-answer threshold and retrieval weight on development questions.

    Every question is asked twice: with the documents that answer it in the index, and as if they were not there.

    Example: tmkd calibrate workspace/runs/demo/export --index workspace/index --report calibration.html
    """
    set_quiet(quiet)
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
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    for sentence in found.sentences():
        say(sentence)
    say(f"written to {path}" + (f" and {report}" if report else ""))


def _questions(argument: str) -> Iterator[str]:
    if argument != "-":
        yield argument
        return
    yield from (line.strip() for line in sys.stdin if line.strip())


def show(answers: Answers) -> None:
    """Answers on the terminal: where each stands, its text with the best sentence in bold, its score."""
    from rich.padding import Padding
    from rich.text import Text

    if not answers.answers:
        tables.print(Text("no passage of the index has a word of this question"))
    elif not answers.answered:
        tables.print(Text("no passage answers this well; the nearest:", style="yellow"))
    for answer in answers.answers:
        headings = " > ".join(dict.fromkeys(one for one in (answer.title, *answer.heading_path) if one))
        head = Text(f"{answer.rank}. ", style="bold").append(headings or answer.source, style="bold cyan")
        tables.print(head)
        text = Text(answer.text)
        text.stylize("bold", *answer.marked)
        if answer.window is not None:
            start, stop = answer.window
            text.stylize("dim", 0, start)
            text.stylize("dim", stop, len(answer.text))
        tables.print(Padding(text, (0, 0, 0, 3)))
        read = f", read in part: characters {answer.window[0]:,} to {answer.window[1]:,}" if answer.window else ""
        place = f"{answer.source}  probability {answer.probability:.2f}, score {answer.score:+.2f}"
        tables.print(Padding(Text(f"{place}, {answer.retrieval_rank}. by BM25{read}", style="dim"), (0, 0, 1, 3)))
    times = answers.milliseconds
    say(
        f"{answers.candidates} passages in {times['total']:.0f} ms: "
        f"retrieve {times['retrieve']:.0f}, rank {times['rank']:.0f}, mark {times['mark']:.0f}"
    )
