"""Attention over one batch of pairs, in the two layouts that a batch can have: padded or packed.

Which layout is faster depends on the machine; `tmkd.core.hardware` chooses. All give the same numbers up to rounding.
Shapes: n pairs, T tokens of the padded width, d the hidden size, `heads` attention heads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -1e9  # added to the attention score of a padding token; its weight is exactly zero after the softmax


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


class _Rectangle(NamedTuple):
    """Some tokens of texts as a rectangle with a text in each line.

    Attributes:
        texts: n.
        width: T, tokens of the longest text.
        slots: where the tokens are in it, [tokens] int64, below n * T; None where it has no padding.
        bias: added to scores of its tokens, [n, 1, 1, T] float32; None where it has no padding.
    """

    texts: int
    width: int
    slots: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, lengths: Sequence[int]) -> _Rectangle:
        """The rectangle of n texts, given their lengths."""
        width, counts = max(lengths), torch.tensor(lengths)
        if min(lengths) == width:
            return cls(len(lengths), width, None, None)
        inside = torch.arange(width) < counts[:, None]
        bias = (1.0 - inside.float())[:, None, None] * MASKED
        return cls(len(lengths), width, inside.flatten().nonzero().flatten(), bias)

    def filled(self, x: Tensor, heads: int) -> Tensor:
        """[tokens, d] -> [n, heads, T, d / heads], zeros where there is no token."""
        if self.slots is not None:
            x = _Fill.apply(x, self.slots, self.texts * self.width)  # type: ignore[no-untyped-call]
        return x.view(self.texts, self.width, heads, -1).transpose(1, 2)

    def taken(self, x: Tensor) -> Tensor:
        """[n, heads, T, d / heads] -> [tokens, d]."""
        x = x.transpose(1, 2).flatten(2).flatten(0, 1)
        if self.slots is not None:
            x = _Take.apply(x, self.slots)  # type: ignore[no-untyped-call]
        return x


class _Fill(torch.autograd.Function):
    """Put rows at their places among `count` rows, zeros elsewhere. Each is the other's backward (`_Take`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(slots)
        return x.new_zeros(count, x.shape[1]).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, *ctx.saved_tensors), None, None


class _Take(torch.autograd.Function):
    """Take rows from their places, none twice. PyTorch's own backward of `index_select` adds, which is slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.count = len(x)
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, gradient.shape[1]).index_copy_(0, slots, gradient), None


class Packed:
    """Attention over a packed batch, pairs one after another without padding: x is [tokens, d].

    On a GPU it uses PyTorch's variable-length flash attention. Elsewhere neighbours of similar length (up to twice the
    shortest) are padded to a rectangle for attention alone, so a batch should be sorted by length.

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
        k, v = key(x), value(x)
        if q.is_cuda:
            from torch.nn.attention.varlen import varlen_attn

            most_queries = self.longest if self.query_starts is self.starts else 1
            q, k, v = (one.view(one.shape[0], heads, -1) for one in (q, k, v))
            out = varlen_attn(q, k, v, self.query_starts, self.starts, most_queries, self.longest)
            assert isinstance(out, Tensor)
            return out.flatten(1)
        asked, known = ([sum(lengths) for lengths in sizes] for sizes in zip(*self._runs, strict=True))
        parts = zip(self._rectangles, q.split(asked), k.split(known), v.split(known), strict=True)
        return torch.cat([self._attend(both, of_run, heads) for both, *of_run in parts])

    @staticmethod
    def _attend(both: tuple[_Rectangle, _Rectangle], of_run: Sequence[Tensor], heads: int) -> Tensor:
        """Attention within neighbours of similar length, from their queries, keys and values."""
        asking, known = both
        q, k, v = (where.filled(x, heads) for where, x in zip((asking, known, known), of_run, strict=True))
        weights = _weights((q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2), known.bias, 0)
        return asking.taken(weights.to(v.dtype) @ v)

    @functools.cached_property
    def _rectangles(self) -> list[tuple[_Rectangle, _Rectangle]]:
        """Of the queries and of the tokens of every run."""
        return [(_Rectangle.of(asked), _Rectangle.of(known)) for asked, known in self._runs]

    @functools.cached_property
    def _runs(self) -> list[tuple[list[int], list[int]]]:
        """Neighbours of similar length: how many queries and tokens each has."""
        runs: list[tuple[list[int], list[int]]] = []
        for asked, known in zip(self.query_starts.diff().tolist(), self.starts.diff().tolist(), strict=True):
            if not runs or max(known, *runs[-1][1]) > 2 * min(known, *runs[-1][1]):
                runs.append(([], []))
            runs[-1][0].append(asked)
            runs[-1][1].append(known)
        return runs
