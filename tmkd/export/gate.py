"""The parity gate: every back end of an export is written, run as a user will run it, and kept only if it agrees.

A back end goes through the runtime (`Scorer`) on the development pairs and is compared with the student's headers in
PyTorch. Beside agreement the gate asks that a pair's logits hardly depend on the pairs beside it, and that a call can
be repeated bit for bit. Two back ends may run one file: it stays while one of them passed. Those that passed are timed
side by side, and the fastest is what `auto` means. Probes, a few pairs with their logits, let another machine check
itself.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.errors import ExportError, MissingExtraError
from tmkd.core.files import sha256_of, write_json
from tmkd.data.pairs import Pairs
from tmkd.evaluation.speed import measure
from tmkd.export.int8 import FLOAT_STEPS, write_int8
from tmkd.export.onnx import write_onnx
from tmkd.export.parity import CLOSE, EXACT, Agreement, Invariance, Limits, agreement, invariance, why_refused
from tmkd.inference.engines import installed
from tmkd.inference.scorer import PROBES, Scorer
from tmkd.models.tokenizer import PairTokenizer

logger = logging.getLogger(__name__)

PROBE_COUNT = 64
SPEED_PAIRS = 256  # development pairs that back ends are timed on

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """What back ends are written from.

    Attributes:
        model: a sequence-classification module with the folded head, fp32, in eval mode.
        folder: the export that is being made: config, tokenizer, later tmkd.json.
        tokenizer: the export's. calibration: pairs that int8 is calibrated on.
    """

    model: Any
    folder: Path
    tokenizer: PairTokenizer
    calibration: Pairs


@dataclass(frozen=True)
class Backend:
    """A form in which a student can be exported; two of them may share a file.

    Attributes:
        write: writes the file; its last argument counts the attempts that were refused.
        attempts: how many ways to write it there are, the fastest first.
    """

    file: str
    limits: Limits
    write: Callable[[Material, Path, int], None]
    attempts: int = 1


def _fp32(material: Material, path: Path, attempt: int) -> None:
    write_onnx(material.model, path)


def _int8(material: Material, path: Path, attempt: int) -> None:
    graph = material.folder / BACKENDS["onnx-fp32"].file
    if graph.is_file():
        return write_int8(graph, path, material.tokenizer, material.calibration, attempt)
    temporary = path.with_name("fp32.tmp.onnx")
    try:
        write_onnx(material.model, temporary)
        write_int8(temporary, path, material.tokenizer, material.calibration, attempt)
    finally:
        temporary.unlink(missing_ok=True)


BACKENDS = {  # fp32 first: the others are made from its file
    "onnx-fp32": Backend("onnx/model.onnx", EXACT, _fp32),
    "openvino-bf16": Backend("onnx/model.onnx", CLOSE, _fp32),
    "onnx-int8": Backend("onnx/model-int8.onnx", CLOSE, _int8, FLOAT_STEPS),
    "openvino-int8": Backend("onnx/model-int8.onnx", CLOSE, _int8, FLOAT_STEPS),
}


def writable() -> list[str]:
    """The back ends whose tools are installed here: the engine, and for int8 what quantises."""
    quantises = importlib.util.find_spec("nncf") is not None
    return [name for name in BACKENDS if installed(name) and (quantises or not name.endswith("-int8"))]


def gate(
    names: Iterable[str], material: Material, about: dict[str, Any], dev: Pairs, reference: Logits
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Write, run and judge back ends; the parity table, and the entries of tmkd.json for those that passed.

    Args:
        about: what tmkd.json says beside its back ends.
        reference: the PyTorch student's logits on `dev`, [N, C] float32.
    """
    probes = _probe_rows(dev)
    _write_probes(material.folder / PROBES, dev.take(probes), reference[probes])
    wanted = [name for name in BACKENDS if name in set(names)]

    def judged(name: str, attempt: int) -> _Trial:
        return _Trial(name, material, about, attempt).run(dev, reference, probes)

    found: list[_Trial] = []
    for file in dict.fromkeys(BACKENDS[name].file for name in wanted):
        sharing = [name for name in wanted if BACKENDS[name].file == file]
        found += _first_that_agrees(material.folder / file, sharing, judged)
    _time([trial for trial in found if trial.scorer is not None], dev)
    entries = {trial.name: trial.entry for trial in found if not trial.reason}
    kept = {entry["file"] for entry in entries.values()}
    for file in {BACKENDS[trial.name].file for trial in found} - kept:
        _delete(material.folder / file)
    return [trial.row() for trial in found], entries


def _first_that_agrees(path: Path, names: Sequence[str], judged: Callable[[str, int], _Trial]) -> list[_Trial]:
    """Back ends that share a file, judged on the first way of writing it that all of them pass, else on the last."""
    last = BACKENDS[names[0]].attempts - 1
    for attempt in range(last):
        trials = [judged(name, attempt) for name in names]
        refused = next((trial for trial in trials if trial.disagrees), None)
        if refused is None:
            return trials
        logger.info(f"export: {refused.name} is refused ({refused.reason}); again, with less of it in 8 bits")
        _delete(path)
    return [judged(name, last) for name in names]


class _Trial:
    """One back end before the gate."""

    def __init__(self, name: str, material: Material, about: dict[str, Any], attempt: int) -> None:
        self.name, self.material, self.about, self.attempt = name, material, about, attempt
        self.entry: dict[str, Any] = {}
        self.scorer: Scorer | None = None  # of a back end that passed
        self.size: int | None = None
        self.found, self.steady = Agreement(), Invariance()
        self.reason = ""
        self.disagrees = False  # it was written and run, and its logits are why it is refused

    def run(self, dev: Pairs, reference: Logits, probes: NDArray[np.int64]) -> _Trial:
        """Write the file unless another back end did, score, judge."""
        try:
            self._write()
            scorer = Scorer(self.material.folder, backend=self.name)
            logits = _scored(scorer, dev, self.name)
            self.found = agreement(reference, logits, dev.qids, dev.labels)
            few = dev.take(probes)
            self.steady = invariance(partial(_in_batches, scorer, few))
            limits = BACKENDS[self.name].limits
            self.reason = why_refused(self.found, self.steady, limits)
            self.disagrees = bool(self.reason)
        except (ExportError, MissingExtraError) as error:
            self.reason = str(error)
        if not self.reason:
            self.scorer = scorer
            # Another machine may round otherwise, by as much as other neighbours in a batch may change a logit; twice
            # the distance measured here leaves room for that and catches arithmetic that clips.
            apart = float(np.abs(logits[probes] - reference[probes]).max())
            self.entry["probe_limit"] = 2 * apart + limits.batch_difference
        return self

    def _write(self) -> None:
        backend = BACKENDS[self.name]
        path = self.material.folder / backend.file
        if not path.is_file():
            logger.info(f"export: writing {backend.file}")
            backend.write(self.material, path, self.attempt)
        self.size = path.stat().st_size
        self.entry = {"file": backend.file, "sha256": sha256_of(path), "passed": True}
        write_json(self.material.folder / "tmkd.json", {**self.about, "backends": {self.name: self.entry}})

    def row(self) -> dict[str, Any]:
        """Its line of the parity table."""
        return {
            "backend": self.name,
            "passed": not self.reason,
            **self.found.row(),
            **self.steady.row(),
            "pairs_per_second": self.entry.get("pairs_per_second"),
            "bytes": self.size,
            "reason": self.reason,
        }


def _in_batches(scorer: Scorer, pairs: Pairs, size: int | None) -> Logits:
    return scorer.logits(pairs.questions, pairs.passages, batch_size=size)


def _scored(scorer: Scorer, dev: Pairs, name: str) -> Logits:
    with progress(f"gate {name}", len(dev)) as bar:
        return scorer.logits(dev.questions, dev.passages, bar.advance)


def _time(trials: Sequence[_Trial], dev: Pairs) -> None:
    """Pairs per second of those that passed, tokenizing included, in interleaved rounds on the same rows."""
    some = dev.take(np.random.default_rng(0).permutation(len(dev))[:SPEED_PAIRS])
    scorers = {trial.name: trial.scorer.logits for trial in trials if trial.scorer is not None}
    speeds = measure(scorers, some.questions, some.passages, sizes=())
    for trial in trials:
        trial.entry["pairs_per_second"] = round(speeds[trial.name].pairs_per_second, 1)


def _probe_rows(dev: Pairs) -> NDArray[np.int64]:
    """Rows of the probes, of the shorter half of the pairs: they are run whenever an export is opened."""
    lengths = [len(question) + len(passage) for question, passage in zip(dev.questions, dev.passages, strict=True)]
    shorter = np.argsort(lengths, kind="stable")[: max(PROBE_COUNT, len(dev) // 2)]
    return np.sort(np.random.default_rng(0).permutation(shorter)[:PROBE_COUNT])


def _write_probes(path: Path, pairs: Pairs, logits: Logits) -> None:
    write_json(path, {"questions": pairs.questions, "passages": pairs.passages, "logits": logits.tolist()})


def _delete(path: Path) -> None:
    """Remove a back end's file, and its folder where nothing else lies in it."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
