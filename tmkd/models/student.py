"""The student: an encoder with a golden header and K soft headers over one vector h (METHOD.md, "Student").

A teacher and the `finetune` baseline are the same class with K = 0. All headers are linear in one h, so the mean of
their logits folds exactly into one linear layer: the folded student is an ordinary checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmkd.core.logits import log_mean_softmax
from tmkd.models.encoders.forward import Batch, PairEncoder
from tmkd.models.encoders.lstm import LstmEncoder

Combination = Literal["logit", "probability", "golden"]
"""How headers become one output (METHOD.md, "Inference"): `combine`."""
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)


class Logits(NamedTuple):
    """golden: [n, C]; soft: [n, K, C] (K may be 0); of models that give them, else empty: tokens, [n, T]
    (tmkd/training/token_cosine.py), and states, [n] (tmkd/training/hidden_states.py)."""

    golden: Tensor
    soft: Tensor
    tokens: Tensor = torch.empty(0)
    states: Tensor = torch.empty(0)


class Student(nn.Module):
    """Encoder and multi-header.

    Args:
        encoder: gives h, [n, d].
        classes: C.
        soft_headers: K, one per teacher; 0 for a model with a golden header only.
        use_golden: whether the golden header was trained and takes part in the combination. A student that stopped
            after stage 1 averages its soft headers (METHOD.md, "Stage 1").
    """

    def __init__(
        self, encoder: PairEncoder | LstmEncoder, classes: int, soft_headers: int = 0, *, use_golden: bool = True
    ) -> None:
        super().__init__()
        if not use_golden and soft_headers == 0:
            raise ValueError("a student needs a golden header or at least one soft header")
        self.encoder = encoder
        self.classes = classes
        self.use_golden = use_golden
        width = encoder.hidden_size
        self.golden = nn.Linear(width, classes)
        self.soft_weight = nn.Parameter(torch.empty(soft_headers, classes, width))
        self.soft_bias = nn.Parameter(torch.zeros(soft_headers, classes))
        nn.init.normal_(self.golden.weight, std=0.02)
        nn.init.zeros_(self.golden.bias)
        if soft_headers:
            nn.init.normal_(self.soft_weight, std=0.02)

    @property
    def soft_headers(self) -> int:
        """K."""
        return self.soft_weight.shape[0]

    @property
    def headers(self) -> int:
        """H: how many headers were trained."""
        return self.soft_headers + int(self.use_golden)

    def forward(self, batch: Batch) -> Logits:
        """Logits of every header, float32."""
        h = self.encoder(batch).float()
        with torch.autocast(h.device.type, enabled=False):  # the headers cost nothing; keep them exact
            golden = self.golden(h)
            soft = torch.einsum("nd,kcd->nkc", h, self.soft_weight) + self.soft_bias
        return Logits(golden, soft)

    def trained_headers(self, logits: Logits) -> Tensor:
        """The logits of the headers that were trained, [n, H, C]: the golden one first where it is one of them."""
        if not self.use_golden:
            return logits.soft
        return torch.cat([logits.golden[:, None], logits.soft], dim=1)

    def combine(self, logits: Logits) -> Tensor:
        """The `logit` combination, [n, C]: the mean over the headers that were trained."""
        return self.trained_headers(logits).mean(dim=1)

    @torch.no_grad()
    def fold(self) -> tuple[Tensor, Tensor]:
        """One linear layer equal to the `logit` combination: weight [C, d], bias [C]."""
        if not self.use_golden:
            return self.soft_weight.mean(0), self.soft_bias.mean(0)
        weight = torch.cat([self.golden.weight[None], self.soft_weight]).mean(0)
        bias = torch.cat([self.golden.bias[None], self.soft_bias]).mean(0)
        return weight, bias

    @torch.no_grad()
    def start_golden_from_soft(self) -> None:
        """Begin stage 2 with the golden header as the mean of the soft ones (METHOD.md, "Stage 2")."""
        self.golden.weight.copy_(self.soft_weight.mean(0))
        self.golden.bias.copy_(self.soft_bias.mean(0))
        self.use_golden = True

    @torch.no_grad()
    def take_soft_headers(self, which: Sequence[int | None]) -> None:
        """Soft headers in another order or number; None begins as the mean of those there were."""
        weights, biases = self.soft_weight, self.soft_bias
        rows = [(weights.mean(0), biases.mean(0)) if n is None else (weights[n], biases[n]) for n in which]
        self.soft_weight = nn.Parameter(torch.stack([weight for weight, _ in rows]))
        self.soft_bias = nn.Parameter(torch.stack([bias for _, bias in rows]))


def combine(headers: NDArray[np.floating[Any]], how: Combination, *, golden: bool = True) -> NDArray[np.float64]:
    """One output of a student's headers, [N, C] float64, unsquashed: softmax of it gives the probabilities.

    Args:
        headers: logits [N, H, C] of the trained headers, as `Student.trained_headers` orders them.
        how: `logit`: the mean of the logits, which folds into one head. `probability`: log of the mean of the
            probabilities, the paper's; it cannot be folded. `golden`: the golden header alone.
        golden: whether the first header is the golden one.

    Raises:
        ValueError: `golden` of a student that stopped after stage 1 and has no golden header.
    """
    logits: NDArray[np.float64] = np.asarray(headers, dtype=np.float64)
    if how == "golden":
        if not golden:
            raise ValueError("this student stopped after stage 1: its golden header was not trained")
        return logits[:, 0]
    return logits.mean(axis=1) if how == "logit" else log_mean_softmax(logits)
