"""Intervals by bootstrap over questions and seeds; two models are compared on the same resamples.

Rows of one question are not independent, so questions are resampled, never rows; where a model has several seeds,
seeds are resampled too (hierarchical bootstrap). 95% means the 2.5th to the 97.5th percentile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.evaluation.metrics import (
    Floats,
    Questions,
    Ranks,
    SortedRows,
    auc,
    correct,
    log_odds,
    ranking_metrics,
    spearman,
)  # fmt: skip

MAX_SEEDS = 64  # of one model


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval."""

    mean: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """`f"{interval:+.3f}"` is "+0.123 (+0.100 to +0.150)": each number in that form."""
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"

    def negated(self) -> Interval:
        """Of the same difference, the other way round."""
        return Interval(0.0 - self.mean, 0.0 - self.high, 0.0 - self.low)  # 0.0, never -0.0

    def to_json(self) -> dict[str, float]:
        """{"mean", "low", "high"}."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


class Resamples:
    """Question weights of every bootstrap resample, [B, G]; the same for all models, so differences are paired."""

    def __init__(self, questions: Questions, count: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        size = len(questions.names)
        self.weights = np.empty((count, size))
        for row in self.weights:  # one draw at a time: all of them at once would double the memory
            row[:] = np.bincount(generator.integers(0, size, size), minlength=size)
        self.seeds = generator.random((count, MAX_SEEDS))
        self.questions = questions

    def pick_seed(self, resample: int, seeds: int) -> NDArray[np.int64]:
        """Which seeds a resample uses, [S]; S up to MAX_SEEDS."""
        return (self.seeds[resample, :seeds] * seeds).astype(np.int64)


def distributions(resamples: Resamples, logits: Floats) -> dict[str, tuple[float, Floats]]:
    """Each metric's value (mean over seeds) and its bootstrap distribution [B]. A metric without meaning is absent.

    Args:
        logits: [S, N, C].
    """
    questions = resamples.questions
    found = {"accuracy": accuracy(resamples, logits)}
    if logits.shape[2] != 2:
        return found
    if 0 < (questions.labels == 1).sum() < len(questions.labels):
        found["auc"] = _auc(resamples, logits)
    if questions.reference is not None:
        found["spearman"] = _spearman(resamples, logits)
    if questions.ranks:
        per_seed = [ranking_metrics(questions, log_odds(one)) for one in logits]
        counted = questions.ranked.astype(np.float64)
        for name in per_seed[0]:
            values = np.stack([np.nan_to_num(metrics[name]) for metrics in per_seed])
            found[name] = _weighted_mean(resamples, values, counted)
    return found


def accuracy(resamples: Resamples, logits: Floats) -> tuple[float, Floats]:
    """The share of rows whose decision is the label, as in `distributions`."""
    questions = resamples.questions
    count = len(questions.names)
    right: Floats = np.stack(
        [np.bincount(questions.group, correct(questions, one), count) for one in logits], dtype=float
    )
    return _weighted_mean(resamples, right, np.bincount(questions.group, minlength=count).astype(np.float64))


def _weighted_mean(resamples: Resamples, sums: Floats, sizes: Floats) -> tuple[float, Floats]:
    """sums: [S, G] totals of each question; sizes: [G] what they are divided by. nan where a resample has no weight."""
    value = float(sums.sum(axis=1).mean() / sizes.sum())
    per_seed = resamples.weights @ sums.T  # [B, S]
    below = resamples.weights @ sizes
    picked = np.stack([per_seed[b, resamples.pick_seed(b, len(sums))].mean() for b in range(len(per_seed))])
    return value, np.divide(picked, below, out=np.full(len(below), np.nan), where=below > 0)


def _auc(resamples: Resamples, logits: Floats) -> tuple[float, Floats]:
    questions = resamples.questions
    scores = [log_odds(one) for one in logits]
    rows = [SortedRows.of(questions.labels, one) for one in scores]
    groups = [questions.group[one.order] for one in rows]
    drawn = np.empty(len(resamples.weights))
    for b, weights in enumerate(resamples.weights):
        counts = np.bincount(resamples.pick_seed(b, len(logits)), minlength=len(logits))
        picked = np.flatnonzero(counts)  # a seed drawn twice is computed once
        each = [rows[s].auc(weights[groups[s]]) for s in picked]
        drawn[b] = np.average(each, weights=counts[picked])
    return float(np.mean([auc(questions.labels, one) for one in scores])), drawn


def _spearman(resamples: Resamples, logits: Floats) -> tuple[float, Floats]:
    questions = resamples.questions
    assert questions.reference is not None
    reference, every = Ranks.of(questions.reference), np.ones(len(questions.labels))
    models = [Ranks.of(log_odds(one)) for one in logits]
    drawn = np.empty(len(resamples.weights))
    for b, weights in enumerate(resamples.weights):
        rows = weights[questions.group]
        drawn[b] = np.mean([spearman(models[s], reference, rows) for s in resamples.pick_seed(b, len(models))])
    return float(np.mean([spearman(model, reference, every) for model in models])), drawn


def interval(value: float, drawn: Floats) -> Interval:
    """The 95% interval around a value, from its bootstrap distribution."""
    usable = drawn[np.isfinite(drawn)]
    if len(usable) == 0:
        return Interval(value, value, value)
    low, high = np.percentile(usable, [2.5, 97.5])
    return Interval(value, float(low), float(high))
