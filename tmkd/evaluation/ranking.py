"""Ranking metrics of every question. Where scores are equal, the value expected over all orders of the equal ones.

Which of two passages with the same score comes first is chance, so a metric that takes one order rewards or punishes
for nothing: a model that gives every passage the same score would have an MRR of 1 or of nearly 0. The expected values
have closed forms (McSherry and Najork 2008, "Computing information retrieval performance measures efficiently in the
presence of tied scores"). Without ties they are those of trec_eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import kendalltau, rankdata

Floats = NDArray[np.float64]
RANKING = ("mrr", "map", "ndcg@10")
"""The ranking metrics."""
_CUT = 10  # places that nDCG counts
_FUSED_FROM = 60  # the constant of reciprocal-rank fusion


@dataclass(frozen=True)
class _Ranked:
    """N pairs sorted by question, then by score from the best to the worst. A run: equal scores of one question.

    Attributes:
        order: where each sorted pair stands among the given ones, [N] int64.
        group: its question, [N] int64.
        place: its place in the question, from 1, [N] int64.
        within: its place in its run, from 1, [N] int64.
        size: the pairs in its run, [N] int64.
        right: the right pairs in its run, [N] int64.
        right_before: the right pairs of its question in the runs before, [N] int64.
        run: its run, [N] int64 in [0, R).
    """

    order: NDArray[np.int64]
    group: NDArray[np.int64]
    place: NDArray[np.int64]
    within: NDArray[np.int64]
    size: NDArray[np.int64]
    right: NDArray[np.int64]
    right_before: NDArray[np.int64]
    run: NDArray[np.int64]

    @classmethod
    def of(cls, group: NDArray[np.int64], scores: Floats, right: NDArray[np.bool_]) -> _Ranked:
        order = np.lexsort((-scores, group))
        group, scores, right = group[order], scores[order], right[order]
        rows = np.arange(len(order))
        new_question = np.append(True, group[1:] != group[:-1])
        new_run = new_question | np.append(True, scores[1:] != scores[:-1])
        run = np.cumsum(new_run) - 1
        starts = np.flatnonzero(new_run)
        first = starts[run]
        question_first = np.flatnonzero(new_question)[np.cumsum(new_question) - 1]
        before = np.append(0, np.cumsum(right))  # right pairs before each row
        return cls(
            order=order,
            group=group,
            place=rows - question_first + 1,
            within=rows - first + 1,
            size=np.bincount(run)[run],
            right=np.add.reduceat(right.astype(np.int64), starts)[run],
            right_before=before[first] - before[question_first],
            run=run,
        )

    def reciprocal_rank(self) -> Floats:
        """What each place adds to the expected reciprocal rank of the first right pair, [N]."""
        chance = np.zeros(len(self.order))  # that the first right pair stands here
        counts = (self.right > 0) & (self.right_before == 0) & (self.size - self.within >= self.right - 1)
        alone = self.right == self.size  # every pair of the run is right
        chance[counts & alone & (self.within == 1)] = 1.0
        tied = np.flatnonzero(counts & ~alone)
        size, right, within = self.size[tied], self.right[tied], self.within[tied]
        chance[tied] = np.exp(_log_choose(size - within, right - 1) - _log_choose(size, right))
        return chance / self.place

    def precision(self) -> Floats:
        """What each place adds to the expected sum of precisions at the right pairs, [N]."""
        others = (self.within - 1) * (self.right - 1) / np.maximum(self.size - 1, 1)  # right ones before it in the run
        return self.right / self.size * (self.right_before + 1 + others) / self.place

    def discounted(self, gains: Floats) -> Floats:
        """What each place adds to the expected DCG@10, [N], from the gain of each pair as it was given, [N]."""
        mean = np.bincount(self.run, gains[self.order]) / np.bincount(self.run)
        return np.where(self.place <= _CUT, mean[self.run] / np.log2(self.place + 1.0), 0.0)


def _log_choose(count: NDArray[np.int64], chosen: NDArray[np.int64]) -> Floats:
    """The logarithm of the binomial coefficient."""
    found: Floats = gammaln(count + 1.0) - gammaln(chosen + 1.0) - gammaln(count - chosen + 1.0)
    return found


def ranking_values(
    group: NDArray[np.int64], scores: Floats, right: NDArray[np.bool_], gains: Floats
) -> dict[str, Floats]:
    """MRR, MAP and nDCG@10 of every question, expected over the orders of equal scores.

    Args:
        group: the question of each pair, [N] int64; each has at least one right pair.
        scores: [N]; higher is better.
        right: whether the passage is right, [N] bool: what MRR and MAP count.
        gains: the gain of each pair, [N] from 0: what nDCG counts; 1 for right and 0 for wrong pairs unless graded.

    Returns:
        By metric: the value of each question, [G] in ascending order of the questions' numbers.
    """
    ranked, ideal = _Ranked.of(group, scores, right), _Ranked.of(group, gains, right)
    _, question = np.unique(ranked.group, return_inverse=True)

    def total(values: Floats) -> Floats:
        sums: Floats = np.bincount(question, values).astype(np.float64)
        return sums

    return {
        "mrr": total(ranked.reciprocal_rank()),
        "map": total(ranked.precision()) / total(right[ranked.order].astype(np.float64)),
        "ndcg@10": total(ranked.discounted(gains)) / total(ideal.discounted(gains)),
    }


def first_right(scores: Floats, right: NDArray[np.bool_]) -> float:
    """The expected rank, from 1, of a question's first right pair: with ties the mean over their orders.

    Args:
        scores: [n] of one question.
        right: [n] bool, with at least one right pair.
    """
    best = scores[right].max()
    tied = scores == best
    return float((scores > best).sum() + (tied.sum() + 1) / ((tied & right).sum() + 1))


def fused_ranks(groups: NDArray[np.int64], scores: Sequence[Floats]) -> Floats:
    """Reciprocal-rank fusion: for each pair the sum of 1 / (60 + its rank within its question) over several scores.

    Equal scores share their mean rank.

    Args:
        groups: the question of each pair, [N].
        scores: arrays [N], larger is better.

    Returns:
        [N].

    References:
        Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning
        Methods".
    """
    found = np.zeros(len(groups))
    for rows in np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1]):
        for one in scores:
            found[rows] += 1 / (_FUSED_FROM + rankdata(-one[rows]))
    return found


def kendall_within(questions: NDArray[np.int64], first: Floats, second: Floats) -> tuple[float | None, int]:
    """How alike two models order the passages of a question: Kendall's tau-b, mean over the questions.

    Args:
        questions: the question of each pair, [N].
        first: the scores of one model, [N], finite.
        second: those of the other.

    Returns:
        The mean, None where there is no question to compare; and how many questions it is of. A question with one
        passage, or whose passages all have the same score from one of the models, has no order.
    """
    order = np.argsort(questions, kind="stable")
    begins = np.flatnonzero(np.diff(questions[order])) + 1
    found = []
    for rows in np.split(order, begins):
        if len(rows) > 1 and np.ptp(first[rows]) > 0 and np.ptp(second[rows]) > 0:
            found.append(float(kendalltau(first[rows], second[rows], method="asymptotic").statistic))
    return (float(np.mean(found)) if found else None), len(found)
