"""The encoder of the `bilstm` baseline: a bidirectional LSTM over word pieces, small and without attention.

The pair is read in the order of its tokens, question first, so the LSTM reads the passage in a state that depends on
the question (Rocktaeschel et al. 2016, conditional encoding). The question's vector u and the passage's vector v are
each the maximum over their tokens' hidden states; h is tanh of a linear layer over [u; v; |u - v|; u * v] (Tang et al.
2019, "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks"). The embedding table comes from a
trained model; each vector is normalised to zero mean and unit variance.

Other tools do not have this architecture: its folder holds the same files as that of other models, but only tmkd opens
it, and it cannot be exported.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd.core.errors import EncoderError
from tmkd.core.files import read_json, write_json
from tmkd.core.open_files import require_room
from tmkd.models.encoders.families import model_type
from tmkd.models.encoders.find import WEIGHTS_FILE
from tmkd.models.encoders.forward import Batch, require_readable
from tmkd.models.encoders.tensors import read_tensors, require_finite, write_tensors

MODEL_TYPE = "bilstm"
LAYERS = 1


@dataclass(frozen=True)
class LstmShape:
    """The numbers that config.json holds.

    Attributes:
        vocab_size: rows of the embedding table.
        embedding_size: width of the embedding table.
        hidden_size: width of the LSTM's hidden state, in each direction.
        separator: token id that ends the question.
        pad_token_id: token id of padding.
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    separator: int
    pad_token_id: int


class LstmEncoder(nn.Module):
    """An encoder of pairs with the interface of `PairEncoder`.

    Args:
        shape: its sizes.
        dropout: probability used in training mode on embeddings, on the input of the last layer and on h.
        freeze_embeddings: whether the embedding table stays as it is.

    Attributes:
        hidden_size: d, twice the LSTM's hidden size.
        layers: 1.
        readable_layers: 0.
        packs: False; batches must be padded.
        path: one line for the log.
    """

    packs = False
    readable_layers = 0
    layers = LAYERS
    path = "bilstm: a bidirectional LSTM, no attention"

    def __init__(self, shape: LstmShape, *, dropout: float = 0.0, freeze_embeddings: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.hidden_size = 2 * shape.hidden_size
        self.dropout = dropout
        self.embeddings = nn.Embedding(shape.vocab_size, shape.embedding_size)
        self.embeddings.weight.requires_grad_(not freeze_embeddings)
        self.ahead = nn.LSTM(shape.embedding_size, shape.hidden_size, LAYERS, batch_first=True)
        self.back = nn.LSTM(shape.embedding_size, shape.hidden_size, LAYERS, batch_first=True)
        self.dense = nn.Linear(4 * self.hidden_size, self.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """Compute h of every pair, [n, d].

        It is computed in float32 whatever the precision, because an LSTM's state accumulates over the whole pair.

        Args:
            batch: n pairs, padded.

        Returns:
            h, [n, d] float32.
        """
        assert batch.packing is None
        input_ids = batch.input_ids
        mask = torch.ones_like(input_ids) if batch.attention_mask is None else batch.attention_mask
        with torch.autocast(input_ids.device.type, enabled=False):
            hidden = self._hidden_states(
                self._drop(F.layer_norm(self.embeddings(input_ids), (self.shape.embedding_size,))), mask
            )
            u, v = (_maximum(hidden, side) for side in self._sides(batch, mask))
            return self._drop(torch.tanh(self.dense(self._drop(torch.cat([u, v, (u - v).abs(), u * v], dim=-1)))))

    def with_hidden_states(self, batch: Batch, layers: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """See `PairEncoder.with_hidden_states`; an LSTM gives no hidden states.

        Raises:
            ValueError: any layer is asked for.
        """
        require_readable(layers, self.readable_layers)
        return self(batch), {}

    def _hidden_states(self, x: Tensor, mask: Tensor) -> Tensor:
        """Compute the hidden states of every token in both directions, [n, T, d]; those of padding have no meaning.

        Two LSTMs: the second reads each pair reversed within its own length, so that padding comes last for both.
        PyTorch's packed bidirectional LSTM gives the same and trains at a third of the speed on a CPU.

        Args:
            x: embeddings, [n, T, embedding_size].
            mask: 1 for a token and 0 for padding, [n, T].
        """
        steps = torch.arange(x.shape[1], device=x.device)[None]
        lengths = mask.sum(dim=1, keepdim=True)
        reversed_ = torch.where(steps < lengths, lengths - 1 - steps, steps)[..., None]  # its own inverse
        back = self.back(x.gather(1, reversed_.expand_as(x)))[0]
        return torch.cat([self.ahead(x)[0], back.gather(1, reversed_.expand_as(back))], dim=-1)

    def _sides(self, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return which tokens are the question's and which the passage's, [n, T] bool.

        Segment ids say it; where there are none the first separator ends the question, also one that its text spells.
        """
        ends = (batch.input_ids == self.shape.separator).long()
        after, types = ends.cumsum(dim=1) - ends > 0, batch.token_type_ids
        if types is not None:
            after = torch.where(types.any(dim=1, keepdim=True), types.bool(), after)
        return ~after & mask.bool(), after & mask.bool()

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _maximum(hidden: Tensor, tokens: Tensor) -> Tensor:
    """Return the maximum of hidden [n, T, d] over the chosen tokens [n, T], as [n, d]; 0 where none is chosen."""
    found = hidden.masked_fill(~tokens[..., None], -torch.inf).amax(dim=1)
    return torch.where(tokens.any(dim=1)[:, None], found, 0.0)


def is_lstm(folder: Path) -> bool:
    """Return whether a model folder holds this architecture."""
    return model_type(folder) == MODEL_TYPE


def save_lstm(encoder: LstmEncoder, weight: Tensor, bias: Tensor, folder: Path) -> None:
    """Write config.json and model.safetensors; the head is stored as `classifier.weight` and `classifier.bias`.

    Args:
        encoder: the encoder.
        weight: of the head, [C, d].
        bias: of the head, [C].
        folder: an existing folder.
    """
    tensors = {**encoder.state_dict(), "classifier.weight": weight, "classifier.bias": bias}
    write_tensors(tensors, folder / WEIGHTS_FILE)
    shape = {"model_type": MODEL_TYPE, "num_hidden_layers": LAYERS, "num_labels": len(bias), **asdict(encoder.shape)}
    write_json(folder / "config.json", shape)


def load_lstm(folder: Path, *, dropout: float, freeze_embeddings: bool) -> tuple[LstmEncoder, Tensor, Tensor]:
    """Load the encoder and its head.

    Args:
        folder: a folder that `save_lstm` wrote.
        dropout: see `LstmEncoder`.
        freeze_embeddings: see `LstmEncoder`.

    Returns:
        The encoder, the head's weight [C, d] and its bias [C].

    Raises:
        EncoderError: a file is damaged or does not hold this architecture.
    """
    try:
        config = read_json(folder / "config.json")
        shape = LstmShape(**{name: int(config[name]) for name in LstmShape.__dataclass_fields__})
        encoder = LstmEncoder(shape, dropout=dropout, freeze_embeddings=freeze_embeddings)
        tensors = read_tensors(folder / WEIGHTS_FILE)
        weight, bias = tensors.pop("classifier.weight"), tensors.pop("classifier.bias")
        encoder.load_state_dict(tensors)
    except Exception as error:  # safetensors raises a class of its own for a damaged file
        require_room(error, folder)
        raise EncoderError(f"{folder} does not hold a complete bilstm model ({error}); train it again") from error
    require_finite({**tensors, "classifier.weight": weight, "classifier.bias": bias}, folder)
    return encoder, weight, bias
