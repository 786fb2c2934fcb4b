"""Hidden states for a student that reads passages once: an auxiliary objective of its stage 1 (ours).

A cross-encoder reads `[CLS] question [SEP] passage [SEP]`. After each of its layers, the tokens of the question know
more about the passage. The interaction layers are to do the same from stored states. So after each interaction layer,
every token of the question learns the vector that it has in the teacher after the layers that this one stands for
(hidden states: Jiao et al. 2020, "TinyBERT", section 3).

The teacher reads the pool once (`tmkd.pipeline.steps.question_states`); only the vectors of the question's tokens are
kept, and the students of all seeds learn from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.core.hardware import device
from tmkd.models.encoders.text_batches import StateBatch, TextBatch
from tmkd.models.student import AnyBatch, StudentOutput
from tmkd.training.hidden_states import StoredStates
from tmkd.training.objectives import StatesObjective


def taught_layers(teacher: int, layers: int) -> list[int]:
    """Which layer of the teacher each interaction layer stands for.

    They are evenly spaced and end with the last layer whose hidden states can be read: the last layer of all is
    computed for the first token alone.

    Args:
        teacher: Layers of the teacher.
        layers: Interaction layers.

    Returns:
        Indices of the teacher's layers.

    Example:
        >>> taught_layers(6, 2), taught_layers(6, 3), taught_layers(12, 2)
        ([2, 4], [1, 3, 4], [5, 10])
    """
    return [-(-number * (teacher - 1) // layers) - 1 for number in range(1, layers + 1)]


@dataclass(frozen=True)
class QuestionTargets:
    """What the teacher has for the tokens of the questions of N pairs.

    Attributes:
        stored: The vectors, token after token: those of all taught layers one after another, [L d].
        counts: How many of a pair's question tokens have vectors, [N] int64.
        scales: The teacher's mean square in each taught layer, L numbers.
    """

    stored: StoredStates
    counts: NDArray[np.int64]
    scales: tuple[float, ...]


class QuestionStates(StatesObjective):
    """Every token of the question learns the teacher's hidden states, after each of the interaction layers.

    The loss of a pair is the squared error, divided by the teacher's mean square in that layer, and averaged over the
    question's tokens and over the layers.

    Requirements:
        1. A student with an `InteractionEncoder` whose width is the teacher's, and whose tokenizer is.
        2. The teacher's vectors for every pair of the training set.

    Inputs:
        | the student's hidden states | the teacher's |
        |---|---|
        | after each interaction layer, [n, Tq, d] | after the layer that it stands for (`taught_layers`), [n, Tq, d] |

    References:
        Jiao et al. 2020, "TinyBERT", equation 8; for the first teacher without its projection.

    Args:
        targets: The teacher's vectors, of the pairs of the training set in their order.
        weight: What the loss is multiplied by.
        until: They are learned in this share of the steps, the first ones.
        number: Of the teacher, from 0 (`StatesObjective`).
    """

    def __init__(self, targets: QuestionTargets, weight: float, until: float = 1.0, number: int = 0) -> None:
        layers = len(targets.scales)
        super().__init__(weight, range(layers), until, number, targets.stored.values.shape[1] // layers)
        self.targets = targets

    def loss(self, output: StudentOutput, batch: AnyBatch, rows: Tensor) -> Tensor:
        """See `AuxiliaryObjective.loss`."""
        assert isinstance(batch, StateBatch | TextBatch)
        pairs = rows.tolist()
        found = self.targets.stored.load(pairs, batch.question_tokens)
        assert found is not None, "the teacher has read every pair before the training begins"
        taught = torch.from_numpy(found).to(device()).float().chunk(len(self.layers), dim=-1)
        counts = torch.from_numpy(self.targets.counts[pairs]).to(device())
        known = (torch.arange(batch.question_tokens, device=counts.device)[None] < counts[:, None]).float()
        errors = [
            _mean_error(self.projected(output.hidden_states[layer]), vectors, known) / scale
            for layer, vectors, scale in zip(self.layers, taught, self.targets.scales, strict=True)
        ]
        return torch.stack(errors).mean(dim=0)


def _mean_error(states: Tensor, taught: Tensor, known: Tensor) -> Tensor:
    """The squared error of each pair, [n], over the tokens that asked and are known.

    Args:
        states: [n, T, d]; T is 1 in a layer where the first token alone asks.
        taught: [n, Tq, d].
        known: [n, Tq], 1 for a token of the question that the teacher has a vector for.
    """
    asked = states.shape[1]
    errors = (states - taught[:, :asked]).square().mean(dim=-1) * known[:, :asked]
    return errors.sum(dim=1) / known[:, :asked].sum(dim=1).clamp(min=1)
