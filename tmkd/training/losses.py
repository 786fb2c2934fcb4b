"""The losses, each a number per pair, so that a micro-batch of n_i pairs can weigh n_i / N in a step of N.

| loss | `loss.kind` | soft labels of one pair need |
|---|---|---|
| `soft_kl` | `kl` | nothing else |
| `soft_mse` | `mse` | nothing else |
| `soft_mse_logits` | `mse_logits` | nothing else |
| `soft_margin_mse` | `margin_mse` | the other pairs of their question, in the same step |

A soft loss gives a number per pair and head. They are weighted over the heads (`tmkd.training.teacher_weights`) and
summed to one per pair (METHOD.md, "Stage 2").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmkd.core.hardware import device
from tmkd.models.student import StudentOutput

GROUPED = ("margin_mse",)  # losses that compare the passages of one question: they need all pairs of a step at once


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


def soft_margin_mse(student: Tensor, teacher: Tensor, questions: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean squared error of margins: of each pair against every other pair of its question among the n.

    A margin is the difference between two passages' log-odds d = z[1] - z[0]. The loss of pair i is the mean over j of
    ((d_i - d_j) - (t_i - t_j))^2, where t are the teacher's log-odds. Only differences within a question are learned;
    the level that all its passages share stays free. A pair that is alone with its question has the loss 0.

    Requirements:
        1. Two classes.
        2. Soft labels of K teachers, and a head for each of them.
        3. At least two passages for each question, all in the same step (`TrainingSet.questions`).

    Inputs:
        | student | teacher | questions |
        |---|---|---|
        | logits of the soft heads [n, K, 2] | the teachers' logits [n, K, 2] | [n] |

    References:
        Hofstaetter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
        Distillation", Margin-MSE; there with two passages of a question.

    Args:
        student: Logits, [n, K, 2].
        teacher: Logits, [n, K, 2].
        questions: The question of each pair, [n] int64.
        known: Which labels are there, [n, K] bool; others are no part of a margin. All unless given.

    Returns:
        [n, K].

    Example:
        >>> teacher = torch.tensor([[[0.0, 3.0]], [[0.0, 1.0]]])
        >>> soft_margin_mse(torch.zeros(2, 1, 2), teacher, torch.tensor([7, 7]))
        tensor([[4.],
                [4.]])
    """
    error = (student[..., 1] - student[..., 0]) - (teacher[..., 1] - teacher[..., 0])  # [n, K]
    others = (questions[:, None] == questions[None]).fill_diagonal_(False).to(error.dtype)  # [n, n]
    squares = (error[:, None] - error[None]).square()  # [n, n, K]
    if known is not None:
        each = others[..., None] * known[None]  # [n, n, K]
        return (each * squares).sum(dim=1) / each.sum(dim=1).clamp(min=1)
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
    """Compute the loss on soft labels that a recipe names, weighted over the heads.

    Args:
        student: Logits, [n, K, C].
        teacher: Logits, [n, K, C].
        kind: `kl`, `mse`, `mse_logits` or `margin_mse`.
        temperature: Of `kl`.
        weights: Weight of each head's loss, [n, K], with sum 1 over K; equal weights unless given.
        questions: The question of each pair, [n] int64; for the losses in `GROUPED`.

    Returns:
        [n].

    Raises:
        ValueError: The loss needs questions and none are given.
    """
    if kind == "margin_mse":
        if questions is None:
            raise ValueError("margin_mse compares the passages of a question: give `questions`")
        each = soft_margin_mse(student, teacher, questions, None if weights is None else weights > 0)
    elif kind == "mse_logits":
        each = soft_mse_logits(student, teacher)
    elif kind == "mse":
        each = soft_mse(student, teacher)
    else:
        each = soft_kl(student, teacher, temperature)
    return each.mean(dim=1) if weights is None else (weights * each).sum(dim=1)
