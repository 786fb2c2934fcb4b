"""The token states of a text as they are stored: 8 bits a number, one scale a token, and the text's embedding.

A student of the kind `cached` reads a passage once, when it is indexed (METHOD.md, "A student that reads passages
once"). What it needs of the passage later is, for each token, k numbers whose mean square is 1 (`unit` in
`tmkd.models.encoders.interaction`), and the mean of the encoder's hidden states, scaled to length 1. Both depend on the
text alone, so they are found by a key of the text.

This module needs no PyTorch: the scorer, the server and the index use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.models.batching import padded_width, stacked

LENGTH_ERROR = 0.02  # how far from 1 the length of an embedding may be; float16 rounds it by 0.001 at most
MOST = 127  # the largest of the 8-bit numbers; -128 is not used, so that a sign can be turned round


@dataclass(frozen=True)
class TextStates:
    """What is stored of a text of T tokens.

    Attributes:
        values: [T, k] int8. Times its token's scale, each is a number of the state.
        scales: [T] float16.
        embedding: The mean of the encoder's hidden states over the tokens, scaled to length 1, [d] float16.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float16]
    embedding: NDArray[np.float16]

    @classmethod
    def of(cls, states: NDArray[np.float32], embedding: NDArray[np.float32]) -> TextStates:
        """Store the states [T, k] and the embedding [d] of a text."""
        return cls(*quantised(states), embedding.astype(np.float16))

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers take."""
        return self.values.nbytes + self.scales.nbytes + self.embedding.nbytes


def text_key(text: str) -> bytes:
    """The key of a text, 16 bytes: a hash of its exact characters, so that no other text can have its states."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def quantised(states: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round states to 8 bits, with one scale for each token.

    Args:
        states: [..., k] float32.

    Returns:
        Values [..., k] int8 and scales [...] float16. Value times scale differs from the state by half a scale at most,
        and by what float16 rounds of the scale.
    """
    largest = np.abs(states).max(axis=-1, initial=0.0)
    scales = np.maximum(largest / MOST, 1e-6).astype(np.float16)  # a state of zeros has a scale, too
    values = np.rint(states / scales[..., None].astype(np.float32))
    return np.clip(values, -MOST, MOST).astype(np.int8), scales


def dequantised(values: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """The states that values and scales stand for, [..., k] float32."""
    found: NDArray[np.float32] = values.astype(np.float32) * scales[..., None].astype(np.float32)
    return found


def of_unit_length(embeddings: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each embedding [n, d] has the length 1, [n]; a damaged one, with NaN or not, has not."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))
        found: NDArray[np.bool_] = np.abs(lengths - 1) < LENGTH_ERROR
    return found


def padded(
    states: Sequence[TextStates], step: int = 1
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Put the states of n texts into one rectangle.

    Args:
        states: of n texts, at least one.
        step: T is a multiple of this.

    Returns:
        Values [n, T, k] int8; scales [n, T] float32, 0 for padding, which is how padding is known; embeddings [n, d]
        float32.
    """
    width = padded_width(max(len(one.scales) for one in states), step)
    values, scales = (stacked(part, width) for part in ([one.values for one in states], [one.scales for one in states]))
    return values, scales.astype(np.float32), np.stack([one.embedding for one in states]).astype(np.float32)
