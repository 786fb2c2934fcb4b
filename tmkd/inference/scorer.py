"""Score pairs with an exported student. Needs numpy, tokenizers and onnxruntime or openvino, and never torch.

Pairs are sorted by length and run in micro-batches that hold a fixed number of tokens, so that little of the work is
padding. As many micro-batches run at once as there are threads. Results come back in the caller's order. Pairs that the
student reads as the same tokens are scored once: in two micro-batches their scores would differ in the last digits, and
equal texts would be ranked by chance.

`auto` is the fastest backend that passed the parity gate and can run here. Another CPU may compute int8 or bf16
differently, so an export carries a few pairs with their fp32 logits (probes.json). A backend that is further from them
here than it was when it was exported is not used: `auto` then warns and scores in fp32.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.backends import SAFE_BACKEND
from tmkd.core.cpu import usable_cores
from tmkd.core.errors import ExportError
from tmkd.core.logits import log_odds, softmax, two_logits
from tmkd.inference.engines import open_engine
from tmkd.inference.manifest import read_manifest, read_probes
from tmkd.models.batching import NO_BUDGET, engine_batches, engine_shapes, length_sorted_batches, pad
from tmkd.models.tokenizer import Encoded, PairTokenizer

logger = logging.getLogger(__name__)

TOKEN_BUDGET = 2048  # tokens of a micro-batch: its activations stay in the CPU's cache
WINDOW = 16384  # pairs that are tokenized and sorted at once: bounds the memory that a long file takes

OnBatch = Callable[[int], None]
"""Called after each micro-batch, with its number of pairs."""


@dataclass(frozen=True)
class ScoredPairs:
    """What a student gives for N pairs.

    Attributes:
        logits: [N, C] float32.
        cut: Whether the pair has more tokens than the student reads, so that a part of it was not read, [N] bool.
        tokens: The tokens of each pair before it was cut, [N] int64.
    """

    logits: NDArray[np.float32]
    cut: NDArray[np.bool_]
    tokens: NDArray[np.int64]


class Scorer:
    """An exported student, ready to score. Threads may share it, and a repeated call gives the same bits.

    It may be used in a process that was forked later, with ONNX Runtime: its threads, which a fork loses, are started
    anew there. OpenVINO does not survive a fork; there it raises an error.

    Args:
        folder: An export, as `tmkd export` writes it.
        backend: `auto` for the fastest one that can run here, or the name of one of the export's backends.
        threads: Micro-batches that run at once, each on one thread; all usable cores unless given.

    Attributes:
        classes: Number of classes, C.
        labels: Their names.
        max_length: Tokens of a pair that the student reads; longer pairs are cut.
        backend: The backend that was chosen.

    Raises:
        ValueError: `threads` is below 1.
        ExportError: The folder is no export, it holds no such backend, a file of it is missing or damaged, or the
            backend that `backend` names gives other numbers on this machine.
        MissingExtraError: The backend needs a package that is not installed.
        EncoderError: The tokenizer is missing or damaged.

    Example:
        >>> scorer = Scorer("workspace/runs/demo/export")  # doctest: +SKIP
        >>> scorer.scores(["how do I mount a disk?"], ["Use the mount command."])  # doctest: +SKIP
        array([3.21])
    """

    def __init__(self, folder: str | Path, *, backend: str = "auto", threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; it must be 1 or more")
        self.manifest = read_manifest(folder)
        self.classes, self.labels = self.manifest.classes, self.manifest.labels
        self.max_length = self.manifest.max_length
        self.threads = threads or usable_cores()
        self.backend = self.manifest.choose(backend)
        self._tokenizer = PairTokenizer(self.manifest.folder, self.max_length)
        path = self.manifest.checked_file(self.backend)
        self._start_threads()
        _OPEN.add(self)
        problem = self._open(path)
        if problem and backend == "auto" and self.manifest.has(SAFE_BACKEND) and self.backend != SAFE_BACKEND:
            logger.warning(f"{problem}; scoring with {SAFE_BACKEND}, which is slower")
            self.backend = SAFE_BACKEND
            problem = self._open(self.manifest.checked_file(SAFE_BACKEND))
        if problem:
            raise ExportError(problem)

    def _start_threads(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="tmkd-score")

    def _open(self, path: Path) -> str:
        """Open the chosen backend and compare it with the probes; gives the problem in words, or an empty text."""
        try:
            self._engine = open_engine(self.backend, path, self.threads)
        except ExportError as error:
            return str(error)
        try:
            self.logits(["question"], ["passage"])
        except Exception as error:  # the engines raise classes of their own
            reason = str(error).strip().splitlines()[0]
            return f"{path} does not run as a student of {self.classes} classes ({reason}); export again"
        limit = self.manifest.backends[self.backend].get("probe_limit")
        if limit is None or self.backend == SAFE_BACKEND:
            return ""
        questions, passages, wanted = read_probes(self.manifest.folder, self.classes)
        difference = float(np.abs(self.logits(questions, passages) - wanted).max())
        if difference <= float(limit):
            return ""
        return (
            f"{self.backend} does not give this student's logits on this machine (they are off by {difference:.3f} on "
            f"the export's probes, at most {float(limit):.3f} is allowed)"
        )

    def logits(
        self,
        questions: Sequence[str],
        passages: Sequence[str],
        on_batch: OnBatch | None = None,
        *,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Logits of every pair, [N, C] float32, in the caller's order.

        A student of two classes gives one number, the log-odds; its logits are 0 and that number. Exports of an older
        version give two numbers, whose difference is the log-odds.

        Args:
            questions: The question of each pair, N texts.
            passages: The passage of each pair, N texts.
            on_batch: Called with the number of pairs of every finished micro-batch.
            batch_size: Pairs of a micro-batch; unless given it depends on their lengths.

        Raises:
            ValueError: The two lists differ in length, one of them is a single text, or `batch_size` is below 1.
            DataError: A text is not a string of valid characters.
            ExportError: This process was forked from one that had opened OpenVINO (see `engines.require_no_fork`).
        """
        return self.score_pairs(questions, passages, on_batch, batch_size=batch_size).logits

    def score_pairs(
        self,
        questions: Sequence[str],
        passages: Sequence[str],
        on_batch: OnBatch | None = None,
        *,
        batch_size: int | None = None,
    ) -> ScoredPairs:
        """Logits of every pair, and which pairs are longer than the student reads.

        Args:
            questions: The question of each pair, N texts.
            passages: The passage of each pair, N texts.
            on_batch: Called with the number of pairs of every finished micro-batch.
            batch_size: Pairs of a micro-batch; unless given it depends on their lengths.

        Returns:
            In the caller's order. Pairs of the same tokens have the same logits, to the last bit.

        Raises:
            ValueError: As `logits`.
            DataError: As `logits`.
        """
        _require_lists(questions, passages)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
        result = np.empty((len(questions), self.classes), dtype=np.float32)
        tokens = np.empty(len(questions), dtype=np.int64)
        first: dict[bytes, int] = {}  # the first pair of the same tokens
        for start in range(0, len(questions), WINDOW):
            stop = min(start + WINDOW, len(questions))
            encoded, tokens[start:stop] = self._tokenizer.encode_counted(
                questions[start:stop], passages[start:stop], start
            )
            same = np.array([first.setdefault(key, row) for row, key in enumerate(_keys(encoded), start)])
            new = np.flatnonzero(same == np.arange(start, stop))
            here = same[same >= start] - start  # the others were scored in an earlier window
            count = np.bincount(here, minlength=stop - start)
            batches = (
                engine_batches(encoded.lengths[new], TOKEN_BUDGET, self.threads)
                if batch_size is None
                else length_sorted_batches(encoded.lengths[new], NO_BUDGET, batch_size)
            )
            rows_of = [new[batch] for batch in batches]
            for rows, found in zip(rows_of, self._pool.map(partial(self._run, encoded), rows_of), strict=True):
                result[start + rows] = found
                if on_batch is not None:
                    on_batch(int(count[rows].sum()))
            result[start:stop] = result[same]
            if on_batch is not None and len(here) < len(same):
                on_batch(len(same) - len(here))
        return ScoredPairs(result, tokens > self.max_length, tokens)

    def scores(
        self, questions: Sequence[str], passages: Sequence[str], on_batch: OnBatch | None = None
    ) -> NDArray[np.float64]:
        """Raw scores of every pair, [N] float64: the log-odds of class 1, which passages are ranked by.

        Args:
            questions: The question of each pair, N texts.
            passages: The passage of each pair, N texts.
            on_batch: Called with the number of pairs of every finished micro-batch.

        Raises:
            ExportError: The student has other than two classes.
            ValueError: As `logits`.
            DataError: As `logits`.
        """
        if self.classes != 2:
            raise ExportError(
                f"this student has {self.classes} classes; one score for each pair exists for two classes only, "
                "use its logits or probabilities"
            )
        return log_odds(self.logits(questions, passages, on_batch))

    def probabilities(
        self, questions: Sequence[str], passages: Sequence[str], on_batch: OnBatch | None = None
    ) -> NDArray[np.float64]:
        """Probabilities of the classes of every pair, [N, C] float64: the softmax of the logits.

        Args:
            questions: The question of each pair, N texts.
            passages: The passage of each pair, N texts.
            on_batch: Called with the number of pairs of every finished micro-batch.

        Raises:
            ValueError: As `logits`.
            DataError: As `logits`.
        """
        return softmax(self.logits(questions, passages, on_batch))

    def warm_up(self, within: float = 20.0) -> None:
        """Run one micro-batch of every shape, so that no later call waits while the engine prepares one.

        It takes a second or two and is for a process that serves: without it, the first question that brings new shapes
        takes up to a fifth longer.

        Args:
            within: Seconds after which the remaining shapes are skipped; those of a deep student take minutes.
        """
        run = partial(self._run_shape, time.monotonic() + within)
        list(self._pool.map(run, engine_shapes(self.max_length, TOKEN_BUDGET)))

    def _run_shape(self, until: float, shape: tuple[int, int]) -> None:
        if time.monotonic() < until:
            ones = np.ones(shape, dtype=np.int64)
            self._engine({"input_ids": ones, "attention_mask": ones, "token_type_ids": np.zeros_like(ones)})

    def _run(self, encoded: Encoded, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        input_ids, mask, types = pad(encoded.ids, encoded.type_ids, rows, self._tokenizer.pad_id)
        found = self._engine({"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types})
        if found.shape != (len(rows), self.manifest.outputs):  # numpy would repeat a single column without a word
            raise ExportError(f"the graph gives {list(found.shape)} logits for {len(rows)} pairs; export again")
        return two_logits(found[:, 0]) if self.manifest.outputs == 1 else found


_OPEN: weakref.WeakSet[Scorer] = weakref.WeakSet()


def _after_fork() -> None:
    """Start the threads of all scorers in a forked process: it has none, and a call would wait for them for ever."""
    for scorer in list(_OPEN):
        scorer._start_threads()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _keys(encoded: Encoded) -> Iterator[bytes]:
    """A key for the tokens of each pair."""
    for ids, types in zip(encoded.ids, encoded.type_ids, strict=True):
        yield hashlib.blake2b(ids.tobytes() + types.tobytes(), digest_size=16).digest()


def _require_lists(questions: Sequence[str], passages: Sequence[str]) -> None:
    """Refuse arguments that are no two lists of one length."""
    for name, texts in (("questions", questions), ("passages", passages)):
        if isinstance(texts, str | bytes):
            raise ValueError(f"{name} is a single text; give a list with one text for each pair")
    if len(questions) != len(passages):
        raise ValueError(f"{len(questions)} questions but {len(passages)} passages; a pair has one of each")
