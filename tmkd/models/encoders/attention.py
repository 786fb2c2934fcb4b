"""Attention over one batch of pairs, in the two layouts that a batch can have: padded or packed.

Which layout is faster depends on the machine; `tmkd.core.hardware` chooses. All give the same numbers up to rounding.
Shapes: n pairs, T tokens of the padded width, d the hidden size, `heads` attention heads.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(Protocol):
    """Attention in one layout. x holds the vectors of all tokens, in the shape of the layout."""

    def first(self, x: Tensor) -> tuple[Tensor, Attention]:
        """Return the vectors of every pair's first token, and an attention whose queries are these tokens alone."""

    def __call__(self, q: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear, heads: int, dropout: float) -> Tensor:
        """Compute softmax(q key(x)' / sqrt(d / heads)) value(x) within every pair.

        Args:
            q: queries of the tokens that attend, shaped as those tokens are.
            x: vectors of all tokens.
            key: linear layer of the keys.
            value: linear layer of the values.
            heads: number of attention heads; each has d / heads dimensions.
            dropout: probability of dropping an attention weight.

        Returns:
            The context of every query, shaped as q.
        """


class Padded:
    """Attention over a padded batch: x is [n, T, d].

    Args:
        bias: added to the scores, broadcastable to [n, heads, T, T]; None to add nothing.
        fused: whether to use PyTorch's scaled-dot-product attention instead of two matrix products. On a CPU the two
            products are faster at these lengths, above all in the backward pass.
    """

    def __init__(self, bias: Tensor | None, *, fused: bool) -> None:
        self.bias, self.fused = bias, fused

    def first(self, x: Tensor) -> tuple[Tensor, Attention]:
        """See `Attention.first`."""
        bias = None if self.bias is None else self.bias[:, :, 0]  # a bias of padding alone has a single row of queries
        return x[:, :1], FirstOfPadded(bias)

    def __call__(self, q: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear, heads: int, dropout: float) -> Tensor:
        """See `Attention.__call__`."""
        q, k, v = (x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (q, key(x), value(x)))
        if self.fused:
            bias = None if self.bias is None else self.bias.to(q.dtype)
            return F.scaled_dot_product_attention(q, k, v, bias, dropout).transpose(1, 2).flatten(2)
        scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
        return (_weights(scores, self.bias, dropout).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _weights(scores: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Return the attention weights, shaped as the scores; the scores are changed in place."""
    if bias is not None:
        scores += bias.to(scores.dtype)  # a bias of higher precision would raise that of all that follows
    weights = torch.softmax(scores, dim=-1)
    return F.dropout(weights, dropout) if dropout > 0 else weights


class FirstOfPadded:
    """Attention of a padded batch with one query per pair, q [n, 1, d]: the same numbers, for less work.

    The keys and values of the tokens are never computed. With W and b the weight and bias of the keys, the scores of an
    attention head are q (x W' + b)' = (q W) x' + q b'. With those of the values, and a the attention weights, its
    output is a (x W' + b) = (a x) W' + (sum of a) b. So W is multiplied with one vector per pair and head in place of
    every token's vector. With 12 heads of 32 dimensions that is 1/32 of the work of keys and values.

    Args:
        bias: added to the scores, broadcastable to [n, heads, T]; None to add nothing.
    """

    def __init__(self, bias: Tensor | None) -> None:
        self.bias = bias

    def first(self, x: Tensor) -> tuple[Tensor, Attention]:
        """See `Attention.first`."""
        return x[:, :1], self

    def __call__(self, q: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear, heads: int, dropout: float) -> Tensor:
        """See `Attention.__call__`."""
        n, _, d = q.shape
        of_heads = (heads, d // heads, d)  # the rows of a weight matrix, head by head
        q = (q * (1.0 / math.sqrt(d // heads))).view(n, heads, -1).transpose(0, 1)  # [heads, n, d / heads]
        scores = (q @ key.weight.view(of_heads)).transpose(0, 1) @ x.transpose(1, 2)  # [n, heads, T]
        # The same for all tokens of a query, so the softmax ignores it; the parameter still needs its gradient.
        scores += (q @ key.bias.view(heads, -1, 1)).transpose(0, 1)
        weights = _weights(scores, self.bias, dropout)
        seen = (weights.to(x.dtype) @ x).transpose(0, 1)  # [heads, n, d]
        context = (seen @ value.weight.view(of_heads).transpose(1, 2)).transpose(0, 1)  # [n, heads, d / heads]
        whole = weights.sum(-1, keepdim=True) if dropout > 0 else 1.0
        return (context + whole * value.bias.view(heads, -1)).flatten(1)[:, None]


class Packed:
    """Attention over a packed batch, pairs one after another without padding: x is [tokens, d].

    On a GPU it uses PyTorch's variable-length flash attention; elsewhere it goes pair by pair, which is slow.

    Args:
        starts: where each pair starts, and the end of the last, [n + 1] int32.
        longest: most tokens of a pair.
        query_starts: the same for the queries, where not every token is one.
    """

    def __init__(self, starts: Tensor, longest: int, query_starts: Tensor | None = None) -> None:
        self.starts, self.longest = starts, longest
        self.query_starts = starts if query_starts is None else query_starts

    def first(self, x: Tensor) -> tuple[Tensor, Attention]:
        """See `Attention.first`."""
        one_each = torch.arange(len(self.starts), dtype=torch.int32, device=x.device)
        return x[self.starts[:-1].long()], Packed(self.starts, self.longest, one_each)

    def __call__(self, q: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear, heads: int, dropout: float) -> Tensor:
        """See `Attention.__call__`; dropout must be 0."""
        assert dropout == 0, "packed batches have no dropout on attention weights"
        q, k, v = (x.view(x.shape[0], heads, -1) for x in (q, key(x), value(x)))
        if q.is_cuda:
            from torch.nn.attention.varlen import varlen_attn

            most_queries = self.longest if self.query_starts is self.starts else 1
            out = varlen_attn(q, k, v, self.query_starts, self.starts, most_queries, self.longest)
            assert isinstance(out, Tensor)
            return out.flatten(1)
        queries, starts = self.query_starts.tolist(), self.starts.tolist()
        found = []
        for i in range(len(starts) - 1):
            inside = slice(starts[i], starts[i + 1])
            q_i, k_i, v_i = (x.transpose(0, 1) for x in (q[queries[i] : queries[i + 1]], k[inside], v[inside]))
            found.append(F.scaled_dot_product_attention(q_i, k_i, v_i).transpose(0, 1).flatten(1))
        return torch.cat(found)
