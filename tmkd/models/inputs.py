"""What a model reads of N pairs.

Token ids of both texts together; the hidden states of each text by itself; or the token ids of each text by itself,
where the encoder that reads them is trained with the student.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.core.hardware import attention, device
from tmkd.models.batching import pack, pad, stacked
from tmkd.models.encoders.forward import Batch, Packing
from tmkd.models.encoders.text_batches import StateBatch, TextBatch, TrainedReaders
from tmkd.models.student import AnyBatch, Student
from tmkd.models.text_reader import ReadTexts
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.models.tokenizer import Encoded

Rows = NDArray[np.int64]
_SAMPLED, _TOGETHER = 512, 32  # passages that a sample of states is drawn from, and how many are read at once


class Inputs(Protocol):
    """N pairs in the form that a model reads."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens each pair has, [N] int64."""

    def batch(self, model: Student, rows: Rows, *, bf16: bool) -> AnyBatch:
        """Put some pairs into one batch on the device, in the layout that is fastest there.

        Args:
            model: The model that will read the batch.
            rows: Which of the N pairs form the batch, [n] int64.
            bf16: Whether the model will compute in bfloat16.

        Returns:
            The batch, its pairs in the order of `rows`.
        """

    def followed_by(self, others: Self) -> Self:
        """These pairs, and then the others, which are of the same kind."""


@dataclass(frozen=True)
class TokenInputs:
    """Pairs as token ids, for a model that reads question and passage together.

    Attributes:
        encoded: Token ids of N pairs.
        pad_id: Token id of padding.
    """

    encoded: Encoded
    pad_id: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """See `Inputs`."""
        return self.encoded.lengths

    def batch(self, model: Student, rows: Rows, *, bf16: bool) -> Batch:
        """See `Inputs`. The model decides whether the batch may be packed, which on a GPU requires bfloat16."""
        ids_of, types_of, where = self.encoded.ids, self.encoded.type_ids, device()
        if attention(bf16) == "packed" and model.encoder.packs:
            ids, types, starts = (torch.from_numpy(a).to(where) for a in pack(ids_of, types_of, rows))
            return Batch(ids, None, types, Packing(starts, int(starts.diff().max())))
        ids, mask, types = (torch.from_numpy(a).to(where) for a in pad(ids_of, types_of, rows, self.pad_id))
        full = bool(mask.all())
        return Batch(ids, None if full else mask, types)

    def followed_by(self, others: TokenInputs) -> TokenInputs:
        """See `Inputs`."""
        return TokenInputs(self.encoded.followed_by(others.encoded), self.pad_id)


@dataclass(frozen=True)
class StateInputs:
    """Pairs as hidden states of single texts, for a student that reads passages once.

    Attributes:
        texts: What the encoder gave for M texts.
        question: The text that is each pair's question, [N] int64.
        passage: The text that is each pair's passage, [N] int64.
    """

    texts: ReadTexts
    question: Rows
    passage: Rows

    @property
    def lengths(self) -> NDArray[np.int64]:
        """See `Inputs`: the tokens of both texts."""
        return self.texts.lengths[self.question] + self.texts.lengths[self.passage]

    def batch(self, model: Student, rows: Rows, *, bf16: bool) -> StateBatch:
        """See `Inputs`."""
        question, passage = self.question[rows], self.passage[rows]
        embeddings = self.texts.embeddings
        cosine = (embeddings[question] * embeddings[passage]).sum(axis=1)
        return StateBatch(*self._padded(question), *self._padded(passage), torch.from_numpy(cosine).to(device()))

    def followed_by(self, others: StateInputs) -> StateInputs:
        """See `Inputs`."""
        first = len(self.texts.lengths)
        return StateInputs(
            ReadTexts.joined([self.texts, others.texts]),
            np.concatenate([self.question, others.question + first]),
            np.concatenate([self.passage, others.passage + first]),
        )

    def _padded(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The states of some texts, [n, T, d] float32, and which of them are no padding, [n, T] float32."""
        lengths = self.texts.lengths[rows]
        states = stacked([self.texts.hidden(int(row)) for row in rows], int(lengths.max()))
        mask = np.arange(states.shape[1]) < lengths[:, None]
        return torch.from_numpy(states).to(device()).float(), torch.from_numpy(mask).to(device()).float()


@dataclass(frozen=True)
class TextSide:
    """The questions, or the passages, of N pairs as token ids.

    Attributes:
        encoded: Token ids of M distinct texts.
        pad_id: Token id of padding.
        rows: The text of each pair, [N] int64.
    """

    encoded: Encoded
    pad_id: int
    rows: Rows

    @classmethod
    def of(cls, tokenizer: TextTokenizer, texts: Sequence[str]) -> Self:
        """Tokenize the questions or passages of N pairs, each distinct text once."""
        place: dict[str, int] = {}
        rows = np.array([place.setdefault(text, len(place)) for text in texts], dtype=np.int64)
        return cls(tokenizer.encode(list(place)), tokenizer.pad_id, rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens the text of each pair has, [N] int64."""
        return self._of_texts[self.rows]

    def lengths_of(self, rows: Rows) -> NDArray[np.int64]:
        """The same for some pairs, [n] int64: what a step needs, without looking at all pairs."""
        return self._of_texts[self.rows[rows]]

    @functools.cached_property
    def _of_texts(self) -> NDArray[np.int64]:
        return self.encoded.lengths

    def batch(self, rows: Rows, *, packed: bool = False) -> tuple[Batch, Tensor]:
        """The distinct texts of some pairs, and which of them each pair has, [n] int64; on the device.

        Args:
            rows: The n pairs.
            packed: Put the texts one after another, the shortest first (`Packed` computes those of similar
                length together), and not into a padded rectangle.
        """
        distinct, place = np.unique(self.rows[rows], return_inverse=True)
        if packed:
            order = np.argsort(self._of_texts[distinct], kind="stable")
            found = (*pack(self.encoded.ids, self.encoded.type_ids, distinct[order]), np.argsort(order)[place])
            ids, types, starts, of_pair = (torch.from_numpy(part).to(device()) for part in found)
            return Batch(ids, None, types, Packing(starts, int(starts.diff().max()))), of_pair
        padded = pad(self.encoded.ids, self.encoded.type_ids, distinct, self.pad_id)
        ids, mask, types = (torch.from_numpy(part).to(device()) for part in padded)
        return Batch(ids, mask, types), torch.from_numpy(place).to(device())

    def followed_by(self, others: TextSide) -> TextSide:
        """These, and then the others."""
        rows = np.concatenate([self.rows, others.rows + len(self.encoded.ids)])
        return TextSide(self.encoded.followed_by(others.encoded), self.pad_id, rows)


@dataclass(frozen=True)
class TextInputs:
    """Pairs as token ids of single texts, for a student whose encoder is trained with it.

    Attributes:
        questions: Of the N pairs.
        passages: Of the N pairs.
    """

    questions: TextSide
    passages: TextSide

    @property
    def lengths(self) -> NDArray[np.int64]:
        """See `Inputs`: the tokens of both texts."""
        return self.questions.lengths + self.passages.lengths

    def batch(self, model: Student, rows: Rows, *, bf16: bool) -> TextBatch:
        """See `Inputs`."""
        packed = model.encoder.packs
        return TextBatch(*self.questions.batch(rows, packed=packed), *self.passages.batch(rows, packed=packed))

    def followed_by(self, others: TextInputs) -> TextInputs:
        """See `Inputs`."""
        return TextInputs(self.questions.followed_by(others.questions), self.passages.followed_by(others.passages))

    def cut(self, rows: Rows, token_budget: int) -> list[Rows]:
        """Cut pairs that are sorted by passage into parts of about so many tokens, each text of a part counted once.

        Args:
            rows: n pairs, those of a passage one after another.
            token_budget: A part has no more tokens than this, one pair and one passage.

        Returns:
            The pairs of each part, in their order.
        """
        passage = self.passages.rows[rows]
        first = np.concatenate([[True], passage[1:] != passage[:-1]])
        tokens = self.questions.lengths_of(rows) + first * self.passages.lengths_of(rows)
        part = (np.cumsum(tokens) - tokens) // token_budget
        return np.split(rows, np.flatnonzero(np.diff(part)) + 1)

    def sample(self, readers: TrainedReaders, count: int, seed: int) -> NDArray[np.float32]:
        """Draw hidden states of single tokens of passages at random.

        Args:
            readers: Reads the passages.
            count: How many tokens; they are drawn from `_SAMPLED` passages at most.
            seed: Of the draw.

        Returns:
            [count, d] float32.
        """
        generator = np.random.default_rng(seed)
        _, first = np.unique(self.passages.rows, return_index=True)
        chosen, found = generator.permutation(first)[:_SAMPLED], []
        readers.to(device()).eval()
        with torch.inference_mode():
            for start in range(0, len(chosen), _TOGETHER):
                texts, _ = self.passages.batch(chosen[start : start + _TOGETHER])
                assert texts.attention_mask is not None
                hidden = readers.passage.last_hidden_states(texts).float()
                found.append(hidden[texts.attention_mask > 0].cpu().numpy())
        tokens = np.concatenate(found)
        drawn: NDArray[np.float32] = tokens[generator.choice(len(tokens), count, replace=len(tokens) < count)]
        return drawn
