"""Write the stored states of an index (`tmkd.inference.state_store` has the format).

Each segment that is appended gets a new manifest. States of another model stay until those of the new one are complete;
until then the manifest of these is `pending.json`.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError, ExportError
from tmkd.core.files import disk_errors, write_durably
from tmkd.core.locks import locked
from tmkd.inference.state_card import CARD, FOLDER, PARTS, PENDING, Card
from tmkd.inference.state_store import Opened, crc_of, keys_of, open_card
from tmkd.models.text_states import TextStates

logger = logging.getLogger(__name__)

SEGMENT = 2048  # passages that are computed, and then written together


class PassageEncoder(Protocol):
    """What computes states, such as `tmkd.inference.text_encoder.TextEncoder`.

    Attributes:
        identity: A fingerprint of everything that decides the states.
        folder: The export, with the tokenizer.
        max_length: Tokens of a text that it reads.
        backend: Of the export's backends the one that computes.
    """

    @property
    def identity(self) -> str: ...  # noqa: D102
    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def max_length(self) -> int: ...  # noqa: D102
    @property
    def backend(self) -> str: ...  # noqa: D102

    def states(self, texts: Sequence[str]) -> list[TextStates]:
        """What is stored of each text.

        Args:
            texts: Texts; those that are longer than `max_length` are cut.
        """
        ...


def writing(index_folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of an index's states until the block ends or the process does.

    Raises:
        DataError: Another process holds it.
    """
    busy = f"another process is computing the states of {index_folder}; wait for it and run this again"
    return locked(index_folder / FOLDER / "lock", DataError(busy))


class Writer:
    """Appends to a store.

    Args:
        folder: The store.
        opened: What it holds.
        name: The manifest's file.

    Attributes:
        card: The manifest.
    """

    def __init__(self, folder: Path, opened: Opened, name: str = CARD) -> None:
        self.folder, self.card, self.name = folder, opened.card, name
        self.rows, self.gone = [opened.rows], opened.gone

    @classmethod
    def open(cls, folder: Path, encoder: PassageEncoder) -> Writer:
        """Open a store for writing: the one that is there, one of this encoder that is not complete, or a new one."""
        name = CARD
        for name in (CARD, PENDING):
            try:
                card = Card.read(folder / name)
                if card.identity == encoder.identity:
                    return cls(folder, open_card(folder, card), name)
            except FileNotFoundError as error:
                if (folder / name).is_file():
                    logger.warning(f"{error.filename} is missing; all states are computed anew")
                break
            except DataError as error:
                logger.warning(f"{error}; all states are computed anew")
                break
        sample = encoder.states([""])[0]
        sizes = (sample.values.shape[1], len(sample.embedding))
        return cls(folder, _empty(folder, Card(encoder.identity, str(encoder.folder), *sizes, generation=0)), name)

    def opened(self) -> Opened:
        """What the store holds now."""
        return open_card(self.folder, self.card)

    def computed_by(self, backend: str) -> None:
        """Note what computes the texts that are added next; the manifest says it with them.

        Raises:
            DataError: Another backend computed those that are there: `docs/backends.md` has what they may differ by.
        """
        known = self.card.backends
        if self.gone.all():  # there are no others
            self.card = replace(self.card, backends=[backend])
        elif known and backend not in known:
            raise DataError(
                f"{self.folder} holds states that {' and '.join(known)} computed; with new ones of {backend} passages "
                f"would not be scored alike, so none are computed. Use --backend {known[0]}, or remove {self.folder} "
                f"to compute all states with {backend}",
                path=self.folder,
            )

    def add(self, rows: NDArray[np.void], states: Sequence[TextStates]) -> None:
        """Append texts, and write the manifest.

        Args:
            rows: Their rows, whose start, length and check are set here.
            states: What is stored of each.

        Raises:
            NoRoomError: The disk is full; the store is as it was.
            ExportError: A number is not finite, or the states have another size than those before.
        """
        self._require_usable(rows, states)
        lengths = [len(one.scales) for one in states]
        rows["length"] = lengths
        rows["start"] = self.card.tokens + np.cumsum([0, *lengths])[:-1]
        rows["check"] = [crc_of(one) for one in states]
        content = {
            "rows": rows.tobytes(),
            "values": b"".join(one.values.tobytes() for one in states),
            "scales": b"".join(one.scales.tobytes() for one in states),
            "embeddings": b"".join(one.embedding.tobytes() for one in states),
        }
        files = dict(self.card.files)
        grown = replace(
            self.card, index="", rows=self.card.rows + len(rows), tokens=self.card.tokens + sum(lengths), files=files,
            passages=self.card.passages + len(set(keys_of(rows["passage"]))),
        )  # fmt: skip
        try:
            with disk_errors(self.folder, sum(map(len, content.values()))):
                for name, data in content.items():
                    files[name] = self._appended(files[name], data)
                self._commit(grown, np.concatenate([self.gone, np.zeros(len(rows), dtype=bool)]))
        except Exception:
            with suppress(OSError):  # the reason why writing failed is the one to tell
                for entry in self.card.files.values():
                    os.truncate(self.folder / entry["file"], entry["bytes"])
            raise
        self.rows.append(rows)

    def drop(self, gone: NDArray[np.bool_]) -> None:
        """Mark rows as gone, [rows] bool, and write the manifest."""
        gone = self.gone | gone
        living = np.concatenate(self.rows)["passage"][~gone]
        self._commit(replace(self.card, index="", passages=len(set(keys_of(living)))), gone)

    def finish(self, version: str, model: str) -> None:
        """Say that all passages of the index's version have states, and put the manifest in its place."""
        done = replace(self.card, index=version, model=model)
        if done != self.card:
            self._commit(done, self.gone)
        if self.name != CARD:
            os.replace(self.folder / self.name, self.folder / CARD)
            self.name = CARD

    def without_gone(self) -> Writer:
        """Write the store anew without what is gone, and put the new one in its place."""
        opened = self.opened()
        anew = Writer(self.folder, _empty(self.folder, self.card), PENDING)
        living = np.flatnonzero(~opened.gone)
        for start in range(0, len(living), SEGMENT):
            some = living[start : start + SEGMENT]
            anew.add(opened.rows[some], [opened.at(row) for row in some.tolist()])
        anew.finish(self.card.index, self.card.model)
        return anew

    def remove_unnamed(self) -> None:
        """Remove files that no manifest names: of killed processes, of other models, and older ones."""
        named = {"lock", CARD, self.name}
        for name in (CARD, self.name):
            with suppress(OSError, DataError):
                named |= {str(entry["file"]) for entry in Card.read(self.folder / name).files.values()}
        named |= {str(entry["file"]) for entry in self.card.files.values()}  # of a new store, which has no manifest yet
        for path in self.folder.iterdir():
            if path.name not in named and path.is_file():
                with suppress(OSError):
                    path.unlink()

    def _require_usable(self, rows: NDArray[np.void], states: Sequence[TextStates]) -> None:
        for row, one in zip(rows, states, strict=True):
            sizes = (one.values.shape[1], len(one.embedding))
            if sizes != (self.card.state_size, self.card.width):
                raise ExportError(
                    f"{self.card.model} gives states of {sizes[0]} and embeddings of {sizes[1]} numbers, not of "
                    f"{self.card.state_size} and {self.card.width} as before; export again"
                )
            if not (np.isfinite(one.scales).all() and np.isfinite(one.embedding).all()):
                raise ExportError(
                    f"{self.card.model} gives numbers that are not finite for passage {row['pid'].tobytes().hex()}; "
                    "train and export again"
                )

    def _appended(self, entry: Mapping[str, Any], data: bytes) -> dict[str, Any]:
        """Append to a file after the bytes that the manifest counts."""
        with (self.folder / entry["file"]).open("r+b") as file:
            file.truncate(entry["bytes"])  # of a process that was killed there may be more
            file.seek(entry["bytes"])
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return {**entry, "bytes": entry["bytes"] + len(data), "crc32": zlib.crc32(data, entry["crc32"])}

    def _commit(self, card: Card, gone: NDArray[np.bool_]) -> None:
        """Write the bits of what is gone under a new name, then the manifest that names them."""
        bits = np.packbits(gone).tobytes()
        before = self.card.files.get("gone")
        number = 1 + (0 if before is None else int(str(before["file"]).split("-")[2].removesuffix(".bin")))
        name = f"gone-{card.generation}-{number}.bin"
        write_durably(self.folder / name, bits)
        files = {**card.files, "gone": {"file": name, "bytes": len(bits), "crc32": zlib.crc32(bits)}}
        card = replace(card, files=files)
        write_durably(self.folder / self.name, (json.dumps(card.to_json(), indent=2) + "\n").encode())
        self.card, self.gone = card, gone
        if before is not None:
            with suppress(OSError):
                (self.folder / str(before["file"])).unlink()


def _empty(folder: Path, like: Card) -> Opened:
    """A new store without rows, in files that no reader has open."""
    used = [int(path.stem.split("-")[1]) for path in folder.glob("*-*.bin")]
    generation = max(used, default=0) + 1
    files: dict[str, dict[str, Any]] = {
        name: {"file": f"{name}-{generation}.bin", "bytes": 0, "crc32": 0} for name in PARTS
    }
    for entry in files.values():
        (folder / str(entry["file"])).touch()
    sizes = (like.state_size, like.width)
    return open_card(folder, Card(like.identity, like.model, *sizes, generation, backends=like.backends, files=files))
