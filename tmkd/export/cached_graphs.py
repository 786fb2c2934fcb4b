"""The two graphs of a cached student: the encoder, which reads one text at a time, and the interaction.

Attention to a passage is computed without the keys and values of its tokens (kin: `FirstOfPadded` in
`tmkd.models.encoders.attention`). With W the weight of the keys, the scores of an attention head are
q (s W')' = (q W) s'. With V and b those of the values, and a the attention weights, its output is
a (s V' + b) = (a s) V' + b, because the weights sum to 1. So W and V are multiplied with the question's tokens, of
which there are about ten, in place of the passage's, of which there are about eighty. Two layers for 100 passages of
80 tokens and a question of 12, with states of 96 numbers and 6 heads, take 24 ms of one core in place of 42 in fp32,
and 13 in place of 24 in bf16.

Before the first layer the question's tokens are the same for all passages: what they ask, and their attention to each
other, is computed once. In the last layer one token asks, and its attention to the question is folded in the same way.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd.export.onnx import write_graph
from tmkd.inference.text_encoder import INPUTS, OUTPUTS, QUESTION_OUTPUTS
from tmkd.models.encoders.attention import added_mask
from tmkd.models.encoders.families import takes_token_types
from tmkd.models.encoders.forward import Batch, PairEncoder
from tmkd.models.encoders.interaction import Attention, InteractionEncoder, InteractionLayer

INTERACTION_INPUTS = ("question", "values", "scales", "cosine")


class EncoderGraph(nn.Module):
    """Padded token ids of single texts in; hidden states, what is stored of them, and embeddings out.

    Args:
        encoder: E, without dropout.
        interaction: whose projection is applied; None for an encoder of questions, of which nothing is stored.
    """

    def __init__(self, encoder: PairEncoder, interaction: InteractionEncoder | None) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, interaction

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the states of n texts; every argument is [n, T] int64, padded on the right.

        Returns:
            The last hidden states [n, T, d], the states that are stored of a passage [n, T, k] (where there is a
            projection), and the mean of the hidden states over the tokens, scaled to length 1, [n, d]; all float32.
            Those of padding mean nothing.
        """
        hidden = self.encoder.last_hidden_states(Batch(input_ids, attention_mask, token_type_ids)).float()
        tokens = attention_mask.to(hidden.dtype)[:, :, None]
        mean = (hidden * tokens).sum(dim=1) / tokens.sum(dim=1)
        embedding = F.normalize(mean, dim=-1)
        return (hidden, embedding) if self.projection is None else (hidden, self.projection.states(hidden), embedding)


class InteractionGraph(nn.Module):
    """A question's hidden states and the stored states of n passages in, logits out.

    Args:
        encoder: the interaction.
        weight: of the folded head, [L, w + 1]; L is 1 for two classes, else C.
        bias: of the folded head, [L].
    """

    def __init__(self, encoder: InteractionEncoder, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.question_input, self.last_norm = encoder.question_input, encoder.last_norm
        first = encoder.shape.asks == "first"
        self.layers = nn.ModuleList(
            _Layer(layer, 1 if first and number == encoder.layers - 1 else None)
            for number, layer in enumerate(encoder.interaction)
            if isinstance(layer, InteractionLayer)
        )
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, question: Tensor, values: Tensor, scales: Tensor, cosine: Tensor) -> Tensor:
        """Compute the logits of n pairs.

        Args:
            question: hidden states of the question's tokens, [1, Tq, d] float32, without padding.
            values: of the passages' states, [n, Tp, k] int8.
            scales: of the passages' tokens, [n, Tp] float32; 0 for padding.
            cosine: of the two embeddings, [n] float32.

        Returns:
            [n, L] float32.
        """
        states = values.float() * scales[:, :, None]
        mask = added_mask(scales != 0)
        x = self.question_input(question)
        for layer in self.layers:
            x = layer(x, states, mask)
        logits: Tensor = self.head(torch.cat([self.last_norm(x).mean(dim=1), cosine[:, None]], dim=1))
        return logits


class _Layer(nn.Module):
    """An `InteractionLayer` whose attention to the passage is folded; a question has no padding.

    Where the first token alone asks, so is its attention to the question's other tokens.
    """

    def __init__(self, layer: InteractionLayer, asking: int | None) -> None:
        super().__init__()
        self.layer, self.asking = layer, asking
        self.to_passage = FoldedAttention(layer.to_passage)
        self.to_question = None if layer.to_question is None or asking is None else FoldedAttention(layer.to_question)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        layer, asks = self.layer, x[:, : self.asking]
        if layer.to_question is not None and layer.question_norm is not None:
            own = layer.question_norm(x)
            whole = x.new_zeros(())
            if self.to_question is not None:
                asks = asks + self.to_question(own[:, : self.asking], own, whole)
            else:
                asks = asks + layer.to_question(own, own, whole)
        asks = asks + self.to_passage(layer.passage_norm(asks), states, mask)
        found: Tensor = asks + layer.outer(F.gelu(layer.inner(layer.ffn_norm(asks))))
        return found


class FoldedAttention(nn.Module):
    """Attention to passages, with keys and values folded into the queries and the output.

    Args:
        attention: gives the weights.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads
        width = attention.query.out_features // self.heads
        self.query, self.scale = attention.query, float(width) ** 0.5
        self.output = attention.output
        self.key = nn.Parameter(attention.key.weight.detach().unflatten(0, (self.heads, width)))  # [heads, width, k]
        value = attention.value.weight.detach().unflatten(0, (self.heads, width))
        self.value = nn.Parameter(value.transpose(1, 2).contiguous())  # [heads, k, width]
        self.value_bias = attention.value.bias

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Attend.

        Args:
            x: [n, Tq, w]; [1, Tq, w] where all passages are asked the same.
            states: what they attend to, [n, Tp, k].
            mask: as `added_mask` makes it, [n, 1, 1, Tp]; or a zero.

        Returns:
            [n, Tq, w].
        """
        n, asking = states.shape[0], x.shape[1]
        query = (self.query(x) / self.scale).unflatten(2, (self.heads, -1)).permute(2, 0, 1, 3).flatten(1, 2)
        folded = (query @ self.key).unflatten(1, (-1, asking)).transpose(0, 1).flatten(1, 2)  # [n or 1, heads Tq, k]
        scores = (folded @ states.transpose(1, 2)).unflatten(1, (self.heads, asking))
        weights = (scores + mask).softmax(dim=-1).flatten(1, 2)  # [n, heads Tq, Tp]
        seen = (weights @ states).unflatten(1, (self.heads, asking)).transpose(0, 1).flatten(1, 2)
        context = (seen @ self.value).unflatten(1, (n, asking)).permute(1, 2, 0, 3).flatten(2) + self.value_bias
        found: Tensor = self.output(context)
        return found


def write_encoder(encoder: PairEncoder, interaction: InteractionEncoder | None, path: Path) -> None:
    """Write an encoder's graph: `INPUTS`, where the architecture has them, to `OUTPUTS`.

    Args:
        encoder: E.
        interaction: whose projection the graph applies; None for an encoder of questions: `QUESTION_OUTPUTS`.
        path: the file to write.

    Raises:
        MissingExtraError: as `write_graph`.
        ExportError: as `write_graph`.
    """
    names = INPUTS if takes_token_types(encoder.config) else INPUTS[:2]
    sample = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in names)
    axes = {0: "texts", 1: "tokens"}
    outputs = QUESTION_OUTPUTS if interaction is None else OUTPUTS
    write_graph(EncoderGraph(encoder, interaction).eval(), sample, names, outputs, [axes] * len(names), path)


def write_interaction(encoder: InteractionEncoder, weight: Tensor, bias: Tensor, path: Path) -> None:
    """Write the interaction's graph: `INTERACTION_INPUTS` to `logits`.

    Args:
        encoder: the interaction.
        weight: of the folded head, [L, w + 1].
        bias: of the folded head, [L].
        path: the file to write.

    Raises:
        MissingExtraError: as `write_graph`.
        ExportError: as `write_graph`.
    """
    shape = encoder.shape
    sample = (
        torch.ones(1, 5, shape.encoder_width),
        torch.ones(3, 7, shape.state_size, dtype=torch.int8),
        torch.ones(3, 7),
        torch.ones(3),
    )
    passages = {0: "passages", 1: "tokens"}
    axes = [{1: "asking"}, passages, passages, {0: "passages"}]
    write_graph(InteractionGraph(encoder, weight, bias).eval(), sample, INTERACTION_INPUTS, ["logits"], axes, path)
