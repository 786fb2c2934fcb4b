"""Calibration: scores of any teacher become log-odds of class 1 on one scale (METHOD.md, "Teachers").

The map rises with the score, so a calibrated teacher ranks as it did before. It is fitted on labelled training pairs,
never on the development or test set.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.core.logits import even_logits, log_odds, odds_of, sigmoid

Floats = NDArray[np.float64]
BINS = 10  # of the expected calibration error
_TILT = 1e-3  # log-odds for one standard deviation: keeps the order of scores that an isotonic curve would tie

NEGATE = "If a smaller score means a better passage, negate the scores"


@dataclass(frozen=True)
class Calibration:
    """A rising map from the log-odds that a teacher gives to calibrated ones.

    Example:
        >>> line = Calibration("platt", center=0.5, scale=0.1, slope=2.0, intercept=-1.0)
        >>> line.apply(np.array([[0.0, 0.5], [0.0, 0.6]])).round(3).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]

    Attributes:
        kind: platt: log-odds = slope (z - center) / scale + intercept (Platt 1999); isotonic: linear between knots
            (Zadrozny and Elkan 2002).
        center: the mean of the scores that it was fitted on.
        scale: their standard deviation.
        slope: of the line, for one standard deviation; above 0.
        intercept: log-odds at the center.
        knots: (standardised score, log-odds), rising in both.
    """

    kind: Literal["platt", "isotonic"]
    center: float
    scale: float
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def apply(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Calibrate logits.

        Args:
            logits: [N, 2].

        Returns:
            [N, 2] float32: minus and plus half of the calibrated log-odds.
        """
        x = (log_odds(logits) - self.center) / self.scale
        if self.kind == "platt":
            odds = self.slope * x + self.intercept
        else:
            at, values = np.array(self.knots).T
            odds = np.interp(x, at, values) + _TILT * x
        return even_logits(odds).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """The map as JSON-like content."""
        return asdict(self)

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Calibration:
        """The map that `to_json` wrote."""
        return cls(**{**content, "knots": tuple((x, y) for x, y in content["knots"])})


def fit(
    kind: str, logits: NDArray[np.floating[Any]], targets: NDArray[Any], name: str, remedy: str = NEGATE
) -> Calibration:
    """Fit a map on labelled pairs.

    Args:
        kind: `platt` or `isotonic`.
        logits: [N, 2] of a teacher.
        targets: [N] the classes (0, 1), or probabilities of class 1.
        name: what errors call the teacher.
        remedy: what the error advises where the scores fall.

    Raises:
        DataError: the labels have one class, the scores are all the same, or they fall where the labels rise.
        ValueError: a kind that does not exist.
    """
    if kind not in ("platt", "isotonic"):
        raise ValueError(f"a calibration is `platt` or `isotonic`, not {kind!r}")
    z, y = log_odds(logits), np.asarray(targets, dtype=np.float64)
    if not 0 < (positive := int((y >= 0.5).sum())) < len(y):
        only = f"of class {int(positive > 0)} alone" if len(y) else "none"
        raise DataError(
            f"teacher {name}: its scores cannot be calibrated: the {len(y):,} training labels are {only}; add pairs of "
            "the other class, or set calibrate: none for this teacher"
        )
    center, scale = float(z.mean()), float(z.std())
    if scale < 1e-9:
        raise DataError(f"teacher {name}: it gives all {len(z):,} training pairs the same score, {center:g}")
    x = (z - center) / scale
    slope, intercept = _line(x, y)
    if slope <= 0:
        raise DataError(
            f"teacher {name}: its scores fall where the training labels rise (slope {slope:.3g}). {remedy}; "
            "otherwise leave the teacher out"
        )
    if kind == "platt":
        return Calibration("platt", center, scale, slope, intercept)
    return Calibration("isotonic", center, scale, knots=_curve(x, y))


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the line with the least cross-entropy, with Platt's softened targets."""
    from scipy.optimize import minimize

    positive = y.sum()
    high, low = (positive + 1) / (positive + 2), 1 / (len(y) - positive + 2)
    soft = y * high + (1 - y) * low

    def loss(ab: Floats) -> tuple[float, Floats]:
        odds = ab[0] * x + ab[1]
        off = sigmoid(odds) - soft
        return float((np.logaddexp(0, odds) - soft * odds).mean()), np.array([(off * x).mean(), off.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-14})
    return float(found.x[0]), float(found.x[1])


def _curve(x: Floats, y: Floats) -> tuple[tuple[float, float], ...]:
    """Knots of the isotonic curve: the middle of each of its steps."""
    from sklearn.isotonic import IsotonicRegression

    heights = np.asarray(IsotonicRegression(y_min=0, y_max=1).fit(x, y).predict(x), dtype=np.float64)
    limit = 1 / (len(y) + 2)  # no probability is nearer to 0 or 1 than so many labels can say
    found = []
    for height in np.unique(heights):
        odds = float(odds_of(np.clip(height, limit, 1 - limit)))
        found.append((float(x[heights == height].mean()), odds))
    return tuple(sorted(found))


def standardised(logits: NDArray[np.floating[Any]], questions: NDArray[np.integer]) -> NDArray[np.float32]:
    """Log-odds with mean 0 and standard deviation 1 within every question: for pairs where nothing has a label.

    Args:
        logits: [N, 2].
        questions: the number of each pair's question, [N]; the pair of a question with a single passage gets 0.

    Returns:
        [N, 2] float32.
    """
    z = log_odds(logits)
    if not (known := np.isfinite(z)).all():  # of a partial teacher: nan stays nan
        found = np.full(logits.shape, np.nan, dtype=np.float32)
        if known.any():
            found[known] = standardised(logits[known], questions[known])
        return found
    counts = np.maximum(np.bincount(questions), 1)
    means = np.bincount(questions, z) / counts
    deviations = np.sqrt(np.bincount(questions, (z - means[questions]) ** 2) / counts)
    odds = (z - means[questions]) / np.where(deviations > 1e-9, deviations, 1.0)[questions]
    return even_logits(odds).astype(np.float32)


def reliability(logits: NDArray[np.floating[Any]], targets: NDArray[Any]) -> dict[str, float]:
    """How well a teacher's probabilities agree with labels.

    Args:
        logits: [N, 2].
        targets: [N] the classes (0, 1), or probabilities of class 1.

    Returns:
        `error`: the expected calibration error over ten bins of equal width (Guo et al. 2017); `log_loss`: the mean
        cross-entropy; `brier`: the mean squared error of the probabilities.
    """
    odds, y = log_odds(logits), np.asarray(targets, dtype=np.float64)
    p = sigmoid(odds)
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    gaps = np.abs(np.bincount(bins, p - y, BINS))
    return {
        "error": float(gaps.sum() / len(y)),
        "log_loss": float((np.logaddexp(0, odds) - y * odds).mean()),
        "brier": float(((p - y) ** 2).mean()),
    }
