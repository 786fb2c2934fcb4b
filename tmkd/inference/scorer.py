"""Score pairs with an exported student. Needs numpy, tokenizers and onnxruntime or openvino; never torch.

An export folder describes itself in tmkd.json: maximum length, classes, and one entry per back end with its file and
that file's SHA-256, which is checked on loading. Pairs are sorted by length and run in micro-batches of a fixed token
budget, so that little of the work is padding, as many at once as there are threads; results come back in the caller's
order.

    scorer = Scorer(Path("workspace/runs/demo/export"))
    scorer.scores(["how do I mount a disk?"], ["Use the mount command ..."])  # log-odds, float64

`auto` is the fastest back end that passed the parity gate and can run here. Another CPU may compute int8 or bf16 in
another way; so an export carries a few pairs with their fp32 logits (probes.json), and a back end that is further from
them here than it was when exported is not used: `auto` then warns and scores in fp32.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core import logits as of_logits
from tmkd.core.backends import KNOWN_BACKENDS, SAFE_BACKEND
from tmkd.core.cpu import usable_cores
from tmkd.core.errors import DataError, ExportError
from tmkd.core.files import sha256_of
from tmkd.core.logits import softmax
from tmkd.inference.engines import installed, open_engine
from tmkd.models.batching import NO_BUDGET, engine_batches, engine_shapes, length_sorted_batches, pad
from tmkd.models.tokenizer import Encoded, PairTokenizer

logger = logging.getLogger(__name__)

FORMAT = 1
PROBES = "probes.json"
TOKEN_BUDGET = 2048  # tokens of a micro-batch: activations stay in the cache
WINDOW = 16384  # pairs tokenized and sorted at once: bounds memory on long files

OnBatch = Callable[[int], None]


@dataclass(frozen=True)
class Manifest:
    """What tmkd.json of an export says."""

    folder: Path
    max_length: int
    classes: int
    labels: tuple[str, ...]
    backends: dict[str, dict[str, Any]]

    def has(self, backend: str) -> bool:
        """Whether the export holds this back end, passed by the gate."""
        return bool(self.backends.get(backend, {}).get("passed"))

    def speed(self, backend: str) -> float:
        """Pairs per second of a back end where the export was made; 0 where that is not known."""
        return float(self.backends[backend].get("pairs_per_second") or 0.0)


def read_manifest(folder: Path) -> Manifest:
    """Read and check tmkd.json of an export folder.

    Raises:
        ExportError: no such folder, no or a damaged tmkd.json, a model folder that was not exported, another format.
    """
    folder = Path(folder)
    path = folder / "tmkd.json"
    if not path.is_file():
        found = "has no tmkd.json" if folder.is_dir() else "is not a folder"
        raise ExportError(f"{folder} {found}; give an export, such as workspace/runs/demo/export")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ExportError(f"{path}: format {content.get('format')!r}, this version reads {FORMAT}; export again")
        if "backends" not in content:
            raise ExportError(f"{folder} is a model folder, not an export; make one of it with `tmkd export`")
        manifest = Manifest(
            folder=folder,
            max_length=int(content["max_length"]),
            classes=int(content["classes"]),
            labels=tuple(str(label) for label in content["labels"]),
            backends={str(name): dict(entry) for name, entry in content["backends"].items()},
        )
        for name, entry in manifest.backends.items():
            _ = manifest.speed(name), float(entry.get("probe_limit") or 0)
            if "\0" in str(entry.get("file")):
                raise ValueError(f"{name}: no file has such a name")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); export again") from error


class Scorer:
    """An exported student, ready to score. Safe to share between threads; a repeated call gives the same bits.

    Args:
        folder: an export folder, as `tmkd export` writes it.
        backend: `auto` (the fastest that can run here) or the name of one of the export's back ends.
        threads: micro-batches that run at once, each on one thread; all usable cores unless given.

    Attributes:
        classes: C. labels: their names. max_length: tokens of a pair. backend: the back end that was chosen.

    Raises:
        ExportError: no export, no such back end, a file that is missing or damaged, a back end asked for by name
            whose numbers differ on this machine. MissingExtraError: it needs a package that is not installed.
        EncoderError: the tokenizer is missing or damaged.
    """

    def __init__(self, folder: str | Path, *, backend: str = "auto", threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ExportError(f"threads is {threads}; use 1 or more")
        self.manifest = read_manifest(Path(folder))
        self.classes, self.labels = self.manifest.classes, self.manifest.labels
        self.max_length = self.manifest.max_length
        self.threads = threads or usable_cores()
        self.backend = _choose(self.manifest, backend)
        self._tokenizer = PairTokenizer(self.manifest.folder, self.max_length)
        path = _checked_file(self.manifest, self.backend)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="tmkd-score")
        problem = self._open(path)
        if problem and backend == "auto" and self.manifest.has(SAFE_BACKEND) and self.backend != SAFE_BACKEND:
            logger.warning(f"{problem}; scoring with {SAFE_BACKEND}, which is slower")
            self.backend = SAFE_BACKEND
            problem = self._open(_checked_file(self.manifest, SAFE_BACKEND))
        if problem:
            raise ExportError(problem)

    def _open(self, path: Path) -> str:
        """Open the chosen back end and compare it with the probes; what is wrong with it, or an empty text."""
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

        Args:
            on_batch: called with the number of pairs of every finished micro-batch.
            batch_size: pairs of a micro-batch; by their length unless given.

        Raises:
            DataError: the two sequences differ in length, or a text is not a string.
        """
        if len(questions) != len(passages):
            raise DataError(f"{len(questions)} questions but {len(passages)} passages; a pair has one of each")
        result = np.empty((len(questions), self.classes), dtype=np.float32)
        for start in range(0, len(questions), WINDOW):
            stop = min(start + WINDOW, len(questions))
            encoded = self._tokenizer.encode(questions[start:stop], passages[start:stop])
            batches = (
                engine_batches(encoded.lengths, TOKEN_BUDGET, self.threads)
                if batch_size is None
                else length_sorted_batches(encoded.lengths, NO_BUDGET, batch_size)
            )
            for rows, found in zip(batches, self._pool.map(partial(self._run, encoded), batches), strict=True):
                result[start + rows] = found
                if on_batch is not None:
                    on_batch(len(rows))
        return result

    def scores(
        self, questions: Sequence[str], passages: Sequence[str], on_batch: OnBatch | None = None
    ) -> NDArray[np.float64]:
        """Log-odds of class 1 of every pair, [N] float64, unsquashed: what to rank by. Two classes only."""
        return log_odds(self.logits(questions, passages, on_batch))

    def probabilities(
        self, questions: Sequence[str], passages: Sequence[str], on_batch: OnBatch | None = None
    ) -> NDArray[np.float64]:
        """Softmax of the logits, [N, C] float64."""
        return softmax(self.logits(questions, passages, on_batch))

    def warm_up(self, within: float = 20.0) -> None:
        """Run a micro-batch of every shape, in a second or two: later calls never wait for the engine to prepare one.

        For a process that serves; without it a question that brings new shapes takes up to a fifth longer, once.

        Args:
            within: seconds after which the shapes that are left stay as they are; a deep student would take minutes.
        """
        run = partial(self._run_shape, time.monotonic() + within)
        list(self._pool.map(run, engine_shapes(self.max_length, TOKEN_BUDGET)))

    def _run_shape(self, until: float, shape: tuple[int, int]) -> None:
        if time.monotonic() < until:
            ones = np.ones(shape, dtype=np.int64)
            self._engine({"input_ids": ones, "attention_mask": ones, "token_type_ids": np.zeros_like(ones)})

    def _run(self, encoded: Encoded, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        input_ids, mask, types = pad(encoded.ids, encoded.type_ids, rows, self._tokenizer.pad_id)
        return self._engine({"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types})


def read_probes(folder: Path, classes: int) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """The export's probes: questions, passages and their fp32 logits, [P, C] float32.

    Raises:
        ExportError: probes.json is missing or damaged.
    """
    path = folder / PROBES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        logits = np.array(content["logits"], dtype=np.float32)
        questions, passages = list(content["questions"]), list(content["passages"])
        if logits.shape != (len(questions), classes) or len(questions) != len(passages):
            raise ValueError(f"{len(questions)} questions, {len(passages)} passages, logits {logits.shape}")
    except FileNotFoundError as error:
        raise ExportError(f"{path} is missing; export again or copy it anew") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); export again") from error
    return questions, passages, logits


def log_odds(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log-odds of class 1 from logits [N, 2]: [N] float64. ExportError for another number of classes."""
    if logits.shape[-1] != 2:
        raise ExportError(
            f"this student has {logits.shape[-1]} classes; one score per pair exists for two classes only, "
            "use its logits or probabilities"
        )
    return of_logits.log_odds(logits)


def _choose(manifest: Manifest, backend: str) -> str:
    there = [name for name in manifest.backends if manifest.has(name)]
    if not there:
        raise ExportError(
            f"{manifest.folder} holds no back end: none passed the parity gate (see parity.json there); export again"
        )
    if backend == "auto":
        return _fastest(manifest, there)
    if backend not in KNOWN_BACKENDS:
        raise ExportError(
            f"back end {backend!r} is not known; this version runs {', '.join(KNOWN_BACKENDS)}, or `auto`"
        )
    if backend not in there:
        raise ExportError(f"{manifest.folder} holds no back end {backend!r}; it holds {', '.join(there)}")
    return backend


def _fastest(manifest: Manifest, there: list[str]) -> str:
    """The fastest, as measured when it was exported, of the back ends whose engine is installed."""
    known = [name for name in KNOWN_BACKENDS if name in there]
    ordered = sorted(known, key=manifest.speed, reverse=True)
    usable = [name for name in ordered if installed(name)]
    if not usable:
        raise ExportError(
            f"{manifest.folder} holds {', '.join(there)}; this version runs {', '.join(KNOWN_BACKENDS)}"
            + ("; run: pip install 'tmkd[fast]'" if known else "")
        )
    if usable[0] != ordered[0]:
        logger.info(f"scoring with {usable[0]}; {ordered[0]} is faster and needs: pip install 'tmkd[fast]'")
    return usable[0]


def _checked_file(manifest: Manifest, backend: str) -> Path:
    entry = manifest.backends[backend]
    path = manifest.folder / str(entry.get("file", ""))
    if manifest.folder.resolve() not in path.resolve().parents:
        raise ExportError(f"{manifest.folder}/tmkd.json: the file of {backend}, {entry.get('file')!r}, lies outside it")
    if not path.is_file():
        raise ExportError(f"{path} is missing; export again")
    found = sha256_of(path)
    if found != entry.get("sha256"):
        raise ExportError(
            f"{path} is damaged: its SHA-256 is {found}, tmkd.json says {entry.get('sha256')}; "
            "export again or copy it anew"
        )
    return path
