"""Single texts as an encoder reads them: the last hidden states of every token, and the text's embedding.

A bi-encoder, and a student that reads passages once (METHOD.md, "A student that reads passages once"), read question
and passage each without the other. `TextReader` runs the encoder. `ReadTexts` is what it gave, in memory or in files
that are mapped into memory, so that the states of any number of texts can be trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tmkd.core.hardware import batch_tokens, device, use_bf16
from tmkd.models.batching import length_sorted_batches, pad
from tmkd.models.checkpoint import load_encoder
from tmkd.models.encoders.forward import Batch, PairEncoder
from tmkd.models.text_tokenizer import TextTokenizer

_TOKENS = 1024  # most tokens of a batch on a CPU, whose states then stay in its cache


class TextReader:
    """An encoder that reads single texts: [CLS] text [SEP], cut to a number of tokens.

    Args:
        folder: The encoder, as `find_encoder` returns it.
        max_length: Most tokens of a text, special tokens included.
        precision: Of the encoder's arithmetic, as in a recipe.
        tokenizer: A model folder whose tokenizer is used; that of the encoder unless given.

    Raises:
        EncoderError: Weights are missing, damaged or not finite, or the tokenizer cannot be read.
    """

    def __init__(self, folder: Path, max_length: int, precision: str = "auto", *, tokenizer: Path | None = None):
        self._encoder = _load(folder)
        self._bf16 = use_bf16(precision)
        self._tokenizer = TextTokenizer(tokenizer or folder, max_length)

    @property
    def width(self) -> int:
        """d, the width of a hidden state."""
        return self._encoder.hidden_size

    def read(self, texts: Sequence[str]) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
        """Run the encoder on texts, longest first.

        Yields:
            Index of the text, last hidden states of its tokens [T, d], and which tokens are not special ones [T] bool.
        """
        encoded, (before, after) = self._tokenizer.encode(texts), self._tokenizer.around
        lengths = encoded.lengths
        for rows in length_sorted_batches(lengths, _TOKENS if device().type == "cpu" else batch_tokens()):
            input_ids, mask, _ = pad(encoded.ids, encoded.type_ids, rows, self._tokenizer.pad_id)
            hidden = self._run(torch.from_numpy(input_ids), None if mask.all() else torch.from_numpy(mask))
            for row, of_text in zip(rows, hidden, strict=True):
                own = np.ones(lengths[row], dtype=np.bool_)
                own[:before] = own[lengths[row] - after :] = False
                yield int(row), of_text[: lengths[row]], own

    def states(self, texts: Sequence[str]) -> Iterator[tuple[int, tuple[NDArray[np.float16], NDArray[np.float32]]]]:
        """Run the encoder on texts, longest first.

        Yields:
            Index of the text, hidden states of its tokens [T, d] and its embedding [d].
        """
        for row, hidden, _ in self.read(texts):
            with np.errstate(over="ignore"):  # the caller looks whether all are finite
                yield row, (hidden.astype(np.float16), unit_mean(hidden))

    def _run(self, input_ids: torch.Tensor, mask: torch.Tensor | None) -> NDArray[np.float32]:
        where = device()
        batch = Batch(input_ids.to(where), None if mask is None else mask.to(where), None)
        with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=self._bf16):
            hidden = self._encoder.last_hidden_states(batch)
        found: NDArray[np.float32] = hidden.float().cpu().numpy()
        return found


@dataclass(frozen=True)
class ReadTexts:
    """M texts that an encoder has read.

    Attributes:
        parts: Hidden states of the tokens of some texts, one text after another, [tokens, d] float16 each. They may
            lie in files that are mapped into memory.
        part: In which part each text's states are, [M] int64.
        start: Where in the part they begin, [M] int64.
        lengths: How many tokens each text has, [M] int64.
        embeddings: Mean of each text's hidden states, scaled to length 1, [M, d] float32.
    """

    parts: tuple[NDArray[np.float16], ...]
    part: NDArray[np.int64]
    start: NDArray[np.int64]
    lengths: NDArray[np.int64]
    embeddings: NDArray[np.float32]

    @classmethod
    def of_part(
        cls, hidden: NDArray[np.float16], lengths: NDArray[np.int64], embeddings: NDArray[np.float32]
    ) -> ReadTexts:
        """The texts of a single part: hidden states [tokens, d], lengths [M], embeddings [M, d]."""
        return cls((hidden,), np.zeros(len(lengths), np.int64), np.cumsum(lengths) - lengths, lengths, embeddings)

    @classmethod
    def joined(cls, several: Sequence[ReadTexts]) -> ReadTexts:
        """Put texts one after another, at least one set of them; nothing is copied but the embeddings."""
        before = np.cumsum([0, *(len(one.parts) for one in several)])
        return cls(
            tuple(part for one in several for part in one.parts),
            np.concatenate([one.part + first for one, first in zip(several, before, strict=False)]),
            np.concatenate([one.start for one in several]),
            np.concatenate([one.lengths for one in several]),
            np.concatenate([one.embeddings for one in several]),
        )

    def hidden(self, row: int) -> NDArray[np.float16]:
        """The hidden states of a text's tokens, [T, d]."""
        start = self.start[row]
        found: NDArray[np.float16] = self.parts[self.part[row]][start : start + self.lengths[row]]
        return found

    def sample(self, rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.float32]:
        """Draw hidden states of single tokens at random.

        Args:
            rows: The texts that are drawn from, [m].
            count: How many tokens; with fewer in the texts, some are drawn more than once.
            seed: Of the draw.

        Returns:
            [count, d] float32.
        """
        generator = np.random.default_rng(seed)
        ends = np.cumsum(self.lengths[rows])
        chosen = np.sort(generator.choice(ends[-1], count, replace=bool(ends[-1] < count)))
        texts = np.searchsorted(ends, chosen, side="right")
        places = chosen - (ends - self.lengths[rows])[texts]
        found = [self.hidden(int(rows[text]))[place] for text, place in zip(texts, places, strict=True)]
        return np.stack(found).astype(np.float32)


def unit_mean(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """The embedding of a text: the mean of its tokens' hidden states [T, d], scaled to length 1, [d]."""
    mean = hidden.mean(axis=0)
    unit: NDArray[np.float32] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return unit


def _load(folder: Path) -> PairEncoder:
    """The whole encoder on the device, in evaluation mode; torch's random state stays as it is."""
    with torch.random.fork_rng([]):  # the last linear layer, which is not used, starts with random weights
        return load_encoder(folder, 1).to(device()).eval()
