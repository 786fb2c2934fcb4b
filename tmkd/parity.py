"""How well two sets of logits of the same pairs agree: the numbers of the parity table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score

Logits = NDArray[np.float32]
_TIE = 1e-6  # scores nearer than this are one score: the same passage twice under a question


@dataclass(frozen=True)
class Agreement:
    """Numbers of the parity table; None where one has no meaning for the task or the logits are not finite."""

    max_logit_difference: float | None = None
    decision_agreement: float | None = None
    top1_agreement: float | None = None
    kendall_tau: float | None = None
    metric_name: str | None = None
    metric_pytorch: float | None = None
    metric_export: float | None = None

    def row(self) -> dict[str, Any]:
        """The numbers by name."""
        return dict(vars(self))


def agreement(reference: Logits, found: Logits, qids: Sequence[str], labels: NDArray[np.int64]) -> Agreement:
    """Compare logits.

    Args:
        reference: [N, C] float32 of the PyTorch student. found: the same of the export.
        qids: N names of questions; order is compared inside each.
        labels: [N] int64, -1 where there is none.
    """
    if not (np.isfinite(found).all() and np.isfinite(reference).all()):
        return Agreement()
    top1, tau = (None, None) if reference.shape[1] != 2 else _ranking(_margin(reference), _margin(found), qids)
    name, before = _metric(reference, labels)
    return Agreement(
        max_logit_difference=float(np.abs(reference.astype(np.float64) - found).max()),
        decision_agreement=float((reference.argmax(1) == found.argmax(1)).mean()),
        top1_agreement=top1,
        kendall_tau=tau,
        metric_name=name,
        metric_pytorch=before,
        metric_export=_metric(found, labels)[1],
    )


def _margin(logits: Logits) -> NDArray[np.float64]:
    return logits[:, 1].astype(np.float64) - logits[:, 0]


def _ranking(
    reference: NDArray[np.float64], found: NDArray[np.float64], qids: Sequence[str]
) -> tuple[float | None, float | None]:
    """Share of questions with the same first passage, and mean Kendall's tau-b, over questions with two passages up."""
    groups: dict[str, list[int]] = {}
    for row, qid in enumerate(qids):
        groups.setdefault(qid, []).append(row)
    same, taus = [], []
    for rows in groups.values():
        if len(rows) < 2:
            continue
        before, after = reference[rows], found[rows]
        same.append(bool(before[after.argmax()] >= before.max() - _TIE))
        tau = float(kendalltau(before, after).statistic)
        if np.isfinite(tau):  # undefined where all passages of a question tie
            taus.append(tau)
    return (float(np.mean(same)) if same else None, float(np.mean(taus)) if taus else None)


def _metric(logits: Logits, labels: NDArray[np.int64]) -> tuple[str | None, float | None]:
    """ROC-AUC for two classes, accuracy for more, over labelled rows; None where it has no meaning."""
    rows = labels >= 0
    if not rows.any():
        return None, None
    if logits.shape[1] != 2:
        return "accuracy", float((logits[rows].argmax(1) == labels[rows]).mean())
    if len(np.unique(labels[rows])) < 2:
        return None, None
    return "auc", float(roc_auc_score(labels[rows], _margin(logits[rows])))
