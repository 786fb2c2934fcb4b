"""The losses: pure functions of tensors. A soft loss gives a number per pair and header, weighted over headers
(`tmkd.training.teacher_weights`) and summed to one per pair, so that a micro-batch of n_i pairs can weigh n_i / N in
a step of N
(METHOD.md, "Stage 2")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmkd.core.hardware import device
from tmkd.models.student import Logits

GROUPED = ("margin_mse",)  # losses that compare the passages of one question: they need a step's pairs all at once


def golden_loss(golden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, [n].

    golden: logits [n, C]; labels: [n] int64, -1 where a pair has none, or probabilities [n, C], zeros where it has
    none (its loss is 0).
    """
    if labels.ndim == 2:
        return F.cross_entropy(golden, labels, reduction="none")
    return F.cross_entropy(golden, labels, ignore_index=-1, reduction="none")


class GoldenLoss:
    """The loss of teachers and of the `finetune` baseline: cross-entropy of the golden head, `golden_loss`.

    Args:
        labels: Of all N pairs, as `Pairs.golden` gives them: [N] int64, or probabilities [N, C].
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.to(device())

    def __call__(self, logits: Logits, rows: Tensor) -> Tensor:
        """The loss of each pair of a batch, [n].

        Args:
            logits: Of the batch.
            rows: Which of the N pairs form the batch, [n] int64.
        """
        return golden_loss(logits.golden, self.labels[rows])


def soft_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The paper's loss: mean squared error of probabilities over classes, [n, K].

    student, teacher: logits [n, K, C] (Yang et al. 2020, stage 1: L1 = (1/K) sum_k MSE(P_k, R_k)).
    """
    return (student.softmax(-1) - teacher.softmax(-1)).square().mean(dim=-1)


def soft_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(R_k || P_k) at a temperature, times its square, [n, K] (Hinton et al. 2015, section 2)."""
    target = torch.log_softmax(teacher / temperature, dim=-1)
    output = torch.log_softmax(student / temperature, dim=-1)
    divergence = F.kl_div(output, target, reduction="none", log_target=True).sum(-1)
    return divergence * temperature**2


def soft_mse_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of logits, each centred over its classes (softmax does not fix their common shift), [n, K].

    The limit of KL at a high temperature, up to a factor (Hinton et al. 2015, section 2.1). Unlike the losses on
    probabilities it goes on asking for the right size where a teacher is sure.
    """
    error = student - teacher
    return (error - error.mean(dim=-1, keepdim=True)).square().mean(dim=-1)


def soft_margin_mse(student: Tensor, teacher: Tensor, questions: Tensor) -> Tensor:
    """Mean squared error of margins, [n, K]: of a pair against every other pair of its question among the n.

    A margin is the difference of two passages' log-odds d = z[1] - z[0]; the loss of pair i is the mean over j of
    ((d_i - d_j) - (t_i - t_j))^2, t being the teacher's (Hofstaetter et al. 2020, Margin-MSE, there for two passages).
    Only differences inside a question are learnt: the level that all of its passages share is left free. A pair that
    is alone with its question has the loss 0.

    Args:
        student, teacher: logits [n, K, 2].
        questions: the question of each pair, [n] int64.
    """
    error = (student[..., 1] - student[..., 0]) - (teacher[..., 1] - teacher[..., 0])  # [n, K]
    others = (questions[:, None] == questions[None]).fill_diagonal_(False).to(error.dtype)  # [n, n]
    squares = (error[:, None] - error[None]).square()  # [n, n, K]
    return torch.einsum("ij,ijk->ik", others, squares) / others.sum(dim=1).clamp(min=1)[:, None]


def soft_loss(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    temperature: float,
    *,
    weights: Tensor | None = None,
    questions: Tensor | None = None,
) -> Tensor:
    """The loss on soft labels that a recipe names, [n].

    Args:
        student, teacher: logits [n, K, C].
        kind: `kl`, `mse`, `mse_logits` or `margin_mse`.
        weights: of each header's loss, [n, K], summing to 1 over K; equal ones unless given.
        questions: the question of each pair, [n] int64; for the losses of GROUPED.
    """
    if kind == "margin_mse":
        assert questions is not None
        each = soft_margin_mse(student, teacher, questions)
    elif kind == "mse_logits":
        each = soft_mse_logits(student, teacher)
    elif kind == "mse":
        each = soft_mse(student, teacher)
    else:
        each = soft_kl(student, teacher, temperature)
    return each.mean(dim=1) if weights is None else (weights * each).sum(dim=1)
