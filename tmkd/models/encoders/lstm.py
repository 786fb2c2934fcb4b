"""The encoder of the `bilstm` baseline: a bidirectional LSTM over word pieces, small and without attention.

The pair is read as the tokenizer writes it, question first, so the passage is read with the question in the LSTM's
state (Rocktaeschel et al. 2016, conditional encoding). Question u and passage v are each the maximum over their tokens'
states; h is tanh of a linear layer over [u; v; |u - v|; u * v] (Tang et al. 2019, "Distilling Task-Specific Knowledge
from BERT into Simple Neural Networks"). The embedding table comes from a trained model, normalised to unit variance.

No tool of the ecosystem has this architecture: its folder holds the same files as any other model's, but only tmkd
opens it, and it is not exported.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tmkd.core.errors import EncoderError
from tmkd.core.files import write_json
from tmkd.models.encoders.forward import Batch

MODEL_TYPE = "bilstm"
LAYERS = 1


@dataclass(frozen=True)
class LstmShape:
    """What config.json holds.

    Attributes:
        vocab_size, embedding_size: of the embedding table.
        hidden_size: of the LSTM's state, in each direction.
        separator: token id that ends the question.
        pad_token_id: token id of padding.
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    separator: int
    pad_token_id: int


class LstmEncoder(nn.Module):
    """Pairs in, h out; stands where a `PairEncoder` stands.

    Attributes:
        hidden_size: d, twice the LSTM's state. layers: 1. packs: never, batches are padded. path: for the log.
    """

    packs = False
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
        """h of every pair, [n, 2 * hidden_size]; never packed.

        Computed in float32 whatever the precision: an LSTM's state sums over the whole pair.
        """
        assert batch.packing is None
        input_ids = batch.input_ids
        mask = torch.ones_like(input_ids) if batch.attention_mask is None else batch.attention_mask
        with torch.autocast(input_ids.device.type, enabled=False):
            states = self._states(
                self._drop(F.layer_norm(self.embeddings(input_ids), (self.shape.embedding_size,))), mask
            )
            u, v = (_highest(states, part) for part in self._parts(input_ids, mask))
            return self._drop(torch.tanh(self.dense(self._drop(torch.cat([u, v, (u - v).abs(), u * v], dim=-1)))))

    def _states(self, x: Tensor, mask: Tensor) -> Tensor:
        """Both directions' states of every token, [n, T, 2 * hidden_size]; of padding they mean nothing.

        Two LSTMs, the second over each pair turned round within its own length, so that padding comes last for both:
        PyTorch's own packed bidirectional LSTM gives the same and trains at a third of the speed on a CPU.
        """
        steps = torch.arange(x.shape[1], device=x.device)[None]
        lengths = mask.sum(dim=1, keepdim=True)
        turned = torch.where(steps < lengths, lengths - 1 - steps, steps)[..., None]  # its own inverse
        back = self.back(x.gather(1, turned.expand_as(x)))[0]
        return torch.cat([self.ahead(x)[0], back.gather(1, turned.expand_as(back))], dim=-1)

    def _parts(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are the question's (the first separator is its last) and which the passage's, [n, T] bool."""
        ends = (input_ids == self.shape.separator).long()
        after = ends.cumsum(dim=1) - ends > 0
        return ~after & mask.bool(), after & mask.bool()

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _highest(states: Tensor, part: Tensor) -> Tensor:
    """The maximum over a part's tokens: states [n, T, d], part [n, T] -> [n, d]; zeros where it has no token."""
    found = states.masked_fill(~part[..., None], -torch.inf).amax(dim=1)
    return torch.where(part.any(dim=1)[:, None], found, 0.0)


def is_lstm(folder: Path) -> bool:
    """Whether a model folder holds this architecture."""
    path = folder / "config.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE


def save_lstm(encoder: LstmEncoder, weight: Tensor, bias: Tensor, folder: Path) -> None:
    """Write config.json and model.safetensors, the head among its weights as `classifier.weight` and `.bias`."""
    tensors = {**encoder.state_dict(), "classifier.weight": weight, "classifier.bias": bias}
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    shape = {"model_type": MODEL_TYPE, "num_hidden_layers": LAYERS, "num_labels": len(bias), **asdict(encoder.shape)}
    write_json(folder / "config.json", shape)


def load_lstm(folder: Path, *, dropout: float, freeze_embeddings: bool) -> tuple[LstmEncoder, Tensor, Tensor]:
    """The encoder and its head: weight [C, d], bias [C].

    Raises:
        EncoderError: a file that is damaged or does not hold this architecture.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = LstmShape(**{name: int(config[name]) for name in LstmShape.__dataclass_fields__})
        encoder = LstmEncoder(shape, dropout=dropout, freeze_embeddings=freeze_embeddings)
        tensors = load_file(folder / "model.safetensors")
        weight, bias = tensors.pop("classifier.weight"), tensors.pop("classifier.bias")
        encoder.load_state_dict(tensors)
    except Exception as error:  # safetensors raises a class of its own for a damaged file
        raise EncoderError(f"{folder} does not hold a whole bilstm model ({error}); train it again") from error
    return encoder, weight, bias
