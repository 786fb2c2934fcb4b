"""The label store: every teacher's logits for every pair, computed once.

One folder per pool and teacher: Parquet parts (pair_id, logits) and a manifest with the teacher's identity and the
parts' checksums. Joined by pair_id, never by row order. A part is written beside and renamed before the manifest
names it, so a kill loses at most the part in hand; a damaged part is dropped and its rows are labelled again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tmkd.core.errors import LabelError
from tmkd.core.files import replacing

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CLIP = 1e-6  # probabilities are clipped to [CLIP, 1 - CLIP] before they become log-odds (METHOD.md, "Teachers")


class LabelStore:
    """Logits by pair id. Use `LabelStore.open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path, *, header: dict[str, Any]) -> LabelStore:
        """Create or continue a store.

        Args:
            header: JSON-like identity: teacher's and tokenizer's fingerprints, max_length, dtype, classes, class order;
                `headers`, their number, where the logits of each header of a student are stored one after the other.

        Raises:
            LabelError: the folder holds labels of another header (the key that differs is named), its manifest is not
                readable, or the header does not say how many classes there are.
        """
        if not isinstance(header.get("classes"), int):
            raise LabelError(f"the header of a label store needs `classes`, an integer; it has {', '.join(header)}")
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).is_file():
            store = cls(folder, _read_manifest(folder / MANIFEST))
            _require_same(folder, store.manifest["header"], json.loads(json.dumps(header)))
            store._drop_damaged()
        else:
            store = cls(folder, {"format": 1, "header": header, "rows": 0, "parts": []})
            store._write_manifest()
        named = {part["file"] for part in store.manifest["parts"]}
        for stray in [*folder.glob("*.tmp"), *folder.glob("part-*.parquet")]:  # what a kill left half done
            if stray.name not in named:
                stray.unlink()
        return store

    def _drop_damaged(self) -> None:
        good = []
        for part in self.manifest["parts"]:
            path = self.folder / part["file"]
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == part["sha256"]:
                good.append(part)
            else:
                logger.warning(f"{path} is missing or damaged; its {part['rows']:,} rows will be labelled again")
                path.unlink(missing_ok=True)
        if len(good) < len(self.manifest["parts"]):
            self.manifest["parts"] = good
            self._write_manifest()

    def _write_manifest(self) -> None:
        self.manifest["rows"] = sum(part["rows"] for part in self.manifest["parts"])
        self._atomic(MANIFEST, (json.dumps(self.manifest, indent=2) + "\n").encode())

    def _atomic(self, name: str, content: bytes) -> None:
        with replacing(self.folder / name) as temporary, temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _parts(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Each part's pair ids and logits [n, C] float32, oldest first."""
        for part in self.manifest["parts"]:
            path = self.folder / part["file"]
            try:
                table = pq.ParquetFile(path).read()
            except (pa.ArrowException, OSError) as error:
                raise LabelError(f"{path} cannot be read ({error}); run again: its rows are labelled anew") from error
            flat = table.column("logits").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            yield table.column("pair_id").to_pylist(), flat.reshape(-1, self.width)

    @property
    def classes(self) -> int:
        """C."""
        return int(self.manifest["header"]["classes"])

    @property
    def width(self) -> int:
        """Numbers of a pair: C, or H * C where the header says how many `headers` (H) there are."""
        return self.classes * int(self.manifest["header"].get("headers", 1))

    def done_ids(self) -> set[str]:
        """The ids of the pairs whose latest labels are finite: what need not be labelled again."""
        done: set[str] = set()
        for names, logits in self._parts():
            finite = np.isfinite(logits).all(axis=1)
            done.difference_update(names)
            done.update(names[row] for row in np.flatnonzero(finite))
        return done

    def append(self, pair_ids: Sequence[str], logits: NDArray[np.float32]) -> None:
        """Store the logits [N, width] float32 of N pairs as one part; a pair labelled before takes the new ones.

        Raises:
            LabelError: lengths or classes that do not fit.
        """
        if logits.shape != (len(pair_ids), self.width):
            raise LabelError(f"expected logits of shape {(len(pair_ids), self.width)}, got {logits.shape}")
        if not pair_ids:
            return
        values = pa.FixedSizeListArray.from_arrays(pa.array(logits.astype(np.float32).ravel()), self.width)
        table = pa.table({"pair_id": pa.array(pair_ids, pa.string()), "logits": values})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        number = max((int(Path(part["file"]).stem[5:]) for part in self.manifest["parts"]), default=-1) + 1
        name = f"part-{number:05d}.parquet"
        self._atomic(name, content)
        digest = hashlib.sha256(content).hexdigest()
        self.manifest["parts"].append({"file": name, "rows": len(pair_ids), "sha256": digest})
        self._write_manifest()

    def logits_for(self, pair_ids: Sequence[str], *, allow_missing: bool = False) -> NDArray[np.float32]:
        """Logits in the order of `pair_ids`, [N, width] float32.

        Raises:
            LabelError: pairs without labels or with labels that are not finite, counted (nan with `allow_missing`).
        """
        place: dict[str, int] = {}
        blocks = []
        start = 0
        for names, logits in self._parts():
            place.update({name: start + row for row, name in enumerate(names)})
            blocks.append(logits)
            start += len(names)
        stored = np.concatenate([*blocks, np.full((1, self.width), np.nan, dtype=np.float32)])
        rows = np.array([place.get(name, -1) for name in pair_ids], dtype=np.int64)  # -1: the row of nan at the end
        found: NDArray[np.float32] = stored[rows].astype(np.float32)
        bad = ~np.isfinite(found).all(axis=1)
        if bad.any() and not allow_missing:
            absent = int((rows < 0).sum())
            raise LabelError(
                f"{self.folder}: of {len(rows):,} pairs {absent:,} have no labels and {int(bad.sum()) - absent:,} have "
                f"labels that are not finite, first {pair_ids[int(np.flatnonzero(bad)[0])]}; label them again"
            )
        found[bad] = np.nan
        return found


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest["header"], dict) and isinstance(manifest["parts"], list):
            return dict(manifest)
    except (ValueError, KeyError, TypeError):
        pass
    raise LabelError(f"{path} is damaged; remove the folder {path.parent}, and its pairs are labelled again")


def _require_same(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in [*wanted, *stored]:
        if key not in stored or key not in wanted or stored[key] != wanted[key]:
            raise LabelError(
                f"{folder} holds labels whose {key} is {stored.get(key)!r}, not {wanted.get(key)!r}; use another folder"
            )


def imported_logits(scores: NDArray[np.float64], kind: Literal["logit", "probability"]) -> NDArray[np.float64]:
    """Logits [N, 2] of a teacher made elsewhere: (-z/2, z/2), z its log-odds.

    Args:
        scores: [N] log-odds (`logit`) or probabilities of the positive class, clipped to [1e-6, 1 - 1e-6].

    Raises:
        LabelError: another kind.
    """
    if kind not in ("logit", "probability"):
        raise LabelError(f"a score is of kind `logit` or `probability`, not {kind!r}")
    if kind == "probability":
        clipped = np.clip(scores, CLIP, 1 - CLIP)
        scores = np.log(clipped) - np.log1p(-clipped)
    return np.stack([-scores / 2, scores / 2], axis=1)
