"""One logit for two classes: the form of a checkpoint that every tool for reranking ranks rightly.

Such tools sort passages by a checkpoint's only logit. Of two logits most of them read the first, which is that of class
0, or refuse. Only the difference of two logits decides (a softmax does not change when a number is added to both), so a
checkpoint of two classes is written with the one row W1 - W0, b1 - b0, whose logit is the log-odds of class 1. Read
back, it is the second of two rows whose first is zero. An export whose positive class is 0 (`data.positive`) has the
row W0 - W1, b0 - b1, and its tmkd.json says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

RELEVANT = ("not_relevant", "relevant")
"""Names of two classes that nobody named."""
_IDENTITY = "torch.nn.modules.linear.Identity"


def outputs_of(classes: int) -> int:
    """Return how many logits a checkpoint of so many classes is written with."""
    return 1 if classes == 2 else classes


def folded_rows(weight: Tensor, bias: Tensor, positive: int = 1) -> tuple[Tensor, Tensor]:
    """Return the rows of a head as a checkpoint is written: one for two classes.

    Args:
        weight: [..., C, d].
        bias: [..., C].
        positive: Of two classes the one whose log-odds are written.

    Returns:
        [..., 1, d] and [..., 1] for two classes; for more the same as given.
    """
    if weight.shape[-2] != 2:
        return weight, bias
    (zero, one), (bias_zero, bias_one) = weight.split(1, dim=-2), bias.split(1, dim=-1)
    return (one - zero, bias_one - bias_zero) if positive else (zero - one, bias_zero - bias_one)


def class_rows(weight: Tensor, bias: Tensor, positive: int = 1) -> tuple[Tensor, Tensor]:
    """Return the rows of a checkpoint's head, one for each class: the inverse of `folded_rows`.

    Args:
        weight: [1, d] or [C, d].
        bias: [1] or [C].
        positive: Of two classes the one that one logit is of.

    Returns:
        [2, d] and [2] for one logit, the row of the other class zero; for more the same as given.
    """
    if len(weight) != 1:
        return weight, bias
    rows = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return rows if positive else (rows[0].flip(0), rows[1].flip(0))


def described(config: Mapping[str, Any], labels: Sequence[str], positive: int = 1) -> dict[str, Any]:
    """Return the content of config.json for the classes of a task: names and, for one logit, that it is a raw score.

    sentence-transformers puts a sigmoid on one logit unless config.json names another function. It looks for the name
    under `sentence_transformers` since version 4, and under `sbert_ce_default_activation_function` before.

    Args:
        config: the content of config.json.
        labels: the names of the C classes.
        positive: Of two classes the one that the one logit is of.

    Returns:
        A new mapping.
    """
    # `problem_type` belongs to the checkpoint that the encoder came from; transformers would apply it to our logits
    content = {name: value for name, value in config.items() if name not in ("num_labels", "problem_type")}
    names = [labels[positive]] if len(labels) == 2 else list(labels)
    content["id2label"] = {str(number): name for number, name in enumerate(names)}
    content["label2id"] = {name: number for number, name in enumerate(names)}
    if len(names) == 1:
        content["sentence_transformers"] = {"activation_fn": _IDENTITY}
        content["sbert_ce_default_activation_function"] = _IDENTITY
    return content
