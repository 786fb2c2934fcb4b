"""Run a model on encoded pairs: one batch with gradients (training), or all pairs without (scoring)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.core.hardware import attention, batch_tokens, device, use_bf16
from tmkd.models.batching import length_sorted_batches, pack, pad
from tmkd.models.encoders.forward import Batch, Packing
from tmkd.models.student import Logits, Student
from tmkd.models.tokenizer import Encoded


def forward(model: Student, encoded: Encoded, pad_id: int, rows: NDArray[np.int64], *, bf16: bool) -> Logits:
    """The logits of one batch, computed in the layout (padded or packed) that is fastest on this machine.

    Args:
        model: On the device that `tmkd.core.hardware.device` names.
        encoded: Token ids of N pairs.
        pad_id: Token id of padding.
        rows: Which of the N pairs form the batch, [n] int64.
        bf16: Whether to compute in bfloat16 (autocast).

    Returns:
        The heads' logits in the order of `rows`, with gradients where they are enabled.
    """
    where = device()
    with torch.autocast(where.type, dtype=torch.bfloat16, enabled=bf16):
        if attention(bf16) == "packed" and model.encoder.packs:
            ids, types, starts = (torch.from_numpy(a).to(where) for a in pack(encoded.ids, encoded.type_ids, rows))
            packing = Packing(starts, max(len(encoded.ids[row]) for row in rows))
            packed: Logits = model(Batch(ids, None, types, packing, torch.from_numpy(rows)))
            return packed
        ids, mask, types = (torch.from_numpy(a).to(where) for a in pad(encoded.ids, encoded.type_ids, rows, pad_id))
        full = ids.numel() == sum(len(encoded.ids[row]) for row in rows)
        logits: Logits = model(Batch(ids, None if full else mask, types, rows=torch.from_numpy(rows)))
        return logits


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


def _scored(
    model: Student,
    encoded: Encoded,
    pad_id: int,
    rows: NDArray[np.int64] | None,
    precision: str,
    pick: Callable[[Logits], Tensor],
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    rows = np.arange(len(encoded.ids)) if rows is None else rows
    lengths = np.array([len(encoded.ids[row]) for row in rows])
    output = np.zeros((len(rows), *shape), dtype=np.float32)
    model.to(device()).eval()
    with torch.inference_mode():
        for batch in length_sorted_batches(lengths, batch_tokens()):
            logits = forward(model, encoded, pad_id, rows[batch], bf16=use_bf16(precision))
            output[batch] = pick(logits).float().cpu().numpy()
    return output
