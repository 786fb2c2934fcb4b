"""Batches of a student that reads passages once, and its encoder where that is trained with it.

Where the encoder E is frozen, a batch is what E gave for both texts, read from files (`StateBatch`). Where E is
trained, a batch is token ids of single texts (`TextBatch`), and `TrainedReaders` runs E on each distinct text once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from tmkd.models.encoders.forward import Batch, PairEncoder


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
        questions: The distinct questions, padded, with their mask.
        question_of: The question of each pair, [n] int64.
        passages: The distinct passages, padded, with their mask.
        passage_of: The passage of each pair, [n] int64.
    """

    questions: Batch
    question_of: Tensor
    passages: Batch
    passage_of: Tensor

    @property
    def question_tokens(self) -> int:
        """Tq, padding included."""
        return self.questions.input_ids.shape[1]


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

    def read(self, batch: TextBatch) -> StateBatch:
        """Read every text of a batch, with gradients, and put the states into pairs."""
        question, asked = self._read(self.question or self.passage, batch.questions)
        passage, embedding = self._read(self.passage, batch.passages)
        of_question, of_passage = batch.question_of, batch.passage_of
        assert batch.questions.attention_mask is not None
        assert batch.passages.attention_mask is not None
        return StateBatch(
            question[of_question],
            batch.questions.attention_mask[of_question].float(),
            passage[of_passage],
            batch.passages.attention_mask[of_passage].float(),
            (asked[of_question] * embedding[of_passage]).sum(dim=1),
        )

    @staticmethod
    def _read(encoder: PairEncoder, texts: Batch) -> tuple[Tensor, Tensor]:
        """The hidden states [m, T, d] and embeddings [m, d] of m texts, float32."""
        assert texts.attention_mask is not None
        hidden = encoder.last_hidden_states(texts).float()
        tokens = texts.attention_mask[:, :, None].float()
        return hidden, F.normalize((hidden * tokens).sum(dim=1) / tokens.sum(dim=1), dim=-1)
