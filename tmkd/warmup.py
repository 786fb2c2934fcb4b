"""The warm-up of the teachers: an encoder learns to compare two texts in one sequence before it sees a label.

A sentence encoder compares texts by their embeddings (tmkd/encoder/cosine.py) and was never asked to compare them
inside one sequence, as a cross-encoder does; a few thousand golden labels are too few to teach it that. Its own cosine
is a soft label that costs next to nothing, for any pairs there are (ours; the other way round of Thakur et al. 2021,
"Augmented SBERT"). Done once; every teacher of the recipe's encoder is then fine-tuned from it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tmkd.encoder.checkpoint import load_encoder, save_student
from tmkd.encoder.cosine import cosine_logits
from tmkd.encoder.find import encoder_fingerprint, find_encoder
from tmkd.files import write_json
from tmkd.losses import soft_kl
from tmkd.pairs.record import Pairs
from tmkd.recipe import Recipe, Training
from tmkd.student import Logits, Student
from tmkd.tokenizer import PairTokenizer
from tmkd.tokens import tokens_of
from tmkd.training import Fit, train
from tmkd.workspace import Step, Workspace

SPREAD = 2.0  # standard deviation of the log-odds that the cosines become: most probabilities between 0.02 and 0.98
SEED = 0


def warm_up(workspace: Workspace, recipe: Recipe, numbers: Training, pairs: Pairs) -> Step:
    """The recipe's encoder, whole, trained on its own cosine of the pairs: KL to a soft label of two classes.

    The cosines of all pairs become log-odds by their mean and standard deviation. Golden labels are not read.
    """
    source = find_encoder(recipe.encoder)
    depends = {
        "encoder": encoder_fingerprint(source),
        "training": numbers.model_dump(),
        "max_length": recipe.max_length,
        "precision": recipe.precision,
        "pairs": pairs.digest(),
    }

    def build(folder: Path) -> None:
        cosine = cosine_logits(source, pairs.questions, pairs.passages, recipe.max_length)[:, 1]
        odds = SPREAD * (cosine - cosine.mean()) / max(float(cosine.std()), 1e-6)
        soft = torch.from_numpy(np.stack([np.zeros_like(odds), odds], axis=1))[:, None]  # [N, 1, 2]

        def loss(logits: Logits, rows: Tensor) -> Tensor:
            return soft_kl(logits.golden[:, None], soft[rows].to(logits.golden.device))

        torch.manual_seed(SEED)
        model = Student(load_encoder(source, 2, dropout=numbers.dropout, pooler="auto"), 2)
        tokenizer = PairTokenizer(source, recipe.max_length)
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

    return workspace.step("warmup", depends, build, label="warm-up of the teachers")
