"""What a model is trained on: pairs, cut into optimiser steps and micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.core.hardware import batch_tokens
from tmkd.models.batching import epoch_steps, grouped_epoch_steps, micro_batches, passage_steps, replayed_steps
from tmkd.models.inputs import Inputs, Rows, TextInputs


@dataclass(frozen=True)
class TrainingSet:
    """Pairs and the order in which they are trained on.

    Attributes:
        inputs: All N pairs in the form that the model reads, those that are replayed last.
        questions: The question of each pair, [N] int64, for a loss that compares the passages of one question: each
            step then holds whole questions, and the loss is computed over the whole step. Nothing is replayed then.
        own: An epoch is a pass over the first `own` pairs; the others are replayed. All N unless given.
        replayed: How many pairs of a full step are drawn from the replayed ones.
        by_passage: Whether the pairs of a passage stand together in a step, so that an encoder that is trained reads
            the passage once for all of them. The inputs are then `TextInputs`.
    """

    inputs: Inputs
    questions: Rows | None = None
    own: int | None = None
    replayed: int = 0
    by_passage: bool = False

    @classmethod
    def with_replay(cls, inputs: Inputs, pool: Inputs, replayed: int) -> TrainingSet:
        """Train on some pairs and replay others.

        Args:
            inputs: The pairs that make up an epoch.
            pool: The pairs that are replayed.
            replayed: How many pairs of a full step are replayed ones.
        """
        return cls(inputs.followed_by(pool), own=len(inputs.lengths), replayed=replayed)

    @functools.cached_property
    def lengths(self) -> NDArray[np.int32]:
        """How many tokens each pair has, [N] int32."""
        return self.inputs.lengths.astype(np.int32)

    def steps(self, batch_size: int, epoch: int, seed: int) -> Sequence[Rows]:
        """Cut one epoch into optimiser steps: a pure function of its arguments, so that a resumed run repeats it.

        Args:
            batch_size: Pairs of a full step, replayed ones included.
            epoch: Number of the epoch, from 0.
            seed: Seed of the order.

        Returns:
            The pairs (indices) of every step, in order.
        """
        if self.questions is not None:
            return grouped_epoch_steps(self.questions, batch_size, epoch, seed)
        if self.by_passage:
            return passage_steps(self._texts.passages.rows, self._texts.passages.lengths, batch_size, epoch, seed)
        lengths = self.lengths
        if self.replayed:
            own = len(lengths) if self.own is None else self.own
            return replayed_steps(lengths, own, batch_size, self.replayed, epoch, seed)
        return epoch_steps(lengths, batch_size, epoch, seed)

    def micro_batches(self, rows: Rows) -> list[Rows]:
        """Cut the pairs of a step into micro-batches that fit the token budget of this machine."""
        if self.by_passage:
            return self._texts.cut(rows, batch_tokens())
        return [rows[places] for places in micro_batches(self.lengths[rows], batch_tokens())]

    def share(self, rows: Rows, rank: int, count: int) -> Rows:
        """The pairs of a step that one of several processes trains on: of similar lengths, or whole passages.

        Args:
            rows: The pairs of the step.
            rank: Number of the process.
            count: How many there are.
        """
        return np.array_split(rows, count)[rank] if self.by_passage else rows[rank::count]

    @property
    def _texts(self) -> TextInputs:
        assert isinstance(self.inputs, TextInputs)
        return self.inputs
