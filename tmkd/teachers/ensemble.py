"""The teacher ensemble: the mean of the teachers' probabilities, or a weighted sum of their log-odds (stacking)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.core.logits import log_mean_softmax, log_odds, log_softmax

Floats = NDArray[np.float64]
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties that cross-validation chooses from: times the sum of squared weights of standardised log-odds."""
_MOST_INTERCEPT = 30.0  # log-odds; only labels of one class in all folds but one would ask for more
_MINIMISER = {"gtol": 1e-9, "ftol": 1e-14, "maxiter": 1000}
_RANKED = 0.5  # least share of pairs whose question has right and wrong passages, for weights that put these in order


def ensemble_logits(logits: Sequence[NDArray[np.floating[Any]]]) -> Floats:
    """Logarithm of the mean of the teachers' probabilities (METHOD.md, "Teachers").

    Args:
        logits: K arrays [N, C], one for each teacher, all in the order of the pairs.

    Returns:
        [N, C] float64: raw scores, so that ranking by them has no ties that rounding made.
    """
    return log_mean_softmax(np.stack(logits, axis=1))


@dataclass(frozen=True)
class Stacking:
    """Non-negative weights on the teachers' log-probabilities, and an intercept for each class.

    For two classes this is a weighted sum of log-odds: w_1 d_1 + ... + w_K d_K + b.

    Example:
        >>> both = Stacking(("a", "b"), weights=(1.0, 0.5), intercept=(0.0, -1.0))
        >>> odds = both.apply([np.array([[0.0, 2.0]]), np.array([[0.0, 4.0]])])
        >>> round(float(odds[0, 1] - odds[0, 0]), 6)
        3.0

    Attributes:
        names: the teachers, [K].
        weights: of each teacher, [K], none below 0.
        intercept: added to the logit of each class, [C]; 0 for class 0.
        ridge: the penalty that cross-validation chose.
        log_loss: cross-validated over questions: of the stacked ensemble, and on the same pairs of the mean
            (`mean`) and of each teacher by its name.
        fitted_to: what the weights fit: the `order` of the passages of each question, or the labels of single `pairs`.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: tuple[float, ...]
    ridge: float = 0.0
    log_loss: Mapping[str, float] | None = None
    fitted_to: Literal["order", "pairs"] = "pairs"

    def apply(self, logits: Sequence[NDArray[np.floating[Any]]]) -> Floats:
        """The ensemble's logits.

        Args:
            logits: K arrays [N, C], in the order of `names`.

        Returns:
            [N, C] float64.
        """
        return _summed(_centred(logits), np.array(self.weights), np.array(self.intercept))

    def sentence(self) -> str:
        """The weights in words."""
        listed = ", ".join(f"{name} {weight:.3f}" for name, weight in zip(self.names, self.weights, strict=True))
        text = f"stacked ensemble: weights on log-odds {listed}; intercept {self.intercept[-1]:+.3f}"
        if len(self.intercept) > 2:
            shifts = ", ".join(f"{shift:+.3f}" for shift in self.intercept)
            text = f"stacked ensemble: weights on log-probabilities {listed}; intercepts {shifts}"
        if self.fitted_to == "order":
            text += "; fitted to the order of each question's passages"
        if self.log_loss:
            found = ", ".join(f"{name} {loss:.4f}" for name, loss in self.log_loss.items())
            text += f"; cross-validated log loss: {found}"
        return text

    def to_json(self) -> dict[str, Any]:
        """The ensemble as JSON-like content, with each teacher's weight under its name."""
        content = asdict(self)
        return {**content, "weights": dict(zip(content.pop("names"), self.weights, strict=True))}


def fit_stacking(
    names: Sequence[str],
    logits: Sequence[NDArray[np.floating[Any]]],
    targets: Floats,
    fold: NDArray[np.int64],
    questions: NDArray[np.int64] | None = None,
    positive: int = 1,
    ridges: Sequence[float] = RIDGES,
) -> Stacking:
    """Fit the weights on labelled pairs that the teachers have not learned from.

    Where questions have several passages, the weights fit their order: they minimise the list-wise cross-entropy over
    the passages of each question (ListNet with top-one probabilities: Cao et al. 2007, section 4). One factor for all
    weights and the intercept then minimise the cross-entropy of the pairs, so that the log-odds stay on the scale of
    the labels. Elsewhere the weights, too, minimise the cross-entropy of the pairs.

    To the loss a penalty on the squared weights is added, each teacher's log-odds divided by their standard deviation.
    It is the one of `ridges` with the least loss on pairs that are left out, fold by fold. So alike teachers share
    their weight, and separable labels give finite weights (stacked generalisation with non-negative weights: Wolpert
    1992, Breiman 1996).

    Args:
        names: the teachers, [K].
        logits: K arrays [N, C].
        targets: [N, C] probabilities of the classes, 0 and 1 for labels.
        fold: [N] the fold of each pair: a question is in one fold.
        questions: [N] the question of each pair; the order of passages does not count unless given.
        positive: the class of right passages.
        ridges: penalties to choose from.

    Raises:
        DataError: a class has no pair.
    """
    require_every_class(targets.argmax(axis=1), targets.shape[1])
    x = _centred(logits)
    spread = np.sqrt((x - x.mean(axis=0)).var(axis=0).mean(axis=1))
    scale = np.where(spread > 1e-9, spread, np.inf)  # a teacher that scores all pairs alike gets the weight 0
    x = x / scale[None, :, None]
    if questions is not None and not _ranks(targets, questions):
        questions = None
    data = _Labelled(x, targets, questions, positive)
    folds, losses = np.unique(fold), {}
    held_out = {
        ridge: [data.take(fold == one).losses(*data.take(fold != one).solve(ridge)) for one in folds]
        for ridge in (ridges if len(folds) > 1 else ())
    }
    ridge = ridges[0]
    if held_out:
        ridge = min(held_out, key=lambda one: float(np.concatenate([loss for loss, _ in held_out[one]]).mean()))
        losses["stacked"] = float(np.concatenate([of_pairs for _, of_pairs in held_out[ridge]]).mean())
    losses["mean"] = float(_cross_entropy(ensemble_logits(logits), targets).mean())
    losses |= {name: float(_cross_entropy(one, targets).mean()) for name, one in zip(names, logits, strict=True)}
    weights, intercept = data.solve(ridge)
    own = tuple((weights / scale).tolist())
    return Stacking(
        tuple(names), own, tuple(intercept.tolist()), ridge, losses, "pairs" if questions is None else "order"
    )


@dataclass(frozen=True)
class _Labelled:
    """Labelled pairs: standardised log-odds x [N, K, C], targets [N, C], and questions [N] where their order counts."""

    x: Floats
    targets: Floats
    questions: NDArray[np.int64] | None
    positive: int

    def take(self, rows: NDArray[np.bool_]) -> _Labelled:
        questions = None if self.questions is None else self.questions[rows]
        return _Labelled(self.x[rows], self.targets[rows], questions, self.positive)

    def solve(self, ridge: float) -> tuple[Floats, Floats]:
        """Weights [K] and intercepts [C] with the least penalised loss."""
        if self.questions is None:
            return _solve(self.x, self.targets, ridge)
        weights = _solve_order(log_odds(self.x, self.positive), self.targets[:, self.positive], self.questions, ridge)
        factor, intercept = _solve(np.einsum("k,nkc->nc", weights, self.x)[:, None], self.targets, RIDGES[0])
        return factor[0] * weights, intercept

    def losses(self, weights: Floats, intercept: Floats) -> tuple[Floats, Floats]:
        """The loss that the weights fit, of each question or pair; and the cross-entropy of each pair."""
        summed = _summed(self.x, weights, intercept)
        of_pairs = _cross_entropy(summed, self.targets)
        if self.questions is None:
            return of_pairs, of_pairs
        return _order_loss(log_odds(summed, self.positive), self.targets[:, self.positive], self.questions)[0], of_pairs


def require_every_class(labels: NDArray[np.int64], classes: int, ensemble: str = "stacked") -> None:
    """Refuse labels from which no stacked ensemble can be fitted.

    Args:
        labels: [N], -1 where there is none.
        classes: C.
        ensemble: the recipe's `ensemble`, which says whose labels they are.

    Raises:
        DataError: no pair has a label, or a class has no pair.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    if not counts.all():
        kind = "development" if ensemble == "stacked-dev" else "training"
        found = f"the {int(counts.sum()):,} labelled {kind} pairs have none of class {int(counts.argmin())}"
        why = found if counts.any() else f"no {kind} pair has a label"
        raise DataError(
            f"ensemble: {ensemble} weighs the teachers by labelled {kind} pairs of every class, and {why}; add some, "
            "or set ensemble: mean"
        )


def _centred(logits: Sequence[NDArray[np.floating[Any]]]) -> Floats:
    """Log-probabilities less their mean over the classes, [N, K, C]: for two classes minus and plus half the log-odds.

    This and log-probabilities give the same softmax.
    """
    logs = log_softmax(np.stack(logits, axis=1))
    return np.asarray(logs - logs.mean(axis=-1, keepdims=True))


def _summed(x: Floats, weights: Floats, intercept: Floats) -> Floats:
    """Weighted sums [N, C] of x [N, K, C], with the intercepts [C]."""
    return np.asarray(np.einsum("k,nkc->nc", weights, x) + intercept)


def _cross_entropy(logits: NDArray[np.floating[Any]], targets: Floats) -> Floats:
    """The cross-entropy of each pair, [N]."""
    found: Floats = -(targets * log_softmax(logits)).sum(axis=-1)
    return found


def _solve(x: Floats, targets: Floats, ridge: float) -> tuple[Floats, Floats]:
    """Weights [K] and intercepts [C] with the least penalised cross-entropy; x is [N, K, C]."""
    from scipy.optimize import minimize

    count, classes = x.shape[1], x.shape[2]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, intercept = parameters[:count], np.append(0.0, parameters[count:])
        logs = log_softmax(_summed(x, weights, intercept))
        off = (np.exp(logs) * targets.sum(axis=1, keepdims=True) - targets) / len(x)
        value = -(targets * logs).sum() / len(x) + ridge * (weights @ weights)
        return float(value), np.concatenate([np.einsum("nc,nkc->k", off, x) + 2 * ridge * weights, off.sum(0)[1:]])

    bounds = [(0.0, None)] * count + [(-_MOST_INTERCEPT, _MOST_INTERCEPT)] * (classes - 1)
    start = np.append(np.full(count, 1 / count), np.zeros(classes - 1))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=_MINIMISER).x
    return found[:count], np.append(0.0, found[count:])


def _ranks(targets: Floats, questions: NDArray[np.int64]) -> bool:
    """Whether most pairs are of questions with several passages, right and wrong ones (or with probabilities)."""
    if targets.shape[1] != 2:
        return False
    found, count = (np.bincount(questions, weights) for weights in (targets[:, 1], None))
    return bool(((count > 1) & (found > 0) & (found < count))[questions].mean() >= _RANKED)


def _order_loss(scores: Floats, gains: Floats, questions: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The list-wise cross-entropy of each question with a right passage, [Q], and the gradient of their sum, [N].

    Args:
        scores: [N].
        gains: [N] how right each passage is, none below 0.
        questions: [N].
    """
    order = np.argsort(questions, kind="stable")
    starts = np.flatnonzero(np.diff(questions[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    scores, gains = scores[order], gains[order]
    shifted = scores - np.repeat(np.maximum.reduceat(scores, starts), sizes)
    logs = shifted - np.repeat(np.log(np.add.reduceat(np.exp(shifted), starts)), sizes)
    total = np.add.reduceat(gains, starts)
    known = total > 0
    wanted = gains / np.repeat(np.where(known, total, 1.0), sizes)
    gradient = np.empty_like(scores)
    gradient[order] = np.exp(logs) * np.repeat(known, sizes) - wanted
    return -np.add.reduceat(wanted * logs, starts)[known], gradient


def _solve_order(odds: Floats, gains: Floats, questions: NDArray[np.int64], ridge: float) -> Floats:
    """Weights [K] with the least penalised list-wise cross-entropy; odds are [N, K]."""
    from scipy.optimize import minimize

    def loss(weights: Floats) -> tuple[float, Floats]:
        losses, gradient = _order_loss(odds @ weights, gains, questions)
        count = max(1, len(losses))
        return losses.sum() / count + ridge * (weights @ weights), odds.T @ gradient / count + 2 * ridge * weights

    start = np.full(odds.shape[1], 1 / odds.shape[1])
    bounds = [(0.0, None)] * odds.shape[1]
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=_MINIMISER).x)
