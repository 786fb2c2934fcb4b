"""Attention over one batch of pairs, in the two layouts that a batch can have: padded or packed.

Which layout is faster depends on the machine; `tmkd.core.hardware` chooses. All give the same numbers up to rounding.
Shapes: n pairs, T tokens of the padded width, d the hidden size, `heads` attention heads.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -1e9  # added to the attention score of a padding token; its weight is exactly zero after the softmax


def added_mask(mask: Tensor) -> Tensor:
    """What is added to attention scores: 0 for a token and `MASKED` for padding, [n, 1, 1, T] float32 from [n, T]."""
    return (1.0 - mask.float())[:, None, None, :] * MASKED


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


class Rectangle(NamedTuple):
    """Where the tokens of n texts, stored one text after another, stand in a rectangle of one line per text.

    Attributes:
        inside: which places hold a token, [n, T] bool; T is the length of the longest text.
        slots: the places of the tokens, [tokens] int64, below n * T; None where all hold one.
    """

    inside: Tensor
    slots: Tensor | None

    @classmethod
    def of(cls, lengths: Tensor) -> Rectangle:
        """The rectangle of n texts, given their lengths, [n] int."""
        inside = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        return cls(inside, None if bool(inside.all()) else inside.flatten().nonzero().flatten())

    @property
    def tokens(self) -> int:
        """How many tokens the texts have."""
        return self.inside.numel() if self.slots is None else len(self.slots)

    def filled(self, x: Tensor) -> Tensor:
        """[tokens, d] -> [n, T, d], zeros where there is no token."""
        if self.slots is not None:
            x = x.new_zeros(self.inside.numel(), x.shape[1]).index_copy(0, self.slots, x)
        return x.view(*self.inside.shape, -1)

    def taken(self, x: Tensor) -> Tensor:
        """[n, T, d] -> [tokens, d]."""
        x = x.flatten(0, 1)
        if self.slots is not None:
            x = _Take.apply(x, self.slots)  # type: ignore[no-untyped-call]
        return x


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


class _Run(NamedTuple):
    """Neighbours of similar length in a packed batch.

    Attributes:
        asking: where their queries are.
        known: where their tokens are.
        bias: added to the scores of the tokens, [n, 1, 1, T] float32; None where there is no padding.
    """

    asking: Rectangle
    known: Rectangle
    bias: Tensor | None

    @classmethod
    def of(cls, asking: Tensor, known: Tensor) -> _Run:
        """Of n pairs with so many queries and tokens, [n] int each."""
        tokens = Rectangle.of(known)
        return cls(Rectangle.of(asking), tokens, None if tokens.slots is None else added_mask(tokens.inside))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Attention within each pair, from the queries, keys and values of all, [tokens, d] each."""
        padded = self.asking.filled(q), self.known.filled(k), self.known.filled(v)
        q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in padded)
        weights = _weights((q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2), self.bias, 0)
        return self.asking.taken((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))


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
        asked, known = [run.asking.tokens for run in self._runs], [run.known.tokens for run in self._runs]
        parts = zip(self._runs, q.split(asked), k.split(known), v.split(known), strict=True)
        return torch.cat([run.attend(q_i, k_i, v_i, heads) for run, q_i, k_i, v_i in parts])

    @functools.cached_property
    def _runs(self) -> list[_Run]:
        """Neighbours of similar length."""
        lengths, firsts, shortest, longest = self.starts.diff(), [], 0, 0
        for place, length in enumerate(lengths.tolist()):
            shortest, longest = min(shortest, length), max(longest, length)
            if longest > 2 * shortest:  # as for the very first one
                firsts.append(place)
                shortest = longest = length
        sizes = [end - first for first, end in itertools.pairwise([*firsts, len(lengths)])]
        both = zip(self.query_starts.diff().split(sizes), lengths.split(sizes), strict=True)
        return [_Run.of(asking, known) for asking, known in both]
