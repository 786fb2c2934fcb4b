"""What students learn from: soft labels, their weights, replayed pairs, and the main losses of both stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.config.methods import Method
from tmkd.config.sections import Loss
from tmkd.core.hardware import device
from tmkd.core.mapped import mapped_numbers
from tmkd.data.pairs import Pairs
from tmkd.models.student import StudentOutput
from tmkd.teachers.ensemble import ensemble_logits
from tmkd.training.losses import GROUPED, GoldenLoss, golden_loss, soft_loss
from tmkd.training.teacher_weights import Floats, confidence_weights

MEAN, STACKED = "mean of ", "stacked "  # how the name of what a head learns begins where it is an ensemble
_IN_MEMORY = 1 << 26  # bytes of soft labels above which they are mapped from a file


@dataclass(frozen=True)
class Targets:
    """Soft labels of N pairs.

    Attributes:
        names: What each head learns, [K]: teachers' fingerprints, or one name for the mean of several.
        logits: [N, K, C] float32, in the order of the pairs; nan where a partial teacher has no label (`masked`).
        folds: For out-of-fold labels the fingerprints of the teachers that made them.
        weights: Weight of each teacher's loss, [N, K] float32; None: equal weights.
        weighting: What the weights depend on besides the logits, JSON-like; None: nothing.
    """

    names: tuple[str, ...]
    logits: NDArray[np.float32]
    folds: tuple[str, ...] = ()
    weights: NDArray[np.float32] | None = None
    weighting: Any = None

    @classmethod
    def choose(cls, method: Method, names: list[str], logits: list[NDArray[np.float32]], best: int) -> Targets | None:
        """Choose what one student of a method learns from K teachers.

        Args:
            method: Decides between one teacher, the mean, and each teacher.
            names: The teachers' names, [K].
            logits: The teachers' logits, K arrays [N, C].
            best: Index of the teacher for a method that learns from one.

        Returns:
            The targets; None for a method that learns from no teacher.
        """
        if method.targets == "none":
            return None
        if method.targets == "one":
            return cls((names[best],), logits[best][:, None])
        if method.targets == "mean":
            return cls((MEAN + "+".join(names),), mean_logits(logits).astype(np.float32)[:, None])
        return cls(tuple(names), np.stack(logits, axis=1))

    @classmethod
    def stacked(cls, fitted: str, names: Sequence[str], logits: NDArray[np.floating[Any]]) -> Targets:
        """What a head learns of a stacked ensemble.

        Args:
            fitted: The fingerprint of its weights.
            names: Its teachers' names.
            logits: The ensemble's, [N, C].
        """
        return cls((f"{STACKED}{fitted} of {'+'.join(names)}",), logits.astype(np.float32)[:, None])

    def mapped(self, folder: Path) -> Targets:
        """The same targets; the logits of a large pool are mapped from a file of the folder (`mapped_numbers`).

        Raises:
            NoRoomError: The disk is full.
        """
        large = self.logits.nbytes > _IN_MEMORY
        return replace(self, logits=mapped_numbers(self.logits, folder)) if large else self

    def weigh(self, weighting: str, development: Callable[[], Floats]) -> Targets:
        """Add the weights that `loss.weighting` names (`tmkd.training.teacher_weights`).

        Args:
            weighting: `uniform`, `development` or `confidence`.
            development: Computes the teachers' weights by their metric on the development set, [K].

        Returns:
            Targets with weights; the same targets where there is one soft label for each pair.
        """
        if weighting == "uniform" or len(self.names) == 1:
            return self
        if weighting == "confidence":
            return replace(
                self, weights=confidence_weights(np.nan_to_num(self.logits)).astype(np.float32), weighting="confidence"
            )
        by_teacher = development().astype(np.float32)
        weights = np.broadcast_to(by_teacher, self.logits.shape[:2])
        return replace(self, weights=weights.copy(), weighting=[round(float(weight), 6) for weight in by_teacher])

    @property
    def without_weight(self) -> int:
        """How many pairs have labels of teachers with the weight 0 alone, and so no loss on soft labels."""
        if self.weights is None:
            return 0
        known = np.isfinite(self.logits).all(axis=-1)
        return int((np.any(known, axis=1) & ~np.any(known & (self.weights > 0), axis=1)).sum())

    def masked(self) -> Targets:
        """Give the labels that partial teachers do not have the weight 0.

        A pair's weights sum to 1 over the teachers that label it; a pair that none labels, or none
        with a weight above 0 (`without_weight`), has no loss on soft labels.

        Returns:
            Targets without nan; the same ones where every label is there.
        """
        known = np.isfinite(self.logits).all(axis=-1)
        if known.all():
            return self
        given = np.ones(known.shape, dtype=np.float32) if self.weights is None else self.weights
        weights = np.where(known, given, 0)
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        return replace(self, logits=np.nan_to_num(self.logits), weights=weights.astype(np.float32))


def mean_logits(logits: Sequence[NDArray[np.floating[Any]]]) -> Floats:
    """The mean of the teachers, and for each pair of those alone that label it; nan for a pair that none labels.

    Args:
        logits: K arrays [N, C]; nan where a teacher has no label.

    Returns:
        [N, C] float64, as `tmkd.teachers.ensemble.ensemble_logits` gives it.
    """
    known = np.stack([np.isfinite(one).all(axis=-1) for one in logits], axis=1)  # [N, K]
    if known.all():
        return ensemble_logits(logits)
    found = np.full(logits[0].shape, np.nan)
    patterns, which = np.unique(known, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows = np.flatnonzero(which.ravel() == number)
        if pattern.any():
            found[rows] = ensemble_logits([one[rows] for one, labels in zip(logits, pattern, strict=True) if labels])
    return found


@dataclass(frozen=True)
class Replay:
    """Pairs of stage 1 that stage 2 trains on again.

    Attributes:
        pool: The pairs.
        targets: Their soft labels.
    """

    pool: Pairs
    targets: Targets

    def behind(self, rows: Pairs, targets: Targets | None) -> tuple[Pairs, Targets]:
        """Append the replayed pairs, which count as unlabelled, to those of the task.

        Args:
            rows: The task's pairs.
            targets: Their soft labels, of the same teachers as those of the replayed pairs.

        Returns:
            All pairs and all soft labels, the task's first.
        """
        assert targets is not None
        assert targets.names == self.targets.names  # tmkd.pipeline.preflight checked it
        logits = np.concatenate([targets.logits, self.targets.logits])
        weights = None
        if targets.weights is not None or self.targets.weights is not None:
            even = np.full((1, len(targets.names)), 1 / len(targets.names), dtype=np.float32)
            parts = [np.repeat(even, len(one.logits), axis=0) if one.weights is None else one.weights
                     for one in (targets, self.targets)]  # fmt: skip
            weights = np.concatenate(parts)
        return rows.and_unlabelled(self.pool), Targets(targets.names, logits, weights=weights)


class SoftLabelLoss:
    """The main loss of stage 1: the soft heads learn the teachers' soft labels (METHOD.md, "Stage 1").

    Requirements:
        1. Soft labels of all N pairs of the training set (`Targets`), one for each soft head.
        2. For a loss in `GROUPED`: the question of each pair.

    Inputs:
        | output | rows |
        |---|---|
        | the student's, with soft logits [n, K, C] | places of the n pairs in the training set, [n] int64 |

    References:
        `tmkd.training.losses` names the source of each loss.

    Args:
        targets: Soft labels, [N, K, C], and their weights.
        loss: Which loss, and its temperature.
        questions: The question of each pair, [N] int64; see `questions_of`.

    Example:
        >>> teachers = Targets(("a",), np.zeros((3, 1, 2), dtype=np.float32))
        >>> output = StudentOutput(golden=torch.zeros(2, 2), soft=torch.zeros(2, 1, 2))
        >>> SoftLabelLoss(teachers, Loss(kind="kl"))(output, torch.tensor([0, 2]))
        tensor([0., 0.])
    """

    def __init__(self, targets: Targets, loss: Loss, questions: NDArray[np.int64] | None = None) -> None:
        self.kind, self.temperature = loss.kind, loss.temperature
        self.soft = torch.from_numpy(targets.logits).to(device())
        self.weights = None if targets.weights is None else torch.from_numpy(targets.weights).to(device())
        self.questions = None if questions is None else torch.from_numpy(questions).to(device())

    def __call__(self, output: StudentOutput, rows: Tensor) -> Tensor:
        """Compute the loss of each pair, [n]."""
        return self.of_logits(output.soft, rows)

    def of_logits(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Compute the loss of some heads' logits.

        Args:
            logits: [n, K, C], one head for each teacher.
            rows: Which of the N pairs these are, [n] int64.

        Returns:
            [n].
        """
        weights = None if self.weights is None else self.weights[rows]
        return soft_loss(
            logits,
            self.soft[rows],
            self.kind,
            self.temperature,
            weights=weights,
            known=None if weights is None else weights > 0,  # `Targets.masked`
            questions=None if self.questions is None else self.questions[rows],
        )


class DistillationLoss:
    """The main loss of stage 2: L2 = (1 - a) CE(s_g, y) + a L_soft (METHOD.md, "Stage 2").

    A student without soft heads (1-o-1, m-o-m, bilstm) learns both with its golden head.

    Requirements:
        1. Golden labels of all N pairs of the training set; a pair without one has a golden loss of 0.
        2. Soft labels of all N pairs.

    Inputs:
        | output | rows |
        |---|---|
        | the student's, with golden logits [n, C] and soft logits [n, K, C] | places of the n pairs, [n] int64 |

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Yang et al. 2020, stage 2.

    Args:
        labels: Golden labels, as in `golden_loss`: [N] int64, or probabilities [N, C].
        soft: The loss on soft labels.
        alpha: a, the share of the loss on soft labels.
    """

    def __init__(self, labels: Tensor, soft: SoftLabelLoss, alpha: float) -> None:
        self.labels, self.soft, self.alpha = labels.to(device()), soft, alpha

    def __call__(self, output: StudentOutput, rows: Tensor) -> Tensor:
        """Compute the loss of each pair, [n]."""
        golden = golden_loss(output.golden, self.labels[rows])
        taught = output.soft if output.soft.shape[1] else output.golden[:, None]
        return (1 - self.alpha) * golden + self.alpha * self.soft.of_logits(taught, rows)


def stage2_loss(
    pairs: Pairs, targets: Targets | None, loss: Loss, questions: NDArray[np.int64] | None = None
) -> GoldenLoss | DistillationLoss:
    """Choose the main loss of stage 2, or of a method with a single stage.

    Args:
        pairs: The training set, with golden labels.
        targets: Soft labels of the pairs; None: golden labels alone are learned.
        loss: The recipe's.
        questions: As in `SoftLabelLoss`.
    """
    labels = torch.from_numpy(pairs.golden)
    if targets is None:
        return GoldenLoss(labels)
    return DistillationLoss(labels, SoftLabelLoss(targets, loss, questions), loss.alpha)


def questions_of(pairs: Pairs, loss: Loss) -> NDArray[np.int64] | None:
    """Number the questions of the pairs, for a loss that compares the passages of a question.

    Every question needs two passages or more: `tmkd.pipeline.preflight` refuses others before anything is trained.

    Args:
        pairs: N pairs.
        loss: The recipe's.

    Returns:
        The question of each pair, [N] int64; None for a loss that does not compare passages.
    """
    if loss.kind not in GROUPED:
        return None
    _, groups = pairs.groups()
    assert (np.bincount(groups) > 1).all(), "a question has a single passage"
    return groups
