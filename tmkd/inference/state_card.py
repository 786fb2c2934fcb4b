"""The manifest of an index's stored states, `states.json`: whose states they are, and what each file must be.

`tmkd.inference.state_store` says what lies beside it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tmkd.core.errors import DataError
from tmkd.core.files import digest_of

FORMAT = 2  # of a store; raise it when older versions can no longer read it. 1 has no `backends`
FOLDER = "states"
CARD = "states.json"
PENDING = "pending.json"  # the card of states that are being computed while those of another model are still used
PARTS = ("rows", "values", "scales", "embeddings")
ROW = np.dtype([
    ("key", "V16"),  # `text_key` of the text
    ("passage", "V16"),  # `text_key` of the passage that the text is, or is a window of
    ("pid", "V8"),  # the passage's id in the index, 16 hex digits there
    ("start", "<i8"),  # the text's first token in values and scales
    ("length", "<i4"),  # its number of tokens
    ("check", "<u4"),  # CRC-32 of its values, scales and embedding
])  # fmt: skip


@dataclass(frozen=True)
class Card:
    """The content of states.json.

    Attributes:
        identity: The fingerprint of the text encoder that the states are of.
        model: The export that they were computed with, as it was named.
        state_size: k, numbers of a token.
        width: d, numbers of an embedding.
        generation: The number in the files' names; it changes when they are written anew.
        rows: How many rows there are.
        tokens: How many tokens they have together.
        passages: How many passages have states.
        index: The version of the index (`DocumentIndex.version`) whose passages all have states; empty while some are
            still missing.
        backends: What computed the states, of the export's backends; empty where that is not known, as in older files.
        files: For each part its `file`, its `bytes` and their `crc32`. A file may go on after them.
    """

    identity: str
    model: str
    state_size: int
    width: int
    generation: int
    rows: int = 0
    tokens: int = 0
    passages: int = 0
    index: str = ""
    backends: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The card with its format and a digest of itself."""
        content = {"format": FORMAT, **asdict(self)}
        return {**content, "digest": digest_of(content)}

    def sizes(self) -> dict[str, int]:
        """The bytes that each part must have."""
        sizes = {
            "rows": self.rows * ROW.itemsize, "values": self.tokens * self.state_size, "scales": 2 * self.tokens,
            "embeddings": 2 * self.rows * self.width,
        }  # fmt: skip
        return {**sizes, "gone": -(-self.rows // 8)} if "gone" in self.files else sizes

    @property
    def nbytes(self) -> int:
        """Bytes of the files, as far as they are counted."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card.

        Raises:
            FileNotFoundError: There is none.
            DataError: It is damaged or of another format.
        """
        text = path.read_bytes()
        try:
            content = json.loads(text)
            written, digest = content.pop("format"), content.pop("digest")
            if written not in (1, FORMAT):
                raise DataError(f"{path} has format {written!r}, this version reads {FORMAT}", path=path)
            if digest_of({"format": written, **content}) != digest:
                raise ValueError("its content does not match its digest")
            card = cls(**content)
            if card.sizes() != {name: entry["bytes"] for name, entry in card.files.items()}:
                raise ValueError("sizes that do not fit each other")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error})", path=path) from error
        return card


def backends_of(index_folder: Path, identity: str) -> list[str]:
    """What computed the states of an index that are of an encoder, all or some; empty where there are none, or unknown.

    Args:
        index_folder: The index.
        identity: The fingerprint of the encoder.
    """
    for name in (CARD, PENDING):
        with suppress(OSError, DataError):  # `Writer.open` says what is wrong
            card = Card.read(index_folder / FOLDER / name)
            if card.identity == identity:
                return card.backends
    return []
