"""The stored states of an index's passages: memory-mapped, checked, readable while they are written.

A student of the kind `cached` reads every passage once, when it is indexed. What it needs of a passage later
(`tmkd.models.text_states`) lies beside the text index, and `tmkd.inference.state_update` writes it.

    index/states/
    ├── states.json          the manifest, replaced as a whole: whose states these are, and size and CRC-32 of each file
    ├── rows-N.bin           a row for each text: `ROW`
    ├── values-N.bin         int8 [tokens, k]
    ├── scales-N.bin         float16 [tokens]
    ├── embeddings-N.bin     float16 [rows, d]
    ├── gone-N-M.bin         a bit for each row: 1 where its passage is no longer in the index
    └── lock                 held by the process that writes

Files only grow, and what the manifest does not count is not there: so a reader keeps what it opened, and a writer that
is killed leaves the store as the last manifest has it. A passage is a row; one that is longer than the encoder reads is
a row for each of its windows (`tmkd.inference.qa.windows`).

Opening checks all sizes, and the CRC-32 of the tables. The values, which are much larger, are checked row by row when
they are first used: a damaged row is said and counts as missing, so that the scorer computes it. `check` reads all.
"""

from __future__ import annotations

import logging
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.inference.state_card import CARD, FOLDER, ROW, Card
from tmkd.models.text_states import TextStates

logger = logging.getLogger(__name__)

TABLES = ("rows", "gone")  # checked when a store is opened
_TRIES = 5  # to open a store that is replaced meanwhile


@dataclass
class Opened:
    """A store as one manifest has it.

    Attributes:
        card: The manifest.
        rows: [rows] of `ROW`.
        gone: Whether the row's passage has left the index, [rows] bool.
        values: [tokens, k] int8.
        scales: [tokens] float16.
        embeddings: [rows, d] float16.
    """

    card: Card
    rows: NDArray[np.void]
    gone: NDArray[np.bool_]
    values: NDArray[np.int8]
    scales: NDArray[np.float16]
    embeddings: NDArray[np.float16]

    def __post_init__(self) -> None:
        keys, self.starts, self.lengths = keys_of(self.rows["key"]), array("q"), array("i")
        self.starts.frombytes(self.rows["start"].tobytes())
        self.lengths.frombytes(self.rows["length"].tobytes())
        self.place = {keys[row]: row for row in np.flatnonzero(~self.gone).tolist()}
        self.seen = bytearray(len(self.rows))  # 1: the row was compared with its checksum

    def at(self, row: int) -> TextStates:
        """Views of what is stored of a row."""
        start = self.starts[row]
        stop = start + self.lengths[row]
        return TextStates(self.values[start:stop], self.scales[start:stop], self.embeddings[row])

    def passage_keys(self) -> set[bytes]:
        """The keys of the passages that have states."""
        return set(keys_of(self.rows["passage"][~self.gone]))

    def is_whole(self, row: int) -> bool:
        """Whether a row is what was written."""
        return crc_of(self.at(row)) == int(self.rows["check"][row])


def crc_of(states: TextStates) -> int:
    """The CRC-32 of what is stored of a text."""
    check = 0
    for part in (states.values, states.scales, states.embedding):
        check = zlib.crc32(np.ascontiguousarray(part).data, check)
    return check


def keys_of(column: NDArray[np.void]) -> list[bytes]:
    """The keys in a column of rows, 16 bytes each."""
    data = column.tobytes()
    return [data[start : start + 16] for start in range(0, len(data), 16)]


def open_card(folder: Path, card: Card, *, every: bool = False) -> Opened:
    """Map the files of a manifest and check them.

    Args:
        folder: The store.
        card: Its manifest.
        every: Compare all files with their checksums, not the tables alone.

    Raises:
        FileNotFoundError: A file is not there.
        DataError: A file is cut short or damaged.
    """
    parts = {name: _mapped(folder, name, card, every=every) for name in card.files}
    rows = parts["rows"].view(ROW)
    ends = rows["start"] + rows["length"]
    if len(rows) and (rows["start"].min() < 0 or rows["length"].min() < 0 or ends.max() > card.tokens):
        raise DataError(f"{folder / card.files['rows']['file']} is damaged: it names tokens that are not there")
    gone = np.unpackbits(parts["gone"], count=card.rows).astype(bool) if "gone" in parts else np.zeros(card.rows, bool)
    values = parts["values"].view(np.int8).reshape(card.tokens, card.state_size)
    embeddings = parts["embeddings"].view(np.float16).reshape(card.rows, card.width)
    return Opened(card, rows, gone, values, parts["scales"].view(np.float16), embeddings)


def _mapped(folder: Path, name: str, card: Card, *, every: bool) -> NDArray[np.uint8]:
    entry = card.files[name]
    path, size = folder / str(entry["file"]), int(entry["bytes"])
    if (there := path.stat().st_size) < size:
        raise DataError(f"{path} is cut short: it has {there:,} bytes of {size:,}", path=path)
    if not size:
        return np.zeros(0, dtype=np.uint8)
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r", shape=(size,)))  # views of a plain array are cheaper
    if (every or name in TABLES) and (found := zlib.crc32(data.data)) != entry["crc32"]:
        said = f"its CRC-32 is {found:08x}, {folder / CARD} says {entry['crc32']:08x}"
        raise DataError(f"{path} is damaged: {said}", path=path)
    return data


def has_states(index: Path) -> bool:
    """Whether an index has stored states, whoever's."""
    return (Path(index) / FOLDER / CARD).is_file()


def how_to_compute(index: Path, model: str | Path | None) -> str:
    """The command that computes the states of an index's passages."""
    return f"tmkd index --out {index} --model {model or 'EXPORT'}"


class StateStore:
    """The states of an index's passages, open for reading: what was there when it was opened or refreshed.

    Threads may share it.

    Args:
        index: The index's folder.
        identity: The fingerprint of the text encoder that the states must be of; None takes any.
        model: The export, for messages; the one that the states are of unless given.

    Attributes:
        index: As given.
        folder: Where the store is.
        damaged: How many rows did not match their checksum when they were used; they count as missing.
    """

    def __init__(self, index: str | Path, identity: str | None, *, model: str | Path | None = None) -> None:
        self.index, self.model, self._wanted = Path(index), model, identity
        self.folder = self.index / FOLDER
        self.damaged = 0
        self.refresh()

    @classmethod
    def open(cls, index: str | Path, identity: str | None, *, model: str | Path | None = None) -> StateStore:
        """Open the store of an index.

        Args:
            index: As for the class.
            identity: As for the class.
            model: As for the class.

        Raises:
            DataError: There is no store, it is cut short, damaged or of another format, or its states are of another
                model or tokenizer; the message names the command that computes them.
        """
        return cls(index, identity, model=model)

    def refresh(self) -> None:
        """Show what the store holds now. Who uses what it held before is not disturbed.

        Raises:
            DataError: As `open`; it then still shows what it showed before.
        """
        self._opened = self._open()
        self._pids: list[str] | None = None

    def _open(self, *, every: bool = False) -> Opened:
        for left in reversed(range(_TRIES)):
            try:
                card = Card.read(self.folder / CARD)
                self.model = self.model or card.model
                self._require_own(card)
                return open_card(self.folder, card, every=every)
            except FileNotFoundError as error:
                if not (self.folder / CARD).is_file():
                    how = how_to_compute(self.index, self.model)
                    raise DataError(f"{self.index} has no states of passages; run: {how}", path=self.folder) from error
                if not left:  # else the files were replaced after the card was read
                    raise self._refused(f"{error.filename} is missing") from error
            except DataError as error:
                if str(error).endswith(self._remedy):
                    raise
                raise self._refused(str(error), error.path) from error
        raise AssertionError  # the last try returned or raised

    @property
    def _remedy(self) -> str:
        return f"; compute the states again: {how_to_compute(self.index, self.model)}"

    def _refused(self, why: str, path: Path | None = None) -> DataError:
        return DataError(why + self._remedy, path=path or self.folder)

    def _require_own(self, card: Card) -> None:
        if self._wanted is not None and card.identity != self._wanted:
            asked = f"{self.model or 'the model'} ({self._wanted[:12]})"
            raise self._refused(
                f"{self.folder} holds the states of another model or tokenizer: of {card.model} "
                f"({card.identity[:12]}), not of {asked}"
            )

    def get(self, key: bytes) -> TextStates | None:
        """What is stored of a text, as views of the files; None where nothing is.

        Args:
            key: `tmkd.models.text_states.text_key` of the exact text: a passage, or a window of a long one.
        """
        opened = self._opened
        row = opened.place.get(key)
        if row is None or not (opened.seen[row] or self._is_whole(opened, key, row)):
            return None
        return opened.at(row)

    def __contains__(self, key: bytes) -> bool:
        """Whether a text has states, by its key as `get` takes it; they are not compared with their checksum."""
        return key in self._opened.place

    def _is_whole(self, opened: Opened, key: bytes, row: int) -> bool:
        """Compare a row with its checksum, once."""
        if opened.is_whole(row):
            opened.seen[row] = 1
            return True
        if opened.place.pop(key, None) is not None:
            self.damaged += 1
            if self.damaged == 1:  # the others are counted
                logger.warning(
                    f"{self.folder} is damaged: the states of passage {opened.rows['pid'][row].tobytes().hex()} do not "
                    f"match their checksum, so they are computed anew when they are needed{self._remedy}"
                )
        return False

    def __repr__(self) -> str:
        return f"StateStore({str(self.index)!r})"

    @property
    def identity(self) -> str:
        """The fingerprint of the text encoder that its states are of."""
        return self.card.identity

    @property
    def card(self) -> Card:
        """Its manifest."""
        return self._opened.card

    @property
    def embeddings(self) -> NDArray[np.float16]:
        """The embedding of every row, [N, d], memory-mapped. `pids` says which passage a row belongs to."""
        return self._opened.embeddings

    @property
    def pids(self) -> list[str]:
        """The passage id of every row, N of them; empty where the passage has left the index.

        An id comes several times where a passage is stored in windows, or in texts that differ in white space alone.
        """
        if self._pids is None:
            ids, gone = self._opened.rows["pid"].tobytes().hex(), self._opened.gone.tolist()
            self._pids = ["" if dead else ids[16 * row : 16 * row + 16] for row, dead in enumerate(gone)]
        return self._pids

    def __len__(self) -> int:
        """How many texts have states: passages, and windows of long ones."""
        return len(self._opened.rows) - int(self._opened.gone.sum())

    def passage_keys(self) -> set[bytes]:
        """The keys (`text_key`) of the passages that have states; of a long one that of its whole text."""
        return self._opened.passage_keys()

    @property
    def passages(self) -> int:
        """How many passages have states."""
        return self.card.passages

    @property
    def nbytes(self) -> int:
        """Bytes of its files, as far as the manifest counts them."""
        return self.card.nbytes

    def check(self) -> None:
        """Compare every file, and every row, with its checksum. It reads the whole store.

        Raises:
            DataError: Something is damaged.
        """
        opened = self._open(every=True)
        bad = [row for row in np.flatnonzero(~opened.gone).tolist() if not opened.is_whole(row)]
        if bad:
            raise self._refused(f"{self.folder} is damaged: {len(bad):,} rows do not match their checksums")
