"""95% intervals by bootstrap over questions and seeds; two models are compared on the same resamples.

The pairs of one question are not independent, so whole questions are resampled, never single pairs; a question that has
several ids is resampled as one. Where a model has several seeds, seeds are resampled too (hierarchical bootstrap). The
interval runs from the 2.5th to the 97.5th percentile. `scipy.stats.bootstrap` resamples single observations and cannot
pair two models in two levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.core.logits import log_odds
from tmkd.evaluation.metrics import (
    Questions,
    Ranks,
    SortedPairs,
    auc,
    correct,
    ranking_metrics,
    spearman,
)
from tmkd.evaluation.ranking import Floats

MAX_SEEDS = 64  # of one model
Distribution = tuple[float, Floats]
"""A metric's value, mean over seeds, and its bootstrap distribution, [B] float64."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval.

    Attributes:
        mean: the value.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    mean: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """`f"{interval:+.3f}"` is "+0.123 (+0.100 to +0.150)": each number in that form."""
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"

    def ends(self) -> str:
        """The two ends for a narrow column: "0.71-0.82", or "-0.10 to -0.02" where one is negative."""
        low, high = f"{self.low:.2f}", f"{self.high:.2f}"
        return f"{low} to {high}" if "-" in low + high else f"{low}-{high}"

    def negated(self) -> Interval:
        """The interval of the same difference with first and second swapped."""
        return Interval(0.0 - self.mean, 0.0 - self.high, 0.0 - self.low)  # 0.0, never -0.0

    def to_json(self) -> dict[str, float]:
        """Return {"mean", "low", "high"}."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


class Resamples:
    """The bootstrap resamples of a set of questions: the same for all models, so that differences are paired.

    Args:
        questions: G questions with their labelled pairs.
        count: B, the number of resamples.
        seed: of the random generator.

    Attributes:
        weights: [B, G] float64: how often each resample has drawn each question.
        seeds: [B, MAX_SEEDS] float64 in [0, 1): what `pick_seeds` draws from.
        questions: as given.
    """

    def __init__(self, questions: Questions, count: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        cluster = np.arange(len(questions.names)) if questions.cluster is None else questions.cluster
        size = len(np.unique(cluster))
        self.weights = np.empty((count, len(cluster)))
        for row in self.weights:  # one draw at a time: drawing all of them at once would double the memory
            row[:] = np.bincount(generator.integers(0, size, size), minlength=size)[cluster]
        self.seeds = generator.random((count, MAX_SEEDS))
        self.questions = questions

    def pick_seeds(self, resample: int, seeds: int) -> NDArray[np.int64]:
        """Return the seeds that a resample uses, [S] int64 in [0, S).

        Args:
            resample: number of the resample, in [0, B).
            seeds: S, the number of seeds of the model, at most MAX_SEEDS.

        Returns:
            Numbers of seeds, drawn with replacement.
        """
        return (self.seeds[resample, :seeds] * seeds).astype(np.int64)


def distributions(resamples: Resamples, logits: Floats) -> dict[str, Distribution]:
    """Compute every metric that is defined for these questions, with its bootstrap distribution.

    Args:
        resamples: of the questions that the pairs belong to.
        logits: [S, N, C]: S seeds, N pairs, C classes.

    Returns:
        By metric: the mean over seeds, and the distribution, [B] float64, nan where a resample leaves the metric
        undefined.
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


def accuracy(resamples: Resamples, logits: Floats) -> Distribution:
    """Compute the share of pairs whose decision is the label, as `distributions` does.

    Args:
        resamples: of the questions that the pairs belong to.
        logits: [S, N, C].

    Returns:
        The mean over seeds and its bootstrap distribution.
    """
    questions = resamples.questions
    count = len(questions.names)
    right: Floats = np.stack(
        [np.bincount(questions.group, correct(questions, one), count) for one in logits], dtype=float
    )
    return _weighted_mean(resamples, right, np.bincount(questions.group, minlength=count).astype(np.float64))


def chance_levels(resamples: Resamples, classes: int) -> dict[str, Distribution]:
    """Compute what each metric is by chance, on the same resamples.

    Accuracy: the share of the most frequent class. ROC-AUC: 0.5. Ranking metrics: those of a random order, which are
    exact: the expected values of a model that gives every passage the same score.

    Args:
        resamples: of the questions that the pairs belong to.
        classes: C.
    """
    questions = resamples.questions
    count, group = len(questions.names), questions.group
    frequent = questions.labels == np.bincount(questions.labels, minlength=classes).argmax()
    sizes = np.bincount(group, minlength=count).astype(np.float64)
    sums: Floats = np.bincount(group, frequent, count)[None].astype(np.float64)
    found = {"accuracy": _weighted_mean(resamples, sums, sizes)}
    found["auc"] = (0.5, np.full(len(resamples.weights), 0.5))
    if classes == 2 and questions.ranks:
        for name, values in ranking_metrics(questions, np.zeros(len(questions.labels))).items():
            counted = questions.ranked.astype(np.float64)
            found[name] = _weighted_mean(resamples, np.nan_to_num(values)[None], counted)
    return found


def share(part: Distribution, whole: Distribution, base: Distribution | None = None) -> Interval | None:
    """Compute which share of the way from `base` (0 unless given) to `whole` a model has, with its interval.

    Args:
        part: the model's metric.
        whole: the metric of what it is compared with.
        base: where the way begins: the chance level, or another model.

    Returns:
        None where `whole` is not significantly above `base`: a share of nothing means nothing.
    """
    start, drawn = base if base is not None else (0.0, np.zeros_like(whole[1]))
    way, ways = whole[0] - start, whole[1] - drawn
    if interval(way, ways).low <= 0:
        return None
    shares = np.divide(part[1] - drawn, ways, out=np.full(len(ways), np.nan), where=ways > 0)
    return interval((part[0] - start) / way, shares)


def _weighted_mean(resamples: Resamples, sums: Floats, sizes: Floats) -> Distribution:
    """Compute a metric that is a sum over questions divided by a sum over questions.

    Args:
        resamples: B resamples of G questions.
        sums: total of each question, [S, G].
        sizes: what each question adds to the divisor, [G].

    Returns:
        As in `distributions`; nan where a resample has drawn no question with a size.
    """
    value = float(sums.sum(axis=1).mean() / sizes.sum())
    per_seed = resamples.weights @ sums.T  # [B, S]
    below = resamples.weights @ sizes
    picked = np.stack([per_seed[b, resamples.pick_seeds(b, len(sums))].mean() for b in range(len(per_seed))])
    return value, np.divide(picked, below, out=np.full(len(below), np.nan), where=below > 0)


def _auc(resamples: Resamples, logits: Floats) -> Distribution:
    questions = resamples.questions
    scores = [log_odds(one) for one in logits]
    by_seed = [SortedPairs.of(questions.labels, one) for one in scores]
    groups = [questions.group[one.order] for one in by_seed]
    drawn = np.empty(len(resamples.weights))
    for b, weights in enumerate(resamples.weights):
        counts = np.bincount(resamples.pick_seeds(b, len(logits)), minlength=len(logits))
        picked = np.flatnonzero(counts)  # a seed that was drawn twice is computed once
        each = [by_seed[s].auc(weights[groups[s]]) for s in picked]
        drawn[b] = np.average(each, weights=counts[picked])
    return float(np.mean([auc(questions.labels, one) for one in scores])), drawn


def _spearman(resamples: Resamples, logits: Floats) -> Distribution:
    questions = resamples.questions
    assert questions.reference is not None
    reference, every = Ranks.of(questions.reference), np.ones(len(questions.labels))
    models = [Ranks.of(log_odds(one)) for one in logits]
    drawn = np.empty(len(resamples.weights))
    for b, weights in enumerate(resamples.weights):
        per_pair = weights[questions.group]
        drawn[b] = np.mean([spearman(models[s], reference, per_pair) for s in resamples.pick_seeds(b, len(models))])
    return float(np.mean([spearman(model, reference, every) for model in models])), drawn


def interval(value: float, drawn: Floats) -> Interval:
    """Return the 95% interval of a value.

    Args:
        value: the metric, or the difference of two models' metrics.
        drawn: its bootstrap distribution, [B]; nan is skipped. Where all of it is nan, the interval has no width.

    Returns:
        The value with its interval.
    """
    usable = drawn[np.isfinite(drawn)]
    if len(usable) == 0:
        return Interval(value, value, value)
    low, high = np.percentile(usable, [2.5, 97.5])
    return Interval(value, float(low), float(high))
