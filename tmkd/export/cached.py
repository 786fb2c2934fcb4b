"""The student that reads passages once, as an export: what its graphs are written from and compared with.

Its two graphs are `onnx/encoder.onnx` and `onnx/interaction.onnx` (`tmkd.export.cached_graphs`). The reference is the
student in PyTorch with the states of its passages rounded to 8 bits as they are stored; what the rounding itself costs
is measured against the same student with exact states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.core.console import progress
from tmkd.core.logits import two_logits
from tmkd.data.pairs import Pairs
from tmkd.models.batching import length_sorted_batches, pad
from tmkd.models.checkpoint import load_encoder, load_student
from tmkd.models.encoders.find import encoder_fingerprint
from tmkd.models.encoders.forward import Batch, PairEncoder
from tmkd.models.encoders.interaction import ENCODER_FOLDER, InteractionEncoder
from tmkd.models.one_logit import folded_rows
from tmkd.models.text_states import TextStates, dequantised, padded
from tmkd.models.text_tokenizer import TextTokenizer

Logits = NDArray[np.float32]
STATES_VERSION = 1  # of how states are computed and rounded; another one makes stored states unusable
_TOKENS = 4096  # of a batch of texts
_PASSAGES = 256  # of one question at once


@dataclass(frozen=True)
class ReadText:
    """A text as the encoder in PyTorch reads it.

    Attributes:
        hidden: Last hidden states, [T, d] float32.
        states: The states that are stored, before they are rounded, [T, k] float32.
        embedding: [d] float32.
    """

    hidden: NDArray[np.float32]
    states: NDArray[np.float32]
    embedding: NDArray[np.float32]


class CachedStudent:
    """A cached student in PyTorch, with its heads folded into one.

    Args:
        folder: The student, as `save_student` writes it.
        tokenizer: Of its export.

    Attributes:
        interaction: The interaction layers.
        encoder: E.
        weight: Of the folded head, [L, w + 1]; L is 1 for two classes, else C.
        bias: Of the folded head, [L].

    Raises:
        EncoderError: A file is missing or damaged, or the mean of the heads is not the head in model.safetensors.
    """

    def __init__(self, folder: Path, tokenizer: TextTokenizer) -> None:
        student = load_student(folder).eval()
        assert isinstance(student.encoder, InteractionEncoder)
        self.folder, self.tokenizer, self.interaction = folder, tokenizer, student.encoder
        self.encoder: PairEncoder = load_encoder(folder / ENCODER_FOLDER, 2).eval()
        self.weight, self.bias = (part.detach() for part in folded_rows(*student.fold()))

    @cached_property
    def identity(self) -> str:
        """A fingerprint of everything that decides the states of a text, 32 hex characters."""
        digest = hashlib.blake2b(digest_size=16)
        parts = [str(STATES_VERSION), encoder_fingerprint(self.folder / ENCODER_FOLDER), self.tokenizer.fingerprint()]
        digest.update("\0".join(parts).encode())
        for tensor in (self.interaction.projection.weight, self.interaction.projection.bias):
            digest.update(tensor.detach().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> dict[str, ReadText]:
        """Read texts, each once."""
        names = list(dict.fromkeys(texts))
        encoded, found = self.tokenizer.encode(names), dict[str, ReadText]()
        with progress("read texts in PyTorch", len(names), "texts") as bar:
            for rows in length_sorted_batches(encoded.lengths, _TOKENS):
                ids, mask, types = map(
                    torch.from_numpy, pad(encoded.ids, encoded.type_ids, rows, self.tokenizer.pad_id)
                )
                hidden = self.encoder.last_hidden_states(Batch(ids, mask, types))
                for row, one in zip(rows, hidden, strict=True):
                    whole = one[: len(encoded.ids[row])]
                    mean = torch.nn.functional.normalize(whole.mean(dim=0), dim=0)
                    states = self.interaction.states(whole)
                    found[names[row]] = ReadText(whole.numpy(), states.numpy(), mean.numpy())
                bar.advance(len(rows))
        return found

    def logits(self, read: Mapping[str, ReadText], pairs: Pairs, *, rounded: bool) -> Logits:
        """Compute the logits of pairs.

        Args:
            read: Their texts.
            pairs: N pairs.
            rounded: Whether the passages' states go through the 8 bits in which they are stored.

        Returns:
            [N, C] float32; for two classes 0 and the log-odds.
        """
        questions: dict[str, list[int]] = {}
        for row, question in enumerate(pairs.questions):
            questions.setdefault(question, []).append(row)
        found = np.empty((len(pairs), len(self.bias)), dtype=np.float32)
        for question, rows in questions.items():
            for start in range(0, len(rows), _PASSAGES):
                some = rows[start : start + _PASSAGES]
                passages = [read[pairs.passages[row]] for row in some]
                found[some] = self.of_question(read[question], passages, rounded=rounded)
        return two_logits(found[:, 0]) if found.shape[1] == 1 else found

    @torch.inference_mode()
    def of_question(self, question: ReadText, passages: Sequence[ReadText], *, rounded: bool) -> Logits:
        """Compute what the folded head gives for n passages of a question, [n, L] float32."""
        if rounded:
            stored = [TextStates.of(one.states, one.embedding) for one in passages]
            values, scales, embeddings = padded(stored)
            states, mask = dequantised(values, scales), scales > 0  # type: ignore[arg-type]
        else:
            states, mask = _padded([one.states for one in passages])
            embeddings = np.stack([one.embedding for one in passages])
        asked = torch.from_numpy(question.hidden)[None]
        given = (torch.from_numpy(part) for part in (states, mask, embeddings @ question.embedding))
        h, _ = self.interaction.read(asked, torch.ones(asked.shape[:2]), *given)
        logits: Tensor = torch.nn.functional.linear(h, self.weight, self.bias)
        return logits.numpy()


def _padded(several: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    longest = max(len(one) for one in several)
    states = np.zeros((len(several), longest, several[0].shape[1]), dtype=np.float32)
    for row, one in enumerate(several):
        states[row, : len(one)] = one
    lengths = np.array([len(one) for one in several])
    return states, np.arange(longest) < lengths[:, None]


def states_entry(student: CachedStudent) -> dict[str, Any]:
    """What tmkd.json says about the states: `identity`, `size` and `width`."""
    shape = student.interaction.shape
    return {"identity": student.identity, "size": shape.state_size, "width": shape.encoder_width}
