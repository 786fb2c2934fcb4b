"""What tokenizing pairs (`tmkd.models.tokenizer`) and single texts (`tmkd.models.text_tokenizer`) have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError, EncoderError
from tmkd.models.tokenizer_files import load_tokenizer, padding_id, unknown_id, without_embedding

CHUNK = 1024  # texts or pairs given to the tokenizer at once: enough for all its threads, and little memory


class ModelTokenizer:
    """The tokenizer of a model folder. Safe to share between threads.

    A subclass says which tokens of what is too long are kept (`_kept`).

    Args:
        folder: a model folder with tokenizer.json.
        max_length: most tokens of a pair or text, special tokens included.
        pairs: whether it reads pairs of texts, not single ones.

    Attributes:
        folder: as given.
        max_length: as given.
        pad_id: token id of padding.

    Raises:
        EncoderError: no tokenizer.json, a damaged one, no padding token, tokens for which the weights have no
            embedding, or a `max_length` without room for text.
    """

    def __init__(self, folder: Path, max_length: int, *, pairs: bool) -> None:
        self.folder = Path(folder)
        self.max_length = max_length
        self._tokenizer, self._gives_types = load_tokenizer(self.folder)
        self.pad_id = padding_id(self._tokenizer, self.folder)
        self._beyond = without_embedding(self._tokenizer, self.folder)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        special = self._tokenizer.num_special_tokens_to_add(pairs)
        least = special + (2 if pairs else 1)
        if max_length < least:
            raise EncoderError(
                f"max_length {max_length} leaves no room for text: {self.folder} adds {special} special tokens to a "
                f"{'pair' if pairs else 'text'}; use at least {least}"
            )
        self._room = max_length - special

    @property
    def unknown_id(self) -> int | None:
        """As `tmkd.models.tokenizer_files.unknown_id`."""
        return unknown_id(self._tokenizer)

    @property
    def vocabulary(self) -> int:
        """How many token ids there are: one more than the largest."""
        found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return 1 + max(found.values())

    def _cut(self, row: Any) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
        """Token ids and segment ids of what the library encoded, at most `max_length`; and how many there were."""
        ids = np.array(row.ids, dtype=np.int32)
        types = np.array(row.type_ids, dtype=np.int32) if self._gives_types else np.zeros_like(ids)
        count = len(ids)
        if count > self.max_length:
            kept = self._kept(sides_of(row))
            ids, types = ids[kept], types[kept]
        return ids, types, count

    def _kept(self, sides: NDArray[np.int8]) -> NDArray[np.bool_]:
        """Which tokens of what is too long are kept, [T] bool; `sides` as `sides_of` gives it."""
        raise NotImplementedError

    def _require_embeddings(self, rows: Sequence[Any], name: Callable[[int], str], start: int) -> None:
        """Refuse tokens for which the model has no embedding.

        Args:
            rows: what the library encoded.
            name: gives the name of one of them in errors, from its number.
            start: the number of the first.

        Raises:
            DataError: one of them holds such a token.
        """
        for number, row in enumerate(rows if self._beyond else [], start):
            for token in self._beyond.keys() & set(row.ids):
                raise DataError(
                    f"{name(number)} holds {self._beyond[token]!r}, a token for which this model has no embedding; "
                    f"remove it from the text, or from {self.folder}/tokenizer.json"
                )


def sides_of(row: Any) -> NDArray[np.int8]:
    """Where each token of a pair comes from: 0 the question, 1 the passage, -1 a special token between them."""
    return np.array([-1 if side is None else side for side in row.sequence_ids], dtype=np.int8)
