"""The encoder families, one row each: where the parts of a transformers module are that our code touches.

`ours` families run on our forward (tmkd/models/encoders/forward.py). The others run their transformers module on the
same
batches: the same numbers, without the savings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tmkd.core.errors import EncoderError


@dataclass(frozen=True)
class Parts:
    """Names, inside one layer, of what our forward computes with."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    out: str = "attention.output.dense"
    norm: str = "attention.output.LayerNorm"


@dataclass(frozen=True)
class Family:
    """One row: names inside the sequence-classification module.

    Attributes:
        base: the encoder; also the prefix of its weights' names.
        last: the last linear layer, which our headers replace.
        dense: the layer before it, where that is a d x d linear layer with tanh after it; h is its output.
        parts: for our forward; None where the transformers module runs.
        dropout_before_dense: whether h's first token passes a dropout before `dense`.
        position_offset: whether positions count from padding_idx + 1 rather than from 0.
        relative_positions: whether a bias by distance is added to attention scores.
        unbounded: whether it has no table of positions that a long pair could run out of.
    """

    base: str
    last: str = "classifier"
    dense: str | None = None
    parts: Parts | None = None
    dropout_before_dense: bool = False
    position_offset: bool = False
    relative_positions: bool = False
    unbounded: bool = False


_ROBERTA = Family(
    "roberta",
    last="classifier.out_proj",
    dense="classifier.dense",
    parts=Parts(),
    dropout_before_dense=True,
    position_offset=True,
)
FAMILIES: dict[str, Family] = {
    "bert": Family("bert", dense="bert.pooler.dense", parts=Parts()),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": Family(
        "mpnet",
        last="classifier.out_proj",
        dense="classifier.dense",
        parts=Parts(
            "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm"
        ),
        dropout_before_dense=True,
        position_offset=True,
        relative_positions=True,
    ),
    "distilbert": Family("distilbert"),
    "electra": Family("electra", last="classifier.out_proj"),
    "deberta-v2": Family("deberta", unbounded=True),
    "modernbert": Family("model", unbounded=True),
}


def family_of(model_type: str, where: str) -> Family:
    """The row of an architecture; EncoderError with the list of what works for any other."""
    if model_type not in FAMILIES:
        raise EncoderError(
            f"{where}: encoders of type {model_type!r} are not supported; supported are {', '.join(FAMILIES)} "
            '(MiniLM and its like are `"model_type": "bert"`)'
        )
    return FAMILIES[model_type]


def last_linear(model: Any) -> nn.Linear:
    """The last linear layer of a sequence-classification module."""
    found: nn.Linear = model.get_submodule(family_of(model.config.model_type, "checkpoint").last)
    return found


def takes_token_types(config: Any) -> bool:
    """Whether the two texts of a pair have segment ids of their own."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1
