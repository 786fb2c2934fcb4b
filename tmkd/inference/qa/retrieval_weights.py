"""What retrieval counts: the share of dense search in the choice of candidates, and the weights in the final order.

Share: where the index has embeddings, the candidates are the best by BM25 and by dense search together. The share of
dense search with which most right passages are among the candidates is chosen.

Weights: the student is trained on passages that BM25 found for a question, so it learns to make little of a BM25 score;
among a hundred candidates, though, that score says much. The weights of BM25 and of the cosine with the best mean
reciprocal rank are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmkd.inference.qa.calibration import Calibration
from tmkd.inference.qa.cases import Asked
from tmkd.inference.qa.retrieval import DENSE_SHARE

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)  # of a point of BM25, to try
DENSE_WEIGHTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # of a whole cosine, to try
SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # of dense search, to try


def with_retrieval(asked: Sequence[Asked]) -> Calibration:
    """The calibration with the share and the weights of retrieval that are best on these questions.

    The share is the one with the largest mean share of right passages among the candidates; of equal ones the nearest
    to the default. The weights are those with the best mean reciprocal rank; of equal ones the least. Each is chosen
    from a few, on all questions, which is too little freedom to overfit them.
    """
    dense = any(one.cosine is not None for each in asked for one in each.present)
    share = DENSE_SHARE
    if dense:
        share = max(SHARES, key=lambda one: (candidates_recall(asked, one), -abs(one - DENSE_SHARE)))
    tried = [
        Calibration(retrieval_weight=bm25, dense_weight=cosine, dense_share=share)
        for bm25 in WEIGHTS
        for cosine in (DENSE_WEIGHTS if dense else (0.0,))
    ]
    return max(tried, key=lambda one: (reciprocal_rank(asked, one), -one.retrieval_weight, -one.dense_weight))


def candidates_recall(asked: Sequence[Asked], share: float) -> float:
    """Mean over questions of the share of right passages among the candidates, at a share of dense search."""
    return float(np.mean([one.recall(found.pid for found in one.candidates(share)) for one in asked]))


def reciprocal_rank(asked: Sequence[Asked], calibration: Calibration) -> float:
    """Mean over questions of 1 / rank of the first right passage; 0 for a question where none was retrieved."""
    found = []
    for one in asked:
        pids = [ranked.found.passage.pid for ranked in one.ranked(calibration)]
        found.append(next((1 / place for place, pid in enumerate(pids, 1) if pid in one.case.right), 0.0))
    return float(np.mean(found))
