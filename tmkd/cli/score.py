"""The command `score`: a file of pairs in, the same file with scores out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmkd.cli.options import PAIRS_HELP, Backend, Quiet, Threads


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
