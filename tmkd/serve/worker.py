"""The scoring process: opens a model, reads jobs from stdin, writes scores to stdout, and ends when stdin ends.

It is a separate process so that tokenizing and scoring never block the server's event loop, and so that a crash of an
engine does not end the server. Two jobs run at once: while one is scored, the next is tokenized.

    python -m tmkd.serve.worker student FOLDER BACKEND THREADS [CACHE [INDEX]]
    python -m tmkd.serve.worker teacher FOLDER - THREADS 0 "" POSITIVE

CACHE is the room for states of passages, in bytes; INDEX an index whose stored states are used. Both are for students
of the kind `cached`. POSITIVE is the class of the right passages.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from tmkd.core.console import set_quiet
from tmkd.core.cpu import usable_cores
from tmkd.core.errors import ExportError, TmkdError, needs_extra
from tmkd.core.files import sha256_of
from tmkd.core.logits import log_odds
from tmkd.core.malloc import keep_freed_memory
from tmkd.inference.qa.calibration import FILE as CALIBRATION
from tmkd.inference.scored_pairs import ScoredPairs
from tmkd.inference.scorer import Scorer
from tmkd.serve.index_states import IndexStates
from tmkd.serve.messages import Failed, Hello, Job, Scored, pack, read

AT_ONCE = 2


class _Model(Protocol):
    backend: str
    max_length: int
    classes: int
    labels: tuple[str, ...]
    positive: int
    threads: int

    def score_pairs(self, questions: Sequence[str], passages: Sequence[str]) -> ScoredPairs: ...


class Teacher:
    """A model folder in PyTorch, which scores one job at a time."""

    def __init__(self, folder: Path, threads: int | None, positive: int = 1) -> None:
        with needs_extra("train"):
            from tmkd.core.hardware import prepare
            from tmkd.teachers.encoder import EncoderTeacher

        prepare(threads)
        teacher = EncoderTeacher(folder)
        self.backend, self.max_length, self.classes = "pytorch", teacher.max_length, teacher.classes
        self.labels = tuple(map(str, range(self.classes)))
        self.positive, self.threads = positive, threads or usable_cores()
        self._tokenizer, self._model = teacher.tokenizer, teacher.model
        self._lock = threading.Lock()

    def score_pairs(self, questions: Sequence[str], passages: Sequence[str]) -> ScoredPairs:
        """As `Scorer.score_pairs`."""
        from tmkd.models.inputs import TokenInputs
        from tmkd.models.predict import score

        encoded, tokens = self._tokenizer.encode_counted(questions, passages)
        with self._lock:
            logits = score(self._model, TokenInputs(encoded, self._tokenizer.pad_id))
        return ScoredPairs(logits, tokens > self.max_length, tokens)


def open_model(
    kind: str, folder: Path, backend: str, threads: int | None, cache_bytes: int = 0, positive: int = 1
) -> _Model:
    """Open the student's scorer, or a teacher.

    Args:
        kind: `student` for an export, `teacher` for a model folder.
        folder: The model.
        backend: As `Scorer` takes it; of no effect for a teacher.
        threads: As `Scorer` takes it.
        cache_bytes: As `Scorer` takes it.
        positive: For a teacher: of its two classes the one of the right passages. An export says it itself.

    Raises:
        TmkdError: The model cannot be opened, or has other than two classes.
    """
    model: _Model
    if kind == "teacher":
        model = Teacher(folder, threads, positive)
    else:
        model = Scorer(folder, backend=backend, threads=threads, cache_bytes=cache_bytes)
    if model.classes != 2:
        raise ExportError(f"{folder} has {model.classes} classes; a server needs a model with two")
    if isinstance(model, Scorer):
        model.warm_up()
    return model


class Desk:
    """Scores jobs and writes their answers.

    Args:
        model: What scores.
        answers: Where the answers are written.
        states: The stored states of an index, which are looked at before each job.
    """

    def __init__(self, model: _Model, answers: BinaryIO, states: IndexStates | None = None) -> None:
        self._model, self._answers, self._states = model, answers, states
        self._lock = threading.Lock()
        self._said = self._counts()

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
        if self._states is not None:
            self._states.look()
        self._remember(job)
        questions = [group.query for group in job.groups for _ in group.texts]
        passages = [text for group in job.groups for text in group.texts]
        strict = np.array([not group.truncate for group in job.groups for _ in group.texts], dtype=bool)
        found = self._model.score_pairs(questions, passages)
        too_long = [(int(row), int(found.tokens[row])) for row in np.flatnonzero(found.cut & strict)]
        scores, tokens = log_odds(found.logits, self._model.positive).astype(np.float64), found.tokens.astype(np.int64)
        seconds, held = time.perf_counter() - start, getattr(self._model, "state_cache_bytes", 0)
        return Scored(job.number, scores.tobytes(), tokens.tobytes(), too_long, seconds, self._counted(), held)

    def _remember(self, job: Job) -> None:
        """Take over the questions that the server has read."""
        encoder = self._model.text_encoder if isinstance(self._model, Scorer) else None
        for group in job.groups:
            if encoder is not None and group.read is not None:
                encoder.remember(group.query, group.read)

    def _counts(self) -> tuple[int, int, int]:
        """Where states came from until now: the store, the cache, computed."""
        counts = self._model.state_counts if isinstance(self._model, Scorer) else None
        return (0, 0, 0) if counts is None else (counts.stored, counts.cached, counts.computed)

    def _counted(self) -> tuple[int, int, int]:
        """As `_counts`, since the last message. Of two jobs at once each tells some of both; no count is lost."""
        with self._lock:
            said, self._said = self._said, self._counts()
            return (self._said[0] - said[0], self._said[1] - said[1], self._said[2] - said[2])


def folder_digest(folder: Path) -> str:
    """A name for the model in a folder, which changes with its weights and its tokenizer.

    Its calibration does not count: `tmkd calibrate` may write it while the model is served.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors") and path.name != CALIBRATION:  # tmkd.json has the ONNX files' own
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def holds(folder: Path, digest: str) -> bool:
    """Whether a folder still holds the model of a digest; not while it is being replaced, or is gone."""
    try:
        return folder_digest(folder) == digest
    except OSError:
        return False


def open_named(folder: Path, opening: Callable[[], _Model]) -> tuple[_Model, str]:
    """Open a model, and give the digest of what was opened.

    Args:
        folder: The model.
        opening: Opens it, which takes seconds.

    Raises:
        ExportError: The folder was replaced meanwhile.
        TmkdError: As `opening`.
    """
    try:
        digest = folder_digest(folder)
    except OSError:
        digest = ""  # `opening` says what is wrong, unless the folder comes meanwhile
    model = opening()
    if not holds(folder, digest):
        raise ExportError(f"{folder} was replaced while it was opened; try again when all of its files are there")
    return model, digest


def main(
    kind: str, folder: str, backend: str, threads: str, cache: str = "0", index: str = "", positive: str = "1"
) -> None:
    """Score jobs until stdin ends. Arguments as on the command line above; `threads` 0 means all usable cores."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that what libraries print goes to stderr, and not between the messages
    jobs = os.fdopen(os.dup(0), "rb")
    set_quiet(False)
    keep_freed_memory()
    try:
        opening = partial(open_model, kind, Path(folder), backend, int(threads) or None, int(cache), int(positive))
        model, digest = open_named(Path(folder), opening)
    except TmkdError as error:
        answers.write(pack(Failed(-1, str(error))))
        answers.flush()
        raise SystemExit(1) from None
    apart = isinstance(model, Scorer) and model.text_encoder is not None
    states = IndexStates(model, Path(index)) if isinstance(model, Scorer) and apart and index else None
    desk = Desk(model, answers, states)
    about = (model.backend, model.max_length, model.classes, model.labels, model.threads)
    problem = "" if states is None else states.problem
    desk.write(Hello(*about, digest=digest, apart=apart, problem=problem))
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tmkd-job") as pool:
        while (job := read(jobs)) is not None:
            pool.submit(desk.answer, job)
        os._exit(0)  # the server is gone, so nobody waits for the jobs that still run


if __name__ == "__main__":
    main(*sys.argv[1:])
