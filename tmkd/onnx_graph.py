"""A folded student as an ONNX graph: the same numbers as its checkpoint, with less work.

Only the first token of the last layer is read, so that layer computes keys and values for all tokens but the query,
the attention output and the feed-forward block for the first alone (METHOD.md, "Exactly equal, and cheaper").
MPNet's relative positions become a table with one row per distance, so that no logarithm has to round the same way
in two libraries.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tmkd.encoder.forward import require_supported
from tmkd.errors import ExportError, MissingExtraError

OPSET = 20
_MASKED = -1e9  # added to the attention score of a padding token; its weight is exactly zero after the softmax


class FirstTokenGraph(nn.Module):
    """Padded token ids in, logits [n, C] out, in operations that export to ONNX with a free batch and length axis.

    Args:
        model: a BERT or MPNet sequence-classification module of transformers, in eval mode.
    """

    distances: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        require_supported(model.config.model_type, "export")
        self.is_mpnet = model.config.model_type == "mpnet"
        self.model = model
        self.base = model.mpnet if self.is_mpnet else model.bert
        self.heads = int(model.config.num_attention_heads)
        self.activation = ACT2FN[model.config.hidden_act]
        if self.is_mpnet:
            self.furthest = int(model.config.max_position_embeddings) - 1
            steps = torch.arange(-self.furthest, self.furthest + 1)
            encoder = self.base.encoder
            table = encoder.relative_attention_bias(encoder.relative_position_bucket(steps)).detach()
            self.register_buffer("distances", table)  # [2 * furthest + 1, heads]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits [n, C] of pairs padded on the right; every argument is [n, T] int64."""
        x = self._embed(input_ids, token_type_ids)
        bias = ((1 - attention_mask).to(x.dtype) * _MASKED)[:, None, None, :]
        if self.is_mpnet:
            bias = bias + self._distance_bias(input_ids.shape[1], x.device)
        layers = list(self.base.encoder.layer)
        for layer in layers[:-1]:
            x = self._layer(layer, x, x, bias)
        first = self._layer(layers[-1], x[:, :1], x, bias[:, :, :1])[:, 0]
        if self.is_mpnet:
            head = self.model.classifier
            return head.out_proj(torch.tanh(head.dense(first)))  # type: ignore[no-any-return]
        return self.model.classifier(torch.tanh(self.base.pooler.dense(first)))  # type: ignore[no-any-return]

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        tables = self.base.embeddings
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = tables.word_embeddings(input_ids)
        if self.is_mpnet:
            x = x + tables.position_embeddings(positions + tables.padding_idx + 1)
        else:
            x = x + tables.position_embeddings(positions)
            if token_type_ids is not None:
                x = x + tables.token_type_embeddings(token_type_ids)
        return tables.LayerNorm(x)  # type: ignore[no-any-return]

    def _distance_bias(self, width: int, device: torch.device) -> Tensor:
        """What MPNet adds to attention scores, [1, heads, T, T]."""
        positions = torch.arange(width, device=device)
        return self.distances[positions[None] - positions[:, None] + self.furthest].permute(2, 0, 1)[None]

    def _layer(self, layer: Any, queries: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """One layer's output for `queries` [n, Q, d], which look at all of `x` [n, T, d]."""
        attention = layer.attention.attn if self.is_mpnet else layer.attention.self
        names = ("q", "k", "v") if self.is_mpnet else ("query", "key", "value")
        q, k, v = (getattr(attention, name) for name in names)
        out = attention.o if self.is_mpnet else layer.attention.output.dense
        norm = layer.attention.LayerNorm if self.is_mpnet else layer.attention.output.LayerNorm
        width = queries.shape[-1] // self.heads
        scores = self._split(q(queries) * (1.0 / math.sqrt(width))) @ self._split(k(x)).transpose(-1, -2) + bias
        context = (torch.softmax(scores, dim=-1) @ self._split(v(x))).transpose(1, 2).flatten(2)
        y = norm(out(context) + queries)
        return layer.output.LayerNorm(layer.output.dense(self.activation(layer.intermediate.dense(y))) + y)  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def write_onnx(model: Any, path: Path) -> None:
    """Write the graph of a sequence-classification module to one file, weights included.

    Inputs `input_ids`, `attention_mask` and, for BERT, `token_type_ids`, int64 [n, T]; output `logits`, float32 [n, C].

    Raises:
        MissingExtraError: the packages that write ONNX are not installed. ExportError: the graph cannot be written.
    """
    names = ["input_ids", "attention_mask"] + ([] if model.config.model_type == "mpnet" else ["token_type_ids"])
    sample = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in names)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    graph = FirstTokenGraph(model).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                graph,
                sample,
                str(path),
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=tuple(axes for _ in names),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise MissingExtraError(f"writing ONNX needs {error.name}; run: pip install 'tmkd[train]'") from error
    except Exception as error:  # the exporter wraps what goes wrong in classes of its own
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError):
                raise cause from error  # a full disk is the caller's to name
            cause = cause.__cause__
        raise ExportError(f"the student cannot be written as ONNX: {str(error).splitlines()[0]}") from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's notes about its own internals and about packages that it could also use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
