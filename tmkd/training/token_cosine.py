"""Token cosine: an auxiliary objective that teaches an encoder to compare two texts inside one sequence (ours).

A sentence encoder compares texts by their embeddings (tmkd/models/bi_encoder.py). It was never trained to compare them
inside one sequence, as a cross-encoder does, and a few thousand golden labels are too few to teach it that. Its
bi-encoder cosine is a soft label that costs next to nothing, for any number of pairs (the reverse of Thakur et al.
2021, "Augmented SBERT"). The cosine is a sum with one number for each token of the passage, so a pair gives a hundred
targets instead of one: each token learns its own number, read from the layer below the last.

It is used twice: alone, to warm up the encoder before teachers are fine-tuned (tmkd/pipeline/steps/warm_up.py), and
beside the teachers' soft labels in stage 1 (tmkd/pipeline/steps/stage1.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

from tmkd.core.hardware import device
from tmkd.data.pairs import Pairs
from tmkd.models.encoders.forward import Batch
from tmkd.models.student import AnyBatch, Encoder, StudentOutput
from tmkd.models.tokenizer import PairTokenizer
from tmkd.training.objectives import AuxiliaryObjective

logger = logging.getLogger(__name__)

SPREAD = 2.0  # standard deviation of the log-odds made from the cosines: most probabilities are in 0.02 to 0.98
TARGETS, TOKENS = "cosine.safetensors", "tokens.f16"  # what `tmkd.pipeline.steps.bi_encoder_cosine` writes
_TOGETHER = 1 << 22  # tokens that are summed at the same time


@dataclass(frozen=True)
class TokenCosineConfig:
    """How token cosine is learned.

    Attributes:
        weight: What its loss is multiplied by.
        max_length: Most tokens of a pair.
    """

    weight: float
    max_length: int


class TokenTargets:
    """What the tokens of every pair's passage learn, standardised over all of them, and where these tokens are.

    Args:
        folder: What `tmkd.pipeline.steps.bi_encoder_cosine` wrote for these pairs.
        pairs: N pairs.
        tokenizer: The encoder's, at the length at which the pairs are read.

    Attributes:
        tokens: The numbers of all tokens, pair after pair, float16; on a CPU mapped from the disk.
        mean: Of all these numbers.
        deviation: Their standard deviation.
        starts: The position of the passage's first token in each pair, [N] int32.
        ends: The position after the passage's last token in each pair, [N] int32.
    """

    def __init__(self, folder: Path, pairs: Pairs, tokenizer: PairTokenizer) -> None:
        tokens = np.memmap(folder / TOKENS, np.float16, "c")  # torch wants memory that it could write
        self.mean, self.deviation = _moments(tokens)
        self.tokens = torch.from_numpy(tokens).to(device())
        places = tokenizer.passage_places(pairs.texts(), len(pairs))
        self.starts, self.ends = torch.from_numpy(places.T.copy()).to(device())
        # Added to a token's position in its pair, this gives its place in `tokens`.
        self.offsets = torch.from_numpy(load_file(folder / TARGETS)["firsts"]).to(device()) - self.starts

    def loss(self, read: Tensor, rows: Tensor) -> Tensor:
        """Mean squared error over the tokens of each pair's passage.

        Args:
            read: The number that the model gives each token, [n, T]; other tokens' numbers do not count.
            rows: Which of the N pairs these are, [n] int64.

        Returns:
            [n].
        """
        starts, ends = self.starts[rows, None], self.ends[rows, None]
        positions = torch.arange(read.shape[1], device=read.device)
        inside = (positions >= starts) & (positions < ends)
        found = self.tokens[(self.offsets[rows, None] + positions).clamp(0, len(self.tokens) - 1)].float()
        target = (found - self.mean) / max(self.deviation, 1e-6)
        errors = ((read - target).square() * inside).sum(dim=1)
        mean: Tensor = errors / (ends - starts)[:, 0].clamp(min=1)
        return mean


def _moments(numbers: NDArray[np.float16]) -> tuple[float, float]:
    """Mean and standard deviation of numbers of which few are read at a time."""

    def total(power: int, centre: float = 0.0) -> float:
        parts = (numbers[start : start + _TOGETHER] for start in range(0, len(numbers), _TOGETHER))
        return sum(float(((part.astype(np.float64) - centre) ** power).sum()) for part in parts)

    mean = total(1) / len(numbers)
    return mean, (total(2, mean) / len(numbers)) ** 0.5


class TokenCosine(AuxiliaryObjective):
    """Every token of the passage learns its share of the bi-encoder cosine.

    A linear layer, trained with the student and dropped afterwards, reads one number for each token from the hidden
    states after the layer below the last. The loss is `TokenTargets.loss`.

    Requirements:
        1. An encoder with our forward and at least two layers (`readable_layers` > 0); see `token_cosine_objective`.
        2. The bi-encoder cosine of the training set's pairs, token by token.

    Inputs:
        | hidden states | targets |
        |---|---|
        | after layer `readable_layers - 1`, [n, T, d] | one number for each token of the passage |

    Args:
        encoder: The student's.
        targets: Of the training set.
        config: Weight and length.
    """

    def __init__(self, encoder: Encoder, targets: TokenTargets, config: TokenCosineConfig) -> None:
        super().__init__(config.weight, [encoder.readable_layers - 1])
        self.targets, self.max_length = targets, config.max_length
        self.token = nn.Linear(encoder.hidden_size, 1)

    def read(self, output: StudentOutput, batch: Batch) -> Tensor:
        """Read the number of each token, [n, max_length]; zeros after the end of the batch.

        The width does not depend on the batch, and so the sums over a pair's tokens do not either.
        """
        read = self.token(output.hidden_states[self.layers[0]].float())[..., 0]  # [n, T]; packed: [tokens]
        if batch.packing is not None:
            read = nn.utils.rnn.pad_sequence(read.split(batch.packing.starts.diff().tolist()), batch_first=True)
        return nn.functional.pad(read, (0, self.max_length - read.shape[1]))

    def loss(self, output: StudentOutput, batch: AnyBatch, rows: Tensor) -> Tensor:
        """See `AuxiliaryObjective.loss`."""
        assert isinstance(batch, Batch)
        return self.targets.loss(self.read(output, batch), rows)


def token_cosine_objective(encoder: Encoder, targets: TokenTargets, config: TokenCosineConfig) -> list[TokenCosine]:
    """Make the objective where the encoder allows it.

    Args:
        encoder: The student's.
        targets: Of the training set.
        config: Weight and length.

    Returns:
        The objective; an empty list, and a line in the log, if there is no layer to read from.
    """
    if encoder.readable_layers:
        return [TokenCosine(encoder, targets, config)]
    logger.warning("the bi-encoder cosine is not learned token by token: no layer below the last can be read")
    return []


def soft_labels(folder: Path, pairs: Pairs) -> NDArray[np.float32]:
    """Turn the bi-encoder cosines of pairs into soft labels (`centred`).

    Args:
        folder: What `tmkd.pipeline.steps.bi_encoder_cosine` wrote for these pairs.
        pairs: N pairs.

    Returns:
        Logits, [N, 2], whose log-odds have the standard deviation `SPREAD`.
    """
    cosine: NDArray[np.float32] = load_file(folder / TARGETS)["cosine"]
    return centred(cosine, pairs)


def centred(scores: NDArray[np.floating[Any]], pairs: Pairs) -> NDArray[np.float32]:
    """Turn scores on any scale into soft labels.

    The mean of each question's scores is subtracted: what all passages of a question share says nothing about their
    order, and would be learned first. From the score of a question with one passage, the mean of all is subtracted.

    Args:
        scores: [N], such as cosines or log-odds.
        pairs: N pairs.

    Returns:
        Logits, [N, 2], whose log-odds have the standard deviation `SPREAD`.
    """
    _, question = pairs.groups("question")
    counts = np.bincount(question)
    means = np.bincount(question, scores) / counts
    level = np.where(counts[question] > 1, means[question], scores.mean())
    odds = scores - level
    odds *= SPREAD / max(float(odds.std()), 1e-6)
    return np.stack([np.zeros_like(odds), odds], axis=1).astype(np.float32)
