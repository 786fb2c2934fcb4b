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
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tmkd.core.errors import DataError, EncoderError
from tmkd.core.files import write_text
from tmkd.models.card import has_card

_CHUNK = 1024  # pairs given to the tokenizer at once: enough for all its threads, and little memory
_SEGMENTS = "token_type_ids"
_PAD_TOKENS = ("[PAD]", "<pad>")


class Encoded(NamedTuple):
    """N pairs as token ids, without padding.

    Attributes:
        ids: token ids of every pair, [T_i] int32 each.
        type_ids: segment ids of every pair (0 for the question, 1 for the passage; all 0 where the tokenizer gives the
            model none), [T_i] int32 each.
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
        folder: a model folder with tokenizer.json.
        max_length: most tokens of a pair, special tokens included.

    Attributes:
        folder: as given.
        max_length: as given.
        pad_id: token id of padding.

    Raises:
        EncoderError: no tokenizer.json, a damaged one, no padding token, tokens for which the weights have no
            embedding, or a `max_length` without room for text.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        self.folder = Path(folder)
        self.max_length = max_length
        self._tokenizer, self._gives_types = _load(self.folder)
        self.pad_id = _pad_id(self._tokenizer, self.folder)
        self._beyond = _without_embedding(self._tokenizer, self.folder)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        special = self._tokenizer.num_special_tokens_to_add(True)
        if max_length < special + 2:
            raise EncoderError(
                f"max_length {max_length} leaves no room for text: {self.folder} adds {special} special tokens to a "
                f"pair; use at least {special + 2}"
            )
        self._room = max_length - special

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
        encoded, tokens = Encoded([], []), list[NDArray[np.int64]]()
        for chunk, counted in self._chunks(questions, passages, first):
            encoded.ids.extend(chunk.ids)
            encoded.type_ids.extend(chunk.type_ids)
            tokens.append(counted)
        return encoded, np.concatenate([np.empty(0, np.int64), *tokens])

    @property
    def unknown_id(self) -> int | None:
        """The token id of what the vocabulary has no token for; None where every text has tokens (bytes)."""
        name = getattr(self._tokenizer.model, "unk_token", None) or "<unk>"
        found: int | None = self._tokenizer.token_to_id(name)
        return found

    def encode_chunks(self, questions: Sequence[str], passages: Sequence[str]) -> Iterator[Encoded]:
        """Tokenize pairs in chunks of about a thousand, for callers that show progress; otherwise as `encode`.

        Args:
            questions: N texts.
            passages: N texts.
        """
        for chunk, _ in self._chunks(questions, passages, 0):
            yield chunk

    def _chunks(
        self, questions: Sequence[str], passages: Sequence[str], first: int
    ) -> Iterator[tuple[Encoded, NDArray[np.int64]]]:
        if len(questions) != len(passages):
            raise DataError(f"{len(questions)} questions but {len(passages)} passages; a pair has one of each")
        for start in range(0, len(questions), _CHUNK):
            encoded, tokens = Encoded([], []), list[int]()
            for row in self._encode(questions[start : start + _CHUNK], passages[start : start + _CHUNK], first + start):
                ids = np.array(row.ids, dtype=np.int32)
                type_ids = np.array(row.type_ids, dtype=np.int32) if self._gives_types else np.zeros_like(ids)
                tokens.append(len(ids))
                if len(ids) > self.max_length:
                    kept = self._kept(_sides(row))
                    ids, type_ids = ids[kept], type_ids[kept]
                encoded.ids.append(ids)
                encoded.type_ids.append(type_ids)
            yield encoded, np.array(tokens, dtype=np.int64)

    def _encode(self, questions: Sequence[str], passages: Sequence[str], start: int) -> list[Any]:
        pairs = list(zip(questions, passages, strict=True))
        try:
            rows: list[Any] = self._tokenizer.encode_batch_fast(pairs, add_special_tokens=True)
        except (TypeError, ValueError) as error:  # UnicodeEncodeError (half a surrogate pair) is a ValueError
            for number, pair in enumerate(pairs, start):
                for side, text in zip(("question", "passage"), pair, strict=True):
                    _require_text(number, side, text)
            raise DataError(f"pairs {start} to {start + len(pairs) - 1} cannot be tokenized: {error}") from error
        for number, row in enumerate(rows if self._beyond else [], start):
            for token in self._beyond.keys() & set(row.ids):
                raise DataError(
                    f"pair {number} holds {self._beyond[token]!r}, a token for which this model has no embedding; "
                    f"remove it from the text, or from {self.folder}/tokenizer.json"
                )
        return rows

    def _kept(self, sides: NDArray[np.int8]) -> NDArray[np.bool_]:
        """Which tokens of a pair that is too long are kept, [T] bool: first the longer text loses its last ones.

        As the library's own truncation has it (`longest_first`), which is not used because it also makes an object for
        every combination of a part of one text with a part of the other: minutes and gigabytes for two long texts.

        Args:
            sides: where each token comes from, as `_sides` gives it.
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
            rows = self._encode(questions[start : start + _CHUNK], passages[start : start + _CHUNK], start)
            for number, row in enumerate(rows, start):
                sides = _sides(row)
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
        try:
            rows = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"a text cannot be tokenized: {error}") from error
        return [row.offsets for row in rows]

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
        return ["input_ids", *([_SEGMENTS] if self._gives_types else []), "attention_mask"]

    def equals(self, tokenizer: Any) -> bool:
        """Return whether a `tokenizers.Tokenizer` makes the same tokens of every text, padding and truncation aside."""
        ours, theirs = Tokenizer.from_str(self._tokenizer.to_str()), Tokenizer.from_str(tokenizer.to_str())
        for one, original in ((ours, self._tokenizer), (theirs, tokenizer)):
            one.no_padding()
            one.no_truncation()
            one.encode_special_tokens = original.encode_special_tokens
        return _rules(ours) == _rules(theirs)


def _sides(row: Any) -> NDArray[np.int8]:
    """Where each token of a pair comes from: 0 the question, 1 the passage, -1 a special token between them."""
    return np.array([-1 if side is None else side for side in row.sequence_ids], dtype=np.int8)


def _rules(tokenizer: Any) -> str:
    rules: str = tokenizer.to_str(pretty=False)
    return rules + ("split" if tokenizer.encode_special_tokens else "")  # which is not in the file


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder, with the padding and truncation of its file.

    Args:
        folder: a folder that tmkd saved, whose tokenizer.json decides, or a checkpoint made elsewhere, whose tokenizer
            is the one that transformers reads from all its files. A folder that holds nothing but tokenizer.json is
            read as it is.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        EncoderError: no tokenizer.json, a damaged one, or a tokenizer that transformers does not run as a fast one.
    """
    return _load(folder)[0]


def _load(folder: Path) -> tuple[Any, bool]:
    """As `load_tokenizer`, and whether the model is given segment ids."""
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        raise EncoderError(
            f"{folder} has no tokenizer.json; write one with "
            "`AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)`, "
            "or copy it from where the model came from"
        )
    ours = has_card(folder)
    if not ours and (settings.is_file() or (folder / "config.json").is_file()):
        whole = of_transformers(folder)
        return whole.backend_tokenizer, _SEGMENTS in whole.model_input_names
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a file it cannot parse
        raise EncoderError(f"{path} cannot be read ({error}); the file is damaged, fetch it again") from error
    said = _json_of(settings) if ours else {}
    tokenizer.encode_special_tokens = bool(said.get("split_special_tokens"))
    return tokenizer, _SEGMENTS in said.get("model_input_names", [_SEGMENTS])


def of_transformers(folder: Path) -> Any:
    """Load the tokenizer of a model folder with transformers.

    Args:
        folder: the model folder.

    Returns:
        A fast tokenizer of transformers.

    Raises:
        EncoderError: transformers cannot read it, or has no fast tokenizer for it.
    """
    from transformers import AutoTokenizer

    try:
        whole = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        assert isinstance(whole.backend_tokenizer, Tokenizer)
    except Exception as error:  # what is wrong in its files shows as errors of many classes
        raise EncoderError(
            f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}). "
            "One of tokenizer.json, tokenizer_config.json and config.json is damaged or of another model; "
            "fetch them again",
            source=folder,
        ) from error
    return whole


def _json_of(path: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing where it is not there."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise EncoderError(f"{path} cannot be read ({error}); the file is damaged, fetch it again") from error


def _pad_id(tokenizer: Any, folder: Path) -> int:
    """Return the padding id: from config.json (MPNet derives positions from it), else by the token's usual name."""
    config = _json_of(folder / "config.json")
    value = config.get("pad_token_id")
    if isinstance(value, int) and 0 <= value < int(config.get("vocab_size", value + 1)):
        return value
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    for token in _PAD_TOKENS:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    raise EncoderError(f"{folder}/tokenizer.json has no padding token ({' or '.join(_PAD_TOKENS)}); add one")


def _without_embedding(tokenizer: Any, folder: Path) -> dict[int, str]:
    """The added tokens (a mask that is never used, say) for which the weights have no embedding, by id."""
    rows = _json_of(folder / "config.json").get("vocab_size")
    if not isinstance(rows, int):
        return {}
    beyond = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=False).items() if number >= rows}
    if beyond:
        raise EncoderError(
            f"{folder}: the tokenizer knows {len(beyond)} tokens, first {beyond[min(beyond)]!r} ({min(beyond)}), for "
            f"which the weights have no embedding (vocab_size {rows} in config.json); the two are of different models",
            source=folder,
        )
    return {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if number >= rows}


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
