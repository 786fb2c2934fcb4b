"""How much each teacher's loss weighs (`loss.weighting`). The weights of a pair sum to 1 over its teachers.

The weights apply to the loss alone. A student's heads are combined by their plain mean whatever the weighting, so the
fold into one linear layer stays exact. A method with one soft label for each pair (one teacher, or the mean of several)
has nothing to weigh.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmkd.core.logits import log_odds, log_softmax
from tmkd.evaluation.metrics import auc

Floats = NDArray[np.float64]


def above_chance(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Measure a teacher on the development set: its metric minus what guessing gives, at least 0.

    With two classes this is ROC-AUC minus 0.5. With more classes, or if one of the two is absent, it is accuracy minus
    the share of the largest class.

    Args:
        logits: [N, C].
        labels: [N], -1 for a pair without a label, which is not counted.
    """
    known = labels >= 0
    outputs: Floats = logits[known].astype(np.float64)
    labels = labels[known]
    counts = np.bincount(labels, minlength=outputs.shape[1])
    if outputs.shape[1] == 2 and counts.all():
        return max(0.0, auc(labels, log_odds(outputs)) - 0.5)
    return max(0.0, float((outputs.argmax(axis=1) == labels).mean() - counts.max() / len(labels)))


def development_weights(metrics: Sequence[float]) -> Floats:
    """Weigh teachers by their metric: w_k = m_k / sum_j m_j.

    Args:
        metrics: m_k, `above_chance` of teacher k, [K].

    Returns:
        [K]; equal weights if no teacher is above chance.
    """
    found = np.asarray(metrics, dtype=np.float64)
    return found / found.sum() if found.sum() > 0 else np.full(len(found), 1 / len(found))


def confidence_weights(logits: NDArray[np.floating]) -> Floats:
    """Weigh teachers pair by pair by their confidence: w_ik = c_ik / sum_j c_ij with c_ik = 1 - H(R_ik) / log C.

    R_ik is teacher k's soft label of pair i and H its entropy: a teacher that is certain about a pair (c near 1) weighs
    more there than an uncertain one (c near 0). If all are uncertain, the weights are equal: 1e-6 is added to every c.

    Args:
        logits: The teachers' logits, [N, K, C].

    Returns:
        [N, K].
    """
    logs = log_softmax(logits)
    entropy = -(np.exp(logs) * logs).sum(axis=-1)
    confidence = np.clip(1 - entropy / np.log(logits.shape[-1]), 0, 1) + 1e-6
    weights: Floats = confidence / confidence.sum(axis=1, keepdims=True)
    return weights
