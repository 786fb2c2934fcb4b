"""The metrics of METHOD.md ("Measured for each") for one model on labelled pairs, in a form that suits a bootstrap.

Every metric is a weighted mean over questions, or (ROC-AUC, Spearman) a function of weighted pairs, so a bootstrap over
questions only changes weights. Pairs are sorted once for all resamples; calling scikit-learn or scipy for each resample
would sort them again every time. Ranking sorts by the raw score l[1] - l[0].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tmkd.data.pairs import grouped
from tmkd.evaluation.ranking import RANKING, Floats, ranking_values


@dataclass(frozen=True)
class Questions:
    """Labelled pairs grouped by question.

    Attributes:
        labels: [N] int64.
        group: the question of each pair, [N] int64 in [0, G).
        names: the questions' ids, [G].
        ranked: whether a question has at least one positive and one negative pair, [G] bool.
        reference: the reference's probability of every pair, [N] float64, where a reference stands for golden labels.
        gains: what each pair adds to nDCG, [N] float64, where labels are graded: the grade itself, as in trec_eval and
            pytrec_eval (not 2^grade - 1). None: 1 for a positive pair.
        cluster: the cluster of each question, [G] int64 in [0, number of clusters): questions with one text under
            several ids say the same thing several times, so the bootstrap draws them together. None: each its own.
    """

    labels: NDArray[np.int64]
    group: NDArray[np.int64]
    names: list[str]
    ranked: NDArray[np.bool_]
    reference: Floats | None = None
    gains: Floats | None = None
    cluster: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        labels: NDArray[np.int64],
        qids: Sequence[str],
        reference: Floats | None = None,
        gains: Floats | None = None,
        clusters: NDArray[np.int64] | None = None,
    ) -> Questions:
        """Group pairs by question id.

        Args:
            labels: [N] int64.
            qids: N question ids.
            reference: the reference's probabilities, [N] float64, if there is a reference.
            gains: gains for nDCG, [N] float64, if labels are graded.
            clusters: the cluster of each pair, [N] int64; the pairs of one question are in one cluster.

        Returns:
            The pairs with their questions.
        """
        names, group = grouped(qids)
        positive = np.bincount(group, labels == 1, minlength=len(names)) > 0
        negative = np.bincount(group, labels == 0, minlength=len(names)) > 0
        cluster = None
        if clusters is not None:
            _, row = np.unique(group, return_index=True)  # a pair of each question
            _, first, cluster = np.unique(clusters[row], return_index=True, return_inverse=True)
            cluster = np.argsort(np.argsort(first))[cluster]  # in the order of the questions
        return cls(labels, group, names, positive & negative, reference, gains, cluster)

    @property
    def ranks(self) -> bool:
        """Whether ranking metrics are worth computing: at least one question in a hundred can be ranked."""
        return 0 < len(self.names) <= 100 * int(self.ranked.sum())

    def count(self, metric: str) -> int:
        """Return how many questions a metric is computed from; those of one cluster count once.

        With a single one every resample is the same, so its interval has no width.
        """
        counted = self.ranked if metric in RANKING else np.ones(len(self.names), dtype=np.bool_)
        return int(counted.sum()) if self.cluster is None else len(np.unique(self.cluster[counted]))


def defined_metrics(questions: Questions, classes: int) -> tuple[str, ...]:
    """Return the metrics that are defined for these pairs: accuracy; for two classes also auc, spearman, ranking.

    Args:
        questions: G questions with N labelled pairs.
        classes: C.

    Returns:
        Names of the metrics.
    """
    if classes != 2:
        return ("accuracy",)
    both = 0 < int((questions.labels == 1).sum()) < len(questions.labels)
    auc_too = ("auc",) if both else ()
    spearman_too = ("spearman",) if questions.reference is not None else ()
    return ("accuracy", *auc_too, *spearman_too, *(RANKING if questions.ranks else ()))


def correct(questions: Questions, logits: Floats) -> Floats:
    """Return 1 where the decision is the label and 0 elsewhere, [N], from logits [N, C].

    Args:
        questions: G questions with N labelled pairs.
        logits: [N, C].

    Returns:
        [N] float64.
    """
    right: Floats = (logits.argmax(axis=1) == questions.labels).astype(np.float64)
    return right


def auc(labels: NDArray[np.int64], scores: Floats) -> float:
    """Return the ROC-AUC of labels [N] (1 is positive) and scores [N], by scikit-learn; both classes must occur.

    Args:
        labels: [N] int64.
        scores: [N].

    Returns:
        The area, from 0 to 1.
    """
    return float(roc_auc_score(labels == 1, scores))


@dataclass(frozen=True)
class SortedPairs:
    """Pairs sorted by score once, so that ROC-AUC under other weights needs no sorting.

    Attributes:
        order: indices of the pairs by ascending score, [N] int64.
        positive: whether each pair is positive, in that order, [N] bool.
        starts: where each run of equal scores starts, [T] int64; None where no two scores are equal.
    """

    order: NDArray[np.int64]
    positive: NDArray[np.bool_]
    starts: NDArray[np.int64] | None

    @classmethod
    def of(cls, labels: NDArray[np.int64], scores: Floats) -> SortedPairs:
        """Sort pairs by score, ascending; labels [N], scores [N]."""
        order = np.argsort(scores, kind="stable")
        starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
        return cls(order, labels[order] == 1, starts if len(starts) < len(order) else None)

    def auc(self, weights: Floats) -> float:
        """Return the ROC-AUC under weights; a tie counts one half.

        Equal to scikit-learn's `roc_auc_score(labels, scores, sample_weight=weights)`.

        Args:
            weights: weight of each pair in the sorted order, [N].

        Returns:
            nan where one class has no weight.
        """
        up = weights * self.positive
        down = weights - up
        if self.starts is not None:
            up, down = np.add.reduceat(up, self.starts), np.add.reduceat(down, self.starts)
        below = np.cumsum(down)
        total = up.sum() * below[-1]
        return float(up @ (below - down / 2) / total) if total > 0 else float("nan")


@dataclass(frozen=True)
class Ranks:
    """Values sorted once, so that their ranks under other weights need no sorting.

    Attributes:
        order: indices by ascending value, [N] int64.
        ties: number of the run of equal values that each sorted value belongs to, [N] int64.
    """

    order: NDArray[np.int64]
    ties: NDArray[np.int64]

    @classmethod
    def of(cls, values: Floats) -> Ranks:
        """Sort values, [N], ascending."""
        order = np.argsort(values, kind="stable")
        return cls(order, np.cumsum(np.append(False, np.diff(values[order]) != 0)))

    def weighted(self, weights: Floats) -> Floats:
        """Return each value's rank, [N], where a value counts as often as its weight [N] says.

        Equal values share their mean rank.
        """
        runs = np.bincount(self.ties, weights[self.order])
        ranks = np.empty(len(self.order))
        ranks[self.order] = (np.cumsum(runs) - runs / 2)[self.ties]
        return ranks


def spearman(first: Ranks, second: Ranks, weights: Floats) -> float:
    """Return Spearman's rank correlation of two values of every pair, under weights; scipy's has no weights.

    Args:
        first: ranks of the first value of N pairs.
        second: ranks of the second value.
        weights: how often each pair counts, [N].

    Returns:
        0 where one of the two values is constant: it puts the pairs in no order, as a ROC-AUC of 0.5 says, too.
    """
    one, other = first.weighted(weights), second.weighted(weights)
    one, other = (ranks - np.average(ranks, weights=weights) for ranks in (one, other))
    spread = np.sqrt((weights @ one**2) * (weights @ other**2))
    return float(weights @ (one * other) / spread) if spread > 0 else 0.0


def ranking_metrics(questions: Questions, scores: Floats) -> dict[str, Floats]:
    """Compute MRR, MAP and nDCG@10 of every question; equal scores count as the mean over all their orders.

    Args:
        questions: G questions with N labelled pairs.
        scores: raw score of each pair, [N].

    Returns:
        By metric: the value of each question, [G]; nan where a question has no positive or no negative pair.
    """
    found = {name: np.full(len(questions.names), np.nan) for name in RANKING}
    rows = np.flatnonzero(questions.ranked[questions.group])
    if len(rows):
        right = questions.labels[rows] == 1
        gains = right.astype(np.float64) if questions.gains is None else questions.gains[rows]
        values = ranking_values(questions.group[rows], scores[rows], right, gains)
        for name in RANKING:
            found[name][questions.ranked] = values[name]
    return found
