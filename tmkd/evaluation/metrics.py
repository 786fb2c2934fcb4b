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
    """

    labels: NDArray[np.int64]
    group: NDArray[np.int64]
    names: list[str]
    ranked: NDArray[np.bool_]

    @classmethod
    def of(cls, labels: NDArray[np.int64], qids: Sequence[str]) -> Questions:
        """Group rows by question id."""
        names, group = np.unique(np.asarray(qids, dtype=object).astype(str), return_inverse=True)
        positive = np.bincount(group, labels == 1, minlength=len(names)) > 0
        negative = np.bincount(group, labels == 0, minlength=len(names)) > 0
        return cls(labels, group.astype(np.int64), [str(name) for name in names], positive & negative)


def log_odds(logits: Floats) -> Floats:
    """Unsquashed score of the positive class, [N], from logits [N, 2]."""
    odds: Floats = logits[:, 1] - logits[:, 0]
    return odds


def correct(questions: Questions, logits: Floats) -> Floats:
    """1 where the decision is the label, [N]."""
    right: Floats = (logits.argmax(axis=1) == questions.labels).astype(np.float64)
    return right


def auc_weighted(labels: NDArray[np.int64], scores: Floats, weights: Floats) -> float:
    """ROC-AUC with a weight per row; a tie counts one half. nan where one class has no weight.

    Equal to scikit-learn's `roc_auc_score(labels, scores, sample_weight=weights)` (tested), but the caller sorts once.
    """
    order = np.argsort(scores, kind="stable")
    return auc_sorted(labels[order] == 1, scores[order], weights[order])


def auc_sorted(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> float:
    """`auc_weighted` for rows already sorted by score."""
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    up = np.diff(np.append(0.0, np.cumsum(weights * positive)[ends]))
    down = np.diff(np.append(0.0, np.cumsum(weights * ~positive)[ends]))
    total = up.sum() * down.sum()
    if total <= 0:
        return float("nan")
    return float((up * (np.cumsum(down) - down / 2)).sum() / total)


def ranking_metrics(questions: Questions, scores: Floats) -> dict[str, Floats]:
    """MRR, MAP and nDCG@10 of every question, each [G]; nan where a question has no positive or no negative.

    trec_eval breaks ties by document id, descending; ids are given so that negatives come first among equals: a model
    that gives every passage one score is not rewarded.
    """
    qrels: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, float]] = {}
    for row in np.flatnonzero(questions.ranked[questions.group]):
        question = str(questions.group[row])
        relevant = int(questions.labels[row] == 1)
        document = f"{1 - relevant}-{row:09d}"
        qrels.setdefault(question, {})[document] = relevant
        runs.setdefault(question, {})[document] = float(scores[row])
    found = {name: np.full(len(questions.names), np.nan) for name in RANKING}
    if qrels:
        evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank", "map", "ndcg_cut.10"})
        for question, values in evaluator.evaluate(runs).items():
            for name, theirs in RANKING.items():
                found[name][int(question)] = values[theirs]
    return found
