"""A step that is a label store: it is filled with what it lacks, here and at the workspace's shared address."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core import processes
from tmkd.core.console import progress
from tmkd.core.errors import LabelError, PlaceError
from tmkd.data.pairs import Pairs
from tmkd.pipeline.store.fingerprint import differ_alone_in, fingerprint
from tmkd.pipeline.store.label_store import MANIFEST, LabelStore, Mirror, read_manifest
from tmkd.pipeline.store.shared_labels import SharedStore, shared_steps
from tmkd.pipeline.store.workspace import Busy, Workspace, step_content
from tmkd.teachers.interface import Scored

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """Labels that are wanted.

    Attributes:
        kind: the kind of step.
        header: what identifies them in their store.
        content: what they depend on; its inputs have `pairs`.
        pairs: distinct pairs.
        name: what the log calls the model.
        step: what the log calls the step; says what is labelled with which model unless given.
        borrow: whether stores of other pairs have the same labels of those pairs that they share.
    """

    kind: str
    header: dict[str, Any]
    content: dict[str, Any]
    pairs: Pairs
    name: str
    step: str = ""
    borrow: bool = True

    @property
    def about(self) -> dict[str, Any]:
        """What is labelled, as a label store keeps it."""
        return {"digest": self.content["inputs"]["pairs"], "count": len(self.pairs), "model": self.name}

    def read(self, folder: Path) -> LabelStore:
        """The store in a folder, which stays as it is; errors as of `LabelStore.read`."""
        return LabelStore.read(folder, header=self.header, pairs=self.about)


def stored(workspace: Workspace, wanted: Labels, scored: Callable[[Pairs], Iterator[Scored]]) -> LabelStore:
    """The store of labels, after it was filled. What was damaged in a finished step since is labelled again.

    Args:
        workspace: keeps the labels; one that is only read is not filled.
        wanted: which labels.
        scored: as `StoredTeacher.scored`.
    """
    label = wanted.step or f"label {len(wanted.pairs):,} pairs with {wanted.name}"

    def build(folder: Path) -> None:
        _complete(workspace, folder, wanted, scored, step_content(wanted.kind, wanted.content, label))

    step = workspace.step(wanted.kind, wanted.content, build, label=label)
    store = wanted.read(step.folder) if (step.folder / MANIFEST).is_file() else None
    if workspace.mode != "read" and processes.broadcast(
        processes.first() and _lacks_some(workspace, step.folder, store, wanted)
    ):
        if processes.first():
            with workspace.holding(step.folder.name, label, wait=workspace.mode == "wait"):
                build(step.folder)
        processes.barrier()
        store = None
    return wanted.read(step.folder) if store is None else store


def are_stored(workspace: Workspace, wanted: Labels) -> bool:
    """Whether the workspace, or its shared address, has all of the labels in a finished store."""
    folder = workspace.root / "steps" / f"{wanted.kind}-{fingerprint(wanted.kind, wanted.content)}"
    if (folder / MANIFEST).is_file() and wanted.read(folder).has(wanted.pairs.ids).all():
        return True
    shared = _shared(workspace, folder)
    return shared is not None and shared.rows() >= len(wanted.pairs)


def _lacks_some(workspace: Workspace, folder: Path, store: LabelStore | None, wanted: Labels) -> bool:
    """Whether a finished store has not all of the labels, or the workspace's shared address lacks it.

    A part is damaged, or the teacher has no score for a pair.
    """
    if store is None:
        return True
    shared = _shared(workspace, folder)
    return not store.has(wanted.pairs.ids).all() or (shared is not None and shared.step() is None)


def _shared(workspace: Workspace, folder: Path) -> SharedStore | None:
    """The store of a step's folder at the workspace's shared address."""
    name = folder.name.removesuffix(".partial")
    return None if workspace.labels is None else SharedStore(workspace.labels / name)


def _complete(
    workspace: Workspace,
    folder: Path,
    wanted: Labels,
    scored: Callable[[Pairs], Iterator[Scored]],
    step: dict[str, Any],
) -> None:
    """Fill the store in a folder, and that at the workspace's shared address; `step` is the content of its step.json.

    Raises:
        PlaceError: the shared address cannot be read or written; the message says what is kept.
    """
    shared = _shared(workspace, folder)

    def filled(mirror: Mirror | None) -> None:
        store = LabelStore.open(folder, header=wanted.header, pairs=wanted.about, mirror=mirror)
        if wanted.borrow:
            _borrow(store, workspace, wanted.pairs, wanted.kind, wanted.content)
        _fill(store, scored, wanted.pairs, wanted.name)

    if shared is None:
        return filled(None)
    try:
        if shared.step() is not None:
            store = LabelStore.open(folder, header=wanted.header, pairs=wanted.about, mirror=shared)
            if store.has(wanted.pairs.ids).all():
                return None
        with shared.writing(Busy, wait=workspace.mode == "wait") as writer:
            filled(writer)
            writer.finish(step)
    except PlaceError as error:
        done = 0
        if (folder / MANIFEST).is_file():
            store = wanted.read(folder)
            done = int(store.has(wanted.pairs.ids).sum())
        raise PlaceError(
            f"{error}. {done:,} of {len(wanted.pairs):,} pairs are labelled with {wanted.name} and stay in {folder}; "
            "the same command continues",
            address=error.address,
        ) from error


def _borrow(store: LabelStore, workspace: Workspace, pairs: Pairs, kind: str, content: dict[str, Any]) -> None:
    """Copy the labels of pairs that other stores of the same model and precision have: no pair is labelled twice.

    Stores that are not finished count, too: their answers may have been paid for.
    """
    wanted, header, here = pairs.take(np.flatnonzero(~store.has(pairs.ids))), store.manifest["header"], set()
    for folder, theirs in workspace.finished(kind):
        here.add(folder.name)
        if differ_alone_in("pairs", theirs, content) and len(wanted):
            labels = _labels_of(LabelStore.read(folder, header=header), wanted)
            wanted = _copied(store, labels, wanted, folder.name)
    for folder in _unfinished(workspace, kind, content) if len(wanted) else ():
        if folder == store.folder or not len(wanted):
            continue
        try:
            labels = _labels_of(LabelStore.read(folder, header=header), wanted)
        except LabelError:  # another process merges its parts, or finishes it
            continue
        wanted = _copied(store, labels, wanted, folder.name)
    if workspace.labels is None or not len(wanted):
        return
    for shared, theirs in shared_steps(workspace.labels, kind):
        if differ_alone_in("pairs", theirs, content) and len(wanted) and shared.place.name not in here:
            workspace.tokens.mkdir(exist_ok=True)
            with TemporaryDirectory(dir=workspace.tokens) as copy:
                other = LabelStore.open(Path(copy), header=header, mirror=shared)
                wanted = _copied(store, _labels_of(other, wanted), wanted, str(shared.place))


def _unfinished(workspace: Workspace, kind: str, content: dict[str, Any]) -> Iterator[Path]:
    """The unfinished stores of the same labels: their folders' names differ by the pairs alone.

    Another process may be writing one.
    """
    for folder in sorted(workspace.root.glob(f"steps/{kind}-*.partial")):
        with suppress(LabelError):
            pairs = read_manifest(folder / MANIFEST).get("pairs", {}).get("digest")
            mark = fingerprint(kind, {**content, "inputs": {**content["inputs"], "pairs": pairs}})
            if folder.name == f"{kind}-{mark}.partial":
                yield folder


def _labels_of(store: LabelStore, pairs: Pairs) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which of N pairs a store has, [N], and the logits of these."""
    known = store.has(pairs.ids)
    return known, store.logits_for(pairs.take(np.flatnonzero(known)).ids)


def _copied(
    store: LabelStore, labels: tuple[NDArray[np.bool_], NDArray[np.float32]], wanted: Pairs, name: str
) -> Pairs:
    """Add labels of another store, as `_labels_of` gives them; returns the pairs that it has not."""
    known, logits = labels
    if len(logits):
        logger.info(f"{len(logits):,} of the pairs are labelled already ({name})")
        end = 0
        for ids in wanted.take(np.flatnonzero(known)).ids.chunks():
            store.append(ids, logits[end : end + len(ids)])
            end += len(ids)
    return wanted.take(np.flatnonzero(~known))


def _fill(store: LabelStore, scored: Callable[[Pairs], Iterator[Scored]], pairs: Pairs, name: str) -> None:
    """Label the pairs that the store does not have yet; `scored` is as `StoredTeacher.scored`."""
    missing = np.flatnonzero(~store.has(pairs.ids))
    if len(missing) == 0:
        return
    left = pairs.take(missing) if len(missing) < len(pairs) else pairs
    with progress(f"label with {name}", len(pairs), done=len(pairs) - len(missing)) as bar:
        for rows, logits in scored(left):
            store.append(left.ids_at(rows), logits)
            bar.advance(len(rows))
