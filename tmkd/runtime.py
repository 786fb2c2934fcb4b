"""Score pairs with an exported student. Needs numpy, tokenizers and onnxruntime; never torch.

An export folder describes itself in tmkd.json: maximum length, classes, and one entry per back end with its file and
that file's SHA-256, which is checked on loading. Pairs are sorted by length and run in micro-batches of a fixed token
budget, so that little of the work is padding; results come back in the caller's order.

    scorer = Scorer(Path("workspace/runs/demo/export"))
    scorer.scores(["how do I mount a disk?"], ["Use the mount command ..."])  # log-odds, float64
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tmkd.batching import length_sorted_batches, pad
from tmkd.errors import DataError, ExportError
from tmkd.files import sha256_of
from tmkd.tokenizer import Encoded, PairTokenizer

FORMAT = 1
KNOWN_BACKENDS = ("onnx-fp32",)  # the best first: `auto` takes the first of these that the export holds
TOKEN_BUDGET = 2048  # tokens of a micro-batch: activations stay in the cache (4096 is 8% slower on two cores)
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
    default: str | None


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
        return Manifest(
            folder=folder,
            max_length=int(content["max_length"]),
            classes=int(content["classes"]),
            labels=tuple(str(label) for label in content["labels"]),
            backends={str(name): dict(entry) for name, entry in content["backends"].items()},
            default=content.get("default"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); export again") from error


class Scorer:
    """An exported student, ready to score. Safe to share between threads.

    Args:
        folder: an export folder, as `tmkd export` writes it.
        backend: `auto` (the export's default) or the name of one of its back ends.
        threads: threads of one call; all usable cores unless given.

    Attributes:
        classes: C. labels: their names. max_length: tokens of a pair. backend: the back end that was chosen.

    Raises:
        ExportError: no export, no such back end, a file that is missing or damaged.
        EncoderError: the tokenizer is missing or damaged.
    """

    def __init__(self, folder: Path, *, backend: str = "auto", threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ExportError(f"threads is {threads}; use 1 or more")
        self.manifest = read_manifest(Path(folder))
        self.classes, self.labels = self.manifest.classes, self.manifest.labels
        self.max_length = self.manifest.max_length
        self.backend = _choose(self.manifest, backend)
        self.threads = threads or len(os.sched_getaffinity(0))
        self._tokenizer = PairTokenizer(self.manifest.folder, self.max_length)
        self._session = _open(_checked_file(self.manifest, self.backend), self.threads)
        self._inputs = tuple(value.name for value in self._session.get_inputs())

    def logits(
        self, questions: Sequence[str], passages: Sequence[str], on_batch: OnBatch | None = None
    ) -> NDArray[np.float32]:
        """Logits of every pair, [N, C] float32, in the caller's order.

        Args:
            on_batch: called with the number of pairs of every finished micro-batch.

        Raises:
            DataError: the two sequences differ in length, or a text is not a string.
        """
        if len(questions) != len(passages):
            raise DataError(f"{len(questions)} questions but {len(passages)} passages; a pair has one of each")
        result = np.empty((len(questions), self.classes), dtype=np.float32)
        for start in range(0, len(questions), WINDOW):
            stop = min(start + WINDOW, len(questions))
            encoded = self._tokenizer.encode(questions[start:stop], passages[start:stop])
            for rows in length_sorted_batches(encoded.lengths, TOKEN_BUDGET):
                result[start + rows] = self._run(encoded, rows)
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

    def _run(self, encoded: Encoded, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        input_ids, mask, types = pad(encoded.ids, encoded.type_ids, rows, self._tokenizer.pad_id)
        given = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
        output: NDArray[np.float32] = self._session.run(["logits"], {name: given[name] for name in self._inputs})[0]
        return output


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probabilities over the last axis, float64."""
    wide = np.asarray(logits, dtype=np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def log_odds(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log-odds of class 1 from logits [N, 2]: [N] float64. ExportError for another number of classes."""
    if logits.shape[-1] != 2:
        raise ExportError(
            f"this student has {logits.shape[-1]} classes; one score per pair exists for two classes only, "
            "use its logits or probabilities"
        )
    wide = np.asarray(logits, dtype=np.float64)
    result: NDArray[np.float64] = wide[:, 1] - wide[:, 0]
    return result


def _choose(manifest: Manifest, backend: str) -> str:
    there = [name for name, entry in manifest.backends.items() if entry.get("passed")]
    if not there:
        raise ExportError(
            f"{manifest.folder} holds no back end: none passed the parity gate (see parity.json there); export again"
        )
    if backend == "auto":
        if manifest.default in there:
            return manifest.default
        usable = [name for name in KNOWN_BACKENDS if name in there]
        if not usable:
            raise ExportError(
                f"{manifest.folder} holds {', '.join(there)}; this version runs {', '.join(KNOWN_BACKENDS)}"
            )
        return usable[0]
    if backend not in KNOWN_BACKENDS:
        raise ExportError(
            f"back end {backend!r} is not known; this version runs {', '.join(KNOWN_BACKENDS)}, or `auto`"
        )
    if backend not in there:
        raise ExportError(f"{manifest.folder} holds no back end {backend!r}; it holds {', '.join(there)}")
    return backend


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


def _open(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, without a common public base
        raise ExportError(f"{path} cannot be opened ({str(error).splitlines()[0]}); export again") from error
