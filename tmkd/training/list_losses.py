"""Losses on soft labels that compare the passages of one question: all pairs of a step are needed at once.

Each gives a number per pair and head, as the losses of single pairs do (`tmkd.training.losses`), and compares the
log-odds d = z[1] - z[0] of the pairs of one question among the n of a step. The level that all passages of a question
share stays free. A pair that is alone with its question has the loss 0. All of them need two classes, soft labels of K
teachers with a head for each, and at least two passages for each question (`TrainingSet.questions`).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-6  # the smallest root mean square that margins are divided by


def soft_margin_mse(student: Tensor, teacher: Tensor, questions: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean squared error of margins: of each pair against every other pair of its question among the n.

    A margin is the difference between two passages' log-odds. The loss of pair i is the mean over j of
    ((d_i - d_j) - (t_i - t_j))^2, where t are the teacher's log-odds.

    References:
        Hofstaetter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
        Distillation", Margin-MSE; there with two passages of a question.

    Args:
        student: Logits, [n, K, 2].
        teacher: Logits, [n, K, 2].
        questions: The question of each pair, [n] int64.
        known: Which labels are there, [n, K] bool; a pair without one is compared with none. All unless given.

    Returns:
        [n, K].

    Example:
        >>> teacher = torch.tensor([[[0.0, 3.0]], [[0.0, 1.0]]])
        >>> soft_margin_mse(torch.zeros(2, 1, 2), teacher, torch.tensor([7, 7]))
        tensor([[4.],
                [4.]])
    """
    return _mean_square(_odds(student) - _odds(teacher), _others(questions, student, known))


def soft_scaled_margin_mse(student: Tensor, teacher: Tensor, questions: Tensor, known: Tensor | None = None) -> Tensor:
    """Margin-MSE with the teacher's margins rescaled to the size of the student's.

    The teacher's margins are multiplied by the ratio of the two root mean squares over the step, and the error is
    measured in units of the student's: ((d_i - d_j) / r_d - (t_i - t_j) / r_t)^2. So a teacher whose scores are ten
    times as large as another's teaches the same, and no size of the student's scores makes the loss smaller. Their
    scale stays free, besides their level.

    References:
        Lassance et al. 2024, "SPLADE-v3", section 2.2, rescales the teachers' scores to those of the student.

    Args:
        student: Logits, [n, K, 2].
        teacher: Logits, [n, K, 2].
        questions: The question of each pair, [n] int64.
        known: Which labels are there, [n, K] bool; a pair without one is compared with none. All unless given.

    Returns:
        [n, K].

    Example:
        >>> teacher = torch.tensor([[[0.0, 30.0]], [[0.0, 10.0]]])
        >>> student = torch.tensor([[[0.0, 0.3]], [[0.0, 0.1]]])
        >>> soft_scaled_margin_mse(student, teacher, torch.tensor([7, 7]))
        tensor([[0.],
                [0.]])
    """
    others = _others(questions, student, known)
    compared = others.any(dim=1)  # [n, K]
    if known is not None:
        compared = compared & known
    sides = []
    for odds in (_odds(student), _odds(teacher)):
        squares = (_mean_square(odds, others) * compared).sum(dim=0) / compared.sum(dim=0).clamp(min=1)
        sides.append(odds / squares.clamp(min=_LEAST**2).sqrt())
    return _mean_square(sides[0] - sides[1], others)


def soft_list_kl(
    student: Tensor, teacher: Tensor, questions: Tensor, known: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """KL divergence of two distributions over the passages of a question, times the temperature's square.

    Both are the softmax of log-odds over the question's passages. Every pair has the loss of its question, so that a
    question weighs as many pairs as it has.

    References:
        Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach" (the softmax over a list);
        Reddi et al. 2021, "RankDistil".

    Args:
        student: Logits, [n, K, 2].
        teacher: Logits, [n, K, 2].
        questions: The question of each pair, [n] int64.
        known: Which labels are there, [n, K] bool; a pair without one is compared with none. All unless given.
        temperature: Both sides' log-odds are divided by it.

    Returns:
        [n, K].

    Example:
        >>> teacher = torch.tensor([[[0.0, 30.0]], [[0.0, 0.0]]])
        >>> soft_list_kl(torch.zeros(2, 1, 2), teacher, torch.tensor([7, 7]))
        tensor([[0.6931],
                [0.6931]])
    """
    others = _others(questions, student, known)
    own = torch.eye(len(questions), dtype=torch.bool, device=questions.device)[..., None]
    logs = [_list_log_softmax(_odds(side) / temperature, others | own) for side in (student, teacher)]
    terms = logs[1].exp() * (logs[1] - logs[0])  # [n, K]; of a pair without a label, nothing that counts
    own_terms = terms if known is None else terms * known
    return temperature**2 * (own_terms + _sum_over(others, terms))


def soft_adr_mse(student: Tensor, teacher: Tensor, questions: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean squared error of ranks, discounted by the teacher's rank: for teachers whose order alone counts.

    r_i is the rank that the teacher gives pair i among the passages of its question, from 1 (equal scores share their
    mean rank). The student's rank is approximated by 1 + sum_j sigmoid(d_j - d_i). The loss of pair i is
    (r_i - rank_i)^2 / log2(r_i + 1).

    References:
        Schlatt et al. 2024, "Rank-DistiLLM: Closing the Effectiveness Gap Between Cross-Encoders and LLMs for Passage
        Re-ranking", ADR-MSE; Qin et al. 2010, "A General Approximation Framework for Direct Optimization of Information
        Retrieval Measures", for the approximate rank.

    Args:
        student: Logits, [n, K, 2].
        teacher: Logits, [n, K, 2].
        questions: The question of each pair, [n] int64.
        known: Which labels are there, [n, K] bool; a pair without one is compared with none. All unless given.

    Returns:
        [n, K].

    Example:
        >>> teacher = torch.tensor([[[0.0, 3.0]], [[0.0, 1.0]]])
        >>> soft_adr_mse(torch.zeros(2, 1, 2), teacher, torch.tensor([7, 7]))
        tensor([[0.2500],
                [0.1577]])
    """
    others = _others(questions, student, known)
    ranks = []
    for odds, above in ((_odds(teacher), _is_above), (_odds(student), torch.sigmoid)):
        ahead = above(odds[None] - odds[:, None])  # [n, n, K]: whether j is before i
        ranks.append(1 + (others * ahead).sum(dim=1))
    return (ranks[0] - ranks[1]).square() / torch.log2(ranks[0] + 1)


def _odds(logits: Tensor) -> Tensor:
    """Log-odds, [n, K], in float32 or more: half precision has too few digits for differences."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide[..., 1] - wide[..., 0]


def _is_above(margins: Tensor) -> Tensor:
    """1 for margins above 0, one half for those of 0."""
    return (margins.sign() + 1) / 2


def _others(questions: Tensor, student: Tensor, known: Tensor | None) -> Tensor:
    """Whether pair j is another pair of pair i's question that has a label, [n, n, K] bool."""
    others = (questions[:, None] == questions[None]).fill_diagonal_(False)[..., None]
    return others.expand(-1, -1, student.shape[1]) if known is None else others & known[None]


def _mean_square(values: Tensor, others: Tensor) -> Tensor:
    """The mean over the other pairs j of its question of (v_i - v_j)^2, [n, K]; values [n, K]."""
    squares = (values[:, None] - values[None]).square()  # [n, n, K]
    return (others * squares).sum(dim=1) / others.sum(dim=1).clamp(min=1)


def _sum_over(others: Tensor, values: Tensor) -> Tensor:
    """The sum of the values [n, K] of the other pairs of each pair's question, [n, K]."""
    return (others * values[None]).sum(dim=1)


def _list_log_softmax(odds: Tensor, listed: Tensor) -> Tensor:
    """Logarithm of the softmax of odds [n, K] over the pairs that are listed with each, itself included."""
    lists = odds[None].expand(len(odds), -1, -1).masked_fill(~listed, float("-inf"))  # [n, n, K]
    return odds - lists.logsumexp(dim=1)
