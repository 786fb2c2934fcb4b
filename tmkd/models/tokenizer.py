"""Turn pairs of texts into token ids.

The tokenizer of a published checkpoint is the one that transformers reads: where its files disagree (tokenizer.json
lower-cases, tokenizer_config.json says `do_lower_case: false`), transformers' rules decide. What tmkd saves holds the
result in tokenizer.json alone, so a student needs neither transformers nor torch.

A special token that a text spells out (`[SEP]`, `<pad>`) is read as that token, as transformers reads it.

Published tokenizer.json files often contain settings for padding and truncation (the MiniLM packages: both to 128
tokens); both are cleared here. Pairs are truncated longest text first to one maximum length, which is written into
every model folder, so every tool that opens the folder cuts a pair at the same token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tmkd.core.errors import DataError
from tmkd.core.files import write_text
from tmkd.models.ragged import Ragged
from tmkd.models.tokenizer_base import CHUNK, ModelTokenizer, sides_of
from tmkd.models.tokenizer_files import SEGMENTS

_Row = tuple[NDArray[np.int32], NDArray[np.int32]]  # ids and segment ids


class Encoded(NamedTuple):
    """N pairs as token ids, without padding.

    Attributes:
        ids: token ids of every pair, [T_i] int32 each: a list, or read from a file as they are needed.
        type_ids: segment ids of every pair (0 for the question, 1 for the passage; all 0 where the tokenizer gives the
            model none), [T_i] int32 each.
    """

    ids: Sequence[NDArray[np.int32]]
    type_ids: Sequence[NDArray[np.int32]]

    @classmethod
    def of(cls, rows: Sequence[_Row]) -> Encoded:
        """Pairs whose ids and segment ids are in memory."""
        return cls([ids for ids, _ in rows], [types for _, types in rows])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of every pair, [N] int64."""
        if isinstance(self.ids, Ragged):
            return self.ids.lengths
        return np.fromiter((len(row) for row in self.ids), dtype=np.int64, count=len(self.ids))

    def followed_by(self, others: Encoded) -> Encoded:
        """These, and then the others."""
        return Encoded(_joined(self.ids, others.ids), _joined(self.type_ids, others.type_ids))


def _joined(first: Sequence[NDArray[np.int32]], others: Sequence[NDArray[np.int32]]) -> Sequence[NDArray[np.int32]]:
    if isinstance(first, Ragged) and isinstance(others, Ragged):
        return first.followed_by(others)
    return [*first, *others]


class PairTokenizer(ModelTokenizer):
    """The tokenizer of a model folder, for pairs. Safe to share between threads.

    Attributes and errors are those of `ModelTokenizer`.

    Args:
        folder: a model folder with tokenizer.json.
        max_length: most tokens of a pair, special tokens included.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        super().__init__(folder, max_length, pairs=True)

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
        return self.encode_counted(questions, passages)[0]

    def encode_counted(
        self, questions: Sequence[str], passages: Sequence[str], first: int = 0
    ) -> tuple[Encoded, NDArray[np.int64]]:
        """Tokenize pairs, and count the tokens that each had before it was cut.

        Args:
            questions: N texts.
            passages: N texts.
            first: the number of the first pair, for errors.

        Returns:
            As `encode`, and the number of tokens of every pair, [N] int64; it is above `max_length` where a part of the
            pair was cut off.

        Raises:
            DataError: as `encode`.
        """
        if len(questions) != len(passages):
            raise DataError(f"{len(questions)} questions but {len(passages)} passages; a pair has one of each")
        rows, tokens = list[_Row](), list[int]()
        for start in range(0, len(questions), CHUNK):
            for row in self._encode(questions[start : start + CHUNK], passages[start : start + CHUNK], first + start):
                ids, type_ids, count = self._cut(row)
                rows.append((ids, type_ids))
                tokens.append(count)
        return Encoded.of(rows), np.array(tokens, dtype=np.int64)

    def encode_chunks(self, texts: Iterable[tuple[str, str]]) -> Iterator[Encoded]:
        """Tokenize pairs in chunks of about a thousand, which are all that is in memory; otherwise as `encode`.

        Args:
            texts: question and passage of each pair.
        """
        left, first = iter(texts), 0
        while some := list(islice(left, CHUNK)):
            questions, passages = zip(*some, strict=True)
            yield self.encode_counted(questions, passages, first)[0]
            first += len(some)

    def _encode(self, questions: Sequence[str], passages: Sequence[str], start: int) -> list[Any]:
        pairs = list(zip(questions, passages, strict=True))
        try:
            rows: list[Any] = self._tokenizer.encode_batch_fast(pairs, add_special_tokens=True)
        except (TypeError, ValueError) as error:  # UnicodeEncodeError (half a surrogate pair) is a ValueError
            for number, pair in enumerate(pairs, start):
                for side, text in zip(("question", "passage"), pair, strict=True):
                    require_text(f"pair {number}: the {side}", text)
            raise DataError(f"pairs {start} to {start + len(pairs) - 1} cannot be tokenized: {error}") from error
        self._require_embeddings(rows, "pair {}".format, start)
        return rows

    def _kept(self, sides: NDArray[np.int8]) -> NDArray[np.bool_]:
        """Which tokens of a pair that is too long are kept, [T] bool: first the longer text loses its last ones.

        As the library's own truncation has it (`longest_first`), which is not used because it also makes an object for
        every combination of a part of one text with a part of the other: minutes and gigabytes for two long texts.

        Args:
            sides: where each token comes from, as `sides_of` gives it.
        """
        question, passage = int((sides == 0).sum()), int((sides == 1).sum())
        shorter = min(question, passage)
        longer = max(shorter, self._room - shorter)
        if shorter + longer > self._room:
            shorter, longer = self._room // 2, self._room // 2 + self._room % 2
        most = (shorter, longer) if question <= passage else (longer, shorter)
        kept = sides < 0
        for side in (0, 1):
            kept[np.flatnonzero(sides == side)[: most[side]]] = True
        return kept

    def passage_places(self, texts: Iterable[tuple[str, str]], count: int) -> NDArray[np.int32]:
        """Return where the passage's tokens start and end in every pair as `encode` returns it, [N, 2] int32.

        Args:
            texts: question and passage of each pair; few of them are in memory at a time.
            count: N.

        Returns:
            The index of the passage's first token and that after its last; 0 and 0 where nothing of it was kept.
        """
        places, left = np.empty((count, 2), dtype=np.int32), iter(texts)
        for start in range(0, count, CHUNK):
            questions, passages = zip(*islice(left, CHUNK), strict=True)
            for number, row in enumerate(self._encode(questions, passages, start), start):
                sides = sides_of(row)
                if len(sides) > self.max_length:
                    sides = sides[self._kept(sides)]
                inside = np.flatnonzero(sides == 1)
                places[number] = (inside[0], inside[-1] + 1) if len(inside) else (0, 0)
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
        return [row.offsets for row in _alone(self._tokenizer.encode_batch, texts)]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, as `token_spans` has them, but not where they are, which takes longer.

        Args:
            texts: N texts, tokenized one by one, not as pairs.

        Raises:
            DataError: a text is not a string of valid characters.
        """
        return [len(row) for row in _alone(self._tokenizer.encode_batch_fast, texts)]

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, with truncation and without padding, into an existing folder."""
        write_text(Path(folder) / "tokenizer.json", self._saved())

    def fingerprint(self) -> str:
        """Return 32 hex characters that depend on everything that decides the ids: vocabulary, rules, truncation."""
        rules = (
            self._saved()
            + ("split" if self._tokenizer.encode_special_tokens else "")
            + ("" if self._gives_types else "no segments")
        )
        return hashlib.blake2b(rules.encode(), digest_size=16).hexdigest()

    def _saved(self) -> str:
        """The content of tokenizer.json: here the library truncates, as other tools that open the folder should."""
        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.enable_truncation(self.max_length, stride=0, strategy="longest_first", direction="right")
        return str(copy.to_str(pretty=False))

    @property
    def inputs(self) -> list[str]:
        """The names of what the model is given, as transformers calls them."""
        return ["input_ids", *([SEGMENTS] if self._gives_types else []), "attention_mask"]

    def equals(self, tokenizer: Any) -> bool:
        """Return whether a `tokenizers.Tokenizer` makes the same tokens of every text, padding and truncation aside."""
        ours, theirs = Tokenizer.from_str(self._tokenizer.to_str()), Tokenizer.from_str(tokenizer.to_str())
        for one, original in ((ours, self._tokenizer), (theirs, tokenizer)):
            one.no_padding()
            one.no_truncation()
            one.encode_special_tokens = original.encode_special_tokens
        return _rules(ours) == _rules(theirs)


def _alone(encode: Callable[..., list[Any]], texts: Sequence[str]) -> list[Any]:
    """Single texts as the library encodes them, without special tokens."""
    try:
        return encode(list(texts), add_special_tokens=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"a text cannot be tokenized: {error}") from error


def _rules(tokenizer: Any) -> str:
    rules: str = tokenizer.to_str(pretty=False)
    return rules + ("split" if tokenizer.encode_special_tokens else "")  # which is not in the file


def require_text(what: str, text: object) -> None:
    """Refuse what is not a string of valid characters.

    Args:
        what: names it in the error, such as "pair 3: the question".
        text: the object.

    Raises:
        DataError: it is no string, or holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise DataError(f"{what} is {type(text).__name__} {text!r}, expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half of a surrogate pair at character {error.start}; the file was cut or decoded wrongly"
        ) from error
