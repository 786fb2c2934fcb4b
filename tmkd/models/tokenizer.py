"""Turn pairs of texts into token ids, from a tokenizer.json alone (no torch, no transformers).

Published tokenizer.json files often contain settings for padding and truncation (the MiniLM packages: both to 128
tokens); both are cleared here. Pairs are truncated longest text first to one maximum length, which is written into
every model folder, so every tool that opens the folder cuts a pair at the same token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tmkd.core.errors import DataError, EncoderError

_CHUNK = 1024  # pairs given to the tokenizer at once: enough for all its threads, and little memory
_PAD_TOKENS = ("[PAD]", "<pad>")


class Encoded(NamedTuple):
    """N pairs as token ids, without padding.

    Attributes:
        ids: token ids of every pair, [T_i] int32 each.
        type_ids: segment ids of every pair (0 for the question, 1 for the passage), [T_i] int32 each.
    """

    ids: list[NDArray[np.int32]]
    type_ids: list[NDArray[np.int32]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of every pair, [N] int64."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int64, count=len(self.ids))


class PairTokenizer:
    """The tokenizer of a model folder, for pairs. Safe to share between threads.

    Args:
        folder: a model folder with tokenizer.json (and config.json, where the padding token has an unusual name).
        max_length: most tokens of a pair, special tokens included.

    Attributes:
        folder: as given.
        max_length: as given.
        pad_id: token id of padding.

    Raises:
        EncoderError: no tokenizer.json, a damaged one, no padding token, or a `max_length` without room for text.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        self.folder = Path(folder)
        self.max_length = max_length
        self._tokenizer = _load(self.folder)
        self.pad_id = _pad_id(self._tokenizer, self.folder)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        special = self._tokenizer.num_special_tokens_to_add(True)
        if max_length < special + 2:
            raise EncoderError(
                f"max_length {max_length} leaves no room for text: {self.folder} adds {special} special tokens to a "
                f"pair; use at least {special + 2}"
            )
        self._tokenizer.enable_truncation(max_length, stride=0, strategy="longest_first", direction="right")

    def encode(self, questions: Sequence[str], passages: Sequence[str]) -> Encoded:
        """Tokenize pairs.

        Args:
            questions: N texts.
            passages: N texts.

        Returns:
            The pairs in the given order, without padding.

        Raises:
            DataError: the two sequences differ in length, or a text is not a string of valid characters.
        """
        encoded = Encoded([], [])
        for chunk in self.encode_chunks(questions, passages):
            encoded.ids.extend(chunk.ids)
            encoded.type_ids.extend(chunk.type_ids)
        return encoded

    def encode_chunks(self, questions: Sequence[str], passages: Sequence[str]) -> Iterator[Encoded]:
        """Tokenize pairs in chunks of about a thousand, for callers that show progress; otherwise as `encode`.

        Args:
            questions: N texts.
            passages: N texts.
        """
        if len(questions) != len(passages):
            raise DataError(f"{len(questions)} questions but {len(passages)} passages; a pair has one of each")
        for start in range(0, len(questions), _CHUNK):
            pairs = list(zip(questions[start : start + _CHUNK], passages[start : start + _CHUNK], strict=True))
            rows = self._encode(pairs, start)
            yield Encoded(
                [np.array(row.ids, dtype=np.int32) for row in rows],
                [np.array(row.type_ids, dtype=np.int32) for row in rows],
            )

    def _encode(self, pairs: list[tuple[str, str]], start: int) -> list[Any]:
        try:
            rows: list[Any] = self._tokenizer.encode_batch_fast(pairs, add_special_tokens=True)
        except (TypeError, ValueError) as error:  # UnicodeEncodeError (half a surrogate pair) is a ValueError
            for number, pair in enumerate(pairs, start):
                for side, text in zip(("question", "passage"), pair, strict=True):
                    _require_text(number, side, text)
            raise DataError(f"pairs {start} to {start + len(pairs) - 1} cannot be tokenized: {error}") from error
        return rows

    def cut_rows(
        self, questions: Sequence[str], passages: Sequence[str], lengths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the places of the pairs that are longer than `max_length`, of which some tokens were cut, [K] int64.

        Only pairs of exactly `max_length` tokens are tokenized again.

        Args:
            questions: N texts.
            passages: N texts.
            lengths: the number of tokens of every pair as `encode` returned it, [N].
        """
        full = np.flatnonzero(lengths == self.max_length)
        found: list[int] = []
        for start in range(0, len(full), _CHUNK):
            places = full[start : start + _CHUNK].tolist()
            rows = self._encode([(questions[place], passages[place]) for place in places], start)
            found += [place for place, row in zip(places, rows, strict=True) if row.overflowing]
        return np.array(found, dtype=np.int64)

    def passage_places(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.int64]:
        """Return where the passage's tokens start and end in every pair as `encode` returns it, [N, 2] int64.

        Args:
            questions: N texts.
            passages: N texts.

        Returns:
            The index of the passage's first token and that after its last; 0 and 0 where nothing of it was kept.
        """
        places = np.empty((len(questions), 2), dtype=np.int64)
        for start in range(0, len(questions), _CHUNK):
            pairs = list(zip(questions[start : start + _CHUNK], passages[start : start + _CHUNK], strict=True))
            for row, one in enumerate(self._encode(pairs, start), start):
                inside = [place for place, side in enumerate(one.sequence_ids) if side == 1]
                places[row] = (inside[0], inside[-1] + 1) if inside else (0, 0)
        return places

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return the characters that each token of each text stands for, without special tokens and truncation.

        Args:
            texts: N texts, tokenized one by one, not as pairs.

        Returns:
            For each text, the (start, end) of each token in characters.

        Raises:
            DataError: a text is not a string of valid characters.
        """
        try:
            rows = self._whole.encode_batch(list(texts), add_special_tokens=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"a text cannot be tokenized: {error}") from error
        return [row.offsets for row in rows]

    @cached_property
    def _whole(self) -> Any:
        """A tokenizer that does not truncate. Switching truncation off in the other one would affect other threads."""
        tokenizer = _load(self.folder)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, with truncation and without padding, into an existing folder."""
        (Path(folder) / "tokenizer.json").write_text(self._tokenizer.to_str(pretty=False), encoding="utf-8")

    def fingerprint(self) -> str:
        """Return 32 hex characters that depend on everything that decides the ids: vocabulary, rules, truncation."""
        return hashlib.blake2b(self._tokenizer.to_str(pretty=False).encode(), digest_size=16).hexdigest()


def _load(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise EncoderError(
            f"{folder} has no tokenizer.json; write one with "
            "`AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)`, "
            "or copy it from where the model came from"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a file it cannot parse
        raise EncoderError(f"{path} cannot be read ({error}); the file is damaged, fetch it again") from error


def _pad_id(tokenizer: Any, folder: Path) -> int:
    """Return the padding id: from config.json (MPNet derives positions from it), else by the token's usual name."""
    config = folder / "config.json"
    if config.is_file():
        try:
            value = json.loads(config.read_text(encoding="utf-8")).get("pad_token_id")
        except (ValueError, AttributeError) as error:
            raise EncoderError(f"{config} cannot be read ({error}); the file is damaged, fetch it again") from error
        if isinstance(value, int):
            return value
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    for token in _PAD_TOKENS:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    raise EncoderError(f"{folder}/tokenizer.json has no padding token ({' or '.join(_PAD_TOKENS)}); add one")


def _require_text(number: int, side: str, text: object) -> None:
    if not isinstance(text, str):
        raise DataError(f"pair {number}: the {side} is {type(text).__name__} {text!r}, expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"pair {number}: the {side} holds half of a surrogate pair at character {error.start}; "
            "the file was cut or decoded wrongly"
        ) from error
