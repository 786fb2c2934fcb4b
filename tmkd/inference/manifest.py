"""What an export folder says about itself: tmkd.json, its ONNX files and its probes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.backends import KNOWN_BACKENDS
from tmkd.core.errors import ExportError
from tmkd.core.files import sha256_of
from tmkd.inference.engines import installed

logger = logging.getLogger(__name__)

READABLE = (1, 2)  # formats of tmkd.json; the last is written (`tmkd.models.card`, whose import costs more)
PROBES = "probes.json"


@dataclass(frozen=True)
class Manifest:
    """The content of an export's tmkd.json.

    Attributes:
        folder: The export.
        max_length: Tokens of a pair that the student reads.
        classes: Number of classes, C.
        outputs: Logits that the graph gives for a pair: 1 for two classes, their log-odds; else C. In exports of
            format 1 always C.
        labels: Their names.
        backends: For each backend its `file`, its `sha256`, whether it `passed` the parity gate, its `pairs_per_second`
            where it was exported, and how far it may be from the probes (`probe_limit`).
    """

    folder: Path
    max_length: int
    classes: int
    outputs: int
    labels: tuple[str, ...]
    backends: dict[str, dict[str, Any]]

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

    def checked_file(self, backend: str) -> Path:
        """The file of a backend, after its SHA-256 was compared with tmkd.json.

        Raises:
            ExportError: The file is missing or damaged, or lies outside the export.
        """
        entry = self.backends[backend]
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
        content = json.loads(path.read_text(encoding="utf-8"))
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
        )
        if manifest.outputs != classes and (manifest.outputs, classes) != (1, 2):
            raise ValueError(f"{manifest.outputs} outputs for {classes} classes")
        for name, entry in manifest.backends.items():
            _ = manifest.speed(name), float(entry.get("probe_limit") or 0)
            if "\0" in str(entry.get("file")):
                raise ValueError(f"{name}: no file has such a name")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); export again") from error


def read_probes(folder: Path, classes: int) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """An export's probes: a few questions, their passages, and their fp32 logits as `Scorer.logits` has them, [P, C].

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
        raise ExportError(f"{path} is missing; export again, or copy it again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); export again") from error
    return questions, passages, logits
