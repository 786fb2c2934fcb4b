"""Score pairs with a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.core.errors import LabelError
from tmkd.core.hardware import batch_tokens, device, use_bf16
from tmkd.data.pairs import Pairs
from tmkd.models.batching import length_sorted_batches
from tmkd.models.inputs import Inputs
from tmkd.models.student import Student, StudentOutput


def score(
    model: Student, inputs: Inputs, rows: NDArray[np.int64] | None = None, precision: str = "auto"
) -> NDArray[np.float32]:
    """Logits of a model as a whole: the mean of its trained heads' logits.

    Args:
        model: A student or a trained teacher; it is moved to the device and put into evaluation mode.
        inputs: N pairs in the form that the model reads.
        rows: Which pairs to score, [n] int64; all N unless given.
        precision: Of the arithmetic, as in a recipe.

    Returns:
        [n, C] float32, in the order of `rows`.
    """
    return _scored(model, inputs, rows, precision, model.combine, (model.classes,))


def score_heads(
    model: Student, inputs: Inputs, rows: NDArray[np.int64] | None = None, precision: str = "auto"
) -> NDArray[np.float32]:
    """Logits of every trained head, the golden head first (`Student.trained_heads`).

    Args:
        model: As in `score`.
        inputs: As in `score`.
        rows: As in `score`.
        precision: As in `score`.

    Returns:
        [n, H, C] float32, in the order of `rows`.
    """
    return _scored(model, inputs, rows, precision, model.trained_heads, (model.heads, model.classes))


def require_finite_logits(logits: NDArray[np.floating], pairs: Pairs, whose: str, precision: str) -> None:
    """Check that a model gave a number for every pair.

    Args:
        logits: [N, ...], in the order of the pairs.
        pairs: N pairs.
        whose: the model, such as "teacher large (FOLDER)".
        precision: of its arithmetic, as in a recipe.

    Raises:
        LabelError: some logits are not finite; the message has the first such pair and what to do.
    """
    bad = np.flatnonzero(~np.isfinite(logits.reshape(len(logits), -1)).all(axis=1))
    if len(bad):
        first = int(bad[0])
        raise LabelError(
            f"{whose} gives no number for {len(bad):,} of {len(logits):,} pairs, first {pairs.questions[first][:80]!r} "
            f"with {pairs.passages[first][:80]!r}. Its weights are finite, so numbers overflow on the way "
            f"(precision: {precision}): use precision: fp32, or another teacher",
            not_finite=len(bad),
        )


def _scored(
    model: Student,
    inputs: Inputs,
    rows: NDArray[np.int64] | None,
    precision: str,
    pick: Callable[[StudentOutput], Tensor],
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    lengths = inputs.lengths
    rows = np.arange(len(lengths)) if rows is None else rows
    scores = np.zeros((len(rows), *shape), dtype=np.float32)
    model.to(device()).eval()
    bf16 = use_bf16(precision)
    with torch.inference_mode():
        for places in length_sorted_batches(lengths[rows], batch_tokens()):
            batch = inputs.batch(model, rows[places], bf16=bf16)
            with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
                found = model(batch)
            scores[places] = pick(found).float().cpu().numpy()
    return scores
