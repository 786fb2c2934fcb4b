"""The teacher ensemble: the mean of the teachers' probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.logits import log_mean_softmax


def ensemble_logits(logits: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
    """Logarithm of the mean of the teachers' probabilities (METHOD.md, "Teachers").

    Args:
        logits: K arrays [N, C], one for each teacher, all in the order of the pairs.

    Returns:
        [N, C] float64: raw scores, so that ranking by them has no ties that rounding made.
    """
    return log_mean_softmax(np.stack(logits, axis=1))
