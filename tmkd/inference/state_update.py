"""Bring the stored states of an index up to date: a changed document costs its own passages only.

States are computed and written in segments of some thousand passages. So a process that is killed loses the segment
that it was at, and the next call goes on after the ones before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tmkd.core.console import Bar, progress
from tmkd.core.errors import DataError, NoRoomError
from tmkd.core.files import disk_errors
from tmkd.data.documents.index import Changes, DocumentIndex
from tmkd.data.documents.passages import Passage
from tmkd.inference.dense_graph import update_graph
from tmkd.inference.qa.retrieval import keys_in, without_states
from tmkd.inference.qa.windows import Windows
from tmkd.inference.state_card import FOLDER, ROW
from tmkd.inference.state_store import Opened, StateStore, has_states, how_to_compute, keys_of
from tmkd.inference.state_writer import SEGMENT, PassageEncoder, Writer, writing
from tmkd.models.text_states import TextStates, text_key

logger = logging.getLogger(__name__)

_AT_ONCE = 256  # texts that the encoder is given, for the progress bar
_MOST_GONE = 1 / 3  # of the tokens of a store; with more, it is written anew without them


@dataclass
class StateChanges:
    """What an update of the states did.

    Attributes:
        computed: Passages whose states were computed.
        kept: Passages that had states.
        dropped: Passages that are no longer in the index, and their states.
        damaged: Of the computed ones those whose stored states did not match their checksum.
        long: Passages that are longer than the encoder reads.
        windows: Texts that are stored of these.
        max_length: Tokens of a text that the encoder reads.
        tokens: Tokens of all texts that are stored.
        bytes: Size of the files, including what is gone and not yet removed.
        live_bytes: Size of what is stored of the index's passages.
        graph: What was done about the graph over the embeddings, in words; empty for nothing.
        seconds: What computing and writing took.
    """

    computed: int = 0
    kept: int = 0
    dropped: int = 0
    damaged: int = 0
    long: int = 0
    windows: int = 0
    max_length: int = 0
    tokens: int = 0
    bytes: int = 0
    live_bytes: int = 0
    graph: str = ""
    seconds: float = 0.0

    @property
    def passages(self) -> int:
        """How many passages have states."""
        return self.computed + self.kept

    def sentence(self) -> str:
        """The counts in words."""
        text = f"states of {self.passages:,} passages: {self.computed:,} computed, {self.kept:,} kept"
        text += f", {self.dropped:,} dropped; {self.bytes / 1e6:,.1f} MB"
        if self.passages:
            text += f", {self.live_bytes / 1e3 / self.passages:,.1f} KB a passage"
        if self.computed:
            text += f", {self.computed / max(self.seconds, 1e-9):,.0f} passages/s"
        if self.long:
            text += f"; {self.long:,} longer than {self.max_length} tokens are stored in {self.windows:,} windows, "
            text += "so nothing of them is cut off"
        text += f"; {self.damaged:,} were damaged" if self.damaged else ""
        return f"{text}; {self.graph}" if self.graph else text


@dataclass
class IndexChanges(Changes):
    """What an update of an index did.

    Attributes:
        states: What was done about the states of its passages; None where no model was given.
        without_states: How many passages have none; None where the index has no states, or a model was given.
        states_of: The export that the other passages' states are of; None as there.
    """

    states: StateChanges | None = None
    without_states: int | None = None
    states_of: str | None = None

    def missing(self, index_folder: str | Path) -> list[str]:
        """A sentence on the passages without states, and the command that computes them; none where all have them."""
        if not self.without_states:
            return []
        how = how_to_compute(Path(index_folder), self.states_of)
        return [f"the states of {self.without_states:,} passages are missing; compute them with: {how}"]


def update_states(index_folder: str | Path, encoder: PassageEncoder, *, segment: int = SEGMENT) -> StateChanges:
    """Compute the states of an index's passages that its store lacks, and drop those whose passages are gone.

    Args:
        index_folder: The index, as `tmkd index` writes it.
        encoder: Computes the states.
        segment: Passages that are written together.

    Returns:
        What changed.

    Raises:
        DataError: The index cannot be used, another process is computing its states, or it has new passages and another
            backend computed the states that are there.
        NoRoomError: The disk is full. What was stored before, and the segments that were finished, are whole.
        ExportError: The encoder gives numbers that are not finite.
    """
    began = time.monotonic()
    index = DocumentIndex.open(index_folder)
    folder = index.folder / FOLDER
    with disk_errors(folder), writing(index.folder):
        changes = _Update(index, encoder, Writer.open(folder, encoder), segment).run()
        changes.graph = update_graph(StateStore.open(index.folder, encoder.identity)) or ""
    changes.seconds = time.monotonic() - began
    return changes


def with_states(changes: Changes, index_folder: str | Path, encoder: PassageEncoder | None) -> IndexChanges:
    """Bring the states of an index up to date after its documents, or say how many passages have none.

    Args:
        changes: What was done about the documents.
        index_folder: The index.
        encoder: Computes the states; None computes none, and removes none.

    Raises:
        TmkdError: As `update_states`.
    """
    done = IndexChanges(**asdict(changes))
    if encoder is not None:
        done.states = update_states(index_folder, encoder)
    elif has_states(Path(index_folder)):
        try:
            store = StateStore.open(index_folder, None)
        except DataError as error:  # the documents are indexed; their states are another matter
            logger.warning(str(error))
        else:
            done.without_states = without_states(DocumentIndex.open(store.index), store)
            done.states_of = store.card.model
    return done


class _Update:
    """One update of a store."""

    def __init__(self, index: DocumentIndex, encoder: PassageEncoder, writer: Writer, segment: int) -> None:
        self.index, self.encoder, self.writer, self.segment = index, encoder, writer, segment
        self.windows = Windows(encoder.max_length, encoder.folder, apart=True)
        self.changes = StateChanges(max_length=encoder.max_length)
        self.anew = False

    def run(self) -> StateChanges:
        self.writer.remove_unnamed()
        wanted = keys_in(self.index)
        missing = wanted - self._drop(wanted)
        self.changes.kept, self.changes.computed = len(wanted) - len(missing), len(missing)
        if missing:
            self.writer.computed_by(self.encoder.backend)
        with progress("states", len(missing), "passages") as bar:
            for passages in self._segments(missing):
                self._compute(passages, bar)
        self.writer.finish(self.index.version, str(self.encoder.folder))
        opened = self.writer.opened()
        gone = opened.rows["length"][opened.gone].sum()
        if self.anew or gone > _MOST_GONE * self.writer.card.tokens:
            self.writer = self._smaller()
            opened = self.writer.opened()
        self.writer.remove_unnamed()
        self._measure(opened)
        return self.changes

    def _drop(self, wanted: set[bytes]) -> set[bytes]:
        """Drop what the index no longer has and what is damaged; gives the keys of the passages that stay."""
        opened = self.writer.opened()
        keys = keys_of(opened.rows["passage"])
        have = opened.passage_keys()
        bad = [row for row in range(len(keys)) if not opened.is_whole(row)]
        self.anew = bool(bad)  # a damaged row stays in its file otherwise, and `StateStore.check` would find it again
        damaged = {keys[row] for row in bad if not opened.gone[row]} & wanted
        if damaged:
            logger.warning(
                f"{self.writer.folder} is damaged: the states of {len(damaged):,} passages do not match their "
                "checksums; they are computed again"
            )
        out = (have - wanted) | damaged | (otherwise := self._cut_otherwise(opened))
        if otherwise:
            logger.warning(
                f"{self.writer.folder}: an earlier version cut {len(otherwise):,} long passages in another way, or at "
                "their end; they are computed again"
            )
        self.changes.dropped, self.changes.damaged = len(have - wanted), len(damaged)
        if out:
            self.writer.drop(np.fromiter((key in out for key in keys), dtype=bool, count=len(keys)))
        return have - out

    def _cut_otherwise(self, opened: Opened) -> set[bytes]:
        """The keys of the index's passages whose stored texts are not the windows that are scored."""
        rows = opened.rows[~opened.gone]
        stored: dict[bytes, set[bytes]] = {
            key: set() for key in keys_of(rows["passage"][rows["length"] >= self.encoder.max_length])
        }
        for passage, key in zip(keys_of(rows["passage"]), keys_of(rows["key"]), strict=True) if stored else ():
            if passage in stored:
                stored[passage].add(key)
        found = (one.text for one in self.index.passages()) if stored else ()
        texts = {key: text for text in found if (key := text_key(text)) in stored}
        windows = zip(texts.items(), self.windows.of("", list(texts.values())), strict=True)
        return {
            key
            for (key, text), spans in windows
            if {text_key(text[start:stop]) for start, stop in spans} != stored[key]
        }

    def _segments(self, missing: set[bytes]) -> Iterator[list[Passage]]:
        """The passages to compute, each text once."""
        left, found = set(missing), list[Passage]()
        for passage in self.index.passages() if left else ():
            if (key := text_key(passage.text)) in left:
                left.remove(key)
                found.append(passage)
                if len(found) == self.segment:
                    yield found
                    found = []
        if found:
            yield found

    def _compute(self, passages: Sequence[Passage], bar: Bar) -> None:
        """Compute and store the states of some passages."""
        spans = self.windows.of("", [passage.text for passage in passages])
        texts = [
            (passage, passage.text[start:stop], number == 0)
            for passage, cuts in zip(passages, spans, strict=True)
            for number, (start, stop) in enumerate(cuts)
        ]
        rows = np.zeros(len(texts), dtype=ROW)
        rows["key"] = np.frombuffer(b"".join(text_key(text) for _, text, _ in texts), dtype="V16")
        rows["passage"] = np.frombuffer(b"".join(text_key(one.text) for one, _, _ in texts), dtype="V16")
        rows["pid"] = np.frombuffer(bytes.fromhex("".join(one.pid for one, _, _ in texts)), dtype="V8")
        states: list[TextStates | None] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row][1]))  # little padding in what is read at once
        for start in range(0, len(order), _AT_ONCE):
            some = order[start : start + _AT_ONCE]
            for row, one in zip(some, self.encoder.states([texts[row][1] for row in some]), strict=True):
                states[row] = one
            bar.advance(sum(texts[row][2] for row in some))
        self.writer.add(rows, [one for one in states if one is not None])

    def _smaller(self) -> Writer:
        try:
            return self.writer.without_gone()
        except NoRoomError as error:
            logger.warning(f"the states of passages that are gone stay in {self.writer.folder}: {error}")
            return self.writer

    def _measure(self, opened: Opened) -> None:
        """Set what is stored."""
        card, rows = opened.card, opened.rows[~opened.gone]
        windows = rows[rows["key"] != rows["passage"]]
        self.changes.windows, self.changes.long = len(windows), len(set(keys_of(windows["passage"])))
        self.changes.tokens = int(rows["length"].sum())
        self.changes.bytes = card.nbytes
        a_row = ROW.itemsize + 2 * card.width
        self.changes.live_bytes = self.changes.tokens * (card.state_size + 2) + len(rows) * a_row
