"""The warm-up: an encoder learns to compare two texts in one sequence before it sees a label.

A sentence encoder compares texts by their embeddings (tmkd/encoder/cosine.py) and was never asked to compare them
inside one sequence, as a cross-encoder does; a few thousand golden labels are too few to teach it that. Its own cosine
is a soft label that costs next to nothing, for any pairs there are (ours; the other way round of Thakur et al. 2021,
"Augmented SBERT"). It falls apart into what each token of the passage adds, so that a pair gives a hundred targets
rather than one: every token learns its own part, read from the layer below the last. Done once for the whole encoder,
which every teacher of it is then fine-tuned from, and once for the layers that students begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from tmkd.encoder.checkpoint import load_encoder, save_student
from tmkd.encoder.cosine import cosine_by_token
from tmkd.encoder.find import encoder_fingerprint, find_encoder
from tmkd.encoder.forward import FirstTokenEncoder, Packing, PairEncoder
from tmkd.files import write_json
from tmkd.losses import soft_kl
from tmkd.pairs.record import Pairs
from tmkd.recipe import Recipe, Training
from tmkd.recipe_parts import StudentShape
from tmkd.student import Logits, Student
from tmkd.tokenizer import PairTokenizer
from tmkd.tokens import tokens_of
from tmkd.training import Fit, train
from tmkd.workspace import Step, Workspace

FORMAT = 3
SPREAD = 2.0  # standard deviation of the log-odds that the cosines become: most probabilities between 0.02 and 0.98
SEED = 0
TARGETS = "cosine.safetensors"


def warm_up(workspace: Workspace, recipe: Recipe, numbers: Training, pairs: Pairs, shape: StudentShape | None) -> Step:
    """The recipe's encoder, trained on its own cosine of the pairs: KL to a soft label of two classes, and the squared
    error of what every token of the passage adds to it. Golden labels are not read.

    Args:
        shape: the layers that the student takes of the encoder; None: all of it, as teachers do.
    """
    source = find_encoder(recipe.encoder)
    told = _cosine(workspace, recipe, pairs)
    cut: dict[str, Any] = {"pooler": "auto"}
    if shape is not None:
        start = "spaced" if shape.start == "teacher" else shape.start
        cut = {"layers": shape.layers, "start": start, "pooler": shape.pooler}
    depends = {
        "format": FORMAT,
        "cosine": told.fingerprint,
        "training": numbers.model_dump(),
        "precision": recipe.precision,
        **cut,
    }

    def build(folder: Path) -> None:
        tokenizer = PairTokenizer(source, recipe.max_length)
        cosine, by_token = _read(told.folder)
        soft = torch.from_numpy(_soft_labels(cosine, pairs.questions))[:, None]  # [N, 1, 2]
        tokens = _Tokens(by_token, tokenizer.passage_places(pairs.questions, pairs.passages))

        def loss(logits: Logits, rows: Tensor) -> Tensor:
            whole = soft_kl(logits.golden[:, None], soft[rows].to(logits.golden.device))
            return whole if logits.soft.shape[1] == 0 else whole + tokens.loss(logits.soft, rows)

        torch.manual_seed(SEED)
        model = Comparing(load_encoder(source, 2, dropout=numbers.dropout, **cut))
        curve = train(
            model,
            tokens_of(workspace, tokenizer, pairs),
            tokenizer.pad_id,
            loss,
            Fit.of(numbers, SEED, recipe.precision),
            name="warm-up",
            state_folder=folder / "state",
        )
        save_student(model, folder, source, recipe.max_length, {"step": "warm-up"})
        write_json(folder / "curve.json", curve)

    whose = "the encoder" if shape is None else f"the student's {shape.layers} layers"
    return workspace.step("warmup", depends, build, label=f"warm-up of {whose}")


def _cosine(workspace: Workspace, recipe: Recipe, pairs: Pairs) -> Step:
    """What the encoder says of the pairs, computed once for teachers and students."""
    source = find_encoder(recipe.encoder)
    depends = {
        "format": FORMAT,
        "encoder": encoder_fingerprint(source),
        "max_length": recipe.max_length,
        "pairs": pairs.digest(),
    }

    def build(folder: Path) -> None:
        cosine, by_token = cosine_by_token(source, pairs.questions, pairs.passages, recipe.max_length)
        lengths = np.array([len(one) for one in by_token], dtype=np.int64)
        save_file({"cosine": cosine, "tokens": np.concatenate(by_token), "lengths": lengths}, folder / TARGETS)

    return workspace.step("cosine", depends, build, label="the encoder's own cosine")


def _read(folder: Path) -> tuple[NDArray[np.float32], list[NDArray[np.float16]]]:
    """The cosine of every pair, and what each token of its passage adds, as `cosine_by_token` gives them."""
    held = load_file(folder / TARGETS)
    return held["cosine"], np.split(held["tokens"], np.cumsum(held["lengths"])[:-1])


def _soft_labels(cosine: NDArray[np.float32], questions: Sequence[str]) -> NDArray[np.float32]:
    """Logits [N, 2] whose log-odds are the cosines, of standard deviation SPREAD, less the mean of their question's.

    What all passages of a question share says nothing of their order, and would be learned first. A question with one
    passage is compared with all pairs.
    """
    _, question, counts = np.unique(questions, return_inverse=True, return_counts=True)
    means = np.bincount(question, cosine) / counts
    level = np.where(counts[question] > 1, means[question], cosine.mean())
    odds = cosine - level
    odds *= SPREAD / max(float(odds.std()), 1e-6)
    return np.stack([np.zeros_like(odds), odds], axis=1).astype(np.float32)


class Comparing(Student):
    """The encoder with a golden header and, for every token, a number read from the layer below the last.

    `Logits.soft` holds these numbers as [n, T, 1]; [n, 0, 2] where the encoder is run by the transformers module, whose
    layers have no common form to read from: then only the pair's cosine is learned.
    """

    def __init__(self, encoder: PairEncoder) -> None:
        super().__init__(encoder, 2)
        self.seen: list[Tensor] = []
        self.token = nn.Linear(encoder.hidden_size, 1)
        if isinstance(encoder, FirstTokenEncoder) and encoder.layers > 1:
            norm = encoder.base.encoder.layer[-2].output.LayerNorm
            norm.register_forward_hook(lambda _, inputs, output: self.seen.append(output))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        packing: Packing | None = None,
    ) -> Logits:
        """As `Student.forward`, with the tokens' numbers."""
        self.seen.clear()
        logits = super().forward(input_ids, attention_mask, token_type_ids, packing)
        if not self.seen:
            return logits
        read = self.token(self.seen.pop().float())  # [n, T, 1]; packed: [tokens, 1]
        if packing is not None:
            read = nn.utils.rnn.pad_sequence(read.split(packing.starts.diff().tolist()), batch_first=True)
        return Logits(logits.golden, read)


class _Tokens:
    """What the tokens of every pair's passage are to learn, standardised over all of them, and where they stand."""

    def __init__(self, by_token: Sequence[NDArray[np.float16]], places: NDArray[np.int64]) -> None:
        everything = np.concatenate(by_token).astype(np.float32)
        mean, deviation = float(everything.mean()), max(float(everything.std()), 1e-6)
        self.targets = [((one.astype(np.float32) - mean) / deviation).astype(np.float16) for one in by_token]
        self.places = places

    def loss(self, read: Tensor, rows: Tensor) -> Tensor:
        """Mean squared error over the tokens of each pair's passage, [n, 1]. read: [n, T, 1]."""
        target, weight = np.zeros((2, *read.shape[:2]), dtype=np.float32)
        for line, row in enumerate(rows.tolist()):
            start, end = self.places[row]
            target[line, start:end] = self.targets[row][: end - start]
            weight[line, start:end] = 1 / max(1, end - start)
        error = read[..., 0] - torch.from_numpy(target).to(read.device)
        return (error.square() * torch.from_numpy(weight).to(read.device)).sum(dim=1, keepdim=True)
