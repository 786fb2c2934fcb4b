"""What an export folder says about itself: tmkd.json, its ONNX files and its probes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.backends import KNOWN_BACKENDS
from tmkd.core.errors import ExportError
from tmkd.core.files import read_json, sha256_of
from tmkd.inference.engines import installed

logger = logging.getLogger(__name__)

CACHED = "cached"  # `kind` in tmkd.json of a student that reads passages once; others have no `kind`
CACHED_FORMAT = 3  # of tmkd.json of such an export, which older versions cannot read
QUESTION_FORMAT = 4  # where it has an encoder of questions of its own
POSITIVE_FORMAT = 5  # of both kinds, where the one logit is that of class 0
READABLE = (1, 2, CACHED_FORMAT, QUESTION_FORMAT, POSITIVE_FORMAT)
"""Formats of tmkd.json. 2 is written of layered students (`tmkd.models.card`, whose import costs more)."""
PROBES = "probes.json"
_COSINES = 16  # probes whose embeddings are checked


@dataclass(frozen=True)
class StatesFormat:
    """What an export of a cached student stores of a text.

    Attributes:
        identity: A fingerprint of everything that decides the states: encoder, projection, tokenizer, length.
        size: k, numbers of a token's state.
        width: d, numbers of an embedding.
        question_encoder: Whether questions are read by a graph of their own (`question`), with a tokenizer of its own.
    """

    identity: str
    size: int
    width: int
    question_encoder: bool = False

    @property
    def graphs(self) -> tuple[str, ...]:
        """The names of the graphs, as tmkd.json has them of every backend."""
        return ("encoder", "interaction", *(("question",) if self.question_encoder else ()))


@dataclass(frozen=True)
class Manifest:
    """The content of an export's tmkd.json.

    Attributes:
        folder: The export.
        max_length: Tokens of a pair that the student reads; of each of its two texts, where it reads passages once.
        classes: Number of classes, C.
        outputs: Logits that the graph gives for a pair: 1 for two classes, the log-odds of the positive one; else C. In
            exports of format 1 always C.
        labels: Their names.
        backends: For each backend its `file`, its `sha256`, whether it `passed` the parity gate, its `pairs_per_second`
            where it was exported, and how far it may be from the probes (`probe_limit`). That of a cached student has
            `files` in place of `file` and `sha256`: both of each of its graphs (`StatesFormat.graphs`).
        states: What a cached student stores of a text; None for a student that reads question and passage together.
        positive: Of two classes the one of the right passages.
        tokenizers: The SHA-256 of each file of a tokenizer, by its name in the export; empty in older exports.
    """

    folder: Path
    max_length: int
    classes: int
    outputs: int
    labels: tuple[str, ...]
    backends: dict[str, dict[str, Any]]
    states: StatesFormat | None = None
    positive: int = 1
    tokenizers: dict[str, str] = field(default_factory=dict)

    def has(self, backend: str) -> bool:
        """Whether the export holds this backend and it passed the parity gate."""
        return bool(self.backends.get(backend, {}).get("passed"))

    def speed(self, backend: str) -> float:
        """Pairs per second of a backend on the machine of the export; 0 where that is not known."""
        return float(self.backends[backend].get("pairs_per_second") or 0.0)

    def choose(self, backend: str) -> str:
        """The backend to score with.

        Args:
            backend: `auto` for the fastest one that can run here, or a backend's name.

        Raises:
            ExportError: The export does not hold it, or holds none that can run here.
        """
        there = [name for name in self.backends if self.has(name)]
        if not there:
            raise ExportError(
                f"{self.folder} holds no backend: none passed the parity gate (see parity.json there); export again"
            )
        if backend == "auto":
            return self._fastest(there)
        if backend not in KNOWN_BACKENDS:
            raise ExportError(
                f"backend {backend!r} is not known; this version runs {', '.join(KNOWN_BACKENDS)}, or `auto`"
            )
        if backend not in there:
            raise ExportError(f"{self.folder} holds no backend {backend!r}; it holds {', '.join(there)}")
        return backend

    def _fastest(self, there: list[str]) -> str:
        """The backend with the highest speed among those whose engine is installed."""
        known = [name for name in KNOWN_BACKENDS if name in there]
        ordered = sorted(known, key=self.speed, reverse=True)
        usable = [name for name in ordered if installed(name)]
        if not usable:
            raise ExportError(
                f"{self.folder} holds {', '.join(there)}; this version runs {', '.join(KNOWN_BACKENDS)}"
                + ("; run: pip install 'tmkd[fast]'" if known else "")
            )
        if usable[0] != ordered[0]:
            logger.info(f"scoring with {usable[0]}; {ordered[0]} is faster and needs: pip install 'tmkd[fast]'")
        return usable[0]

    def require_tokenizers(self) -> None:
        """Refuse another tokenizer than the exported one: the student would read other tokens.

        Raises:
            ExportError: A file of a tokenizer is not the one that was exported.
        """
        for name, digest in self.tokenizers.items():
            path = self.folder / name
            if path.is_file() and sha256_of(path) != digest:
                raise ExportError(f"{path} is damaged: it is not the file that was exported; copy the export again")

    def checked_file(self, backend: str, part: str | None = None) -> Path:
        """A file of a backend, after its SHA-256 was compared with tmkd.json.

        Args:
            backend: Its name.
            part: A graph of a cached student.

        Raises:
            ExportError: The file is missing or damaged, or lies outside the export.
        """
        entry = self.backends[backend]
        entry = entry if part is None else entry["files"][part]
        path = self.folder / str(entry.get("file", ""))
        if self.folder.resolve() not in path.resolve().parents:
            raise ExportError(f"{self.folder}/tmkd.json: the file of {backend}, {entry.get('file')!r}, lies outside it")
        if not path.is_file():
            raise ExportError(f"{path} is missing; export again")
        found = sha256_of(path)
        if found != entry.get("sha256"):
            raise ExportError(
                f"{path} is damaged: its SHA-256 is {found}, tmkd.json says {entry.get('sha256')}; "
                "export again or copy the file again"
            )
        return path


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check tmkd.json of an export.

    Raises:
        ExportError: There is no such folder, tmkd.json is missing or damaged or of another format, or the folder is a
            model that was not exported.
    """
    folder = Path(folder)
    path = folder / "tmkd.json"
    if not path.is_file():
        found = "has no tmkd.json" if folder.is_dir() else "is not a folder"
        raise ExportError(f"{folder} {found}; give an export, such as workspace/runs/demo/export")
    try:
        content = read_json(path)
        if content.get("format") not in READABLE:
            raise ExportError(
                f"{path}: format {content.get('format')!r}, this version reads {READABLE[0]} to {READABLE[-1]}; "
                "export again"
            )
        if "backends" not in content:
            raise ExportError(f"{folder} is a model folder, not an export; make one of it with `tmkd export`")
        classes = int(content["classes"])
        manifest = Manifest(
            folder=folder,
            max_length=int(content["max_length"]),
            classes=classes,
            outputs=classes if content["format"] == 1 else int(content["outputs"]),
            labels=tuple(str(label) for label in content["labels"]),
            backends={str(name): dict(entry) for name, entry in content["backends"].items()},
            states=_states_format(content),
            positive=positive_of(content),
            tokenizers=_digests(content) or _digests(content.get("states") or {}),
        )
        if manifest.outputs != classes and (manifest.outputs, classes) != (1, 2):
            raise ValueError(f"{manifest.outputs} outputs for {classes} classes")
        for name, entry in manifest.backends.items():
            _ = manifest.speed(name), float(entry.get("probe_limit") or 0)
            states = manifest.states
            parts = [entry] if states is None else [entry["files"][name] for name in states.graphs]
            if any("\0" in str(part.get("file")) for part in parts):
                raise ValueError(f"{name}: no file has such a name")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); export again") from error


def positive_of(content: Mapping[str, Any]) -> int:
    """Of two classes the one whose log-odds an export's one logit is, as tmkd.json says it.

    Args:
        content: Of tmkd.json.

    Raises:
        ValueError: It says something that is not one of two classes.
    """
    positive = content.get("positive", 1)
    if positive not in (0, 1) or (positive == 0 and content["classes"] != 2):
        raise ValueError(f"positive {positive!r} of {content['classes']} classes")
    return int(positive)


def _states_format(content: dict[str, Any]) -> StatesFormat | None:
    """What tmkd.json says about stored states; None where the student reads question and passage together."""
    kind = content.get("kind")
    if kind is None:
        return None
    if kind != CACHED:
        raise ValueError(f"a student of the kind {kind!r}")
    said = content["states"]
    apart = bool(said.get("question_encoder"))
    return StatesFormat(str(said["identity"]), int(said["size"]), int(said["width"]), apart)


def _digests(said: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file of a tokenizer: those of a cached student are among what is said of its states."""
    return {str(name): str(digest) for name, digest in said.get("tokenizers", {}).items()}


def read_probes(folder: Path, classes: int) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """An export's probes: a few questions, their passages, and their fp32 logits as `Scorer.logits` has them, [P, C].

    Raises:
        ExportError: probes.json is missing or damaged.
    """
    return _probes(folder, "logits", (classes,))


def read_cosines(folder: Path) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """The first few probes of a cached student's export, and the fp32 cosines of their texts' embeddings, [P].

    Raises:
        ExportError: probes.json is missing or damaged.
    """
    questions, passages, cosines = _probes(folder, "cosines", ())
    return questions[:_COSINES], passages[:_COSINES], cosines[:_COSINES]


def _probes(folder: Path, what: str, shape: tuple[int, ...]) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """Questions, passages and one of the numbers that probes.json has of each pair, [P, *shape]."""
    path = folder / PROBES
    try:
        content = read_json(path)
        numbers = np.array(content[what], dtype=np.float32)
        questions, passages = list(content["questions"]), list(content["passages"])
        if numbers.shape != (len(questions), *shape) or len(questions) != len(passages):
            raise ValueError(f"{len(questions)} questions, {len(passages)} passages, {what} {numbers.shape}")
    except FileNotFoundError as error:
        raise ExportError(f"{path} is missing; export again, or copy it again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); export again") from error
    return questions, passages, numbers
