"""Checks of a workspace's label stores, and their repair: what is wrong is dropped, so that it is labelled again.

A step folder that exists is whole. So a finished step that loses labels becomes an unfinished one (`.partial`), which
the next run continues.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tmkd.core.errors import LabelError
from tmkd.core.files import digest_of, read_json
from tmkd.core.places import Place
from tmkd.pipeline.store.label_parts import Owner, read_part, what_is_wrong
from tmkd.pipeline.store.label_store import MANIFEST, LabelStore, read_manifest

KINDS = ("labels", "headers", "cosine")
"""The kinds of steps that are label stores: of models, of the heads of a student, of the cosine of an encoder."""
_PARTIAL = ".partial"
_TRIES = 3  # how often a store that another process changes is looked at


def store_folders(root: Path) -> list[Path]:
    """The folders of a workspace's label stores, finished or not, sorted by name."""
    return sorted(path for kind in KINDS for path in root.glob(f"steps/{kind}-*") if path.is_dir())


def is_finished(folder: Path | Place) -> bool:
    """Whether a step's folder is that of a finished step."""
    return not folder.name.endswith(_PARTIAL)


@dataclass(frozen=True)
class Fault:
    """One file of a label store that cannot be used as it is.

    Attributes:
        path: the file.
        what: what is wrong with it.
    """

    path: Path | Place
    what: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


@dataclass(frozen=True)
class StoreCheck:
    """What a check of a label store found.

    Attributes:
        folder: the store's folder.
        parts: how many parts its manifest names.
        rows: how many labels its manifest counts; 0 where it cannot be read.
        labelled: pairs that have finite logits in a usable part.
        not_finite: pairs that have none, and logits that are not finite.
        model: what made the labels, by the name that the run gave it; empty where the store does not say.
        count: how many pairs are to be labelled; None where the store does not say.
        digest: that of the set of pairs; empty where the store does not say.
        faults: what is wrong, a file at a time.
        finished: whether it has a finished step.
        whole: whether the store can stay, without the parts and pairs at fault; if not, none of its labels can be used.
        bad_parts: names of the parts that cannot be used.
        bad_pairs: ids of pairs that lie in usable parts, and whose logits are not finite or are there twice.
    """

    folder: Path | Place
    faults: tuple[Fault, ...]
    parts: int = 0
    rows: int = 0
    labelled: int = 0
    not_finite: int = 0
    model: str = ""
    count: int | None = None
    digest: str = ""
    finished: bool = True
    whole: bool = True
    bad_parts: frozenset[str] = frozenset()
    bad_pairs: frozenset[str] = frozenset()


def check_store(folder: Path) -> StoreCheck:
    """Read every part of a label store, and change nothing.

    A store that another process changes meanwhile is read again.

    Args:
        folder: the store's folder, of a finished step or of an unfinished one.
    """
    path = folder / MANIFEST
    for _ in range(_TRIES):
        before = path.read_bytes() if path.is_file() else b""
        found = _check(folder)
        if not found.faults or (path.read_bytes() if path.is_file() else b"") == before:
            break
    return replace(found, finished=is_finished(folder))


def _check(folder: Path) -> StoreCheck:
    try:
        manifest = read_manifest(folder / MANIFEST)
    except LabelError:
        if not is_finished(folder) and not list(folder.glob("part-*")):  # nothing was labelled yet
            return StoreCheck(folder, ())
        what = "is missing" if not (folder / MANIFEST).is_file() else "cannot be read, or is not whole"
        return StoreCheck(folder, (Fault(folder / MANIFEST, what),), whole=False)
    parts = manifest["parts"]
    found = StoreCheck(folder, (), len(parts), sum(part["rows"] for part in parts))
    found = replace(found, **_described(folder, manifest))
    faults, whole = _step_faults(folder, manifest)
    if not whole:
        return replace(found, faults=tuple(faults), whole=False)
    if manifest.get("rows") != found.rows:
        faults.append(Fault(folder / MANIFEST, f"counts {manifest.get('rows')} labels, its parts have {found.rows:,}"))
    bad, pairs, owner = set(), _Pairs(), Owner.of(manifest)
    for part in parts:
        if what := what_is_wrong(folder, part, owner):
            faults.append(Fault(folder / part["file"], what))
            bad.add(part["file"])
        else:
            pairs.add(part["file"], folder, owner.width)
    faults += [Fault(folder / file, what) for file, what in pairs.faults()]
    return replace(
        found, faults=tuple(faults), labelled=len(pairs.finite), not_finite=len(pairs.not_finite),
        bad_parts=frozenset(bad), bad_pairs=frozenset(pairs.bad()),
    )  # fmt: skip


def _described(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Model, count and digest of `StoreCheck`; of a store that an earlier version made, what its step says."""
    if about := manifest.get("pairs"):
        return {"model": about.get("model", ""), "count": about.get("count"), "digest": about.get("digest", "")}
    try:
        content = read_json(folder / "step.json")
        label, digest = content["label"], content["depends_on"]["inputs"]["pairs"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    found = re.fullmatch(r"label ([\d,]+) pairs with (.+)", str(label))
    said = {"model": found[2], "count": int(found[1].replace(",", ""))} if found else {}
    return {**said, "digest": str(digest)}


class _Pairs:
    """The pairs of the usable parts of a store, the latest row of each counting."""

    def __init__(self) -> None:
        self.finite: dict[str, str] = {}  # the part that has finite logits of a pair, by the pair
        self.not_finite: dict[str, str] = {}
        self.twice: dict[str, str] = {}

    def add(self, file: str, folder: Path, width: int) -> None:
        """Read one part."""
        names, logits = read_part(folder / file, width)
        whole = np.atleast_1d(np.isfinite(logits).all(axis=1))
        for name, finite in zip(names, whole, strict=True):
            if name in self.finite or self.not_finite.get(name) == file:
                self.twice[name] = file
            elif finite:  # a pair whose logits were not finite is labelled again
                self.finite[name] = file
                self.not_finite.pop(name, None)
            else:
                self.not_finite[name] = file

    def bad(self) -> set[str]:
        """The pairs that are to be labelled again."""
        return {*self.not_finite, *self.twice}

    def faults(self) -> Iterator[tuple[str, str]]:
        """The part and what is wrong with it."""
        for file, count in sorted(Counter(self.not_finite.values()).items()):
            yield file, f"has {count:,} pairs whose logits are not finite"
        for file, count in sorted(Counter(self.twice.values()).items()):
            yield file, f"has {count:,} pair ids that occur twice, in it or in an earlier part"


def _step_faults(folder: Path, manifest: dict[str, Any]) -> tuple[list[Fault], bool]:
    """What shows that the labels are not those of the step, and whether they can stay.

    An unfinished step does not say yet what it depends on.
    """
    if not is_finished(folder):
        return [], True
    path = folder / "step.json"
    try:
        content = read_json(path)
        kind, inputs = content["kind"], content["depends_on"]["inputs"]
        mark = digest_of({"kind": kind, "version": content["version"], "content": content["depends_on"]})
        model, pairs = inputs["encoder" if kind == "cosine" else "model"], inputs["pairs"]
    except FileNotFoundError:
        return [Fault(path, "is missing")], True
    except (ValueError, KeyError, TypeError):
        return [Fault(path, "cannot be read, or is not whole")], True
    found, header = [], manifest["header"]
    if folder.name != f"{kind}-{mark}":
        found.append(Fault(path, f"is that of the step {kind}-{mark}"))
    if (given := header.get("encoder" if kind == "cosine" else "teacher")) != model:
        found.append(Fault(folder / MANIFEST, f"has the header of another teacher's labels ({given}, not {model})"))
    if (labelled := manifest.get("pairs", {}).get("digest", pairs)) != pairs:
        found.append(Fault(folder / MANIFEST, f"is of labels of another set of pairs ({labelled}, not {pairs})"))
    return found, not found


@dataclass(frozen=True)
class Repaired:
    """What was dropped from a label store.

    Attributes:
        folder: the store's folder as it was.
        faults: what was wrong with it.
        dropped: labels that are gone.
        missing: pairs that have no label now, and that the next run labels; None where the store does not say how many
            pairs there are.
    """

    folder: Path | Place
    faults: tuple[Fault, ...]
    dropped: int
    missing: int | None


def repair_store(check: StoreCheck) -> Repaired:
    """Drop what a check found. The caller holds the step's lock.

    Args:
        check: of a store with faults, which is a folder.

    Raises:
        NoRoomError: the disk is full; the store is as unfinished as it was, and nothing of it is lost.
    """
    folder = check.folder
    assert isinstance(folder, Path)
    if not check.whole:
        shutil.rmtree(folder)
        return Repaired(folder, check.faults, check.rows, check.count)
    partial = folder if not is_finished(folder) else folder.with_name(folder.name + _PARTIAL)
    if partial != folder:
        if partial.is_dir():  # left by a process that was killed in between
            shutil.rmtree(partial)
        folder.rename(partial)
    return drop_faults(LabelStore(partial, read_manifest(partial / MANIFEST)), check)


def drop_faults(store: LabelStore, check: StoreCheck) -> Repaired:
    """Drop the parts and pairs at fault from a store that can stay.

    Args:
        store: the store, open to write to it.
        check: of it.
    """
    store.drop(check.bad_parts, check.bad_pairs)
    left = len(store.done_ids())
    missing = None if check.count is None else check.count - left
    return Repaired(check.folder, check.faults, check.rows - left, missing)
