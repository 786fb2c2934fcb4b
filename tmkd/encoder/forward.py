"""Our forward over the modules of a transformers checkpoint: same parameters, same names, less work.

Two things are cheaper here and exactly equal (METHOD.md, "Exactly equal, and cheaper"): only the first token of the
last layer is computed, and attention is two plain matrix products (SDPA's CPU backward is slow at these lengths).
BERT-like and MPNet encoders are known; others are refused with the list of what works.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tmkd.errors import EncoderError

SUPPORTED = ("bert", "mpnet")


def require_supported(model_type: str, where: str) -> None:
    """Refuse an architecture that has no forward here."""
    if model_type not in SUPPORTED:
        raise EncoderError(
            f"{where}: encoders of type {model_type!r} are not supported; supported are {', '.join(SUPPORTED)} "
            '(BERT, MiniLM and other models with `"model_type": "bert"`, and MPNet)'
        )


class FirstTokenEncoder(nn.Module):
    """A sequence-classification checkpoint without its last linear layer: pairs in, h out.

    Attributes:
        model: the transformers module that holds the parameters (its own head's linear layer is not used).
        hidden_size: d.
        dropout: probability used in training mode on attention weights, block outputs and h.
        freeze_embeddings: keep the embedding tables (and their LayerNorm) as they are.
    """

    def __init__(self, model: Any, *, dropout: float = 0.0, freeze_embeddings: bool = True) -> None:
        super().__init__()
        require_supported(model.config.model_type, "encoder")
        self.model = model
        self.config = model.config
        self.hidden_size: int = model.config.hidden_size
        self.layers: int = model.config.num_hidden_layers
        self.heads: int = model.config.num_attention_heads
        self.dropout = dropout
        self.freeze_embeddings = freeze_embeddings
        self.activation = ACT2FN[model.config.hidden_act]
        self.is_mpnet = model.config.model_type == "mpnet"
        self.base = model.mpnet if self.is_mpnet else model.bert
        self.dense = model.classifier.dense if self.is_mpnet else self.base.pooler.dense
        for parameter in self.base.embeddings.parameters():
            parameter.requires_grad_(not freeze_embeddings)
        unused = model.classifier.out_proj if self.is_mpnet else model.classifier
        for parameter in unused.parameters():
            parameter.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """h of every pair, [n, d]: what the checkpoint's own class feeds to its last linear layer.

        Args:
            input_ids: [n, T] int64, padded on the right.
            attention_mask: [n, T], 1 for a token and 0 for padding.
            token_type_ids: [n, T] int64; ignored by MPNet, which has none.
        """
        x = self._embed(input_ids, token_type_ids)
        bias = self._attention_bias(x, attention_mask)
        for number, layer in enumerate(self.base.encoder.layer):
            x = self._layer(layer, x, bias, first_only=number == self.layers - 1)
        first = x[:, 0]
        return self._drop(torch.tanh(self.dense(self._drop(first) if self.is_mpnet else first)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout > 0 else x

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        tables = self.base.embeddings
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_embeddings):
            x = tables.word_embeddings(input_ids)
            if self.is_mpnet:
                # MPNet counts positions from padding_idx + 1; with padding on the right they are an arange.
                x = x + tables.position_embeddings(positions + tables.padding_idx + 1)
            else:
                x = x + tables.position_embeddings(positions) + tables.token_type_embeddings(token_type_ids)
            x = tables.LayerNorm(x)
        return self._drop(x)

    def _attention_bias(self, x: Tensor, attention_mask: Tensor) -> Tensor | None:
        """What is added to attention scores, broadcastable to [n, heads, T, T]; None where nothing is."""
        bias: Tensor | None = None
        if self.is_mpnet:
            bias = self.base.encoder.compute_position_bias(x[:1])
        if not bool(attention_mask.all()):
            padding = torch.zeros(attention_mask.shape, dtype=x.dtype, device=x.device)
            padding = padding.masked_fill(attention_mask == 0, torch.finfo(torch.float32).min / 2)[:, None, None, :]
            bias = padding if bias is None else bias + padding
        return bias

    def _layer(self, layer: Any, x: Tensor, bias: Tensor | None, first_only: bool) -> Tensor:
        q, k, v, out, norm = _attention_parts(layer, self.is_mpnet)
        queries = x[:, :1] if first_only else x  # keys and values are needed of all tokens, the rest of one
        if first_only and bias is not None:
            bias = bias[:, :, :1] if bias.shape[2] > 1 else bias
        scaled = q(queries) * (1.0 / math.sqrt(self.hidden_size // self.heads))
        scores = self._split(scaled) @ self._split(k(x)).transpose(-1, -2)
        if bias is not None:
            scores += bias.to(scores.dtype)  # a wider bias would widen all that follows
        weights = self._drop(torch.softmax(scores, dim=-1))
        values = self._split(v(x))
        context = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        x = norm(self._drop(out(context)) + queries)
        wide = self.activation(layer.intermediate.dense(x))
        return layer.output.LayerNorm(self._drop(layer.output.dense(wide)) + x)  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def _attention_parts(layer: Any, is_mpnet: bool) -> tuple[Any, Any, Any, Any, Any]:
    """query, key, value, output projection and LayerNorm of a layer, under either family's names."""
    if is_mpnet:
        attention = layer.attention.attn
        return attention.q, attention.k, attention.v, attention.o, layer.attention.LayerNorm
    attention = layer.attention
    inner = attention.self
    return inner.query, inner.key, inner.value, attention.output.dense, attention.output.LayerNorm
