"""The parity gate: every backend of an export is written, run as users run it, and kept only if it agrees.

A backend scores the development pairs through the runtime (`Scorer`), and its logits are compared with those of the
student in PyTorch. The gate also requires that a pair's logits hardly depend on the other pairs of the batch, and that
the same call gives the same bits. Two backends may run the same file; it is kept if one of them passes. The backends
that pass are timed side by side; `auto` chooses the fastest. An export also carries probes: a few pairs with their
logits, with which another machine checks that it computes the same.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.core.backends import SAFE_BACKEND
from tmkd.core.console import progress
from tmkd.core.errors import ExportError, MissingExtraError
from tmkd.core.files import sha256_of, write_json
from tmkd.data.pairs import Pairs
from tmkd.evaluation.speed import measure_speed
from tmkd.export.int8 import FLOAT_STEPS, write_int8
from tmkd.export.onnx import write_onnx
from tmkd.export.parity import CLOSE, EXACT, Invariance, Limits, Parity, measure_invariance, measure_parity, why_refused
from tmkd.inference.engines import installed
from tmkd.inference.manifest import PROBES, positive_of
from tmkd.inference.scorer import Scorer
from tmkd.models.tokenizer import PairTokenizer

logger = logging.getLogger(__name__)

PROBE_COUNT = 64
SPEED_PAIRS = 256  # development pairs that backends are timed on

Logits = NDArray[np.float32]


class Source(Protocol):
    """What backends are written from, and what one kind of student is checked for beyond its logits."""

    @property
    def folder(self) -> Path:
        """The export that is being made."""

    def probe_numbers(self, probes: Pairs) -> dict[str, Any]:
        """Further numbers of the probes for probes.json, a list with one for each pair by name."""

    def examine(
        self, scorer: Scorer, pairs: Pairs, logits: Logits, probes: NDArray[np.int64]
    ) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Check a backend further.

        Args:
            scorer: The backend.
            pairs: The development pairs.
            logits: Its logits on them, [N, C].
            probes: Indices of the probes among them.

        Returns:
            Numbers for its row of the parity table, further content of its entry in tmkd.json, and why it is refused;
            an empty text where it is not.
        """

    def from_states_of_others(self, names: Sequence[str], pairs: Pairs) -> dict[str, dict[str, Logits]]:
        """The logits of each backend from the stored states that each other one computes, [n, C].

        Args:
            names: The backends that are written.
            pairs: Some of the development pairs.

        Returns:
            By the backend that scores, by the one that computed the states; empty where nothing is stored.
        """


@dataclass(frozen=True)
class ExportSource:
    """What backends of a student that reads question and passage together are written from.

    Attributes:
        model: a sequence-classification module with the folded head, float32, in evaluation mode.
        folder: the export that is being made; it holds config.json and the tokenizer.
        tokenizer: of the export.
        calibration: the pairs that int8 is calibrated on; it may be empty.
    """

    model: Any
    folder: Path
    tokenizer: PairTokenizer
    calibration: Pairs

    def probe_numbers(self, probes: Pairs) -> dict[str, Any]:
        """See `Source`: none."""
        return {}

    def examine(
        self, scorer: Scorer, pairs: Pairs, logits: Logits, probes: NDArray[np.int64]
    ) -> tuple[dict[str, Any], dict[str, Any], str]:
        """See `Source`: nothing."""
        return {}, {}, ""

    def from_states_of_others(self, names: Sequence[str], pairs: Pairs) -> dict[str, dict[str, Logits]]:
        """See `Source`: nothing is stored."""
        return {}


@dataclass(frozen=True)
class Backend:
    """A form in which a student can be exported.

    Attributes:
        file: its file, relative to the export; two backends may share one.
        limits: what the gate requires of it.
        write: writes the file; its last argument says how many attempts were refused before, 0 if there is one way.
        attempts: how many ways to write the file there are, the fastest first.
        encoders: of a cached student the file of its encoder in each way; then `file` is that of its interaction.
        question: of a cached student the file of its encoder of questions; empty where it has none of its own.
    """

    file: str
    limits: Limits
    write: Callable[[Any, Path, int], None]
    attempts: int = 1
    encoders: tuple[str, ...] = ()
    question: str = ""

    def files(self, attempt: int) -> tuple[str, ...]:
        """Its files in one of the ways, relative to the export."""
        asking = (self.question,) if self.question else ()
        return (self.encoders[attempt], self.file, *asking) if self.encoders else (self.file,)

    def entry(self, folder: Path, attempt: int) -> dict[str, Any]:
        """What tmkd.json says of its files."""
        said = [{"file": file, "sha256": sha256_of(folder / file)} for file in self.files(attempt)]
        parts = ("encoder", "interaction", "question")[: len(said)]
        return {"files": dict(zip(parts, said, strict=True))} if self.encoders else said[0]


def _fp32(source: ExportSource, path: Path, attempt: int) -> None:
    write_onnx(source.model, path)


def _int8(source: ExportSource, path: Path, attempt: int) -> None:
    graph = source.folder / BACKENDS["onnx-fp32"].file
    if graph.is_file():
        return write_int8(graph, path, source.tokenizer, source.calibration, attempt)
    temporary = path.with_name("fp32.tmp.onnx")
    try:
        write_onnx(source.model, temporary)
        write_int8(temporary, path, source.tokenizer, source.calibration, attempt)
    finally:
        temporary.unlink(missing_ok=True)


BACKENDS = {  # onnx-fp32 comes first: int8 is made from its file
    "onnx-fp32": Backend("onnx/model.onnx", EXACT, _fp32),
    "openvino-bf16": Backend("onnx/model.onnx", CLOSE, _fp32),
    "onnx-int8": Backend("onnx/model-int8.onnx", CLOSE, _int8, FLOAT_STEPS),
    "openvino-int8": Backend("onnx/model-int8.onnx", CLOSE, _int8, FLOAT_STEPS),
}


def writable() -> list[str]:
    """Return the backends whose tools are installed: the engine and, for int8, NNCF."""
    quantises = importlib.util.find_spec("nncf") is not None
    return [name for name in BACKENDS if installed(name) and (quantises or not name.endswith("-int8"))]


def gate(
    names: Iterable[str],
    source: Source,
    about: dict[str, Any],
    dev: Pairs,
    reference: Logits,
    backends: Mapping[str, Backend] = BACKENDS,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Write, run and check backends, and remove the files of those that do not pass.

    Args:
        names: the backends, out of `backends`.
        source: what they are written from.
        about: the content of tmkd.json without its backends.
        dev: N pairs, labelled or not.
        reference: the PyTorch student's logits on `dev`, [N, C] float32.
        backends: those that this kind of student has.

    Returns:
        The rows of the parity table, and the entries of tmkd.json for the backends that passed.
    """
    probes = _probe_rows(dev)
    few = dev.take(probes)
    _write_probes(source.folder / PROBES, few, reference[probes], source.probe_numbers(few))
    wanted = [name for name in backends if name in set(names)]

    def try_backend(name: str, attempt: int) -> _Trial:
        return _Trial(name, backends[name], source, about, attempt).run(dev, reference, probes)

    found: list[_Trial] = []
    for file in dict.fromkeys(backends[name].file for name in wanted):
        sharing = [name for name in wanted if backends[name].file == file]
        found += _first_that_agrees(source.folder / file, sharing, backends[sharing[0]].attempts, try_backend)
    passed = [trial for trial in found if trial.scorer is not None]
    if len(passed) > 1:
        write_json(source.folder / "tmkd.json", {**about, "backends": {trial.name: trial.entry for trial in passed}})
        from_others = source.from_states_of_others([trial.name for trial in passed], few)
        refuse_states_of_others({trial.name: trial for trial in passed}, from_others, reference[probes])
    _time([trial for trial in found if trial.scorer is not None], dev)
    entries = {trial.name: trial.entry for trial in found if not trial.reason}
    kept = {file for trial in found if not trial.reason for file in trial.backend.files(trial.attempt)}
    written = {file for name in wanted for way in range(backends[name].attempts) for file in backends[name].files(way)}
    for file in written - kept:
        _delete(source.folder / file)
    return [trial.row() for trial in found], entries


def _first_that_agrees(
    path: Path, names: Sequence[str], attempts: int, try_backend: Callable[[str, int], _Trial]
) -> list[_Trial]:
    """Try the ways to write a file until all backends that share it pass; else return the trials of the last way."""
    for attempt in range(attempts - 1):
        trials = list[_Trial]()
        for trial in (try_backend(name, attempt) for name in reversed(names)):  # OpenVINO first: its trials are faster
            trials.append(trial)
            if trial.disagrees:
                break
        else:
            return trials[::-1]
        logger.info(f"export: {trial.name} is refused ({trial.reason}); trying again with fewer products in 8 bits")
        _delete(path)
    return [try_backend(name, attempts - 1) for name in names]


class _Trial:
    """One attempt to write a backend and to pass the gate.

    Args:
        name: the backend's name.
        backend: the backend.
        source: what it is written from.
        about: the content of tmkd.json without its backends.
        attempt: which way to write it.

    Attributes:
        entry: what tmkd.json says of the backend.
        scorer: the backend, ready to score; None unless it passed.
        size: of the file in bytes; None where it was not written.
        found: the agreement with the student in PyTorch.
        steady: how far logits depend on the batch.
        further: numbers of its row that its kind of student adds.
        reason: why the backend is refused; empty if it passed.
        disagrees: whether the reason is its logits, rather than that it could not be written or run.
    """

    def __init__(self, name: str, backend: Backend, source: Source, about: dict[str, Any], attempt: int) -> None:
        self.name, self.backend, self.source, self.about, self.attempt = name, backend, source, about, attempt
        self.entry: dict[str, Any] = {}
        self.scorer: Scorer | None = None
        self.size: int | None = None
        self.found, self.steady, self.further = Parity(), Invariance(), dict[str, Any]()
        self.reason = ""
        self.disagrees = False

    def run(self, dev: Pairs, reference: Logits, probes: NDArray[np.int64]) -> _Trial:
        """Write the file unless another backend has written it, score the pairs, compare.

        Args:
            dev: N pairs.
            reference: the PyTorch student's logits on them, [N, C] float32.
            probes: indices of the probes among the pairs.

        Returns:
            This trial.
        """
        try:
            self._write()
            scorer = Scorer(self.source.folder, backend=self.name)
            logits = _scored(scorer, dev, self.name)
            self.found = measure_parity(reference, logits, dev.qids, dev.labels, positive_of(self.about))
            few = dev.take(probes)
            self.steady = measure_invariance(partial(_in_batches, scorer, few))
            limits = self.backend.limits
            self.further, entry, reason = self.source.examine(scorer, dev, logits, probes)
            self.reason = why_refused(self.found, self.steady, limits) or reason
            self.disagrees = bool(self.reason)
        except (ExportError, MissingExtraError) as error:
            self.reason = str(error)
        if not self.reason:
            self.scorer = scorer
            self.entry |= entry
            # Another machine may round differently, by as much as the batch may change a logit. Twice the difference
            # measured here leaves room for that, and still catches arithmetic that clips.
            apart = float(np.abs(logits[probes] - reference[probes]).max())
            self.entry["probe_limit"] = 2 * apart + limits.batch_difference
        return self

    def refuse(self, reason: str) -> None:
        """See `Tried`."""
        self.reason, self.scorer = self.reason or reason, None

    def _write(self) -> None:
        path, files = self.source.folder / self.backend.file, self.backend.files(self.attempt)
        if not path.is_file():
            logger.info(f"export: writing {', '.join(files)}")
            self.backend.write(self.source, path, self.attempt)
        self.size = sum((self.source.folder / file).stat().st_size for file in files)
        self.entry = {**self.backend.entry(self.source.folder, self.attempt), "passed": True}
        write_json(self.source.folder / "tmkd.json", {**self.about, "backends": {self.name: self.entry}})

    def row(self) -> dict[str, Any]:
        """Return its row of the parity table."""
        return {
            "backend": self.name,
            "passed": not self.reason,
            **vars(self.found),
            **vars(self.steady),
            **self.further,
            "pairs_per_second": self.entry.get("pairs_per_second"),
            "bytes": self.size,
            "reason": self.reason,
        }


class Tried(Protocol):
    """A backend that passed so far, such as a `_Trial`."""

    entry: dict[str, Any]
    further: dict[str, Any]

    def refuse(self, reason: str) -> None:
        """Take it out of the export."""


def refuse_states_of_others(
    tried: Mapping[str, Tried], found: Mapping[str, Mapping[str, Logits]], reference: Logits
) -> None:
    """Refuse a backend that cannot score the states that another one computed: an index may hold those of any.

    What two backends differ from the student by may add up, and not more. How far each is goes into its entry of
    tmkd.json (`states_of`).

    Args:
        tried: The backends by name.
        found: As `Source.from_states_of_others` gives it.
        reference: The PyTorch student's logits, [n, C].
    """
    limits = {name: float(one.entry["probe_limit"]) for name, one in tried.items()}
    for reader, by_writer in found.items():
        apart = {writer: float(np.abs(logits - reference).max()) for writer, logits in by_writer.items()}
        tried[reader].further["other_states_difference"] = max(apart.values())
        tried[reader].entry["states_of"] = apart
        for writer, difference in apart.items():
            limit = limits[reader] + limits[writer]
            if not difference <= limit:
                tried[reader if reader != SAFE_BACKEND else writer].refuse(
                    f"from the states that {writer} computes, a logit of {reader} differs by {difference:.3f} from the "
                    f"PyTorch student, at most {limit:.3f} is allowed"
                )


def _in_batches(scorer: Scorer, pairs: Pairs, size: int | None) -> Logits:
    return scorer.logits(pairs.questions, pairs.passages, batch_size=size)


def _scored(scorer: Scorer, dev: Pairs, name: str) -> Logits:
    with progress(f"gate {name}", len(dev)) as bar:
        return scorer.logits(dev.questions, dev.passages, bar.advance)


def _time(trials: Sequence[_Trial], dev: Pairs) -> None:
    """Time the backends that passed, in turn on the same pairs, tokenizing included."""
    some = dev.take(np.random.default_rng(0).permutation(len(dev))[:SPEED_PAIRS])
    scorers = {trial.name: trial.scorer.logits for trial in trials if trial.scorer is not None}
    speeds = measure_speed(scorers, some.questions, some.passages, sizes=())
    for trial in trials:
        trial.entry["pairs_per_second"] = round(speeds[trial.name].pairs_per_second, 1)


def _probe_rows(dev: Pairs) -> NDArray[np.int64]:
    """Choose the probes among the shorter half of the pairs: they are scored whenever an export is opened."""
    lengths = [len(question) + len(passage) for question, passage in zip(dev.questions, dev.passages, strict=True)]
    shorter = np.argsort(lengths, kind="stable")[: max(PROBE_COUNT, len(dev) // 2)]
    return np.sort(np.random.default_rng(0).permutation(shorter)[:PROBE_COUNT])


def _write_probes(path: Path, pairs: Pairs, logits: Logits, numbers: dict[str, Any]) -> None:
    write_json(path, {"questions": pairs.questions, "passages": pairs.passages, "logits": logits.tolist(), **numbers})


def _delete(path: Path) -> None:
    """Remove a backend's file, and its folder if that is then empty."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
