"""What students learn from: soft labels, their weights, the pairs that are replayed, and the losses over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.config.methods import Method
from tmkd.config.sections import Loss
from tmkd.core.hardware import device
from tmkd.data.pairs import Pairs, grouped
from tmkd.models.student import Logits
from tmkd.teachers.ensemble import ensemble_logits
from tmkd.training.losses import GROUPED, GoldenLoss, golden_loss, soft_loss
from tmkd.training.teacher_weights import Floats, confidence_weights

MEAN = "mean of "  # before the names of the teachers whose mean a header learns


@dataclass(frozen=True)
class Targets:
    """Soft labels of some pairs.

    Attributes:
        names: what each header learns, [K] (teachers' fingerprints, or one name for their mean).
        logits: [N, K, C] float32, in the order of the pairs.
        folds: fingerprints of the teachers that made them, where those are not the ones named but out-of-fold ones.
        weights: of each teacher's loss, [N, K] float32; None: equal.
        weighting: JSON-like, what the weights depend on besides the logits; None: nothing.
    """

    names: tuple[str, ...]
    logits: NDArray[np.float32]
    folds: tuple[str, ...] = ()
    weights: NDArray[np.float32] | None = None
    weighting: Any = None

    @classmethod
    def choose(cls, method: Method, names: list[str], logits: list[NDArray[np.float32]], best: int) -> Targets | None:
        """What one student of a method learns from K teachers' logits (each [N, C]); None where it learns from none.

        Args:
            best: the teacher of a method that learns from one.
        """
        if method.targets == "none":
            return None
        if method.targets == "one":
            return cls((names[best],), logits[best][:, None])
        if method.targets == "mean":
            return cls((MEAN + "+".join(names),), ensemble_logits(logits).astype(np.float32)[:, None])
        return cls(tuple(names), np.stack(logits, axis=1))

    def take(self, rows: NDArray[np.int64]) -> Targets:
        """Those of some of the pairs."""
        return replace(self, logits=self.logits[rows], weights=None if self.weights is None else self.weights[rows])

    def weigh(self, weighting: str, development: Callable[[], Floats]) -> Targets:
        """The same with `loss.weighting` (`tmkd.training.teacher_weights`); nothing changes for one soft label a pair.

        Args:
            development: gives the teachers' weights by development metric, [K].
        """
        if weighting == "uniform" or len(self.names) == 1:
            return self
        if weighting == "confidence":
            return replace(self, weights=confidence_weights(self.logits).astype(np.float32), weighting="confidence")
        by_teacher = development().astype(np.float32)
        weights = np.broadcast_to(by_teacher, self.logits.shape[:2])
        return replace(self, weights=weights.copy(), weighting=[round(float(weight), 6) for weight in by_teacher])


@dataclass(frozen=True)
class Replay:
    """Pairs of stage 1 that stage 2 mixes in, and their soft labels."""

    pool: Pairs
    targets: Targets

    def behind(self, rows: Pairs, targets: Targets | None) -> tuple[Pairs, Targets]:
        """Rows and targets of the task, then those of the pool, which have no golden label."""
        assert targets is not None
        assert targets.names == self.targets.names  # tmkd.pipeline.preflight looked
        logits = np.concatenate([targets.logits, self.targets.logits])
        weights = None
        if targets.weights is not None and self.targets.weights is not None:
            weights = np.concatenate([targets.weights, self.targets.weights])
        return rows.and_unlabelled(self.pool), Targets(targets.names, logits, weights=weights)


def soft_part(targets: Targets, loss: Loss, questions: NDArray[np.int64] | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The weighted loss on soft labels: (soft logits [n, K, C], rows [n]) -> [n]."""
    soft = torch.from_numpy(targets.logits).to(device())
    weights = None if targets.weights is None else torch.from_numpy(targets.weights).to(device())
    groups = None if questions is None else torch.from_numpy(questions).to(device())

    def distilled(logits: Tensor, which: Tensor) -> Tensor:
        return soft_loss(
            logits,
            soft[which],
            loss.kind,
            loss.temperature,
            weights=None if weights is None else weights[which],
            questions=None if groups is None else groups[which],
        )

    return distilled


def stage2_loss(
    rows: Pairs, targets: Targets | None, loss: Loss, questions: NDArray[np.int64] | None = None
) -> Callable[[Logits, Tensor], Tensor]:
    """L2 = (1 - a) CE(s_g, y) + a soft loss (METHOD.md, "Stage 2"); cross-entropy alone where there are no targets.

    A student without soft headers (1-o-1, bilstm) learns both with its golden one.
    """
    labels = torch.from_numpy(rows.golden).to(device())
    if targets is None:
        return GoldenLoss(labels)
    distilled = soft_part(targets, loss, questions)

    def combined(logits: Logits, which: Tensor) -> Tensor:
        golden = golden_loss(logits.golden, labels[which])
        taught = logits.soft if logits.soft.shape[1] else logits.golden[:, None]
        return (1 - loss.alpha) * golden + loss.alpha * distilled(taught, which)

    return combined


def questions_of(rows: Pairs, loss: Loss) -> NDArray[np.int64] | None:
    """The question of each pair, [N] int64, for a loss that compares a question's passages; None for other losses.

    Every question needs two passages or more: `tmkd.pipeline.preflight` refuses others before anything is trained.
    """
    if loss.kind not in GROUPED:
        return None
    _, groups = grouped(rows.qids)
    assert (np.bincount(groups) > 1).all(), "a question has a single passage"
    return groups


def loss_depends(loss: Loss, targets: Targets, exclude: set[str] | None = None) -> dict[str, Any]:
    """What a result depends on in its loss; weighting only where there is any."""
    depends: dict[str, Any] = {"loss": loss.model_dump(exclude={"weighting", *(exclude or ())})}
    return depends if targets.weighting is None else {**depends, "weighting": targets.weighting}
