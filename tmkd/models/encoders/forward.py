"""Encode pairs: our forward over the modules of a transformers checkpoint, or the transformers module itself.

Our forward uses the same parameters under the same names and does less work. Two things are cheaper and exactly equal
(METHOD.md, "Exactly equal, and cheaper"): the last layer is computed for the first token only, without the keys and
values of the other tokens; and attention runs in the layout that suits the machine (`tmkd.models.encoders.attention`).
The same code is used for training, labelling and export.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tmkd.core import hardware
from tmkd.models.encoders.attention import MASKED, Attention, Packed, Padded
from tmkd.models.encoders.families import family_of, last_linear, takes_token_types


def encoder_of(model: Any, *, dropout: float = 0.0, freeze_embeddings: bool = True) -> PairEncoder:
    """Choose the fastest way to run a sequence-classification module without its last linear layer.

    Args:
        model: the transformers module.
        dropout: probability used in training mode on attention weights, block outputs and h.
        freeze_embeddings: whether the embedding tables and their LayerNorm stay as they are.

    Returns:
        The encoder; it shares its parameters with `model`.

    Raises:
        EncoderError: the architecture is not supported.
    """
    kind = ModuleEncoder if _why_module(model.config) else FirstTokenEncoder
    return kind(model, dropout=dropout, freeze_embeddings=freeze_embeddings)


def _why_module(config: Any) -> str:
    """Return why our forward cannot replace the transformers module; an empty string where it can."""
    if family_of(config.model_type, "encoder").parts is None:
        return "our forward does not support it"
    if getattr(config, "is_decoder", False):
        return "it is a decoder"
    positions = getattr(config, "position_embedding_type", "absolute")
    return "" if positions in (None, "absolute") else f"its positions are {positions}"


class Packing(NamedTuple):
    """Where the pairs of a packed batch are.

    Attributes:
        starts: where each pair starts, and the end of the last, [n + 1] int32.
        longest: most tokens of a pair.
    """

    starts: Tensor
    longest: int


class Batch(NamedTuple):
    """Some pairs as input of a model: padded on the right to a rectangle, or packed one after another.

    Attributes:
        input_ids: [n, T] int64; packed: [tokens].
        attention_mask: [n, T], 1 for a token and 0 for padding; None where there is no padding.
        token_type_ids: segment ids, shaped as input_ids, int64, or None for zeros; ignored by families without them.
        packing: where each pair is in a packed batch; None for a padded batch.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    packing: Packing | None = None


def require_readable(layers: Collection[int], readable: int) -> None:
    """Check that the hidden states of some layers can be read.

    Args:
        layers: indices of layers.
        readable: how many layers, from the first, give their hidden states.

    Raises:
        ValueError: one of the layers is not among them.
    """
    for layer in layers:
        if not 0 <= layer < readable:
            raise ValueError(f"layer {layer}: this encoder gives the hidden states of its first {readable} layers")


class PairEncoder(nn.Module):
    """An encoder of pairs: what both ways to run it share.

    Args:
        model: the transformers module.
        dropout: see `encoder_of`.
        freeze_embeddings: see `encoder_of`.

    Attributes:
        model: the transformers module that holds the parameters; its own last linear layer is not used.
        hidden_size: d.
        layers: number of layers.
        readable_layers: how many of them, from the first, can give their hidden states.
        dense: the linear layer whose tanh is h; None where the family has none.
        path: one line for the log: which way runs, and why.
    """

    path: str
    readable_layers = 0

    def __init__(self, model: Any, *, dropout: float, freeze_embeddings: bool) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.family = family_of(model.config.model_type, "encoder")
        self.hidden_size: int = last_linear(model).in_features
        self.layers: int = model.config.num_hidden_layers
        self.dropout = dropout
        self.freeze_embeddings = freeze_embeddings
        self.base = model.get_submodule(self.family.base)
        self.dense: Any = None if self.family.dense is None else model.get_submodule(self.family.dense)
        for parameter in self.base.embeddings.parameters():
            parameter.requires_grad_(not freeze_embeddings)
        for parameter in last_linear(model).parameters():
            parameter.requires_grad_(False)

    @property
    def packs(self) -> bool:
        """Whether the encoder takes packed batches (`Packing`)."""
        return False

    def forward(self, batch: Batch) -> Tensor:
        """Compute h of every pair, [n, d]: the input of the checkpoint's own last linear layer."""
        raise NotImplementedError

    def with_hidden_states(self, batch: Batch, layers: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Compute h, and the hidden states after some layers.

        Args:
            batch: n pairs.
            layers: indices below `readable_layers`.

        Returns:
            h, [n, d], and for each of the layers the vectors of all tokens after it, [n, T, d]; packed: [tokens, d].

        Raises:
            ValueError: a layer does not give its hidden states.
        """
        require_readable(layers, self.readable_layers)
        return self(batch), {}

    def last_hidden_states(self, batch: Batch) -> Tensor:
        """Compute the vectors of all tokens after the last layer, [n, T, d]; of a packed batch [tokens, d]."""
        raise NotImplementedError


class ModuleEncoder(PairEncoder):
    """Runs the transformers module as it is: every token of every layer."""

    def __init__(self, model: Any, *, dropout: float, freeze_embeddings: bool) -> None:
        super().__init__(model, dropout=dropout, freeze_embeddings=freeze_embeddings)
        self.path = f"{model.config.model_type}: the transformers module runs, {_why_module(model.config)}"
        self._types = takes_token_types(model.config)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = dropout

    def forward(self, batch: Batch) -> Tensor:
        """See `PairEncoder.forward`; the batch must be padded."""
        seen: list[Tensor] = []
        hook = last_linear(self.model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.model(**self._inputs(batch))
        finally:
            hook.remove()
        return seen[0]

    def last_hidden_states(self, batch: Batch) -> Tensor:
        """See `PairEncoder.last_hidden_states`."""
        states: Tensor = self.base(**self._inputs(batch))[0]
        return states

    def _inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        assert batch.packing is None
        types = batch.token_type_ids
        given = {"token_type_ids": types} if self._types and types is not None else {}
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **given}


def _of_first_tokens(values: Tensor, packing: Packing) -> Tensor:
    """Return, for every token of a packed batch, the value of the first token of its pair, [tokens]."""
    return values[packing.starts[:-1].long()].repeat_interleave(packing.starts.diff())


class FirstTokenEncoder(PairEncoder):
    """Runs our forward, whose operations export to ONNX with free batch and length axes."""

    distances: Tensor

    def __init__(self, model: Any, *, dropout: float, freeze_embeddings: bool) -> None:
        super().__init__(model, dropout=dropout, freeze_embeddings=freeze_embeddings)
        self.path = f"{model.config.model_type}: our forward, only the first token in the last layer"
        self.readable_layers = self.layers - 1  # of the last layer only the first token is computed
        self.heads: int = model.config.num_attention_heads
        self.activation = ACT2FN[model.config.hidden_act]
        if self.family.relative_positions:
            # One entry per distance, so that no logarithm has to round the same way in two libraries.
            self.furthest = int(model.config.max_position_embeddings) - 1
            steps = torch.arange(-self.furthest, self.furthest + 1)
            buckets = self.base.encoder.relative_position_bucket(steps)  # [2 * furthest + 1]
            self.register_buffer("distances", buckets, persistent=False)

    @property
    def packs(self) -> bool:
        """Whether flash attention can be used: it takes no bias by distance and has no dropout."""
        return not self.family.relative_positions and self.dropout == 0

    def forward(self, batch: Batch) -> Tensor:
        """See `PairEncoder.forward`."""
        return self.with_hidden_states(batch, ())[0]

    def with_hidden_states(self, batch: Batch, layers: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """See `PairEncoder.with_hidden_states`."""
        require_readable(layers, self.readable_layers)
        states: dict[int, Tensor] = {}
        x = self._embed(batch)
        attention = self._attention(x, batch)
        for number, layer in enumerate(self.base.encoder.layer[:-1]):
            x = self._layer(layer, x, x, attention)
            if number in layers:
                states[number] = x
        first, of_first = attention.first(x)
        first = self._layer(self.base.encoder.layer[-1], first, x, of_first).flatten(0, -2)
        first = self._drop(first) if self.family.dropout_before_dense else first
        return self._drop(torch.tanh(self.dense(first))), states

    def last_hidden_states(self, batch: Batch) -> Tensor:
        """See `PairEncoder.last_hidden_states`."""
        x = self._embed(batch)
        attention = self._attention(x, batch)
        for layer in self.base.encoder.layer:
            x = self._layer(layer, x, x, attention)
        return x

    def _attention(self, x: Tensor, batch: Batch) -> Attention:
        """Attention in the layout of a batch, whose embeddings are x."""
        if batch.packing is not None:
            return Packed(*batch.packing)
        fused = hardware.attention(bf16=False) != "matmul"  # a padded batch, whatever the precision
        return Padded(self._attention_bias(x, batch.attention_mask), fused=fused)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout > 0 else x

    def _embed(self, batch: Batch) -> Tensor:
        tables = self.base.embeddings
        positions = self._positions(batch, tables.padding_idx if self.family.position_offset else None)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_embeddings):
            x = tables.word_embeddings(batch.input_ids) + tables.position_embeddings(positions)
            types = getattr(tables, "token_type_embeddings", None)
            if types is not None:
                x = x + (types.weight[0] if batch.token_type_ids is None else types(batch.token_type_ids))
            x = tables.LayerNorm(x)
        return self._drop(x)

    @staticmethod
    def _positions(batch: Batch, padding: int | None) -> Tensor:
        """Return each token's row in the table of positions, broadcastable to the shape of the batch's input ids.

        Args:
            batch: n pairs.
            padding: where RoBERTa and MPNet count, as in fairseq, from the row after the padding token's id, the tokens
                that are not padding. Every token of that id has that row, also one that a text spells out (`<pad>`).
                None where positions count from 0 whatever the ids are.
        """
        ids, packing = batch.input_ids, batch.packing
        if padding is None:
            counted = torch.arange(ids.shape[-1], device=ids.device)
            return counted if packing is None else counted - _of_first_tokens(counted, packing)
        real = (ids != padding).long()
        counted = real.cumsum(-1)
        if packing is not None:
            counted = counted - _of_first_tokens(counted - real, packing)
        return counted * real + padding

    def _attention_bias(self, x: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Return what is added to attention scores, broadcastable to [n, heads, T, T]; None to add nothing."""
        bias: Tensor | None = None
        if attention_mask is not None:
            bias = ((1 - attention_mask).to(x.dtype) * MASKED)[:, None, None, :]
        if self.family.relative_positions:
            by_distance = self._distance_bias(x.shape[1], x.device)
            bias = by_distance if bias is None else bias + by_distance
        return bias

    def _distance_bias(self, width: int, device: torch.device) -> Tensor:
        """Return MPNet's bias by distance, [1, heads, T, T]."""
        positions = torch.arange(width, device=device)
        table: Tensor = self.base.encoder.relative_attention_bias(self.distances)  # [2 * furthest + 1, heads]
        return table[positions[None] - positions[:, None] + self.furthest].permute(2, 0, 1)[None]

    def _layer(self, layer: Any, queries: Tensor, x: Tensor, attention: Attention) -> Tensor:
        """Compute a layer's output for the tokens `queries`, which attend to all tokens x of their pairs."""
        parts = self.family.parts
        assert parts is not None
        query, key, value, out, norm = (
            layer.get_submodule(name) for name in (parts.query, parts.key, parts.value, parts.out, parts.norm)
        )
        dropout = self.dropout if self.training else 0.0
        context = attention(query(queries), x, key, value, self.heads, dropout)
        y = norm(self._drop(out(context)) + queries)
        wide = self.activation(layer.intermediate.dense(y))
        return layer.output.LayerNorm(self._drop(layer.output.dense(wide)) + y)  # type: ignore[no-any-return]
