"""Score pairs with an exported student. Needs numpy, tokenizers and onnxruntime or openvino, and never torch.

There are two kinds of students, and a reader for each: `tmkd.inference.pair_reader` reads question and passage
together, `tmkd.inference.cached_reader` reads every text by itself and keeps what it has read.

`auto` is the fastest backend that passed the parity gate and can run here. Another CPU may compute int8 or bf16
differently, so an export carries a few pairs with their fp32 logits (probes.json). A backend that is further from them
here than it was when it was exported is not used: `auto` then warns and scores in fp32. What fp32 is allowed is much
more than machines differ by: it finds files that are not of one export.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.backends import SAFE_BACKEND
from tmkd.core.cpu import usable_cores
from tmkd.core.errors import ExportError, first_line
from tmkd.core.logits import log_odds, softmax
from tmkd.inference.cached_reader import CACHE_BYTES, CachedReader, StateCounts, StateSource
from tmkd.inference.manifest import PROBES, read_manifest, read_probes
from tmkd.inference.pair_reader import PairReader
from tmkd.inference.scored_pairs import OnBatch, ScoredPairs, require_lists
from tmkd.inference.text_encoder import TextEncoder
from tmkd.inference.threads import Threads

logger = logging.getLogger(__name__)

SAFE_LIMIT = 0.05
"""How far a logit of fp32 may be from that of the probes: this, and this share of the largest of them."""


class Scorer:
    """An exported student, ready to score. Threads may share it, and a repeated call gives the same bits.

    It may be used in a process that was forked later, with ONNX Runtime: its threads, which a fork loses, are started
    anew there. OpenVINO does not survive a fork; there it raises an error.

    Args:
        folder: An export, as `tmkd export` writes it.
        backend: `auto` for the fastest one that can run here, or the name of one of the export's backends.
        threads: Micro-batches that run at once, each on one thread; all usable cores unless given.
        cache_bytes: Most bytes of the cache of passages that a cached student has read; of no effect for others.

    Attributes:
        classes: Number of classes, C.
        labels: Their names.
        max_length: Tokens of a pair that the student reads, and of each of its two texts where it reads them apart;
            longer ones are cut.
        positive: Of two classes the one of the right passages.
        backend: The backend that was chosen.
        manifest: What the export says about itself.

    Raises:
        ValueError: `threads` is below 1, or `cache_bytes` below 0.
        ExportError: The folder is no export, it holds no such backend, a file of it is missing or damaged, or the
            backend that `backend` names gives other numbers on this machine.
        MissingExtraError: The backend needs a package that is not installed.
        EncoderError: The tokenizer is missing or damaged.

    Example:
        >>> scorer = Scorer("workspace/runs/demo/export")  # doctest: +SKIP
        >>> scorer.scores(["how do I mount a disk?"], ["Use the mount command."])  # doctest: +SKIP
        array([3.21])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: str = "auto",
        threads: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes is {cache_bytes}; it must be 0 or more")
        pool = Threads(usable_cores() if threads is None else threads)
        self.manifest = read_manifest(folder)
        self.classes, self.labels = self.manifest.classes, self.manifest.labels
        self.positive = self.manifest.positive
        self.max_length, self.threads = self.manifest.max_length, pool.count
        self.backend = self.manifest.choose(backend)
        self._threads, self._cache_bytes = pool, cache_bytes
        problem = self._open()
        if problem and backend == "auto" and self.manifest.has(SAFE_BACKEND) and self.backend != SAFE_BACKEND:
            logger.warning(f"{problem}; scoring with {SAFE_BACKEND}, which is slower")
            self.backend = SAFE_BACKEND
            problem = self._open()
        if problem:
            raise ExportError(problem)

    def _open(self) -> str:
        """Open the chosen backend and compare it with the probes; gives the problem in words, or an empty text."""
        self._reader = self._new_reader()
        try:
            self._reader.load()
        except ExportError as error:
            return str(error)
        try:
            self.logits(["question"], ["passage"])
        except Exception as error:  # the engines raise classes of their own
            reason = first_line(error)
            return f"{self._reader.path} does not run as a student of {self.classes} classes ({reason}); export again"
        return self._compared_with_probes()

    def _compared_with_probes(self) -> str:
        """What is wrong with the backend's logits of the probes, in words; an empty text where nothing is."""
        limit = self.manifest.backends[self.backend].get("probe_limit")
        safe = self.backend == SAFE_BACKEND
        if limit is None or (safe and not (self.manifest.folder / PROBES).is_file()):
            return ""
        questions, passages, wanted = read_probes(self.manifest.folder, self.classes)
        found, allowed = self.logits(questions, passages), float(limit)
        if safe:  # what all logits of a pair have in common means nothing
            found, wanted = (one - one.mean(axis=1, keepdims=True) for one in (found, wanted))
            allowed = max(allowed, SAFE_LIMIT * (1 + float(np.abs(wanted).max())))
        difference = float(np.abs(found - wanted).max())
        if difference <= allowed:
            return ""
        return (
            f"{self.backend} does not give this student's logits on this machine (they are off by {difference:.3f} on "
            f"the export's probes, at most {allowed:.3f} is allowed)"
            + ("; are all files, tokenizer.json too, those of one export? Copy it again" if safe else "")
        )

    def _new_reader(self) -> PairReader | CachedReader:
        if self.manifest.states is None:
            return PairReader(self.manifest, self.backend, self._threads)
        return CachedReader(self.manifest, self.backend, self._threads, self._cache_bytes)

    @property
    def text_encoder(self) -> TextEncoder | None:
        """What reads single texts; None for a student that reads question and passage together."""
        return self._reader.encoder if isinstance(self._reader, CachedReader) else None

    @property
    def state_counts(self) -> StateCounts | None:
        """Where the states of passages came from so far; None for a student that reads both texts together."""
        return self._reader.counts if isinstance(self._reader, CachedReader) else None

    @property
    def state_cache_bytes(self) -> int:
        """What the cache of states takes now; 0 for a student that reads both texts together."""
        return self._reader.cache.bytes if isinstance(self._reader, CachedReader) else 0

    def attach(self, store: StateSource) -> None:
        """Look the states of passages up in a store from now on; those that it lacks are cached or computed.

        Args:
            store: Has the states of some texts, such as `tmkd.inference.state_store.StateStore`. A store that was
                attached earlier is asked first.

        Raises:
            ExportError: The store is of another model, tokenizer or length, or this student uses no stored states.
        """
        if not isinstance(self._reader, CachedReader):
            raise ExportError(
                f"{self.manifest.folder} is a student that reads question and passage together; it uses no stored "
                "states. Give the export of a student of the kind `cached`"
            )
        self._reader.attach(store)

    def logits(
        self,
        questions: Sequence[str],
        passages: Sequence[str],
        on_batch: OnBatch | None = None,
        *,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Logits of every pair, [N, C] float32, in the caller's order.

        A student of two classes gives one number, the log-odds of the positive class; its logits are that number for
        this class and 0 for the other. Exports of an older version give two numbers, whose difference is the log-odds.

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
            In the caller's order. Pairs of the same tokens have the same logits, to the last bit; with a student that
            reads passages once, this holds within each 4,096 pairs of a call, beyond them up to the last digits.

        Raises:
            ValueError: As `logits`.
            DataError: As `logits`.
        """
        require_lists(questions, passages, batch_size)
        return self._reader.score(questions, passages, on_batch, batch_size)

    def scores(
        self, questions: Sequence[str], passages: Sequence[str], on_batch: OnBatch | None = None
    ) -> NDArray[np.float64]:
        """Raw scores of every pair, [N] float64: the log-odds of the positive class, which passages are ranked by.

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
        return log_odds(self.logits(questions, passages, on_batch), self.positive)

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
        until = time.monotonic() + within
        self._reader.warm_up(lambda: time.monotonic() < until)
