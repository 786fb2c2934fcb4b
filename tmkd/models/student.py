"""The student: an encoder with a golden head and K soft heads over one vector h (METHOD.md, "Student").

A teacher and the `finetune` baseline are the same class with K = 0. All heads are linear in one h, so the mean of
their logits folds exactly into one linear layer: the folded student is an ordinary checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmkd.core.logits import log_mean_softmax
from tmkd.models.encoders.forward import Batch, PairEncoder
from tmkd.models.encoders.interaction import InteractionEncoder
from tmkd.models.encoders.lstm import LstmEncoder
from tmkd.models.encoders.text_batches import StateBatch, TextBatch

Encoder = PairEncoder | LstmEncoder | InteractionEncoder
"""What computes h."""
AnyBatch = Batch | StateBatch | TextBatch
"""What it reads: token ids of pairs; hidden states, or token ids, of both texts for an `InteractionEncoder`."""
SHARPNESS = 10.0  # log-odds are SHARPNESS (cosine - 1/2) at the start, as of `tmkd.models.bi_encoder.cosine_logits`

Combination = Literal["logit", "probability", "golden"]
"""How the heads' logits become one output (METHOD.md, "Inference"); see `combine`."""
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)


@dataclass(frozen=True)
class StudentOutput:
    """What a student computes for n pairs.

    Attributes:
        golden: Logits of the golden head, [n, C] float32.
        soft: Logits of the soft heads, [n, K, C] float32; K may be 0.
        hidden_states: For each layer that was asked for (its index) the vectors of all tokens after it, [n, T, d];
            packed: [tokens, d].
    """

    golden: Tensor
    soft: Tensor
    hidden_states: Mapping[int, Tensor] = field(default_factory=dict)


class Student(nn.Module):
    """An encoder with a golden head and K soft heads.

    Args:
        encoder: Computes h, [n, d].
        classes: C, the number of classes.
        soft_heads: K, one for each teacher; 0 for a model with a golden head only.
        use_golden: Whether the golden head is trained and takes part in the combination. A student that stopped after
            stage 1 averages its soft heads alone (METHOD.md, "Stage 1").

    Raises:
        ValueError: The student would have no trained head.
    """

    def __init__(self, encoder: Encoder, classes: int, soft_heads: int = 0, *, use_golden: bool = True) -> None:
        super().__init__()
        if not use_golden and soft_heads == 0:
            raise ValueError("a student needs a golden head or at least one soft head")
        self.encoder = encoder
        self.classes = classes
        self.use_golden = use_golden
        width = encoder.hidden_size
        self.golden = nn.Linear(width, classes)
        self.soft_weight = nn.Parameter(torch.empty(soft_heads, classes, width))
        self.soft_bias = nn.Parameter(torch.zeros(soft_heads, classes))
        nn.init.normal_(self.golden.weight, std=0.02)
        nn.init.zeros_(self.golden.bias)
        if soft_heads:
            nn.init.normal_(self.soft_weight, std=0.02)

    @property
    def soft_heads(self) -> int:
        """K, the number of soft heads."""
        return self.soft_weight.shape[0]

    @property
    def heads(self) -> int:
        """H, the number of trained heads: the soft heads, and the golden head where it is trained."""
        return self.soft_heads + int(self.use_golden)

    def forward(self, batch: AnyBatch, hidden_states: Collection[int] = ()) -> StudentOutput:
        """Compute the logits of every head and, where they are asked for, hidden states of the encoder.

        Args:
            batch: n pairs.
            hidden_states: Layers (indices below `encoder.readable_layers`) whose hidden states to return.

        Returns:
            Logits and hidden states.

        Raises:
            ValueError: A layer does not give its hidden states.
        """
        h, states = self.encoder.with_hidden_states(batch, hidden_states)  # type: ignore[arg-type]  # its own kind
        h = h.float()
        with torch.autocast(h.device.type, enabled=False):  # the heads cost nothing; keep them exact
            golden = self.golden(h)
            soft = torch.einsum("nd,kcd->nkc", h, self.soft_weight) + self.soft_bias
        return StudentOutput(golden, soft, states)

    def trained_heads(self, output: StudentOutput) -> Tensor:
        """Stack the logits of the trained heads, [n, H, C]: the golden head first, where it is trained."""
        if not self.use_golden:
            return output.soft
        return torch.cat([output.golden[:, None], output.soft], dim=1)

    def combine(self, output: StudentOutput) -> Tensor:
        """Compute the `logit` combination, [n, C]: the mean over the trained heads."""
        return self.trained_heads(output).mean(dim=1)

    @torch.no_grad()
    def fold(self) -> tuple[Tensor, Tensor]:
        """Average the trained heads into one linear layer, which gives the `logit` combination.

        Returns:
            Its weight, [C, d], and its bias, [C].
        """
        if not self.use_golden:
            return self.soft_weight.mean(0), self.soft_bias.mean(0)
        weight = torch.cat([self.golden.weight[None], self.soft_weight]).mean(0)
        bias = torch.cat([self.golden.bias[None], self.soft_bias]).mean(0)
        return weight, bias

    @torch.no_grad()
    def start_at_cosine(self, positive: int = 1) -> None:
        """Set every head to the bi-encoder cosine, the last number of h of an `InteractionEncoder`.

        The log-odds of two classes are then `SHARPNESS` (cosine - 1/2). More classes start at zero.

        Args:
            positive: The class of the right passages.
        """
        for weight, bias in ((self.golden.weight[None], self.golden.bias[None]), (self.soft_weight, self.soft_bias)):
            weight.zero_()
            bias.zero_()
            if self.classes == 2:
                weight[:, positive, -1] = SHARPNESS
                bias[:, positive] = -SHARPNESS / 2

    @torch.no_grad()
    def start_golden_from_soft(self) -> None:
        """Set the golden head to the mean of the soft heads, as stage 2 begins (METHOD.md, "Stage 2")."""
        self.golden.weight.copy_(self.soft_weight.mean(0))
        self.golden.bias.copy_(self.soft_bias.mean(0))
        self.use_golden = True

    @torch.no_grad()
    def take_soft_heads(self, which: Sequence[int | None]) -> None:
        """Replace the soft heads by a choice of the present ones, in the order given.

        Args:
            which: For each new soft head the index of the present one that it continues; None: it begins as the mean
                of all present ones.
        """
        weights, biases = self.soft_weight, self.soft_bias
        chosen = [(weights.mean(0), biases.mean(0)) if n is None else (weights[n], biases[n]) for n in which]
        self.soft_weight = nn.Parameter(torch.stack([weight for weight, _ in chosen]))
        self.soft_bias = nn.Parameter(torch.stack([bias for _, bias in chosen]))


def combine(heads: NDArray[np.floating[Any]], how: Combination, *, golden: bool = True) -> NDArray[np.float64]:
    """Combine the logits of a student's heads into one output.

    Args:
        heads: Logits of the trained heads, [N, H, C], in the order of `Student.trained_heads`.
        how: `logit`: the mean of the logits, which folds into one linear layer. `probability`: the logarithm of the
            mean of the probabilities, as in the paper; it cannot be folded. `golden`: the golden head alone.
        golden: Whether the first of the heads is the golden head.

    Returns:
        Raw scores, [N, C] float64; their softmax gives the probabilities.

    Raises:
        ValueError: `how` is `golden` and the student, which stopped after stage 1, has no trained golden head.
    """
    logits: NDArray[np.float64] = np.asarray(heads, dtype=np.float64)
    if how == "golden":
        if not golden:
            raise ValueError("this student stopped after stage 1: its golden head was not trained")
        return logits[:, 0]
    return logits.mean(axis=1) if how == "logit" else log_mean_softmax(logits)
