"""The label store: every teacher's logits for every pair, computed once.

A store is a folder for one teacher and one set of pairs. It holds Parquet parts (`pair_id`, `logits`) and a manifest
with the teacher's identity and the checksums of the parts. Logits are joined by `pair_id`, never by row order.

A part is written to a temporary file and renamed before the manifest names it, so a killed process loses at most the
part that it was writing. A damaged part is dropped, and its pairs are labelled again. Small parts, as a served teacher
leaves them, are merged: the merged part is written before the manifest names it in place of them, and they are removed
after that, so a process that is killed at any moment loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tmkd.core.errors import LabelError
from tmkd.core.files import write_durably

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SMALL = 2048  # pairs of a part that is not merged any more
MERGED = 64  # small parts that become one


class LabelStore:
    """Logits by pair id in one folder.

    Example:
        >>> import tempfile
        >>> store = LabelStore.open(Path(tempfile.mkdtemp()), header={"teacher": "a", "classes": 2})
        >>> store.append(["pair 1", "pair 2"], np.array([[0.5, -0.5], [1.0, -1.0]], dtype=np.float32))
        >>> store.logits_for(["pair 2"]).tolist()
        [[1.0, -1.0]]

    Attributes:
        folder: where the parts and the manifest are.
        manifest: the content of manifest.json: `format`, `header`, `rows`, `parts`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path, *, header: dict[str, Any]) -> LabelStore:
        """Open a store, or create it if the folder holds none.

        Args:
            folder: the store's folder.
            header: what identifies the labels, as JSON-like content: the fingerprints of teacher and tokenizer,
                max_length, dtype, classes (required), class order. `headers` is the number of heads if the store keeps
                the logits of every head of a student, one head after the other.

        Raises:
            LabelError: the folder holds labels with another header (the message names the key that differs), or its
                manifest cannot be read.
            ValueError: the header does not say how many classes there are.
        """
        if not isinstance(header.get("classes"), int):
            raise ValueError(f"the header of a label store needs `classes`, an integer; it has {', '.join(header)}")
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).is_file():
            store = cls(folder, _read_manifest(folder / MANIFEST))
            _require_same(folder, store.manifest["header"], json.loads(json.dumps(header)))
            store._drop_damaged()
        else:
            store = cls(folder, {"format": 1, "header": header, "rows": 0, "parts": []})
            store._write_manifest()
        named = {part["file"] for part in store.manifest["parts"]}
        for stray in [*folder.glob("*.tmp"), *folder.glob("part-*.parquet")]:  # left by a killed process
            if stray.name not in named:
                stray.unlink()
        return store

    def _drop_damaged(self) -> None:
        """Remove the parts whose files are gone or do not match their checksums."""
        good = []
        for part in self.manifest["parts"]:
            path = self.folder / part["file"]
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == part["sha256"]:
                good.append(part)
            else:
                logger.warning(f"{path} is missing or damaged; its {part['rows']:,} pairs will be labelled again")
                path.unlink(missing_ok=True)
        if len(good) < len(self.manifest["parts"]):
            self.manifest["parts"] = good
            self._write_manifest()

    def _write_manifest(self) -> None:
        self.manifest["rows"] = sum(part["rows"] for part in self.manifest["parts"])
        write_durably(self.folder / MANIFEST, (json.dumps(self.manifest, indent=2) + "\n").encode())

    def _parts(self, some: Sequence[Any] | None = None) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """The pair ids of each part (all unless some are given) and their logits, [n, width] float32, oldest first."""
        for part in self.manifest["parts"] if some is None else some:
            path = self.folder / part["file"]
            try:
                table = pq.ParquetFile(path).read()
            except (pa.ArrowException, OSError) as error:
                message = f"{path} cannot be read ({error}); run again, and its pairs are labelled again"
                raise LabelError(message, path=path) from error
            flat = table.column("logits").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            yield table.column("pair_id").to_pylist(), flat.reshape(-1, self.width)

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return int(self.manifest["header"]["classes"])

    @property
    def width(self) -> int:
        """How many numbers are stored for a pair: C, or H * C if the store keeps the logits of H heads."""
        return self.classes * int(self.manifest["header"].get("headers", 1))

    def done_ids(self) -> set[str]:
        """The ids of the pairs that need not be labelled again: those whose latest logits are finite."""
        done: set[str] = set()
        for names, logits in self._parts():
            finite = np.isfinite(logits).all(axis=1)
            done.difference_update(names)
            done.update(names[row] for row in np.flatnonzero(finite))
        return done

    def append(self, pair_ids: Sequence[str], logits: NDArray[np.float32]) -> None:
        """Store the logits of some pairs as one part. For a pair that has logits already, the new ones count.

        Args:
            pair_ids: the ids of N pairs.
            logits: [N, width] float32, in the same order.

        Raises:
            ValueError: logits of another shape.
        """
        if logits.shape != (len(pair_ids), self.width):
            raise ValueError(f"expected logits of shape {(len(pair_ids), self.width)}, got {logits.shape}")
        if not pair_ids:
            return
        self.manifest["parts"].append(self._write_part(pair_ids, logits))
        self._write_manifest()
        self._merge()

    def _write_part(self, pair_ids: Sequence[str], logits: NDArray[np.float32]) -> dict[str, Any]:
        """Write a part that the manifest does not name yet; returns what the manifest is to say of it."""
        values = pa.FixedSizeListArray.from_arrays(pa.array(logits.astype(np.float32).ravel()), self.width)
        table = pa.table({"pair_id": pa.array(pair_ids, pa.string()), "logits": values})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        number = max((int(Path(part["file"]).stem[5:]) for part in self.manifest["parts"]), default=-1) + 1
        name = f"part-{number:05d}.parquet"
        write_durably(self.folder / name, content)
        return {"file": name, "rows": len(pair_ids), "sha256": hashlib.sha256(content).hexdigest()}

    def _merge(self) -> None:
        """Make one part of the last ones, where they are small and many: parts stay few, and their order stays."""
        parts = self.manifest["parts"]
        first = len(parts)
        while first and parts[first - 1]["rows"] < SMALL:
            first -= 1
        if len(parts) - first < MERGED:
            return
        latest: dict[str, NDArray[np.float32]] = {}
        for names, logits in self._parts(parts[first:]):
            latest.update(zip(names, logits, strict=True))
        merged = self._write_part(list(latest), np.stack(list(latest.values())))
        self.manifest["parts"] = [*parts[:first], merged]
        self._write_manifest()
        for part in parts[first:]:
            (self.folder / part["file"]).unlink(missing_ok=True)

    def logits_for(self, pair_ids: Sequence[str], *, allow_missing: bool = False) -> NDArray[np.float32]:
        """The stored logits of some pairs.

        Args:
            pair_ids: the ids of N pairs; an id may occur more than once.
            allow_missing: give nan for pairs without finite logits instead of raising an error.

        Returns:
            [N, width] float32, in the order of `pair_ids`.

        Raises:
            LabelError: some pairs have no logits, or logits that are not finite; the message counts both.
        """
        place: dict[str, int] = {}
        blocks = []
        start = 0
        for names, logits in self._parts():
            place.update({name: start + row for row, name in enumerate(names)})
            blocks.append(logits)
            start += len(names)
        stored = np.concatenate([*blocks, np.full((1, self.width), np.nan, dtype=np.float32)])
        # -1 is the row of nan at the end of `stored`
        rows = np.array([place.get(name, -1) for name in pair_ids], dtype=np.int64)
        found: NDArray[np.float32] = stored[rows].astype(np.float32)
        bad = ~np.isfinite(found).all(axis=1)
        if bad.any() and not allow_missing:
            missing = int((rows < 0).sum())
            not_finite = int(bad.sum()) - missing
            raise LabelError(
                f"{self.folder}: of {len(rows):,} pairs {missing:,} have no labels and {not_finite:,} have "
                f"labels that are not finite, first {pair_ids[int(np.flatnonzero(bad)[0])]}; "
                + ("label them again" if not not_finite else self._why_not_finite()),
                path=self.folder,
                missing=missing,
                not_finite=not_finite,
            )
        found[bad] = np.nan
        return found

    def _why_not_finite(self) -> str:
        return (
            f"the teacher {self.manifest['header'].get('teacher')} gave no number for them. Labelling again gives the "
            "same: look at its weights and inputs, and label with precision: fp32"
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest; LabelError if it cannot be read."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest["header"], dict) and isinstance(manifest["parts"], list):
            return dict(manifest)
    except (ValueError, KeyError, TypeError):
        pass
    message = f"{path} is damaged; remove the folder {path.parent} to have its pairs labelled again"
    raise LabelError(message, path=path)


def _require_same(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """LabelError if two headers differ."""
    for key in [*wanted, *stored]:
        if key not in stored or key not in wanted or stored[key] != wanted[key]:
            differs = f"{key} is {stored.get(key)!r}, not {wanted.get(key)!r}"
            raise LabelError(f"{folder} holds labels whose {differs}; use another folder", path=folder, key=key)
