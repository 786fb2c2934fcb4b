"""Make batches of encoded pairs, and score pairs with a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.core.errors import LabelError
from tmkd.core.hardware import attention, batch_tokens, device, use_bf16
from tmkd.data.pairs import Pairs
from tmkd.models.batching import length_sorted_batches, pack, pad
from tmkd.models.encoders.forward import Batch, Packing
from tmkd.models.student import Student, StudentOutput
from tmkd.models.tokenizer import Encoded


def make_batch(model: Student, encoded: Encoded, pad_id: int, rows: NDArray[np.int64], *, bf16: bool) -> Batch:
    """Put some encoded pairs into one batch on the device, in the layout that is fastest there.

    Args:
        model: The model that will read the batch; it decides whether the batch may be packed.
        encoded: Token ids of N pairs.
        pad_id: Token id of padding.
        rows: Which of the N pairs form the batch, [n] int64.
        bf16: Whether the model will compute in bfloat16, which packed attention on a GPU requires.

    Returns:
        The batch, its pairs in the order of `rows`.
    """
    where = device()
    if attention(bf16) == "packed" and model.encoder.packs:
        ids, types, starts = (torch.from_numpy(a).to(where) for a in pack(encoded.ids, encoded.type_ids, rows))
        return Batch(ids, None, types, Packing(starts, max(len(encoded.ids[row]) for row in rows)))
    ids, mask, types = (torch.from_numpy(a).to(where) for a in pad(encoded.ids, encoded.type_ids, rows, pad_id))
    full = ids.numel() == sum(len(encoded.ids[row]) for row in rows)
    return Batch(ids, None if full else mask, types)


def score(
    model: Student, encoded: Encoded, pad_id: int, rows: NDArray[np.int64] | None = None, precision: str = "auto"
) -> NDArray[np.float32]:
    """Logits of a model as a whole: the mean of its trained heads' logits.

    Args:
        model: A student or a trained teacher; it is moved to the device and put into evaluation mode.
        encoded: Token ids of N pairs.
        pad_id: Token id of padding.
        rows: Which pairs to score, [n] int64; all N unless given.
        precision: Of the arithmetic, as in a recipe.

    Returns:
        [n, C] float32, in the order of `rows`.
    """
    return _scored(model, encoded, pad_id, rows, precision, model.combine, (model.classes,))


def score_heads(
    model: Student, encoded: Encoded, pad_id: int, rows: NDArray[np.int64] | None = None, precision: str = "auto"
) -> NDArray[np.float32]:
    """Logits of every trained head, the golden head first (`Student.trained_heads`).

    Args:
        model: As in `score`.
        encoded: As in `score`.
        pad_id: As in `score`.
        rows: As in `score`.
        precision: As in `score`.

    Returns:
        [n, H, C] float32, in the order of `rows`.
    """
    return _scored(model, encoded, pad_id, rows, precision, model.trained_heads, (model.heads, model.classes))


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
    encoded: Encoded,
    pad_id: int,
    rows: NDArray[np.int64] | None,
    precision: str,
    pick: Callable[[StudentOutput], Tensor],
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    rows = np.arange(len(encoded.ids)) if rows is None else rows
    lengths = np.array([len(encoded.ids[row]) for row in rows])
    scores = np.zeros((len(rows), *shape), dtype=np.float32)
    model.to(device()).eval()
    bf16 = use_bf16(precision)
    with torch.inference_mode():
        for places in length_sorted_batches(lengths, batch_tokens()):
            batch = make_batch(model, encoded, pad_id, rows[places], bf16=bf16)
            with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
                found = model(batch)
            scores[places] = pick(found).float().cpu().numpy()
    return scores
