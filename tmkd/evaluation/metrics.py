"""The numbers of METHOD.md ("Measured for each") for one model on labelled pairs, split so that intervals are cheap.

Every metric is a weighted mean over questions, or (ROC-AUC) a function of weighted rows, so a bootstrap over questions
only changes weights. Ranking sorts by the unsquashed log-odds l[1] - l[0].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytrec_eval
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tmkd.data.pairs import grouped

Floats = NDArray[np.float64]
RANKING = {"mrr": "recip_rank", "map": "map", "ndcg@10": "ndcg_cut_10"}


@dataclass(frozen=True)
class Questions:
    """Labelled rows grouped by question.

    Attributes:
        labels: [N] int64.
        group: the question of each row, [N] int64 in [0, G).
        names: the questions' ids, [G].
        ranked: questions with at least one positive and one negative row, [G] bool.
        reference: the reference's probability of every row, [N] float64, where it stands for golden labels.
    """

    labels: NDArray[np.int64]
    group: NDArray[np.int64]
    names: list[str]
    ranked: NDArray[np.bool_]
    reference: Floats | None = None

    @classmethod
    def of(cls, labels: NDArray[np.int64], qids: Sequence[str], reference: Floats | None = None) -> Questions:
        """Group rows by question id."""
        names, group = grouped(qids)
        positive = np.bincount(group, labels == 1, minlength=len(names)) > 0
        negative = np.bincount(group, labels == 0, minlength=len(names)) > 0
        return cls(labels, group, names, positive & negative, reference)

    @property
    def ranks(self) -> bool:
        """Whether ranking says something of these rows: one question in a hundred, or more, has both kinds of row."""
        return 0 < len(self.names) <= 100 * int(self.ranked.sum())

    def count(self, metric: str) -> int:
        """The questions that a metric is over: an interval over a single one would call any difference real."""
        return int(self.ranked.sum()) if metric in RANKING else len(self.names)


def meaningful(questions: Questions, classes: int) -> tuple[str, ...]:
    """The metrics that have a meaning on these rows: accuracy, auc, Spearman's, those of ranking."""
    both = 0 < int((questions.labels == 1).sum()) < len(questions.labels)
    ranked = tuple(RANKING) if questions.ranks else ()
    beside = ("spearman",) if questions.reference is not None else ()
    return ("accuracy", *((("auc",) if both else ()) + beside + ranked if classes == 2 else ()))


def log_odds(logits: Floats) -> Floats:
    """Unsquashed score of the positive class, [N], from logits [N, 2]."""
    odds: Floats = logits[:, 1] - logits[:, 0]
    return odds


def correct(questions: Questions, logits: Floats) -> Floats:
    """1 where the decision is the label, [N]."""
    right: Floats = (logits.argmax(axis=1) == questions.labels).astype(np.float64)
    return right


def auc(labels: NDArray[np.int64], scores: Floats) -> float:
    """ROC-AUC of labels [N] (1: positive) and scores [N], by scikit-learn; both classes must occur."""
    return float(roc_auc_score(labels == 1, scores))


@dataclass(frozen=True)
class SortedRows:
    """Rows sorted by score once, so that ROC-AUC under other row weights needs no sorting.

    Attributes:
        order: the sorted rows, [N] int64.
        positive: [N] bool, in that order.
        starts: where each run of equal scores starts, [T]; None where no two scores are equal.
    """

    order: NDArray[np.int64]
    positive: NDArray[np.bool_]
    starts: NDArray[np.int64] | None

    @classmethod
    def of(cls, labels: NDArray[np.int64], scores: Floats) -> SortedRows:
        """Sort by score, ascending."""
        order = np.argsort(scores, kind="stable")
        starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
        return cls(order, labels[order] == 1, starts if len(starts) < len(order) else None)

    def auc(self, weights: Floats) -> float:
        """ROC-AUC with a weight per sorted row; a tie counts one half. nan where one class has no weight.

        Equal to scikit-learn's `roc_auc_score(labels, scores, sample_weight=weights)`.
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
    """Values sorted once, so that their ranks among rows of other weights need no sorting.

    Attributes:
        order: the sorted rows, [N] int64. ties: the run of equal values of each sorted row, [N] int64.
    """

    order: NDArray[np.int64]
    ties: NDArray[np.int64]

    @classmethod
    def of(cls, values: Floats) -> Ranks:
        """Sort by value, ascending."""
        order = np.argsort(values, kind="stable")
        return cls(order, np.cumsum(np.append(False, np.diff(values[order]) != 0)))

    def among(self, weights: Floats) -> Floats:
        """Each row's rank, [N], where a row counts as often as its weight says; equal values share their mean rank."""
        runs = np.bincount(self.ties, weights[self.order])
        ranks = np.empty(len(self.order))
        ranks[self.order] = (np.cumsum(runs) - runs / 2)[self.ties]
        return ranks


def spearman(first: Ranks, second: Ranks, weights: Floats) -> float:
    """Spearman's rank correlation of two values of every row, rows weighted, [N]; nan where one of them is constant."""
    one, other = first.among(weights), second.among(weights)
    one, other = (ranks - np.average(ranks, weights=weights) for ranks in (one, other))
    spread = np.sqrt((weights @ one**2) * (weights @ other**2))
    return float(weights @ (one * other) / spread) if spread > 0 else float("nan")


def auc_weighted(labels: NDArray[np.int64], scores: Floats, weights: Floats) -> float:
    """ROC-AUC with a weight per row, [N]; see `SortedRows.auc`."""
    rows = SortedRows.of(labels, scores)
    return rows.auc(weights[rows.order])


def ranking(scores: Floats, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows from the best score to the worst, [N]; among equal scores positives come last, then the earlier row.

    So a model that gives every passage one score is not rewarded, whatever the order of the rows.
    """
    return np.lexsort((labels == 1, -scores))


def ranking_metrics(questions: Questions, scores: Floats) -> dict[str, Floats]:
    """MRR, MAP and nDCG@10 of every question, each [G]; nan where a question has no positive or no negative.

    trec_eval keeps scores in single precision and breaks ties by document id; it is given places of our own order
    (`ranking`) in place of scores, so that neither matters.
    """
    qrels: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, float]] = {}
    counted = np.flatnonzero(questions.ranked[questions.group])
    for row in counted[ranking(scores[counted], questions.labels[counted])]:
        question, document = str(questions.group[row]), str(row)
        run = runs.setdefault(question, {})
        run[document] = -float(len(run))
        qrels.setdefault(question, {})[document] = int(questions.labels[row] == 1)
    found = {name: np.full(len(questions.names), np.nan) for name in RANKING}
    if qrels:
        evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank", "map", "ndcg_cut.10"})
        for question, values in evaluator.evaluate(runs).items():
            for name, theirs in RANKING.items():
                found[name][int(question)] = values[theirs]
    return found
