"""Measure how well the logits of an export agree with the student's, and what the gate requires: the parity table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, roc_auc_score

from tmkd.core.logits import log_odds
from tmkd.evaluation.metrics import Questions, ranking_metrics

Logits = NDArray[np.float32]
INDIFFERENT = 0.1  # log-odds: passages that are nearer than this may swap places in the measures "within 0.1"
BATCH_SIZES = (1, 8, 64)


@dataclass(frozen=True)
class Parity:
    """Numbers of the parity table; None where one is not defined for the task, or the logits are not finite.

    Attributes:
        max_logit_difference: the largest difference of a logit; for two classes of the log-odds.
        decision_agreement: share of pairs with the same decision.
        top1_agreement: share of questions whose first passage is the same.
        top1_agreement_within_0_1: the same, where a passage within INDIFFERENT of the student's first counts as it.
        kendall_tau: over all pairs of passages of one question whose scores differ in the student: the share in the
            same order minus the share in the opposite order.
        kendall_tau_within_0_1: the same over those pairs that are at least INDIFFERENT apart in the student.
        metric_name: `auc` for two classes, `accuracy` for more.
        metric_pytorch: that metric of the student in PyTorch.
        metric_export: that metric of the export.
        ndcg_pytorch: mean nDCG@10 of the student in PyTorch, over questions with a right and a wrong passage.
        ndcg_export: the same of the export.
    """

    max_logit_difference: float | None = None
    decision_agreement: float | None = None
    top1_agreement: float | None = None
    top1_agreement_within_0_1: float | None = None
    kendall_tau: float | None = None
    kendall_tau_within_0_1: float | None = None
    metric_name: str | None = None
    metric_pytorch: float | None = None
    metric_export: float | None = None
    ndcg_pytorch: float | None = None
    ndcg_export: float | None = None


@dataclass(frozen=True)
class Invariance:
    """How far a pair's logits depend on the other pairs of the same call.

    Attributes:
        batch_difference: the largest difference of a logit between micro-batches of BATCH_SIZES pairs; None where
            logits are not finite.
        repeats: whether the same call gives the same bits again.
    """

    batch_difference: float | None = None
    repeats: bool | None = None


@dataclass(frozen=True)
class Limits:
    """What the gate requires; None requires nothing. A number that is not defined for the task passes.

    Attributes:
        batch_difference: the largest difference of a logit between batches.
        logit_difference: the largest difference of a logit (two classes: of the log-odds) from the student.
        quality_loss: the largest loss of ROC-AUC (accuracy, for more than two classes) and of nDCG@10.
        top1_agreement_within_0_1: the smallest share of questions with the same first passage within 0.1 (of pairs
            with the same decision, for more than two classes).
        kendall_tau_within_0_1: the smallest Kendall's tau within 0.1.
    """

    batch_difference: float
    logit_difference: float | None = None
    quality_loss: float | None = None
    top1_agreement_within_0_1: float | None = None
    kendall_tau_within_0_1: float | None = None


EXACT = Limits(batch_difference=1e-4, logit_difference=1e-4)
CLOSE = Limits(batch_difference=0.02, quality_loss=0.005, top1_agreement_within_0_1=0.98, kendall_tau_within_0_1=0.95)


def measure_parity(
    reference: Logits, found: Logits, qids: Sequence[str], labels: NDArray[np.int64], positive: int = 1
) -> Parity:
    """Compare the logits of an export with the student's.

    Args:
        reference: logits of the student in PyTorch, [N, C] float32; of two classes the log-odds and 0.
        found: logits of the export, as `Scorer.logits` gives them.
        qids: N question ids; the order of passages is compared within each question.
        labels: [N] int64, -1 for a pair without a label.
        positive: of two classes the one of the right passages.

    Returns:
        The numbers of the parity table; all None where some logits are not finite.
    """
    if not (np.isfinite(found).all() and np.isfinite(reference).all()):
        return Parity()
    if positive == 0:  # from here on class 1 is the positive one
        reference, found = reference[:, ::-1], found[:, ::-1]
        labels = np.where(labels >= 0, 1 - labels, labels)
    ranks: dict[str, float | None] = {}
    if reference.shape[1] == 2:
        before_after = log_odds(reference), log_odds(found)
        ranks["top1_agreement"], ranks["kendall_tau"] = _ranking(*before_after, qids, within=0.0)
        ranks["top1_agreement_within_0_1"], ranks["kendall_tau_within_0_1"] = _ranking(
            *before_after, qids, within=INDIFFERENT
        )
    name, before = _metric(reference, labels)
    return Parity(
        max_logit_difference=float(np.abs(reference.astype(np.float64) - found).max()),
        decision_agreement=float((reference.argmax(1) == found.argmax(1)).mean()),
        **ranks,
        metric_name=name,
        metric_pytorch=before,
        metric_export=_metric(found, labels)[1],
        ndcg_pytorch=_ndcg(reference, qids, labels),
        ndcg_export=_ndcg(found, qids, labels),
    )


def measure_invariance(score: Callable[[int | None], Logits]) -> Invariance:
    """Score the same pairs in micro-batches of several sizes, and twice in the same way.

    Args:
        score: returns the logits of the same N pairs, [N, C], in micro-batches of the given size; None lets the runtime
            choose.

    Returns:
        The differences found.
    """
    found = np.stack([score(size) for size in BATCH_SIZES])
    first, again = score(None), score(None)
    difference = float((found.max(axis=0) - found.min(axis=0)).max())
    return Invariance(difference if np.isfinite(difference) else None, bool(np.array_equal(first, again)))


def why_refused(found: Parity, steady: Invariance, limits: Limits) -> str:
    """Return why the gate refuses an export with these numbers; an empty string where it passes.

    Args:
        found: the agreement with the student.
        steady: how far logits depend on the batch.
        limits: what the gate requires.

    Returns:
        The reasons, separated by semicolons.
    """
    difference = found.max_logit_difference
    if difference is None or steady.batch_difference is None:
        return "it gives logits that are not finite"
    if limits.logit_difference is not None and difference > limits.logit_difference:
        return (
            f"a logit differs by {difference:.2e} from the PyTorch student, at most {limits.logit_difference:.0e} is "
            "allowed"
        )
    reasons = [
        _lost(f"{found.metric_name}", found.metric_pytorch, found.metric_export, limits.quality_loss),
        _lost("nDCG@10", found.ndcg_pytorch, found.ndcg_export, limits.quality_loss),
        _below(
            "the first passage is the same within 0.1",
            found.top1_agreement_within_0_1,
            limits.top1_agreement_within_0_1,
        ),
        _below("Kendall's tau within 0.1", found.kendall_tau_within_0_1, limits.kendall_tau_within_0_1),
    ]
    if found.top1_agreement_within_0_1 is None:
        reasons.append(_below("the decision is the same", found.decision_agreement, limits.top1_agreement_within_0_1))
    if steady.batch_difference > limits.batch_difference:
        reasons.append(
            f"a pair's logit changes by {steady.batch_difference:.2e} with the other pairs of its batch, at most "
            f"{limits.batch_difference:.0e} is allowed"
        )
    if not steady.repeats:
        reasons.append("the same call does not give the same logits again")
    return "; ".join(reason for reason in reasons if reason)


def _lost(name: str, before: float | None, after: float | None, limit: float | None) -> str:
    if limit is None or before is None or after is None or before - after <= limit:
        return ""
    return f"{name} falls from {before:.4f} to {after:.4f}, at most {limit} is allowed"


def _below(what: str, value: float | None, limit: float | None) -> str:
    if limit is None or value is None or value >= limit:
        return ""
    return f"{what}: {value:.4f}, at least {limit} is required"


def _ranking(
    reference: NDArray[np.float64], found: NDArray[np.float64], qids: Sequence[str], within: float
) -> tuple[float | None, float | None]:
    """Compute `top1_agreement` and `kendall_tau` of `Parity`, over questions with at least two passages.

    scipy's Kendall tau has no threshold below which two passages count as equal.

    Args:
        reference: raw scores of the student, [N].
        found: raw scores of the export, [N].
        qids: N question ids.
        within: passages of which the student's scores are nearer than this may change places.
    """
    groups: dict[str, list[int]] = {}
    for row, qid in enumerate(qids):
        groups.setdefault(qid, []).append(row)
    same: list[bool] = []
    ordered = compared = 0
    for rows in groups.values():
        if len(rows) < 2:
            continue
        before, after = reference[rows], found[rows]
        same.append(bool(before[after.argmax()] >= before.max() - within))
        apart = before[:, None] - before[None]
        differ = apart >= within if within else apart > 0  # each pair of passages once: the better one first
        ordered += int(np.sign(after[:, None] - after[None])[differ].sum())
        compared += int(differ.sum())
    return (float(np.mean(same)) if same else None, ordered / compared if compared else None)


def _metric(logits: Logits, labels: NDArray[np.int64]) -> tuple[str | None, float | None]:
    """Compute ROC-AUC for two classes or accuracy for more, over labelled pairs; None where it is not defined."""
    rows = labels >= 0
    if not rows.any():
        return None, None
    if logits.shape[1] != 2:
        return "accuracy", float(accuracy_score(labels[rows], logits[rows].argmax(1)))
    if len(np.unique(labels[rows])) < 2:
        return None, None
    return "auc", float(roc_auc_score(labels[rows], log_odds(logits[rows])))


def _ndcg(logits: Logits, qids: Sequence[str], labels: NDArray[np.int64]) -> float | None:
    """Compute the mean nDCG@10 over questions with a right and a wrong passage; None where there are none."""
    rows = np.flatnonzero(labels >= 0).tolist()
    if logits.shape[1] != 2 or not rows:
        return None
    questions = Questions.of(labels[rows], [qids[row] for row in rows])
    if not questions.ranked.any():
        return None
    return float(np.nanmean(ranking_metrics(questions, log_odds(logits[rows]))["ndcg@10"]))
