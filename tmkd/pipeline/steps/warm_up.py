"""The warm-up: an encoder learns to compare two texts in one sequence before it sees a label
(tmkd/training/token_cosine.py).

Done once for the whole encoder, which every teacher of it is then fine-tuned from.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tmkd.config.recipe import Recipe
from tmkd.config.sections import Training
from tmkd.core.hardware import device
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_encoder
from tmkd.models.encoders.find import find_encoder
from tmkd.models.student import Logits
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.bi_encoder_cosine import bi_encoder_cosine
from tmkd.pipeline.steps.fit import fit_and_save
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.losses import soft_kl
from tmkd.training.token_cosine import FORMAT, Comparing, TokenTargets, soft_labels
from tmkd.training.trainer import Fit

SEED = 0


def warm_up(workspace: Workspace, recipe: Recipe, numbers: Training, pairs: Pairs) -> Step:
    """The recipe's encoder, trained on its own cosine of the pairs: KL to a soft label of two classes, and the squared
    error of what every token of the passage adds to it. Golden labels are not read."""
    source = find_encoder(recipe.encoder)
    told = bi_encoder_cosine(workspace, recipe, pairs)
    pooler = "auto"
    depends = {
        "format": FORMAT,
        "cosine": told.fingerprint,
        "training": numbers.model_dump(),
        "precision": recipe.precision,
        "pooler": pooler,
    }

    def build(folder: Path) -> None:
        tokenizer = PairTokenizer(source, recipe.max_length)
        soft = torch.from_numpy(soft_labels(told.folder, pairs)).to(device())
        tokens = TokenTargets(told.folder, pairs, tokenizer)

        def loss(logits: Logits, rows: Tensor) -> Tensor:
            whole = soft_kl(logits.golden, soft[rows])
            return whole + tokens.loss(logits, rows)

        torch.manual_seed(SEED)
        encoder = load_encoder(source, 2, dropout=numbers.dropout, pooler=pooler)
        model = Comparing(encoder, 2, width=recipe.max_length)
        fit_and_save(
            workspace, model, pairs, loss, Fit.of(numbers, SEED, recipe.precision), folder,
            name="warm-up", tokenizer=tokenizer, about={"step": "warm-up"},
        )  # fmt: skip

    return workspace.step("warmup", depends, build, label="warm-up of the encoder")
