"""What a model is trained on: encoded pairs, cut into optimiser steps and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.core.hardware import batch_tokens
from tmkd.models.batching import epoch_steps, grouped_epoch_steps, micro_batches, replayed_steps
from tmkd.models.tokenizer import Encoded

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TrainingSet:
    """Encoded pairs and the order in which they are trained on.

    Attributes:
        encoded: Token ids of all N pairs, those that are replayed last.
        pad_id: Token id of padding.
        questions: The question of each pair, [N] int64, for a loss that compares the passages of one question: each
            step then holds whole questions, and the loss is computed over the whole step. Nothing is replayed then.
        own: An epoch is a pass over the first `own` pairs; the others are replayed. All N unless given.
        replayed: How many pairs of a full step are drawn from the replayed ones.
    """

    encoded: Encoded
    pad_id: int
    questions: Rows | None = None
    own: int | None = None
    replayed: int = 0

    @classmethod
    def with_replay(cls, encoded: Encoded, pool: Encoded, pad_id: int, replayed: int) -> TrainingSet:
        """Train on some pairs and replay others.

        Args:
            encoded: Token ids of the pairs that make up an epoch.
            pool: Token ids of the pairs that are replayed.
            pad_id: Token id of padding.
            replayed: How many pairs of a full step are replayed ones.
        """
        everything = Encoded([*encoded.ids, *pool.ids], [*encoded.type_ids, *pool.type_ids])
        return cls(everything, pad_id, own=len(encoded.ids), replayed=replayed)

    def steps(self, batch_size: int, epoch: int, seed: int) -> list[Rows]:
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
        lengths = self.encoded.lengths
        if self.replayed:
            own = len(lengths) if self.own is None else self.own
            return replayed_steps(lengths, own, batch_size, self.replayed, epoch, seed)
        return epoch_steps(lengths, batch_size, epoch, seed)

    def micro_batches(self, rows: Rows) -> list[Rows]:
        """Cut the pairs of a step into micro-batches that fit the token budget of this machine."""
        lengths = np.array([len(self.encoded.ids[row]) for row in rows])
        return [rows[places] for places in micro_batches(lengths, batch_tokens())]
