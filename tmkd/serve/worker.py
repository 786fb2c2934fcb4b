"""The scoring process: opens a model, reads jobs from stdin, writes scores to stdout, and ends when stdin ends.

It is a separate process so that tokenizing and scoring never block the server's event loop, and so that a crash of an
engine does not end the server. Two jobs run at once: while one is scored, the next is tokenized.

    python -m tmkd.serve.worker student FOLDER BACKEND THREADS
    python -m tmkd.serve.worker teacher FOLDER - THREADS
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import set_quiet
from tmkd.core.cpu import usable_cores
from tmkd.core.errors import ExportError, TmkdError, needs_extra
from tmkd.core.logits import log_odds
from tmkd.core.malloc import keep_freed_memory
from tmkd.models.tokenizer import PairTokenizer
from tmkd.serve.messages import Failed, Hello, Job, Scored, pack, read

AT_ONCE = 2


class _Model(Protocol):
    backend: str
    max_length: int
    classes: int
    labels: tuple[str, ...]
    threads: int

    def scores(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]: ...


class Teacher:
    """A model folder in PyTorch, which scores one job at a time."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        with needs_extra("train"):
            from tmkd.core.hardware import prepare
            from tmkd.models.card import read_card
            from tmkd.models.checkpoint import load_student

        prepare(threads)
        card = read_card(folder)
        self.backend, self.max_length, self.classes = "pytorch", card.max_length, card.classes
        self.labels = tuple(map(str, range(self.classes)))
        self.threads = threads or usable_cores()
        self._tokenizer, self._model = PairTokenizer(folder, self.max_length), load_student(folder)
        self._lock = threading.Lock()

    def scores(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds of class 1 of every pair, [N] float64."""
        from tmkd.models.predict import score

        encoded = self._tokenizer.encode(questions, passages)
        with self._lock:
            return log_odds(score(self._model, encoded, self._tokenizer.pad_id))


def open_model(kind: str, folder: Path, backend: str, threads: int | None) -> _Model:
    """Open the student's scorer, or a teacher.

    Args:
        kind: `student` for an export, `teacher` for a model folder.
        folder: The model.
        backend: As `Scorer` takes it; of no effect for a teacher.
        threads: As `Scorer` takes it.

    Raises:
        TmkdError: The model cannot be opened, or has other than two classes.
    """
    from tmkd.inference.scorer import Scorer

    model: _Model = Teacher(folder, threads) if kind == "teacher" else Scorer(folder, backend=backend, threads=threads)
    if model.classes != 2:
        raise ExportError(f"{folder} has {model.classes} classes; a server needs a model with two")
    if isinstance(model, Scorer):
        model.warm_up()
    return model


class Desk:
    """Scores jobs and writes their answers.

    Args:
        model: What scores.
        folder: Its folder, whose tokenizer counts the tokens of pairs that must not be cut.
        answers: Where the answers are written.
    """

    def __init__(self, model: _Model, folder: Path, answers: BinaryIO) -> None:
        self._model, self._folder, self._answers = model, folder, answers
        self._lock = threading.Lock()
        self._whole: PairTokenizer | None = None

    def answer(self, job: Job) -> None:
        """Score a job and write the result, or the error that it ended with."""
        try:
            message: Any = self._score(job)
        except Exception as error:
            message = Failed(job.number, f"{type(error).__name__}: {error}")
        self.write(message)

    def write(self, message: Any) -> None:
        """Write one message; messages of several threads never mix."""
        content = pack(message)
        with self._lock:
            self._answers.write(content)
            self._answers.flush()

    def _score(self, job: Job) -> Scored:
        start = time.perf_counter()
        questions = [query for query, texts, _ in job.groups for _ in texts]
        passages = [text for _, texts, _ in job.groups for text in texts]
        strict = np.array([not truncate for _, texts, truncate in job.groups for _ in texts], dtype=bool)
        too_long = self._too_long(questions, passages, strict) if strict.any() else []
        if too_long:
            refused = {row for row, _ in too_long}
            rows = [row for row in range(len(passages)) if row not in refused]
            scores = np.full(len(passages), np.nan)
            scores[rows] = self._model.scores([questions[row] for row in rows], [passages[row] for row in rows])
        else:
            scores = self._model.scores(questions, passages)
        return Scored(job.number, scores.tobytes(), too_long, time.perf_counter() - start)

    def _too_long(self, questions: list[str], passages: list[str], strict: NDArray[np.bool_]) -> list[tuple[int, int]]:
        with self._lock:
            if self._whole is None:
                self._whole = PairTokenizer(self._folder, 1 << 30)
        rows = np.flatnonzero(strict)
        lengths = self._whole.encode([questions[row] for row in rows], [passages[row] for row in rows]).lengths
        return [(int(row), int(n)) for row, n in zip(rows, lengths, strict=True) if n > self._model.max_length]


def main(kind: str, folder: str, backend: str, threads: str) -> None:
    """Score jobs until stdin ends. Arguments as on the command line above; `threads` 0 means all usable cores."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that what libraries print goes to stderr, and not between the messages
    jobs = os.fdopen(os.dup(0), "rb")
    set_quiet(False)
    keep_freed_memory()
    try:
        model = open_model(kind, Path(folder), backend, int(threads) or None)
    except TmkdError as error:
        answers.write(pack(Failed(-1, str(error))))
        answers.flush()
        raise SystemExit(1) from None
    desk = Desk(model, Path(folder), answers)
    desk.write(Hello(model.backend, model.max_length, model.classes, model.labels, model.threads))
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tmkd-job") as pool:
        while (job := read(jobs)) is not None:
            pool.submit(desk.answer, job)
        os._exit(0)  # the server is gone, so nobody waits for the jobs that still run


if __name__ == "__main__":
    main(*sys.argv[1:])
