"""The losses, each a number per pair, so that a micro-batch of n_i pairs can weigh n_i / N in a step of N.

| loss | `loss.kind` | soft labels of one pair need |
|---|---|---|
| `soft_kl` | `kl` | nothing else |
| `soft_mse` | `mse` | nothing else |
| `soft_mse_logits` | `mse_logits` | nothing else |
| those of `tmkd.training.list_losses` | `GROUPED` | the other pairs of their question, in the same step |

A soft loss gives a number per pair and head. They are weighted over the heads (`tmkd.training.teacher_weights`) and
summed to one per pair (METHOD.md, "Stage 2").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmkd.config.sections import GROUPED_LOSSES
from tmkd.core.hardware import device
from tmkd.models.student import StudentOutput
from tmkd.training.list_losses import soft_adr_mse, soft_list_kl, soft_margin_mse, soft_scaled_margin_mse

GROUPED = GROUPED_LOSSES  # losses that compare the passages of one question: they need all pairs of a step at once


def golden_loss(golden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the golden head.

    Requirements:
        1. Labels of some pairs; a pair without a label has the loss 0.

    Inputs:
        | logits | labels |
        |---|---|
        | [n, C] | classes [n], or probabilities [n, C] |

    Args:
        golden: Logits, [n, C].
        labels: [n] int64, -1 for a pair without a label; or probabilities [n, C], zeros for a pair without a label.

    Returns:
        [n].

    Example:
        >>> golden_loss(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([1, -1]))
        tensor([0.6931, 0.0000])
    """
    if labels.ndim == 2:
        return F.cross_entropy(golden, labels, reduction="none")
    return F.cross_entropy(golden, labels, ignore_index=-1, reduction="none")


class GoldenLoss:
    """The main loss of teachers and of the `finetune` baseline: `golden_loss` of the golden head.

    Args:
        labels: Of all N pairs of the training set, as `Pairs.golden` gives them: [N] int64, or probabilities [N, C].

    Example:
        >>> loss = GoldenLoss(torch.tensor([0, 1, 1]))
        >>> output = StudentOutput(golden=torch.zeros(2, 2), soft=torch.zeros(2, 0, 2))
        >>> loss(output, torch.tensor([2, 0]))
        tensor([0.6931, 0.6931])
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.to(device())

    def __call__(self, output: StudentOutput, rows: Tensor) -> Tensor:
        """Compute the loss of each pair of a batch.

        Args:
            output: Of the student for n pairs.
            rows: Which of the N pairs these are, [n] int64.

        Returns:
            [n].
        """
        return golden_loss(output.golden, self.labels[rows])


def soft_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the probabilities over the classes, the paper's loss: L1 = (1/K) sum_k MSE(P_k, R_k).

    Requirements:
        1. Soft labels of K teachers, and a head for each of them.

    Inputs:
        | student | teacher |
        |---|---|
        | logits of the soft heads [n, K, C] | the teachers' logits [n, K, C] |

    References:
        Yang et al. 2020, "Model Compression with Two-stage Multi-teacher Knowledge Distillation for Web Question
        Answering System", stage 1.

    Args:
        student: Logits, [n, K, C].
        teacher: Logits, [n, K, C].

    Returns:
        [n, K].

    Example:
        >>> soft_mse(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 30.0]]]))
        tensor([[0.2500]])
    """
    return (student.softmax(-1) - teacher.softmax(-1)).square().mean(dim=-1)


def soft_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence KL(R_k || P_k) at a temperature, times the temperature's square. The default.

    The square keeps the gradient's size independent of the temperature.

    Requirements:
        1. Soft labels of K teachers, and a head for each of them.

    Inputs:
        | student | teacher |
        |---|---|
        | logits of the soft heads [n, K, C] | the teachers' logits [n, K, C] |

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.

    Args:
        student: Logits, [n, K, C].
        teacher: Logits, [n, K, C].
        temperature: Both sides' logits are divided by it.

    Returns:
        [n, K].

    Example:
        >>> soft_kl(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 30.0]]]))
        tensor([[0.6931]])
    """
    target = torch.log_softmax(teacher / temperature, dim=-1)
    output = torch.log_softmax(student / temperature, dim=-1)
    divergence = F.kl_div(output, target, reduction="none", log_target=True).sum(-1)
    return divergence * temperature**2


def soft_mse_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of logits that are centred over the classes (softmax does not depend on a common shift).

    This is the limit of KL at a high temperature, up to a factor. Unlike the losses on probabilities, it still asks for
    the right size of a logit where a teacher is almost certain.

    Requirements:
        1. Soft labels of K teachers, and a head for each of them.

    Inputs:
        | student | teacher |
        |---|---|
        | logits of the soft heads [n, K, C] | the teachers' logits [n, K, C] |

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.1.

    Args:
        student: Logits, [n, K, C].
        teacher: Logits, [n, K, C].

    Returns:
        [n, K].

    Example:
        >>> soft_mse_logits(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[5.0, 7.0]]]))
        tensor([[1.]])
    """
    error = student - teacher
    return (error - error.mean(dim=-1, keepdim=True)).square().mean(dim=-1)


_OF_LISTS = {"margin_mse": soft_margin_mse, "margin_mse_scaled": soft_scaled_margin_mse, "adr_mse": soft_adr_mse}


def soft_loss(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    temperature: float,
    *,
    weights: Tensor | None = None,
    questions: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Compute the loss on soft labels that a recipe names, weighted over the heads.

    Args:
        student: Logits, [n, K, C].
        teacher: Logits, [n, K, C].
        kind: `loss.kind`.
        temperature: Of `kl` and `list_kl`.
        weights: Weight of each head's loss, [n, K], with sum 1 over K; equal weights unless given.
        questions: The question of each pair, [n] int64; for the losses in `GROUPED`.
        known: Which labels are there, [n, K] bool; for the losses in `GROUPED`. All unless given.

    Returns:
        [n].

    Raises:
        ValueError: The loss needs questions and none are given.
    """
    if kind in GROUPED:
        if questions is None:
            raise ValueError(f"{kind} compares the passages of a question: give `questions`")
        if kind == "list_kl":
            each = soft_list_kl(student, teacher, questions, known, temperature)
        else:
            each = _OF_LISTS[kind](student, teacher, questions, known)
    elif kind == "mse_logits":
        each = soft_mse_logits(student, teacher)
    elif kind == "mse":
        each = soft_mse(student, teacher)
    else:
        each = soft_kl(student, teacher, temperature)
    return each.mean(dim=1) if weights is None else (weights * each).sum(dim=1)
