"""The embeddings that a bi-encoder made: each text's once, in memory or, in a folder, for later processes too.

On some CPUs the last bits of an embedding depend on the other texts of its batch. If a process is killed, the next one
finds the embeddings in the folder, embeds the remaining texts in the same batches, and so gives the same numbers.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.files import remove_temporary_of, replacing
from tmkd.core.mapped_array import mapped_array
from tmkd.core.open_files import require_room
from tmkd.models.text_states import text_key

logger = logging.getLogger(__name__)

Sided = tuple[str, str]
"""A text and before it its side, `query` or `document`: a text may be embedded once as each."""
_Part = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""The keys of some texts, [n, 16], and their embeddings, [n, d]."""
_KEY = np.dtype("S16")  # a key as one value that can be sorted


class EmbeddedTexts:
    """Embeddings by side and text.

    Args:
        folder: keeps them in parts, each a file of embeddings and one of keys, with a checksum of both; made when the
            first part is written. None: they stay in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._parts: list[NDArray[np.float32]] = []
        self._ends: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # how many texts there are up to the end of a part
        self._keys = np.empty(0, dtype=_KEY)  # of all texts, in their order: 24 bytes a text with its row
        self._rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # of each key among the texts of all parts
        paths = sorted(folder.glob("*.keys.npy")) if folder is not None else []
        self._keep([part for path in paths if (part := self._read(path)) is not None])

    def _read(self, path: Path) -> _Part | None:
        values = path.with_name(path.name.replace(".keys", ""))
        try:
            lines, part = np.load(path), mapped_array(values)
            if part.ndim != 2 or lines.shape != (len(part) + 1, 16) or lines.dtype != np.uint8:
                raise ValueError(f"it has {part.shape} numbers for keys of {lines.shape}")
            keys = lines[:-1]
            if part.dtype != np.float32 or not np.array_equal(lines[-1], _checksum(keys, part)):
                raise ValueError("its checksum is another")
        except (OSError, ValueError, EOFError) as error:
            require_room(error, values)
            logger.warning(f"{values} is missing or damaged ({error}); its texts are embedded again")
            return None
        return keys, part

    def _keep(self, parts: Sequence[_Part]) -> None:
        if not parts:
            return
        keys = np.concatenate([keys for keys, _ in parts]).view(_KEY).ravel()
        order = np.argsort(keys)
        places = np.searchsorted(self._keys, keys[order])
        self._rows = np.insert(self._rows, places, len(self._rows) + order)
        self._keys = np.insert(self._keys, places, keys[order])
        self._parts += [part for _, part in parts]
        self._ends = np.cumsum([len(part) for part in self._parts])

    def _find(self, texts: Sequence[Sided]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The row of each text among those of all parts, and whether it is there, [n] each."""
        keys = np.array([_key(one) for one in texts], dtype=_KEY)
        if not len(self._keys):
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=np.bool_)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._rows[places], self._keys[places] == keys

    def missing(self, texts: Iterable[Sided]) -> list[Sided]:
        """Those of the texts that are not embedded yet, each once, in their order."""
        distinct = [*dict.fromkeys(texts)]
        return [one for one, there in zip(distinct, self._find(distinct)[1].tolist(), strict=True) if not there]

    def add(self, texts: Sequence[Sided], embeddings: NDArray[np.float32]) -> None:
        """Keep the embeddings [n, d] float32 of n texts.

        Raises:
            NoRoomError: the disk is full; what was kept before stays.
        """
        keys = np.stack([np.frombuffer(_key(one), dtype=np.uint8) for one in texts])
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"{len(list(self.folder.glob('*.keys.npy'))):05}-{keys[0].tobytes().hex()[:8]}"
            lines = np.vstack([keys, _checksum(keys, embeddings)])
            for path, numbers in ((f"{name}.npy", embeddings), (f"{name}.keys.npy", lines)):  # the keys come last
                remove_temporary_of(self.folder / path)
                with replacing(self.folder / path, numbers.nbytes) as temporary, temporary.open("wb") as file:
                    np.save(file, numbers)
            embeddings = mapped_array(self.folder / f"{name}.npy")
        self._keep([(keys, embeddings)])

    def of(self, side: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings of n texts, at least one, that are there, [n, d] float32."""
        rows, there = self._find([(side, text) for text in texts])
        assert there.all(), "a text is not embedded"
        parts = np.searchsorted(self._ends, rows, side="right")
        found = np.empty((len(texts), self._parts[0].shape[1]), dtype=np.float32)
        order = np.argsort(parts, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(parts[order])) + 1):
            part = int(parts[some[0]])
            found[some] = self._parts[part][rows[some] - (self._ends[part] - len(self._parts[part]))]
        return found


def _key(text: Sided) -> bytes:
    return text_key("\n".join(text))


def _checksum(keys: NDArray[np.uint8], embeddings: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of a part, [16]."""
    found = hashlib.blake2b(keys.tobytes(), digest_size=16)
    found.update(np.ascontiguousarray(embeddings).data)
    return np.frombuffer(found.digest(), dtype=np.uint8)
