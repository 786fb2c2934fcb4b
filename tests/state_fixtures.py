"""The real MiniLM as an encoder of passages, in PyTorch, for the tests of stored states.

As a program it updates the states of an index, so that it can be killed: python state_fixtures.py INDEX SEGMENT.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tmkd.core.files import digest_of, sha256_of, write_json
from tmkd.inference.state_update import update_states
from tmkd.models.batching import pad
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.encoders.interaction import unit
from tmkd.models.text_states import TextStates
from tmkd.models.text_tokenizer import TextTokenizer


class MiniLM:
    """States of the real MiniLM's last layer, projected to some of its directions. Keeps what it was asked."""

    width = 384
    backend = "onnx-fp32"

    def __init__(self, state_size: int = 96, max_length: int = 128, seed: int = 0) -> None:
        self.folder = find_encoder("builtin:minilm-l6")
        self.state_size, self.max_length, self.seed = state_size, max_length, seed
        self.asked: list[str] = []

    @property
    def identity(self) -> str:
        return digest_of([encoder_fingerprint(self.folder), self.state_size, self.max_length, self.seed])

    @cached_property
    def _parts(self) -> tuple[Any, TextTokenizer, torch.Tensor]:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(self.folder, local_files_only=True).eval()
        tokenizer = TextTokenizer(self.folder, self.max_length)
        torch.manual_seed(self.seed)
        return model, tokenizer, torch.linalg.qr(torch.randn(self.width, self.state_size)).Q

    def states(self, texts: Sequence[str]) -> list[TextStates]:
        model, tokenizer, projection = self._parts
        self.asked += texts
        found: list[TextStates] = []
        for start in range(0, len(texts), 16):
            encoded = tokenizer.encode(texts[start : start + 16])
            rows = range(len(encoded.ids))
            ids, mask, _ = map(torch.from_numpy, pad(encoded.ids, encoded.type_ids, rows, tokenizer.pad_id))
            with torch.inference_mode():
                hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            for row, tokens in zip(hidden, mask.sum(dim=1).tolist(), strict=True):
                mean = row[:tokens].mean(dim=0)
                states = unit(row[:tokens] @ projection)
                found.append(TextStates.of(states.numpy(), torch.nn.functional.normalize(mean, dim=0).numpy()))
        return found

    def question(self, text: str) -> tuple[None, NDArray[np.float32]]:
        """The embedding of a question, as the second of two."""
        asked = list(self.asked)
        embedding = self.states([text])[0].embedding.astype(np.float32)
        self.asked[:] = asked
        return None, embedding


def same(one: TextStates | None, other: TextStates) -> bool:
    """Whether states are equal but for what batches of another shape change."""
    assert one is not None
    assert one.values.shape == other.values.shape
    near = np.abs(one.values.astype(int) - other.values.astype(int)).max(initial=0) <= 1
    return bool(
        near
        and np.allclose(one.scales, other.scales, atol=1e-3)
        and np.allclose(one.embedding, other.embedding, atol=1e-3)
    )


def cached_export(folder: Path, *, state_size: int = 96, max_length: int = 128, seed: int = 0) -> Path:
    """What indexing reads of an export of a cached student over the real MiniLM: its card, tokenizer and encoder."""
    from tmkd.export.cached import CachedStudent
    from tmkd.export.cached_graphs import write_encoder
    from tmkd.models.checkpoint import save_student
    from tmkd.models.encoders.interaction import InteractionEncoder, InteractionShape
    from tmkd.models.student import Student

    torch.manual_seed(seed)
    source = find_encoder("builtin:minilm-l6")
    student = Student(InteractionEncoder(InteractionShape(384, state_size, 384), source), 2, soft_heads=3)
    student.start_at_cosine()
    save_student(student, folder / "student", source, max_length, {"step": "tmkd", "teachers": ["a", "b", "c"]})
    export = folder / "export"
    (export / "onnx").mkdir(parents=True)
    shutil.copy(folder / "student" / "tokenizer.json", export)
    cached = CachedStudent(folder / "student", TextTokenizer(folder / "student", max_length))
    graph = export / "onnx" / "encoder.onnx"
    write_encoder(cached.encoder, cached.interaction, graph)
    files = {"encoder": {"file": "onnx/encoder.onnx", "sha256": sha256_of(graph)}, "interaction": {}}
    card = {
        "format": 3, "kind": "cached", "max_length": max_length, "classes": 2, "outputs": 1, "labels": ["no", "yes"],
        "states": {"identity": cached.identity, "size": state_size, "width": 384},
        "backends": {"onnx-fp32": {"passed": True, "pairs_per_second": 1.0, "files": files}},
    }  # fmt: skip
    write_json(export / "tmkd.json", card)
    return export


if __name__ == "__main__":
    torch.set_num_threads(1)
    update_states(Path(sys.argv[1]), MiniLM(), segment=int(sys.argv[2]))
