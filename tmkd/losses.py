"""The losses: pure functions of tensors. Each gives one number per pair, so that a micro-batch of n_i pairs can weigh
n_i / N in a step of N (METHOD.md, "Stage 2")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def golden_loss(golden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, [n].

    golden: logits [n, C]; labels: [n] int64, -1 where a pair has none, or probabilities [n, C], zeros where it has
    none (its loss is 0).
    """
    if labels.ndim == 2:
        return F.cross_entropy(golden, labels, reduction="none")
    return F.cross_entropy(golden, labels, ignore_index=-1, reduction="none")


def soft_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The paper's loss: mean squared error of probabilities over classes and headers, [n].

    student, teacher: logits [n, K, C] (Yang et al. 2020, stage 1: L1 = (1/K) sum_k MSE(P_k, R_k)).
    """
    return (student.softmax(-1) - teacher.softmax(-1)).square().mean(dim=(1, 2))


def soft_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(R_k || P_k) at a temperature, times its square, mean over headers, [n] (Hinton et al. 2015, section 2)."""
    target = torch.log_softmax(teacher / temperature, dim=-1)
    output = torch.log_softmax(student / temperature, dim=-1)
    divergence = F.kl_div(output, target, reduction="none", log_target=True).sum(-1)
    return divergence.mean(dim=1) * temperature**2


def soft_loss(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """The loss on soft labels that a recipe names (`kl` or `mse`), [n]."""
    return soft_mse(student, teacher) if kind == "mse" else soft_kl(student, teacher, temperature)
