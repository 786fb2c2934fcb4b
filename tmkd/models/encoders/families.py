"""The supported encoder families: where our code finds the submodules that it uses in a transformers module.

A family with `parts` runs on our forward (`tmkd.models.encoders.forward`). The others run their transformers module on
the same batches: the same numbers, without the savings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tmkd.core.errors import EncoderError
from tmkd.core.files import read_json


@dataclass(frozen=True)
class Parts:
    """Names of the submodules of one layer that our forward uses.

    Attributes:
        query: linear layer of the queries.
        key: linear layer of the keys.
        value: linear layer of the values.
        out: linear layer after the attention.
        norm: LayerNorm after the attention's residual connection.
    """

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    out: str = "attention.output.dense"
    norm: str = "attention.output.LayerNorm"


@dataclass(frozen=True)
class Family:
    """One family: names of submodules inside its sequence-classification module, and how it differs from BERT.

    Attributes:
        base: the encoder; also the prefix of its weights' names.
        last: the last linear layer, which our heads replace.
        dense: the layer before it, where that is a d x d linear layer followed by tanh, whose output is h.
        parts: names for our forward; None where the transformers module runs.
        dropout_before_dense: whether the first token's vector passes a dropout before `dense`.
        position_offset: whether positions count the tokens that are not padding, from padding_idx + 1, rather than all
            tokens from 0.
        relative_positions: whether a bias that depends on the distance of two tokens is added to attention scores.
        unbounded: whether there is no table of positions that limits the length of a pair.
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


def model_type(folder: Path) -> str | None:
    """Return the architecture of a model folder as its config.json names it; None where there is none."""
    path = folder / "config.json"
    found: str | None = read_json(path).get("model_type") if path.is_file() else None
    return found


def family_of(model_type: str, where: str) -> Family:
    """Return the family of an architecture.

    Args:
        model_type: as config.json names it.
        where: the model, for messages.

    Returns:
        The family.

    Raises:
        EncoderError: the architecture is not supported; the message lists those that are.
    """
    if model_type not in FAMILIES:
        raise EncoderError(
            f"{where}: encoders of type {model_type!r} are not supported; supported are {', '.join(FAMILIES)} "
            '(MiniLM models are `"model_type": "bert"`)'
        )
    return FAMILIES[model_type]


def last_linear(model: Any) -> nn.Linear:
    """Return the last linear layer of a sequence-classification module."""
    found: nn.Linear = model.get_submodule(family_of(model.config.model_type, "checkpoint").last)
    return found


def takes_token_types(config: Any) -> bool:
    """Return whether the architecture takes segment ids, which tell question and passage apart."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1
