"""The command line: which commands there are, and what happens on an error or a signal.

Commands are in the files beside this one. They import what they need when they run, so that `tmkd --help` is fast.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated, Any, TextIO

import typer

import tmkd
from tmkd.cli import evaluate, mine, serve, student, train, workspace
from tmkd.cli.bench import bench
from tmkd.cli.labels import labels
from tmkd.cli.options import Command, Sections
from tmkd.core.console import set_quiet
from tmkd.core.cpu import let_waiting_threads_sleep
from tmkd.core.errors import TmkdError
from tmkd.core.open_files import too_many

EPILOG = """\
\b
Exit status:
  0    done
  1    tmkd refused or failed; the message says why
  2    the command line is wrong
  130  interrupted by Ctrl-C; 143 by the signal TERM
"""
COMMANDS = {
    "Train": (mine.mine, train.run, train.teach, train.label, train.pretrain, train.distill, train.export),
    "Evaluate": (evaluate.evaluate, evaluate.overall, evaluate.study),
    "Use a student": (student.score, serve.serve, student.index, student.ask, student.calibrate),
    "Recipes and the workspace": (workspace.recipe, workspace.clean),
}
# Commands that keep their finished steps: the same command continues.
STEPWISE = frozenset(["run", "teach", "label", "pretrain", "distill", "export", "evaluate", "study", "mine"])

OUTPUT = "standard output"  # as messages name it
TOGETHER = frozenset(["run", "teach", "label", "pretrain", "distill", "export"])  # what torchrun may start

app = typer.Typer(
    cls=Sections,
    help="Compress slow question-answering models into a small fast one: two-stage multi-teacher distillation.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
)
for title, functions in COMMANDS.items():
    for function in functions:
        kind = serve.ServeCommand if function is serve.serve else Command
        app.command(cls=kind, rich_help_panel=title)(function)
app.add_typer(labels, name="labels", rich_help_panel="Labels of teachers")
app.add_typer(bench, name="bench", rich_help_panel="Benchmarks")


def _version(value: bool) -> None:
    if value:
        print(f"tmkd {tmkd.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Compress slow question-answering models into a small fast one."""


class _Interrupted(BaseException):
    """Ctrl-C or the signal TERM. Not KeyboardInterrupt, which the command-line library swallows."""


def _interrupt(number: int, frame: object) -> None:
    raise _Interrupted(number)


class _Closed(BaseException):
    """Who reads standard output has closed it. Not BrokenPipeError, for which the command-line library exits with 1."""


class _Output(io.FileIO):
    """Standard output, whose errors name it: what is written may fail for its own reasons, or for another file's."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            raise _Closed from None
        except OSError as error:
            error.filename = OUTPUT
            raise


def _named(stream: TextIO) -> TextIO:
    """Standard output again, as an `_Output`; the stream itself where it is no file, as the console of Windows is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # there is none, or a program has put something else in its place
    if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):
        return stream
    raw = _Output(stream.fileno(), "wb", closefd=False)
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )


def _drop_output() -> None:
    """Let what is left to write to standard output, at the end of the process too, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_to_the_end() -> None:
    """Run the command and write its last output; one that failed or was interrupted keeps its exit status."""
    try:
        app()
    except BaseException as done:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except (OSError, _Closed):
            if isinstance(done, SystemExit) and not done.code:
                raise
            _drop_output()
        raise


def _require_together() -> None:
    """Refuse a command that several processes of torchrun would carry out side by side, each for itself."""
    started = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if started and not set(sys.argv[1:2]) & TOGETHER:
        allowed = ", ".join(sorted(TOGETHER))
        raise TmkdError(f"torchrun with several processes is for {allowed}; start `tmkd {sys.argv[1]}` without it")


def main() -> None:
    """Run the command line. Errors end it with one message; `tmkd --help` lists the exit statuses."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where a terminal or a file has no such character
    before, sys.stdout = sys.stdout, _named(sys.stdout)
    set_quiet(False)
    let_waiting_threads_sleep()
    try:
        _require_together()
        _run_to_the_end()
    except TmkdError as error:
        print(f"tmkd: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except _Interrupted as stop:
        kept = "; finished work is kept, the same command continues" if set(sys.argv[1:2]) & STEPWISE else ""
        print(f"\ntmkd: interrupted{kept}", file=sys.stderr)
        raise SystemExit(128 + int(stop.args[0])) from None
    except _Closed:  # `tmkd score ... | head`
        _drop_output()
        raise SystemExit(0) from None
    except OSError as error:
        if error.filename == OUTPUT:
            _drop_output()
        place = error.filename or "the system"
        print(f"tmkd: {too_many(error, place) or f'{place}: {error.strerror or error}'}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        sys.stdout = before
