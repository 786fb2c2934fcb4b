"""Functions of logits in NumPy, each defined once: softmax, its logarithm, log-odds, sigmoid, mean of probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """Probabilities over the last axis.

    Args:
        logits: [..., C], any float type.

    Returns:
        [..., C] float64; sums to 1 over the last axis.
    """
    wide = np.asarray(logits, dtype=np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result


def log_softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """Logarithms of the probabilities over the last axis, computed without leaving the logarithm.

    Args:
        logits: [..., C], any float type.

    Returns:
        [..., C] float64.
    """
    wide = np.asarray(logits, dtype=np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def log_mean_softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """Logarithm of the mean of several models' probabilities: logits whose softmax is that mean.

    The result is a raw score: two pairs whose mean probabilities both round to 1 still differ in it.

    Args:
        logits: [N, K, C], of K models (or heads) for N pairs.

    Returns:
        [N, C] float64.
    """
    logs = log_softmax(logits)
    highest = logs.max(axis=1, keepdims=True)
    result: Floats = np.log(np.exp(logs - highest).sum(axis=1)) + highest[:, 0] - np.log(logs.shape[1])
    return result


def log_odds(logits: NDArray[np.floating[Any]], positive: int = 1) -> Floats:
    """Raw score of the positive class: its logit minus that of the other.

    Args:
        logits: [..., 2], any float type.
        positive: The positive class, 0 or 1.

    Returns:
        [...] float64.

    Raises:
        ValueError: The number of classes is not 2.
    """
    if logits.shape[-1] != 2:
        raise ValueError(f"log-odds need two classes, these logits have {logits.shape[-1]}")
    wide = np.asarray(logits, dtype=np.float64)
    result: Floats = wide[..., positive] - wide[..., 1 - positive]
    return result


def class_logits(found: NDArray[np.float32], positive: int = 1) -> NDArray[np.float32]:
    """The logits of C classes from what a graph or a folded head gives: one number is the log-odds of two classes.

    Args:
        found: [N, L]; L is 1 for two classes, else C.
        positive: Of two classes the one that the log-odds are of.

    Returns:
        [N, C] float32.
    """
    return two_logits(found[:, 0], positive) if found.shape[1] == 1 else found


def two_logits(odds: NDArray[np.floating[Any]], positive: int = 1) -> NDArray[np.float32]:
    """Logits of two classes that have these log-odds: the log-odds for the positive class, and 0 for the other.

    Args:
        odds: [N], any float type.
        positive: The positive class, 0 or 1.

    Returns:
        [N, 2] float32, in the order of the classes.
    """
    both = (np.zeros_like(odds), odds) if positive else (odds, np.zeros_like(odds))
    result: NDArray[np.float32] = np.stack(both, axis=1).astype(np.float32)
    return result


def even_logits(odds: NDArray[np.floating[Any]]) -> Floats:
    """Logits of two classes that have these log-odds: minus and plus one half of them.

    Args:
        odds: [N], any float type.

    Returns:
        [N, 2] float64.
    """
    half = np.asarray(odds, dtype=np.float64) / 2
    return np.stack([-half, half], axis=1)


def odds_of(probabilities: NDArray[np.floating[Any]]) -> Floats:
    """Log-odds of probabilities.

    Args:
        probabilities: any shape, above 0 and below 1.

    Returns:
        The same shape, float64.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    result: Floats = np.log(p) - np.log1p(-p)
    return result


def sigmoid(odds: NDArray[np.floating[Any]]) -> Floats:
    """Probabilities of class 1 from log-odds, without overflow and exact for very small probabilities.

    Args:
        odds: any shape, any float type.

    Returns:
        The same shape, float64.
    """
    result: Floats = np.exp(-np.logaddexp(0.0, -np.asarray(odds, dtype=np.float64)))
    return result
