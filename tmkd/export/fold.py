"""The fold: a student's heads averaged into one linear layer, checked against the heads one by one.

All heads are linear in one vector h, so the mean of their logits is one linear layer (`Student.fold`), which
`save_student` writes as the checkpoint's own head, for two classes as one logit (`tmkd.models.one_logit`). An export
starts from that checkpoint; here its logits are compared with the mean of the heads' logits, which are stored in
headers.safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.core.console import progress
from tmkd.core.errors import EncoderError, ExportError, first_line
from tmkd.core.logits import class_logits
from tmkd.core.open_files import require_room
from tmkd.data.pairs import Pairs
from tmkd.models.batching import length_sorted_batches, pad
from tmkd.models.card import ModelCard
from tmkd.models.encoders.families import family_of, last_linear, takes_token_types
from tmkd.models.encoders.find import HEADS_FILE
from tmkd.models.encoders.tensors import read_tensors
from tmkd.models.one_logit import folded_rows
from tmkd.models.quiet import without_bars
from tmkd.models.tokenizer import PairTokenizer

FOLD_LIMIT = 1e-5  # largest difference allowed between the folded head's logits and the mean of the heads' logits
TOKEN_BUDGET = 4096  # tokens of a batch
Heads = tuple[Tensor, Tensor]
"""Weights [H, L, d] and biases [H, L] of the trained heads; L is 1 for two classes, else C."""


def load_checkpoint(folder: Path) -> Any:
    """Load a folder's own sequence-classification module, float32, in evaluation mode.

    Raises:
        EncoderError: the folder holds no checkpoint, or one of an architecture that is not supported.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family_of(config.model_type, str(folder))
        with without_bars():
            return AutoModelForSequenceClassification.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
            ).eval()
    except EncoderError:
        raise
    except Exception as error:  # safetensors and the hub's loader raise classes of their own
        raise EncoderError(f"{folder} cannot be opened as a checkpoint: {first_line(error)}") from error


def read_heads(folder: Path, card: ModelCard, positive: int = 1) -> Heads | None:
    """Read the heads that the `logit` combination averages.

    Args:
        folder: the student's folder.
        card: its model card.
        positive: of two classes the one whose log-odds they give.

    Returns:
        The heads; None for a student that has the golden head only.

    Raises:
        ExportError: the file of the heads is missing or damaged.
    """
    path = folder / HEADS_FILE
    if not path.is_file():
        if card.soft_heads:
            raise ExportError(
                f"{path} is missing: without it the folded head cannot be checked; train the student again"
            )
        return None
    try:
        found = read_tensors(path)
        weight, bias = found["soft.weight"], found["soft.bias"]
        if card.use_golden:
            weight = torch.cat([found["golden.weight"][None], weight])
            bias = torch.cat([found["golden.bias"][None], bias])
    except Exception as error:  # safetensors raises a class of its own for a damaged file
        require_room(error, path)
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); train the student again") from error
    return folded_rows(weight.float(), bias.float(), positive)


def pytorch_logits(
    model: Any, tokenizer: PairTokenizer, pairs: Pairs, heads: Heads | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the logits of pairs in two ways from the same h: by the folded head, and as the mean over the heads.

    Args:
        model: the sequence-classification module with the folded head.
        tokenizer: of the model.
        pairs: N pairs.
        heads: the heads one by one; None for a student of one head.

    Returns:
        Logits by the folded head and mean over the heads, [N, L] float32 each.
    """
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    folded = np.empty((len(pairs), model.config.num_labels), dtype=np.float32)
    combined = np.empty_like(folded)
    seen: list[Tensor] = []
    hook = last_linear(model).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.inference_mode(), progress("student in PyTorch", len(pairs)) as bar:
            for rows in length_sorted_batches(encoded.lengths, TOKEN_BUDGET):
                ids, mask, types = map(torch.from_numpy, pad(encoded.ids, encoded.type_ids, rows, tokenizer.pad_id))
                seen.clear()
                given = {"token_type_ids": types} if takes_token_types(model.config) else {}
                folded[rows] = model(input_ids=ids, attention_mask=mask, **given).logits.numpy()
                combined[rows] = folded[rows] if heads is None else _mean_over_heads(seen[0], *heads).numpy()
                bar.advance(len(rows))
    finally:
        hook.remove()
    return folded, combined


def _mean_over_heads(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the mean of the heads' logits, [n, L], from h [n, d], weight [H, L, d] and bias [H, L]."""
    return (torch.einsum("nd,hld->nhl", h, weight) + bias).mean(dim=1)


def checked_logits(
    model: Any, student: Path, card: ModelCard, tokenizer: PairTokenizer, pairs: Pairs, positive: int = 1
) -> NDArray[Any]:
    """Compute the student's logits on pairs, after checking that the folded head gives the mean of the heads.

    Args:
        model: the sequence-classification module with the folded head.
        student: the student's folder, which holds the heads.
        card: its model card.
        tokenizer: of the model.
        pairs: N pairs.
        positive: of two classes the one whose log-odds the model gives.

    Returns:
        The mean of the heads' logits, [N, C] float32; for two classes the log-odds of the positive one, and 0.

    Raises:
        ExportError: the folded head gives other logits.
    """
    folded, combined = pytorch_logits(model, tokenizer, pairs, read_heads(student, card, positive))
    difference = float(np.abs(folded - combined).max())
    if not difference <= FOLD_LIMIT:
        raise ExportError(
            f"{student}: model.safetensors does not hold the mean of its heads (logits differ by {difference:.2e}, "
            f"at most {FOLD_LIMIT:.0e} is allowed); one of the two files was changed or damaged, save the student again"
        )
    return class_logits(combined, positive)
