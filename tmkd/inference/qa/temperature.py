"""The temperature of a student's log-odds, and how well the probabilities that it gives fit the labels.

The temperature divides the log-odds. It is chosen so that the negative log-likelihood of labelled pairs is least (Guo
et al., "On Calibration of Modern Neural Networks", ICML 2017), and it changes no ranking.

Where the scores have the right sign for all pairs, a lower temperature is always likelier, and every probability would
become 0 or 1. How sure one may be is then a matter of how many pairs were seen: the labels are smoothed as if each side
had one more pair of either label (Platt, "Probabilistic Outputs for Support Vector Machines", 1999).
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError, needs_extra
from tmkd.core.logits import sigmoid

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
BINS = 15  # of equal width, for the expected calibration error
LOWEST, HIGHEST = 0.01, 100.0  # temperatures


def fit_temperature(scores: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature with the least negative log-likelihood of the labels, from 0.01 to 100.

    Where that is a bound, a warning says that the probabilities say little, and why.

    Args:
        scores: Log-odds, [N] float64.
        labels: 0 or 1, [N] int64.

    Raises:
        DataError: One of the labels does not occur.
        MissingExtraError: SciPy is not installed.
    """
    if len(set(labels.tolist())) < 2:
        raise DataError("a temperature needs development pairs of both labels, 0 and 1")
    found = _likeliest(scores, labels.astype(np.float64))
    if found >= HIGHEST:
        logger.warning(
            f"the scores of the {len(labels):,} development pairs do not tell the right passages from the others, so "
            f"the temperature ends at its bound, {HIGHEST:g}, and all probabilities are near 0.5; check the labels and "
            "the student"
        )
    elif found <= LOWEST and not ((scores > 0) == (labels == 1)).all():
        logger.warning(
            f"the scores of the {len(labels):,} development pairs are so close to 0 that the temperature ends at its "
            f"bound, {LOWEST:g}; probabilities say little. Check the student"
        )
    elif found <= LOWEST:
        found = _likeliest(scores, _smoothed(labels))
        logger.warning(
            f"the scores of all {len(labels):,} development pairs have the right sign, so no temperature is too low "
            f"for them; {found:.3g} is as sure as so many pairs allow, and probabilities say little. Calibrate on more "
            "or harder pairs"
        )
    return found


def _smoothed(labels: NDArray[np.int64]) -> Floats:
    """Labels after one more pair of each label on either side, [N] float64."""
    ones = int(labels.sum())
    return np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (len(labels) - ones + 2))


def _likeliest(scores: Floats, labels: Floats) -> float:
    with needs_extra("qa"):
        from scipy.optimize import brentq

    def slope(inverse: float) -> float:
        """Of the negative log-likelihood, which is convex in 1 / temperature."""
        return float(((sigmoid(inverse * scores) - labels) * scores).mean())

    if slope(1 / HIGHEST) >= 0:
        return HIGHEST
    if slope(1 / LOWEST) <= 0:
        return LOWEST
    return float(1 / brentq(slope, 1 / HIGHEST, 1 / LOWEST))


def calibration_error(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Expected calibration error of the positive class over 15 bins: |share of positives - mean probability|, meaned.

    Args:
        probabilities: Of the positive class, [N] float64.
        labels: 0 or 1, [N] int64.
    """
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, labels - probabilities, minlength=BINS))
    return float(gaps.sum() / len(labels))
