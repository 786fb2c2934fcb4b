"""What a model reads of N pairs: token ids of both texts together, or the hidden states of each text by itself."""

from __future__ import annotations

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
from tmkd.models.encoders.interaction import StateBatch
from tmkd.models.student import AnyBatch, Student
from tmkd.models.text_reader import ReadTexts
from tmkd.models.tokenizer import Encoded

Rows = NDArray[np.int64]


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
            return Batch(ids, None, types, Packing(starts, max(len(ids_of[row]) for row in rows)))
        ids, mask, types = (torch.from_numpy(a).to(where) for a in pad(ids_of, types_of, rows, self.pad_id))
        full = ids.numel() == sum(len(ids_of[row]) for row in rows)
        return Batch(ids, None if full else mask, types)

    def followed_by(self, others: TokenInputs) -> TokenInputs:
        """See `Inputs`."""
        both = Encoded([*self.encoded.ids, *others.encoded.ids], [*self.encoded.type_ids, *others.encoded.type_ids])
        return TokenInputs(both, self.pad_id)


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

    @classmethod
    def of(cls, texts: ReadTexts, names: Sequence[str], questions: Sequence[str], passages: Sequence[str]) -> Self:
        """Find the texts of pairs.

        Args:
            texts: What the encoder gave for M texts.
            names: The M texts.
            questions: N of them.
            passages: N of them.
        """
        place = {text: row for row, text in enumerate(names)}
        rows = ([place[text] for text in side] for side in (questions, passages))
        return cls(texts, *(np.array(found, dtype=np.int64) for found in rows))

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
