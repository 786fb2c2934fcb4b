"""The encoder of a student that reads passages once (METHOD.md, "A student that reads passages once").

A pre-trained encoder E reads question and passage, each without the other. A few small layers then let the tokens of
the question attend to each other and to the states of the passage, and to nothing else. So a passage costs E once, when
it is indexed, and a question costs E once, however many passages there are.

h is the first token's vector after the last layer (or the mean of all), and beside it the cosine of the two embeddings.
The heads of `tmkd.models.student.Student` are linear in it like those of every student. They start at zero but for the
cosine (`start_at_cosine`), so training starts exactly at the bi-encoder cosine.

Kin: MORES (Gao et al. 2020, "Modularized Transfomer-based Ranking Framework"), PreTTR (MacAvaney et al. 2020,
"Efficient Document Re-Ranking for Transformers by Precomputing Term Representations"), DeFormer (Cao et al. 2020).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd.core.hardware import device
from tmkd.models.encoders.attention import added_mask
from tmkd.models.encoders.forward import require_readable
from tmkd.models.encoders.text_batches import StateBatch, TextBatch, TrainedReaders

EPSILON = 1e-6


@dataclass(frozen=True)
class InteractionShape:
    """The numbers of an interaction.

    Attributes:
        encoder_width: d, the width of E's hidden states.
        state_size: k, how many numbers of a passage's token are stored.
        width: w, the width of the interaction layers.
        layers: How many there are.
        heads: Attention heads of each; `width` is a multiple of it.
        ffn: The inner width of the feed-forward part.
        asks: Which tokens of the question attend to the passage in the last layer: the `first` alone, whose vector is
            then h, or `all`, and h is their mean. In the layers before it all do.
        self_attention: Whether the question's tokens attend to each other, too, before they attend to the passage. In
            the first layer this is the same for all passages of a question.
    """

    encoder_width: int
    state_size: int
    width: int
    layers: int = 2
    heads: int = 6
    ffn: int = 768
    asks: Literal["all", "first"] = "first"
    self_attention: bool = True


def unit(states: Tensor) -> Tensor:
    """Scale each state so that its mean square is 1, [..., k]."""
    return states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + EPSILON)


class Attention(nn.Module):
    """Multi-head attention of some tokens to others.

    Args:
        width: Of what asks.
        memory: Width of what is asked.
        heads: How many.
    """

    def __init__(self, width: int, memory: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory, width, bias=False)  # a bias would add the same to every score
        self.value = nn.Linear(memory, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Attend.

        Args:
            x: [n, Tq, w].
            memory: [n, T, m].
            mask: As `added_mask` makes it, [n, 1, 1, T].

        Returns:
            [n, Tq, w].
        """
        query, key, value = (self._split(part) for part in (self.query(x), self.key(memory), self.value(memory)))
        scores = query @ key.transpose(-1, -2) / float(query.shape[-1]) ** 0.5
        weights = (scores.float() + mask).softmax(dim=-1).to(value.dtype)
        found: Tensor = self.output((weights @ value).transpose(1, 2).flatten(2))
        return found

    def _split(self, x: Tensor) -> Tensor:
        """[n, T, w] -> [n, heads, T, w / heads]."""
        n, tokens, _ = x.shape
        return x.view(n, tokens, self.heads, -1).transpose(1, 2)


class InteractionLayer(nn.Module):
    """One layer, pre-norm: x += attention to the question; x += attention to the passage; x += feed-forward.

    Args:
        shape: Its sizes.
        dropout: Probability used in training mode on what each part adds.
    """

    def __init__(self, shape: InteractionShape, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.to_question = Attention(shape.width, shape.width, shape.heads) if shape.self_attention else None
        self.question_norm = nn.LayerNorm(shape.width) if shape.self_attention else None
        self.to_passage = Attention(shape.width, shape.state_size, shape.heads)
        self.passage_norm = nn.LayerNorm(shape.width)
        self.inner, self.outer = nn.Linear(shape.width, shape.ffn), nn.Linear(shape.ffn, shape.width)
        self.ffn_norm = nn.LayerNorm(shape.width)

    def forward(
        self, x: Tensor, question_mask: Tensor, states: Tensor, passage_mask: Tensor, asking: int | None = None
    ) -> Tensor:
        """Compute the next vectors of the tokens that ask.

        Args:
            x: Vectors of the question's tokens, [n, Tq, w]; [1, Tq, w] before the first layer where all pairs have one
                question.
            question_mask: As `added_mask` makes it.
            states: The passages' states, scaled by `unit`, [n, Tp, k].
            passage_mask: As `added_mask` makes it.
            asking: How many of the tokens, from the first, are computed; all unless given.

        Returns:
            [n, asking, w].
        """
        asks = x[:, :asking]
        if self.to_question is not None and self.question_norm is not None:
            own = self.question_norm(x)
            asks = asks + self._drop(self.to_question(own[:, :asking], own, question_mask))
        asks = asks + self._drop(self.to_passage(self.passage_norm(asks), states, passage_mask))
        return asks + self._drop(self.outer(F.gelu(self.inner(self.ffn_norm(asks)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class InteractionEncoder(nn.Module):
    """Computes h of pairs from E's hidden states; it has the interface of `PairEncoder`, but for its batches.

    Args:
        shape: Its sizes.
        source: The checkpoint of E.
        dropout: See `InteractionLayer`.
        question_source: The checkpoint of the encoder of questions; E unless given.

    Attributes:
        readers: E, and the encoder of questions, where they are trained with the student; they then read the texts of
            a `TextBatch`. None where they are frozen.
        trained_from: Of encoders that are trained or were, by their folder's name, the fingerprint of the weights that
            they had before.
        hidden_size: w + 1; the last number of h is the cosine.
        layers: The number of interaction layers.
        readable_layers: As many: each gives the vectors of the question's tokens after it.
        path: One line for the log.
    """

    def __init__(
        self, shape: InteractionShape, source: Path, *, dropout: float = 0.0, question_source: Path | None = None
    ) -> None:
        super().__init__()
        self.shape, self.source, self.question_source = shape, source, question_source
        self.readers: TrainedReaders | None = None
        self.trained_from: dict[str, str] = {}
        self.hidden_size = shape.width + 1
        self.layers = self.readable_layers = shape.layers
        self.path = f"cached: {shape.layers} layers in which the question attends to the passage's stored states"
        self.projection = nn.Linear(shape.encoder_width, shape.state_size)
        self.question_input = (
            nn.Identity() if shape.width == shape.encoder_width else nn.Linear(shape.encoder_width, shape.width)
        )
        self.interaction = nn.ModuleList(InteractionLayer(shape, dropout) for _ in range(shape.layers))
        self.last_norm = nn.LayerNorm(shape.width)

    @property
    def packs(self) -> bool:
        """Whether `readers` take the texts of a batch without padding; on a GPU batches are padded."""
        return self.readers is not None and self.readers.packs and device().type == "cpu"

    def forward(self, batch: StateBatch | TextBatch) -> Tensor:
        """Compute h of every pair, [n, w + 1] float32."""
        return self.with_hidden_states(batch, ())[0]

    def with_hidden_states(
        self, batch: StateBatch | TextBatch, layers: Collection[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Compute h, and the vectors of the question's tokens after some of the layers.

        Args:
            batch: n pairs; token ids where the encoder is trained with the student.
            layers: Indices below `readable_layers`.

        Returns:
            h, [n, w + 1] float32, and for each of the layers [n, Tq, w]; [n, 1, w] for the last one where the first
            token alone asks.

        Raises:
            ValueError: There is no such layer, or token ids are given to a student without `readers`.
        """
        require_readable(layers, self.readable_layers)
        if isinstance(batch, StateBatch):
            states = self.states(batch.passage)
            return self.read(batch.question, batch.question_mask, states, batch.passage_mask, batch.cosine, layers)
        if self.readers is None:
            raise ValueError("a student whose encoder is not trained with it reads states, not token ids")
        questions, passages = self.readers.read(batch)
        asked, read = batch.question_of, batch.passage_of
        states = self.states(passages.states).index_select(0, read)
        cosine = (questions.embeddings.index_select(0, asked) * passages.embeddings.index_select(0, read)).sum(dim=1)
        question = questions.states.index_select(0, asked)
        return self.read(question, questions.mask[asked], states, passages.mask[read], cosine, layers)

    def states(self, hidden: Tensor) -> Tensor:
        """What is stored of a passage's tokens: [..., k] float32 from E's hidden states [..., d]."""
        return unit(self.projection(hidden).float())

    def read(
        self,
        question: Tensor,
        question_mask: Tensor,
        states: Tensor,
        passage_mask: Tensor,
        cosine: Tensor,
        layers: Collection[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Let questions read passages, from what is stored of the passages.

        Args:
            question: As in `StateBatch`.
            question_mask: As in `StateBatch`.
            states: As `states` makes them, [n, Tp, k].
            passage_mask: [n, Tp].
            cosine: [n].
            layers: As in `with_hidden_states`.

        Returns:
            As `with_hidden_states`.
        """
        x, found = self.question_input(question), {}
        to_question, to_passage = added_mask(question_mask), added_mask(passage_mask)
        for number, layer in enumerate(self.interaction):
            asking = 1 if self.shape.asks == "first" and number == self.layers - 1 else None
            x = layer(x, to_question, states, to_passage, asking)
            if number in layers:
                found[number] = x
        tokens = question_mask[:, : x.shape[1], None].float()
        mean = (self.last_norm(x).float() * tokens).sum(dim=1) / tokens.sum(dim=1)
        return torch.cat([mean, cosine[:, None].float()], dim=1), found

    @torch.no_grad()
    def start_projection(self, sample: Tensor) -> None:
        """Start the projection as the principal components of some states, [m, d] float32, m at least k."""
        mean = sample.mean(dim=0)
        components = torch.linalg.svd(sample - mean, full_matrices=False).Vh[: self.shape.state_size]
        self.projection.weight.copy_(components)
        self.projection.bias.copy_(-components @ mean)
