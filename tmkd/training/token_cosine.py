"""What teaches an encoder to compare two texts in one sequence: its own cosine of the two, token by token.

A sentence encoder compares texts by their embeddings (tmkd/models/bi_encoder.py) and was never asked to compare them
inside one sequence, as a cross-encoder does; a few thousand golden labels are too few to teach it that. Its own cosine
is a soft label that costs next to nothing, for any pairs there are (ours; the other way round of Thakur et al. 2021,
"Augmented SBERT"). It falls apart into what each token of the passage adds, so that a pair gives a hundred targets
rather than one: every token learns its own part, read from the layer below the last. Used twice: by itself before
teachers are fine-tuned (tmkd/pipeline/steps/warm_up.py), and beside their soft labels in stage 1
(tmkd/pipeline/steps/distill.py).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

from tmkd.core.hardware import device
from tmkd.data.pairs import Pairs, grouped
from tmkd.models.encoders.forward import Batch, FirstTokenEncoder, PairEncoder
from tmkd.models.student import Logits, Student
from tmkd.models.tokenizer import PairTokenizer

logger = logging.getLogger(__name__)

FORMAT = 3
SPREAD = 2.0  # standard deviation of the log-odds that the cosines become: most probabilities between 0.02 and 0.98
TARGETS = "cosine.safetensors"


class Comparing(Student):
    """A student, or a teacher, that also reads a number for every token from the layer below the last.

    They are `Logits.tokens`, [n, width], zeros behind a pair's end, and no part of what is saved. Nothing is read where
    there is no layer below the last, or where the transformers module runs the encoder: its layers have no common form.

    Args:
        width: most tokens of a pair; 0: no numbers are read.
    """

    def __init__(
        self, encoder: PairEncoder, classes: int, soft_heads: int = 0, *, width: int, use_golden: bool = True
    ) -> None:
        super().__init__(encoder, classes, soft_heads, use_golden=use_golden)
        self.width = width
        self.seen: list[Tensor] = []
        if not width:
            return
        self.token = nn.Linear(encoder.hidden_size, 1)
        if isinstance(encoder, FirstTokenEncoder) and encoder.layers > 1:
            keep_states(encoder, [encoder.layers - 2], self.seen)
        else:
            logger.warning(
                "the encoder's cosine is not learned token by token: there is no layer below the last to read from"
            )

    def forward(self, batch: Batch) -> Logits:
        """As `Student.forward`, with the tokens' numbers."""
        self.seen.clear()
        logits = super().forward(batch)
        if not self.seen:
            return logits
        read = self.token(self.seen.pop().float())[..., 0]  # [n, T]; packed: [tokens]
        if batch.packing is not None:
            read = nn.utils.rnn.pad_sequence(read.split(batch.packing.starts.diff().tolist()), batch_first=True)
        return logits._replace(tokens=nn.functional.pad(read, (0, self.width - read.shape[1])))


def keep_states(encoder: FirstTokenEncoder, layers: list[int], kept: list[Tensor]) -> list[nn.LayerNorm]:
    """Collect the output of these layers (indices) at every forward, [n, T, d] each; returns the norms that give it."""
    norms = [encoder.base.encoder.layer[layer].output.LayerNorm for layer in layers]
    for norm in norms:
        norm.register_forward_hook(lambda _, inputs, output: kept.append(output))
    return norms


def soft_labels(folder: Path, pairs: Pairs) -> NDArray[np.float32]:
    """Logits [N, 2] whose log-odds are the cosines, of standard deviation SPREAD, less the mean of their question's.

    What all passages of a question share says nothing of their order, and would be learned first. A question with one
    passage is compared with all pairs.
    """
    cosine: NDArray[np.float32] = load_file(folder / TARGETS)["cosine"]
    _, question = grouped(pairs.questions)
    counts = np.bincount(question)
    means = np.bincount(question, cosine) / counts
    level = np.where(counts[question] > 1, means[question], cosine.mean())
    odds = cosine - level
    odds *= SPREAD / max(float(odds.std()), 1e-6)
    return np.stack([np.zeros_like(odds), odds], axis=1).astype(np.float32)


class TokenTargets:
    """What the tokens of every pair's passage are to learn, standardised over all of them, and where they stand.

    Args:
        folder: what `tmkd.pipeline.steps.bi_encoder_cosine` wrote for these pairs.
        tokenizer: of the encoder, at the length at which the pairs are read.
    """

    def __init__(self, folder: Path, pairs: Pairs, tokenizer: PairTokenizer) -> None:
        held = load_file(folder / TARGETS)
        everything = held["tokens"].astype(np.float32)
        everything = (everything - everything.mean()) / max(float(everything.std()), 1e-6)
        self.targets = torch.from_numpy(everything.astype(np.float16)).to(device())
        places = tokenizer.passage_places(pairs.questions, pairs.passages)
        self.starts, self.ends = torch.from_numpy(places.T.copy()).to(device())
        firsts = np.cumsum(held["lengths"]) - held["lengths"]
        self.behind = torch.from_numpy(firsts).to(device()) - self.starts  # of a token's place in the pair

    def loss(self, logits: Logits, rows: Tensor) -> Tensor:
        """Mean squared error over the tokens of each pair's passage, [n]; 0 where no token was read."""
        read = logits.tokens
        if read.numel() == 0:
            return logits.golden.new_zeros(len(rows))
        starts, ends = self.starts[rows, None], self.ends[rows, None]
        places = torch.arange(read.shape[1], device=read.device)
        inside = (places >= starts) & (places < ends)
        target = self.targets[(self.behind[rows, None] + places).clamp(0, len(self.targets) - 1)]
        errors = ((read - target).square() * inside).sum(dim=1)
        mean: Tensor = errors / (ends - starts)[:, 0].clamp(min=1)
        return mean
