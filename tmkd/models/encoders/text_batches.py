"""Batches of a student that reads passages once, and its encoder where that is trained with it.

Where the encoder E is frozen, a batch is what E gave for both texts, read from files (`StateBatch`). Where E is
trained, a batch is token ids of single texts (`TextBatch`), and `TrainedReaders` runs E on each distinct text once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd.models.encoders.attention import Rectangle
from tmkd.models.encoders.forward import Batch, Packing, PairEncoder


class StateBatch(NamedTuple):
    """Some pairs as E's hidden states.

    Attributes:
        question: States of the questions' tokens, [n, Tq, d] float; [1, Tq, d] where all pairs have one question.
        question_mask: 1 for a token and 0 for padding, [n, Tq] or [1, Tq].
        passage: States of the passages' tokens, [n, Tp, d] float.
        passage_mask: [n, Tp].
        cosine: Cosine of the two embeddings, [n] float32.
    """

    question: Tensor
    question_mask: Tensor
    passage: Tensor
    passage_mask: Tensor
    cosine: Tensor

    @property
    def question_tokens(self) -> int:
        """Tq, padding included."""
        return self.question.shape[1]


class TextBatch(NamedTuple):
    """Some pairs as token ids of single texts, each distinct text once.

    Attributes:
        questions: The distinct questions, padded with their mask, or packed.
        question_of: The question of each pair, [n] int64.
        passages: The distinct passages, in the same layout.
        passage_of: The passage of each pair, [n] int64.
    """

    questions: Batch
    question_of: Tensor
    passages: Batch
    passage_of: Tensor

    @property
    def question_tokens(self) -> int:
        """Tq, padding included."""
        packing = self.questions.packing
        return self.questions.input_ids.shape[1] if packing is None else packing.longest


class Texts(NamedTuple):
    """What an encoder gave for m texts.

    Attributes:
        states: Hidden states of the tokens, [m, T, d] float32; anything after a text's end.
        mask: 1 for a token and 0 for padding, [m, T] float32.
        embeddings: The mean of each text's states, of length 1, [m, d] float32.
    """

    states: Tensor
    mask: Tensor
    embeddings: Tensor

    @classmethod
    def of(cls, states: Tensor, batch: Batch) -> Texts:
        """Put what an encoder gave for a batch into a rectangle.

        Args:
            states: [m, T, d], or of a packed batch [tokens, d].
            batch: The m texts.
        """
        states, mask = states.float(), batch.attention_mask
        if batch.packing is not None:
            rectangle = Rectangle.of(batch.packing.starts.diff())
            states, mask = rectangle.filled(states), rectangle.inside
        assert mask is not None
        tokens = mask.float()[:, :, None]
        embeddings = F.normalize((states * tokens).sum(dim=1) / tokens.sum(dim=1), dim=-1)
        return cls(states, tokens[:, :, 0], embeddings)


class TrainedReaders(nn.Module):
    """The encoders of a student that are trained with it.

    Args:
        passage: Reads passages, and questions, too, unless `question` is given.
        question: Reads questions.
    """

    def __init__(self, passage: PairEncoder, question: PairEncoder | None = None) -> None:
        super().__init__()
        self.passage, self.question = passage, question
        for encoder in filter(None, (passage, question)):
            used = {id(parameter) for parameter in encoder.base.parameters()}
            for name, parameter in encoder.model.named_parameters():
                if id(parameter) not in used or ".pooler." in name:  # what only a model of pairs has
                    parameter.requires_grad_(False)

    @property
    def packs(self) -> bool:
        """Whether they take packed batches."""
        return self.passage.packs and (self.question is None or self.question.packs)

    def read(self, batch: TextBatch) -> tuple[Texts, Texts]:
        """Read the questions and the passages of a batch, with gradients."""
        questions, passages = batch.questions, batch.passages
        if questions.packing is None or passages.packing is None or self.question is not None:
            asked = (self.question or self.passage).last_hidden_states(questions)
            read = self.passage.last_hidden_states(passages)
        else:  # one encoder reads both at once
            both = self.passage.last_hidden_states(_followed(questions, passages))
            asked, read = both.split([len(questions.input_ids), len(passages.input_ids)])
        return Texts.of(asked, questions), Texts.of(read, passages)


def _followed(first: Batch, second: Batch) -> Batch:
    """The texts of two packed batches in one."""
    assert first.packing is not None
    assert second.packing is not None
    assert first.token_type_ids is not None
    assert second.token_type_ids is not None
    starts = torch.cat([first.packing.starts, second.packing.starts[1:] + first.packing.starts[-1]])
    longest = max(first.packing.longest, second.packing.longest)
    ids = torch.cat([first.input_ids, second.input_ids])
    types = torch.cat([first.token_type_ids, second.token_type_ids])
    return Batch(ids, None, types, Packing(starts, longest))
