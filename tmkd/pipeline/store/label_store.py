"""The label store: every teacher's logits for every pair, computed once.

A store is a folder for one teacher and one set of pairs. It holds Parquet parts (`pair_id`, `logits`) and a manifest
with the teacher's identity and the checksums of the parts. Logits are joined by `pair_id`, never by row order.

A part is written to a temporary file and renamed before the manifest names it, so a killed process loses at most the
part that it was writing. A part that is damaged, or of another store, is dropped, and its pairs are labelled again. One
process writes a store (`LabelStore.open`); `LabelStore.read` changes nothing.

Parts are merged, since the manifest, which names all of them, is written with every part: with 10,000 parts that would
take longer than to write the labels. The merged part is written before the manifest names it in place of the others,
which are removed after that, so a process that is killed at any moment loses nothing.

A store may have a `Mirror`: the same store at a shared address. What is read lies in the folder; what is written goes
to both, to the folder first. There the names of parts have a piece of their checksum, so that no two writers ever write
the same file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tmkd.core.errors import LabelError
from tmkd.core.files import write_durably
from tmkd.data.pair_ids import PairIds, latest_of_each, numbers_of
from tmkd.pipeline.store.label_join import Part, finite_rows, have_finite, join
from tmkd.pipeline.store.label_parts import NAMED, Owner, encode_part, read_arrays, read_part, what_is_wrong

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WHOLE = 32_768  # pairs of a part that is not merged any more; a damaged part costs at least so many
SMALL, MERGED = 2048, 64  # so many parts of fewer pairs become one, as a served teacher leaves them


class Mirror(Protocol):
    """The same store at a shared address (`tmkd.pipeline.store.shared_labels`)."""

    def fetch(self, folder: Path) -> dict[str, Any] | None:
        """Download the parts that a folder lacks; returns the manifest there, None where there is none."""

    def commit(self, parts: Mapping[str, bytes], manifest: bytes) -> None:
        """Write new parts by name, then the manifest that names them."""

    def remove(self, names: Collection[str]) -> None:
        """Remove parts that the manifest names no more."""


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
        manifest: the content of manifest.json: `format`, `header`, `rows`, `parts`, and `pairs` (what is labelled:
            `digest`, `count` and the `model` by name) where the store was made with it.
        mirror: the same store at a shared address, or None.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], mirror: Mirror | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.mirror = mirror
        self._unsent: dict[str, bytes] = {}  # parts that the mirror does not have yet

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        header: dict[str, Any],
        pairs: dict[str, Any] | None = None,
        mirror: Mirror | None = None,
    ) -> LabelStore:
        """Open a store to write to it, or create it if the folder holds none. What cannot be used is removed.

        Args:
            folder: the store's folder.
            header: what identifies the labels, as JSON-like content: the fingerprints of teacher and tokenizer,
                max_length, dtype, classes (required), class order. `headers` is the number of heads if the store keeps
                the logits of every head of a student, one head after the other.
            pairs: what is labelled: the `digest` of the set of pairs, their `count`, and the `model` by name. A store
                that is there keeps what it has.
            mirror: the same store at a shared address. Its parts are fetched, and what only the folder has is sent.

        Raises:
            LabelError: the folder holds labels with another header (the message names the key that differs) or of other
                pairs, or its manifest cannot be read.
            ValueError: the header does not say how many classes there are.
        """
        if not isinstance(header.get("classes"), int):
            raise ValueError(f"the header of a label store needs `classes`, an integer; it has {', '.join(header)}")
        folder.mkdir(parents=True, exist_ok=True)
        found = (folder / MANIFEST).is_file()
        if found:
            store = cls._found(folder, header, pairs)
        else:
            about = {"pairs": pairs} if pairs else {}
            store = cls(folder, {"format": NAMED, "header": header, **about, "rows": 0, "parts": []})
        bad = store._leave_out()
        if mirror is not None:
            store.mirror = mirror
            bad |= store._join(mirror.fetch(folder), header, pairs)
        for path, why in bad.items():
            logger.warning(f"{path} {why}")
        if bad or not found or mirror is not None:
            store._write_manifest()
        named = {part["file"] for part in store.manifest["parts"]}
        for stray in [*folder.glob("*.tmp"), *folder.glob("part-*.parquet")]:  # left by a killed process, or unusable
            if stray.name not in named:
                stray.unlink()
        return store

    @classmethod
    def read(cls, folder: Path, *, header: dict[str, Any], pairs: dict[str, Any] | None = None) -> LabelStore:
        """Open a store without changing it. Parts that cannot be used are left out: their pairs have no logits.

        Args:
            folder: the store's folder.
            header: as in `open`.
            pairs: as in `open`.

        Raises:
            LabelError: as in `open`.
        """
        store = cls._found(folder, header, pairs)
        store._leave_out()
        return store

    @classmethod
    def _found(cls, folder: Path, header: dict[str, Any], pairs: dict[str, Any] | None) -> LabelStore:
        store = cls(folder, read_manifest(folder / MANIFEST))
        _require_same(folder, store.manifest, header, pairs)
        return store

    def _join(
        self, theirs: dict[str, Any] | None, header: dict[str, Any], pairs: dict[str, Any] | None
    ) -> dict[Path, str]:
        """Take the parts of the mirror, then what only this folder has; says of each bad part of the mirror why."""
        own, shared = self.manifest["parts"], theirs["parts"] if theirs else []
        if theirs:
            _require_same(self.folder, theirs, header, pairs)
        self.manifest["parts"] = list(shared)
        bad = self._leave_out()
        known = {part["file"] for part in shared}
        more = list(self._parts([part for part in own if part["file"] not in known]))
        if more:
            ids = PairIds(sum(len(names) for names, _ in more), lambda: (names for names, _ in more))
            lacks, end = ~self.has(ids), 0
            for names, logits in more:
                rows = np.flatnonzero(lacks[end : end + len(names)] & finite_rows(logits))
                end += len(names)
                if len(rows):
                    part = self._write_part(names.take(pa.array(rows)), logits[rows], self._next())
                    self.manifest["parts"].append(part)
        return bad

    def _leave_out(self) -> dict[Path, str]:
        """Leave out the parts that cannot be used; says of each why."""
        good, bad = [], {}
        for part in self.manifest["parts"]:
            if wrong := what_is_wrong(self.folder, part, self._owner):
                bad[self.folder / part["file"]] = f"{wrong}; its {part['rows']:,} pairs will be labelled again"
            else:
                good.append(part)
        self.manifest["parts"] = good
        return bad

    @property
    def _owner(self) -> Owner:
        return Owner.of(self.manifest)

    def _write_manifest(self) -> None:
        self.manifest["rows"] = self._rows
        # without indentation, with which the encoder takes five times as long: there may be thousands of parts
        content = (json.dumps(self.manifest) + "\n").encode()
        write_durably(self.folder / MANIFEST, content)
        if self.mirror is not None:
            self.mirror.commit(self._unsent, content)
            self._unsent = {}

    def _remove(self, names: Collection[str]) -> None:
        """Remove parts that the manifest names no more."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        if self.mirror is not None:
            self.mirror.remove(names)

    def _parts(self, some: Sequence[Any] | None = None) -> Iterator[Part]:
        """The pair ids of each part (all unless some are given) and their logits, [n, width] float32, oldest first."""
        for part in self.manifest["parts"] if some is None else some:
            yield read_arrays(self.folder / part["file"], self.width)

    @property
    def _rows(self) -> int:
        """The rows of all parts; a pair may have several."""
        return sum(part["rows"] for part in self.manifest["parts"])

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return int(self.manifest["header"]["classes"])

    @property
    def width(self) -> int:
        """How many numbers are stored for a pair: C, or H * C if the store keeps the logits of H heads."""
        return self.classes * int(self.manifest["header"].get("headers", 1))

    def done_ids(self) -> set[str]:
        """The ids of the pairs that need not be labelled again: those whose latest logits are finite.

        For stores of any size, `has` asks about given pairs.
        """
        done: set[str] = set()
        for ids, logits in self._parts():
            latest = dict(zip(ids.to_pylist(), finite_rows(logits).tolist(), strict=True))
            done.difference_update(latest)
            done.update(name for name, finite in latest.items() if finite)
        return done

    def has(self, pair_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Whether each of some pairs need not be labelled again, [N]: its latest logits are finite."""
        return have_finite(self._parts, self._rows, pair_ids)

    def append(self, pair_ids: Sequence[str] | pa.Array, logits: NDArray[np.float32]) -> None:
        """Store the logits of some pairs as one part. For a pair that has logits already, the new ones count.

        Args:
            pair_ids: the ids of N pairs, strings in a list or in Arrow.
            logits: [N, width] float32, in the same order.

        Raises:
            ValueError: logits of another shape.
        """
        if logits.shape != (len(pair_ids), self.width):
            raise ValueError(f"expected logits of shape {(len(pair_ids), self.width)}, got {logits.shape}")
        if not len(pair_ids):
            return
        self.manifest["parts"].append(self._write_part(pair_ids, logits, self._next()))
        self._write_manifest()
        self._merge()

    def _next(self) -> int:
        """The number of the next part."""
        return max((int(part["file"].split("-")[1].split(".")[0]) for part in self.manifest["parts"]), default=-1) + 1

    def _write_part(
        self, pair_ids: Sequence[str] | pa.Array, logits: NDArray[np.float32], number: int
    ) -> dict[str, Any]:
        """Write a part that the manifest does not name yet; returns what the manifest is to say of it."""
        content = encode_part(pair_ids, logits, self._owner)
        digest = hashlib.sha256(content).hexdigest()
        name = f"part-{number:05d}.parquet" if self.mirror is None else f"part-{number:05d}-{digest[:12]}.parquet"
        write_durably(self.folder / name, content)
        if self.mirror is not None:
            self._unsent[name] = content
        return {"file": name, "rows": len(pair_ids), "sha256": digest}

    def drop(self, files: Collection[str], pairs: Collection[str]) -> None:
        """Remove parts as a whole, and some pairs from the others, so that they can be labelled again.

        Args:
            files: names of parts. They are not read.
            pairs: ids of pairs.
        """
        kept, number = [], self._next()
        for part in self.manifest["parts"]:
            if part["file"] in files:
                continue
            names, logits = read_part(self.folder / part["file"], self.width)
            rows = [row for row, name in enumerate(names) if name not in pairs]
            if len(rows) == len(names):
                kept.append(part)
            elif rows:
                kept.append(self._write_part([names[row] for row in rows], logits[rows], number))
                number += 1
        gone = {part["file"] for part in self.manifest["parts"]} - {part["file"] for part in kept}
        self.manifest["parts"] = kept
        self._write_manifest()
        self._remove(gone)

    def _merge(self) -> None:
        """Make one part of the last ones: where they are small and many, or have enough pairs together."""
        if len(small := self._last_below(SMALL)) >= MERGED:
            self._merge_last(small)
        last = self._last_below(WHOLE)
        if len(last) > 1 and sum(part["rows"] for part in last) >= WHOLE:
            self._merge_last(last)

    def _last_below(self, rows: int) -> list[dict[str, Any]]:
        """The parts at the end that have fewer rows each."""
        parts = self.manifest["parts"]
        first = len(parts)
        while first and parts[first - 1]["rows"] < rows:
            first -= 1
        return list(parts[first:])

    def _merge_last(self, last: Sequence[dict[str, Any]]) -> None:
        """Put one part in place of the last ones; of a pair that is in several of them, the latest logits stay."""
        names, logits = zip(*self._parts(last), strict=True)
        every, ids = np.concatenate(logits), pa.concat_arrays(names)
        rows = latest_of_each(numbers_of(ids))
        merged = self._write_part(ids.take(pa.array(rows)), every[rows], self._next())
        self.manifest["parts"] = [*self.manifest["parts"][: -len(last)], merged]
        self._write_manifest()
        self._remove([part["file"] for part in last])

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
        found, missing = join(self._parts, self._rows, self.width, pair_ids)
        bad = ~finite_rows(found)
        if bad.any() and not allow_missing:
            not_finite = int(bad.sum()) - missing
            raise LabelError(
                f"{self.folder}: of {len(pair_ids):,} pairs {missing:,} have no labels and {not_finite:,} have "
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


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest.

    Raises:
        LabelError: it cannot be read, or is not whole.
    """
    with suppress(FileNotFoundError):
        if found := parsed_manifest(path.read_bytes()):
            return found
    raise LabelError(
        f"{path} is damaged; remove the folder {path.parent}, or run `tmkd labels repair`, to have its pairs labelled "
        "again",
        path=path,
    )


def parsed_manifest(content: bytes) -> dict[str, Any] | None:
    """The content of a manifest; None if it is not whole."""
    try:
        manifest = json.loads(content.decode())
        Owner.of(manifest)
        if all(isinstance(part["file"], str) and part["rows"] >= 0 and part["sha256"] for part in manifest["parts"]):
            return dict(manifest)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _require_same(folder: Path, stored: dict[str, Any], header: dict[str, Any], pairs: dict[str, Any] | None) -> None:
    """LabelError if a manifest has another header, or is of other pairs."""
    there, wanted = stored["header"], json.loads(json.dumps(header))
    for key in [*wanted, *there]:
        if key not in there or key not in wanted or there[key] != wanted[key]:
            differs = f"{key} is {there.get(key)!r}, not {wanted.get(key)!r}"
            raise LabelError(f"{folder} holds labels whose {differs}; use another folder", path=folder, key=key)
    mine, theirs = (pairs or {}).get("digest"), stored.get("pairs", {}).get("digest")
    if mine and theirs and mine != theirs:
        message = f"{folder} holds labels of the pairs {theirs}, not {mine}; use another folder"
        raise LabelError(message, path=folder, key="pairs")
