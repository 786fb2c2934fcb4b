"""Turn single texts into token ids, for an encoder that reads question and passage each without the other.

`tmkd.models.tokenizer` does the same for pairs, and the same holds here: the tokenizer is the one that transformers
reads, and what tmkd saved needs neither transformers nor torch. Every text, question or passage, is cut to one maximum
length; the special tokens after it are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.models.tokenizer import Encoded, require_text
from tmkd.models.tokenizer_base import CHUNK, ModelTokenizer, sides_of

QUESTION_FOLDER = "question_encoder"
"""In the folder of a cached student or its export: an encoder of questions with its tokenizer, if there is one."""


class TextTokenizer(ModelTokenizer):
    """The tokenizer of a model folder, for single texts. Safe to share between threads.

    Attributes and errors are those of `ModelTokenizer`.

    Args:
        folder: a model folder with tokenizer.json.
        max_length: most tokens of a text, special tokens included.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        super().__init__(folder, max_length, pairs=False)

    @property
    def around(self) -> tuple[int, int]:
        """How many special tokens stand before and after every text."""
        sides = sides_of(self._tokenizer.encode("a"))
        before = int(np.argmax(sides >= 0))
        return before, int((sides < 0).sum()) - before

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenize texts.

        Args:
            texts: N texts; an empty one has its special tokens.

        Returns:
            The texts in the given order, without padding. Segment ids are those that the tokenizer gives a single text:
            0 in every supported family.

        Raises:
            DataError: a text is not a string of valid characters, or holds a token that the model has no embedding for.
        """
        return self.encode_counted(texts)[0]

    def encode_counted(
        self, texts: Sequence[str], name: Callable[[int], str] = "text {}".format
    ) -> tuple[Encoded, NDArray[np.int64]]:
        """Tokenize texts, and count the tokens that each had before it was cut.

        Args:
            texts: N texts.
            name: gives the name of a text in errors, from its index.

        Returns:
            As `encode`, and the number of tokens of every text, special tokens included, [N] int64; it is above
            `max_length` where a part of the text was cut off.

        Raises:
            DataError: as `encode`.
        """
        rows, tokens = list[tuple[NDArray[np.int32], NDArray[np.int32]]](), np.empty(len(texts), dtype=np.int64)
        for start in range(0, len(texts), CHUNK):
            for number, row in enumerate(self._encode(texts[start : start + CHUNK], name, start), start):
                ids, types, tokens[number] = self._cut(row)
                rows.append((ids, types))
        return Encoded.of(rows), tokens

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the characters that each token of a text stands for; (0, 0) for a special one. Nothing is cut.

        Args:
            text: of valid characters.
        """
        found: list[tuple[int, int]] = self._tokenizer.encode(text).offsets
        return found

    def fingerprint(self) -> str:
        """Return 32 hex characters that depend on everything that decides the ids: vocabulary, rules, length."""
        rules = [self._tokenizer.to_str(pretty=False), str(self.max_length)]
        rules += ["split"] * self._tokenizer.encode_special_tokens + ["no segments"] * (not self._gives_types)
        return hashlib.blake2b("\0".join(rules).encode(), digest_size=16).hexdigest()

    def _kept(self, sides: NDArray[np.int8]) -> NDArray[np.bool_]:
        """Which tokens of a text that is too long are kept, [T] bool: the special ones, and the first of the text."""
        kept = sides < 0
        kept[np.flatnonzero(~kept)[: self._room]] = True
        return kept

    def _encode(self, texts: Sequence[str], name: Callable[[int], str], start: int) -> list[Any]:
        try:
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("not every text is a string")  # the library would take two texts in a tuple for a pair
            rows: list[Any] = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        except (TypeError, ValueError) as error:  # UnicodeEncodeError (half a surrogate pair) is a ValueError
            for number, text in enumerate(texts, start):
                require_text(name(number), text)
            raise DataError(f"{name(start)}, or one of the texts after it, cannot be tokenized: {error}") from error
        self._require_embeddings(rows, name, start)
        return rows
