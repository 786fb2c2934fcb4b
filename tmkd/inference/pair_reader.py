"""Score pairs with an exported student that reads question and passage together.

Pairs are sorted by length and run in micro-batches that hold a fixed number of tokens, so that little of the work is
padding. As many micro-batches run at once as there are threads. Results come back in the caller's order. Pairs that the
student reads as the same tokens are scored once: in two micro-batches their scores would differ in the last digits, and
equal texts would be ranked by chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.inference.engines import open_engine, token_batch
from tmkd.inference.manifest import Manifest
from tmkd.inference.scored_pairs import OnBatch, ScoredPairs, logits_of
from tmkd.inference.threads import Threads
from tmkd.models.batching import NO_BUDGET, engine_batches, engine_shapes, length_sorted_batches, pad
from tmkd.models.tokenizer import Encoded, PairTokenizer

TOKEN_BUDGET = 2048  # tokens of a micro-batch: its activations stay in the CPU's cache
WINDOW = 16384  # pairs that are tokenized and sorted at once: bounds the memory that a long file takes


class PairReader:
    """An exported student that reads question and passage together, with one of its backends.

    Args:
        manifest: Of the export.
        backend: One of its backends.
        threads: What runs the micro-batches.

    Attributes:
        path: The graph.

    Raises:
        ExportError: The graph is missing or damaged, or the tokenizer is not the one that was exported.
        EncoderError: The tokenizer is missing or damaged.
    """

    def __init__(self, manifest: Manifest, backend: str, threads: Threads) -> None:
        self._manifest, self._backend, self._threads = manifest, backend, threads
        manifest.require_tokenizers()
        self._tokenizer = PairTokenizer(manifest.folder, manifest.max_length)
        self.path: Path = manifest.checked_file(backend)

    def load(self) -> None:
        """Open the graph.

        Raises:
            ExportError: It cannot be opened.
            MissingExtraError: The backend needs a package that is not installed.
        """
        self._engine = open_engine(self._backend, self.path, self._threads.count)

    def score(
        self, questions: Sequence[str], passages: Sequence[str], on_batch: OnBatch | None, batch_size: int | None
    ) -> ScoredPairs:
        """See `Scorer.score_pairs`; the arguments are checked."""
        result = np.empty((len(questions), self._manifest.classes), dtype=np.float32)
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
                engine_batches(encoded.lengths[new], TOKEN_BUDGET, self._threads.count)
                if batch_size is None
                else length_sorted_batches(encoded.lengths[new], NO_BUDGET, batch_size)
            )
            rows_of = [new[batch] for batch in batches]
            for rows, found in zip(rows_of, self._threads.map(partial(self._run, encoded), rows_of), strict=True):
                result[start + rows] = found
                if on_batch is not None:
                    on_batch(int(count[rows].sum()))
            result[start:stop] = result[same]
            if on_batch is not None and len(here) < len(same):
                on_batch(len(same) - len(here))
        return ScoredPairs(result, tokens > self._manifest.max_length, tokens)

    def warm_up(self, still: Callable[[], bool]) -> None:
        """Run one micro-batch of every shape.

        Args:
            still: Whether there is time left.
        """
        shapes = engine_shapes(self._manifest.max_length, TOKEN_BUDGET)
        list(self._threads.map(lambda shape: self._run_shape(shape) if still() else None, shapes))

    def _run_shape(self, shape: tuple[int, int]) -> None:
        self._engine(token_batch(*shape))

    def _run(self, encoded: Encoded, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        input_ids, mask, types = pad(encoded.ids, encoded.type_ids, rows, self._tokenizer.pad_id)
        found = self._engine({"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types})
        return logits_of(self._manifest, found, len(rows))


def _keys(encoded: Encoded) -> Iterator[bytes]:
    """A key for the tokens of each pair."""
    for ids, types in zip(encoded.ids, encoded.type_ids, strict=True):
        yield hashlib.blake2b(ids.tobytes() + types.tobytes(), digest_size=16).digest()
