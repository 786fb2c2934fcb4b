"""A graph over the stored embeddings of an index, which finds nearly all of the nearest rows without comparing all.

It is an HNSW graph (Malkov and Yashunin 2018, "Efficient and robust approximate nearest neighbor search using
hierarchical navigable small world graphs") of the library usearch (the extra `ann`). It lies beside the stored states:

    index/states/graph/
    ├── graph.json         which rows of which store it has, and size and CRC-32 of its file
    └── rows-G-N.usearch   the graph over the first N rows of generation G, memory-mapped when it is read

A store only grows, so a graph over its first rows stays right. Rows that came later are compared one by one, until they
are a tenth as many as those of the graph: then `update_graph` adds them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.errors import MissingExtraError, TmkdError, needs_extra
from tmkd.core.files import replacing, write_json
from tmkd.core.open_files import require_room
from tmkd.inference.state_card import FOLDER
from tmkd.inference.state_store import StateStore
from tmkd.models.text_states import of_unit_length

logger = logging.getLogger(__name__)

MOST_EXACT = 200_000  # rows that are compared one by one where there is no graph
FORMAT = 2  # of a graph; one of format 1 lacks rows
CARD = "graph.json"
_NEIGHBOURS = 16  # edges of a node
_ADD, _SEARCH = 128, 256  # nodes that are looked at to place one, and to answer a question
_LATER = 0.1  # of the graph's rows; when more came later, they are added
_BLOCK = 8192  # rows that are added at once


@dataclass(frozen=True)
class GraphCard:
    """The content of graph.json.

    Attributes:
        identity: The fingerprint of the encoder whose embeddings these are.
        generation: Of the store.
        rows: The first rows of the store, which the graph has.
        file: The graph's file.
        bytes: Its size.
        crc32: Its CRC-32.
    """

    identity: str
    generation: int
    rows: int
    file: str
    bytes: int
    crc32: int


class Graph:
    """A graph that is open for searching. Threads may share it.

    Args:
        library: usearch's index.
        rows: The first rows of the store, which it has.
    """

    def __init__(self, library: Any, rows: int) -> None:
        self._library, self.rows = library, rows
        self._lock = Lock()  # the library refuses more searches at once than there are cores

    def search(self, question: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The rows that are nearest to a question, `count` at most.

        Args:
            question: The question's embedding, [d] float32.
            count: How many.
        """
        with self._lock:
            keys = self._library.search(question, min(count, len(self._library)), threads=1).keys
        return np.asarray(keys, dtype=np.int64)

    @classmethod
    def open(cls, store: StateStore) -> Graph | None:
        """The graph of a store; None where there is none that can be used, which is said where one is wanted.

        Args:
            store: The store.
        """
        card = _card(store)
        if card is None:
            if len(store.embeddings) > MOST_EXACT:
                logger.warning(
                    f"{store.index} has {len(store.embeddings):,} embeddings and no graph over them, so each question "
                    f"is compared with all; write one with: tmkd index --out {store.index} --model {store.model}"
                )
            return None
        try:
            with needs_extra("ann"):
                library = _opened(store, card, view=True)
        except MissingExtraError as error:
            logger.warning(f"{error}; each question is compared with all {len(store.embeddings):,} embeddings")
            return None
        return None if library is None else cls(library, card.rows)


def update_graph(store: StateStore, *, most_exact: int | None = None) -> str | None:
    """Write the graph of a store where one is wanted, or remove it where none is; a graph that is good stays.

    Args:
        store: The store.
        most_exact: Up to so many rows, no graph is wanted; `MOST_EXACT` unless given.

    Returns:
        What was done, in words; None for nothing.

    Raises:
        NoRoomError: The disk is full; the graph is as it was.
    """
    folder, rows = _folder(store), len(store.embeddings)
    if rows <= (MOST_EXACT if most_exact is None else most_exact):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    card = _card(store)
    few = card is not None and rows - card.rows <= _LATER * card.rows
    try:
        with needs_extra("ann"):
            library = None if card is None else _opened(store, card, view=few)
            if library is None:
                card, few, library = None, False, empty_graph(store.card.width)
    except MissingExtraError as error:
        return None if few else f"no graph over {rows:,} embeddings: {error}"
    if few:
        return None
    first = 0 if card is None else card.rows
    with progress("graph", rows - first, "passages") as bar:
        for start in range(first, rows, _BLOCK):
            vectors = store.embeddings[start : min(start + _BLOCK, rows)]
            add(library, start, vectors)
            bar.advance(len(vectors))
    folder.mkdir(exist_ok=True)
    identity, generation = store.card.identity, store.card.generation
    path = folder / f"rows-{generation}-{rows}.usearch"
    with replacing(path, library.serialized_length) as temporary:
        _save(library, temporary)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    written = GraphCard(identity, generation, rows, path.name, len(data), zlib.crc32(data.data))
    write_json(folder / CARD, {"format": FORMAT, **asdict(written)})
    for other in folder.glob("*.usearch*"):  # an older graph, and what a process that was killed had written
        if other != path:
            with suppress(OSError):
                other.unlink()
    return f"graph over {rows:,} embeddings, {written.bytes / 1e6:,.0f} MB"


def _folder(store: StateStore) -> Path:
    return store.index / FOLDER / "graph"


def empty_graph(width: int) -> Any:
    """A graph of usearch for embeddings of `width` numbers, without any."""
    from usearch.index import Index

    return Index(
        ndim=width, metric="ip", dtype="f16", connectivity=_NEIGHBOURS, expansion_add=_ADD,
        expansion_search=_SEARCH, enable_key_lookups=False,
    )  # fmt: skip


def add(library: Any, start: int, vectors: NDArray[np.float16]) -> None:
    """Add embeddings [N, width] to a graph as the rows from `start` on.

    On one thread: where several add at once, some rows get no edge that leads to them, and no search finds them (some 4
    of 3,000 on two cores).
    """
    whole = np.flatnonzero(of_unit_length(vectors.astype(np.float32)))  # nothing is near to what is damaged
    library.add(start + whole, vectors[whole], threads=1)


def _opened(store: StateStore, card: GraphCard, *, view: bool) -> Any | None:
    """The graph of a card, mapped (`view`) or in memory; None for a file that is none, which is said."""
    library, path = empty_graph(store.card.width), _folder(store) / card.file
    try:
        library.view(str(path)) if view else library.load(str(path))
    except RuntimeError as error:  # older versions could write a card of a file that a full disk had cut
        logger.warning(f"{path} is damaged ({error}); the graph is not used")
        return None
    return library


def _save(library: Any, path: Path) -> None:
    """Write a graph. usearch does not say why it failed, and nothing at all where the last part was not written.

    Raises:
        OSError: there is no room, or the file cannot be written for another reason that the system names.
        TmkdError: the file is not whole, and the system names no reason.
    """
    reason: RuntimeError | None = None
    try:
        library.save(str(path))
    except RuntimeError as error:
        reason = error
    size = library.serialized_length
    if reason is not None or path.stat().st_size != size:
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):  # neither on macOS nor on Windows
                os.posix_fallocate(file.fileno(), 0, size)  # fails for the reason that the library keeps to itself
        raise TmkdError(f"{path} was not written whole ({reason or 'no reason given'}); run the same command again")


def _card(store: StateStore) -> GraphCard | None:
    """The card of a graph that can be used; None where there is none, and what is wrong with one is said."""
    path = _folder(store) / CARD
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT:
            return None
        card = GraphCard(**content)
        if (card.identity, card.generation) != (store.card.identity, store.card.generation):
            return None  # of embeddings that are no longer there
        data = np.memmap(path.parent / card.file, dtype=np.uint8, mode="r")
        if len(data) != card.bytes or zlib.crc32(data.data) != card.crc32 or card.rows > len(store.embeddings):
            raise ValueError("its file is not the one that it names")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        require_room(error, path)
        logger.warning(f"{path} is damaged ({type(error).__name__}: {error}); the graph is not used")
        return None
    return card
