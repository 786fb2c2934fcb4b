"""Attention over one batch of pairs, in the two layouts that a batch can have: padded or packed.

Which is faster depends on the machine: `tmkd/core/hardware.py` chooses. All give the same numbers, to rounding.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(Protocol):
    """What a layer needs of a batch's layout. Rows of x are tokens, in whatever shape the layout has."""

    def first(self, x: Tensor) -> tuple[Tensor, Attention]:
        """The first token of every pair, and the attention in which these alone ask."""

    def __call__(self, q: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear, heads: int, dropout: float) -> Tensor:
        """Softmax(q key(x)' / sqrt(d / heads)) value(x) inside every pair; shaped as q. dropout: of the weights."""


class Padded:
    """Rectangles: x is [n, T, d].

    Args:
        bias: added to the scores, broadcastable to [n, heads, T, T]; None where nothing is.
        fused: PyTorch's scaled-dot-product attention rather than two plain matrix products, which are faster on a CPU
            at these lengths (its backward above all).
    """

    def __init__(self, bias: Tensor | None, *, fused: bool) -> None:
        self.bias, self.fused = bias, fused

    def first(self, x: Tensor) -> tuple[Tensor, Attention]:
        """See `Attention.first`."""
        bias = None if self.bias is None else self.bias[:, :, 0]  # one row is all there is of a bias of padding only
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
    """Attention weights, shaped as the scores, which are changed in place."""
    if bias is not None:
        scores += bias.to(scores.dtype)  # a wider bias would widen all that follows
    weights = torch.softmax(scores, dim=-1)
    return F.dropout(weights, dropout) if dropout > 0 else weights


class FirstOfPadded:
    """One query a pair, q is [n, 1, d]: the same numbers, and the keys and values of the tokens are never computed.

    A head's scores are q (x W' + b)' = (q W) x' + q b' with the keys' W and b; its output is a (x W' + b) =
    (a x) W' + (sum a) b with those of the values. So a weight meets one row a head where it met every token, and what
    every token meets is one row a head: with 12 heads of 32, 1/32 of the work of keys and values.

    Args:
        bias: added to the scores, broadcastable to [n, heads, T]; None where nothing is.
    """

    def __init__(self, bias: Tensor | None) -> None:
        self.bias = bias

    def first(self, x: Tensor) -> tuple[Tensor, Attention]:
        """See `Attention.first`."""
        return x[:, :1], self

    def __call__(self, q: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear, heads: int, dropout: float) -> Tensor:
        """See `Attention.__call__`."""
        n, _, d = q.shape
        of_heads = (heads, d // heads, d)  # rows of a weight, head by head
        q = (q * (1.0 / math.sqrt(d // heads))).view(n, heads, -1).transpose(0, 1)  # [heads, n, d / heads]
        scores = (q @ key.weight.view(of_heads)).transpose(0, 1) @ x.transpose(1, 2)  # [n, heads, T]
        scores += (q @ key.bias.view(heads, -1, 1)).transpose(0, 1)  # moves a row as a whole: for its gradient alone
        weights = _weights(scores, self.bias, dropout)
        seen = (weights.to(x.dtype) @ x).transpose(0, 1)  # [heads, n, d]
        context = (seen @ value.weight.view(of_heads).transpose(1, 2)).transpose(0, 1)  # [n, heads, d / heads]
        whole = weights.sum(-1, keepdim=True) if dropout > 0 else 1.0
        return (context + whole * value.bias.view(heads, -1)).flatten(1)[:, None]


class Packed:
    """Pairs one after another without padding: x is [tokens, d].

    On a GPU by PyTorch's variable-length flash attention; elsewhere pair by pair, correct and slow.

    Args:
        starts: where each pair begins, and the end, [n + 1] int32.
        longest: most tokens of a pair.
    """

    def __init__(self, starts: Tensor, longest: int, asking: Tensor | None = None) -> None:
        self.starts, self.longest = starts, longest
        self.asking = starts if asking is None else asking  # the same for the queries

    def first(self, x: Tensor) -> tuple[Tensor, Attention]:
        """See `Attention.first`."""
        one_each = torch.arange(len(self.starts), dtype=torch.int32, device=x.device)
        return x[self.starts[:-1].long()], Packed(self.starts, self.longest, one_each)

    def __call__(self, q: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear, heads: int, dropout: float) -> Tensor:
        """See `Attention.__call__`; without dropout."""
        assert dropout == 0, "packed batches have no dropout on attention weights"
        q, k, v = (x.view(x.shape[0], heads, -1) for x in (q, key(x), value(x)))
        if q.is_cuda:
            from torch.nn.attention.varlen import varlen_attn

            longest_asking = self.longest if self.asking is self.starts else 1
            out = varlen_attn(q, k, v, self.asking, self.starts, longest_asking, self.longest)
            assert isinstance(out, Tensor)
            return out.flatten(1)
        asked, starts = self.asking.tolist(), self.starts.tolist()
        found = []
        for i in range(len(starts) - 1):
            inside = slice(starts[i], starts[i + 1])
            q_i, k_i, v_i = (x.transpose(0, 1) for x in (q[asked[i] : asked[i + 1]], k[inside], v[inside]))
            found.append(F.scaled_dot_product_attention(q_i, k_i, v_i).transpose(0, 1).flatten(1))
        return torch.cat(found)
