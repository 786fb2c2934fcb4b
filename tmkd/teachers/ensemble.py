"""The teacher ensemble: the mean of the teachers' probabilities, or a weighted sum of their log-odds (stacking)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.core.logits import log_mean_softmax, log_softmax

Floats = NDArray[np.float64]
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties that cross-validation chooses from: times the sum of squared weights of standardised log-odds."""
_MOST_INTERCEPT = 30.0  # log-odds; only labels of one class in all folds but one would ask for more


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
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: tuple[float, ...]
    ridge: float = 0.0
    log_loss: Mapping[str, float] | None = None

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
    ridges: Sequence[float] = RIDGES,
) -> Stacking:
    """Fit the weights on labelled pairs that the teachers have not learned from.

    The weights minimise the cross-entropy plus a penalty on their squares, each teacher's log-odds divided by their
    standard deviation. The penalty is the one of `ridges` with the least cross-entropy on pairs that are left out, fold
    by fold. So alike teachers share their weight, and separable labels give finite weights (stacked generalisation with
    non-negative weights: Wolpert 1992, Breiman 1996).

    Args:
        names: the teachers, [K].
        logits: K arrays [N, C].
        targets: [N, C] probabilities of the classes, 0 and 1 for labels.
        fold: [N] the fold of each pair: a question is in one fold.
        ridges: penalties to choose from.

    Raises:
        DataError: a class has no pair.
    """
    require_every_class(targets.argmax(axis=1), targets.shape[1])
    x = _centred(logits)
    spread = np.sqrt((x - x.mean(axis=0)).var(axis=0).mean(axis=1))
    scale = np.where(spread > 1e-9, spread, np.inf)  # a teacher that scores all pairs alike gets the weight 0
    x = x / scale[None, :, None]
    folds, losses = np.unique(fold), {}
    held_out = {
        ridge: np.concatenate(
            [_cross_entropy(_summed(x[fold == one], *_solve(x[fold != one], targets[fold != one], ridge)),
                            targets[fold == one])
             for one in folds]
        )
        for ridge in (ridges if len(folds) > 1 else ())
    }  # fmt: skip
    ridge = min(held_out, key=lambda one: float(held_out[one].mean())) if held_out else ridges[0]
    if held_out:
        losses["stacked"] = float(held_out[ridge].mean())
    losses["mean"] = float(_cross_entropy(ensemble_logits(logits), targets).mean())
    losses |= {name: float(_cross_entropy(one, targets).mean()) for name, one in zip(names, logits, strict=True)}
    weights, intercept = _solve(x, targets, ridge)
    return Stacking(tuple(names), tuple((weights / scale).tolist()), tuple(intercept.tolist()), ridge, losses)


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
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-14, "maxiter": 1000}
    ).x
    return found[:count], np.append(0.0, found[count:])
