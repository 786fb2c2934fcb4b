"""The label stores at a shared address: what there is, whether it is whole, and their repair, without a workspace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tmkd.core.console import progress
from tmkd.core.errors import LabelError
from tmkd.core.files import write_durably
from tmkd.core.lease import NAME as LEASE
from tmkd.core.places import Place
from tmkd.pipeline.labels import LabelOverview, StoredLabels
from tmkd.pipeline.store.label_check import KINDS, Fault, Repaired, StoreCheck, check_store, drop_faults
from tmkd.pipeline.store.label_store import MANIFEST, LabelStore, read_manifest
from tmkd.pipeline.store.shared_labels import STEP, SharedStore
from tmkd.pipeline.store.workspace import Busy, bytes_in


class SharedLabels:
    """The label stores at an address. Each is copied into a temporary folder while it is looked at.

    Args:
        address: such as s3://bucket/labels, or a folder.

    Raises:
        PlaceError: the address cannot be opened.
    """

    def __init__(self, address: str | Path) -> None:
        self.root = Place.at(address)

    def show(self) -> LabelOverview:
        """What is stored.

        Raises:
            PlaceError: the address cannot be read.
        """
        return LabelOverview(tuple(StoredLabels(check, (), (), size) for check, size in self._checked()))

    def verify(self) -> list[StoreCheck]:
        """Read every part of every label store; nothing is changed.

        Raises:
            PlaceError: the address cannot be read.
        """
        return [check for check, _ in self._checked()]

    def repair(self) -> list[Repaired]:
        """Drop what `verify` finds, so that the next run labels those pairs again, and nothing else.

        Raises:
            Busy: another process writes one of the stores; those before it are repaired.
            PlaceError: the address cannot be read or written.
        """
        return [self._repaired(check.folder.name) for check in self.verify() if check.faults]

    def _checked(self) -> Iterator[tuple[StoreCheck, int]]:
        """The check of each store, and its bytes."""
        names = [name for name in self.root.names() if name.startswith(tuple(f"{kind}-" for kind in KINDS))]
        with progress("check labels", len(names), "stores") as bar:
            for name in names:
                with _copied(SharedStore(self.root / name)) as (folder, check):
                    yield check, bytes_in(folder)
                bar.advance(1)

    def _repaired(self, name: str) -> Repaired:
        store = SharedStore(self.root / name)
        with store.writing(Busy, wait=False) as writer, _copied(store) as (folder, check):
            store.place.remove(STEP)  # first: a store that has it is whole
            if check.whole:
                return drop_faults(LabelStore(folder, read_manifest(folder / MANIFEST), mirror=writer), check)
            writer.remove([name for name in store.place.names() if name != LEASE])
            return Repaired(check.folder, check.faults, check.rows, check.count)


@contextmanager
def _copied(store: SharedStore) -> Iterator[tuple[Path, StoreCheck]]:
    """A temporary copy of a store, as a step's folder, and its check, in which addresses stand for the copy's paths."""
    with TemporaryDirectory() as temporary:
        step, place = store.place.read(STEP), store.place
        folder = Path(temporary) / (place.name if step is not None else f"{place.name}.partial")
        folder.mkdir()
        try:
            if store.fetch(folder) is not None:
                write_durably(folder / MANIFEST, place.read(MANIFEST) or b"")
        except LabelError:
            write_durably(folder / MANIFEST, b"")  # `check_store` says that it is damaged
        if step is not None:
            write_durably(folder / STEP, step)
        check = check_store(folder)
        faults = tuple(Fault(place / fault.path.name, fault.what) for fault in check.faults)
        yield folder, replace(check, folder=place, faults=faults)
