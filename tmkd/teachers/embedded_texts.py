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

from tmkd.core.files import replacing
from tmkd.models.text_states import text_key

logger = logging.getLogger(__name__)

Sided = tuple[str, str]
"""A text and before it its side, `query` or `document`: a text may be embedded once as each."""


class EmbeddedTexts:
    """Embeddings by side and text.

    Args:
        folder: keeps them in parts, each a file of embeddings and one of keys, with a checksum of both; made when the
            first part is written. None: they stay in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._parts: list[NDArray[np.float32]] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for path in sorted(folder.glob("*.keys.npy")) if folder is not None else ():
            self._read(path)

    def _read(self, path: Path) -> None:
        values = path.with_name(path.name.replace(".keys", ""))
        try:
            lines, part = np.load(path), np.load(values, mmap_mode="r")
            if part.ndim != 2 or lines.shape != (len(part) + 1, 16) or lines.dtype != np.uint8:
                raise ValueError(f"it has {part.shape} numbers for keys of {lines.shape}")
            keys = lines[:-1]
            if part.dtype != np.float32 or not np.array_equal(lines[-1], _checksum(keys, part)):
                raise ValueError("its checksum is another")
        except (OSError, ValueError, EOFError) as error:
            logger.warning(f"{values} is missing or damaged ({error}); its texts are embedded again")
            return
        self._keep(keys, part)

    def _keep(self, keys: NDArray[np.uint8], part: NDArray[np.float32]) -> None:
        self._places |= {key.tobytes(): (len(self._parts), row) for row, key in enumerate(keys)}
        self._parts.append(part)

    def missing(self, texts: Iterable[Sided]) -> list[Sided]:
        """Those of the texts that are not embedded yet, each once, in their order."""
        return [one for one in dict.fromkeys(texts) if _key(one) not in self._places]

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
                with replacing(self.folder / path, numbers.nbytes) as temporary, temporary.open("wb") as file:
                    np.save(file, numbers)
            embeddings = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        self._keep(keys, embeddings)

    def of(self, side: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings of texts that are there, [n, d] float32."""
        places = [self._places[_key((side, text))] for text in texts]
        return np.stack([self._parts[part][row] for part, row in places])


def _key(text: Sided) -> bytes:
    return text_key("\n".join(text))


def _checksum(keys: NDArray[np.uint8], embeddings: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of a part, [16]."""
    found = hashlib.blake2b(keys.tobytes(), digest_size=16)
    found.update(np.ascontiguousarray(embeddings).data)
    return np.frombuffer(found.digest(), dtype=np.uint8)
