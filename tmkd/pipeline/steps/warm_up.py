"""The warm start as a step: an encoder learns to compare two texts in one sequence before it sees a label.

It is done once for the recipe's whole encoder; every teacher of that encoder is then fine-tuned from the result. Why it
helps: `tmkd.training.token_cosine`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.config.recipe import Recipe
from tmkd.config.sections import Training
from tmkd.core.hardware import device
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_encoder
from tmkd.models.encoders.find import find_encoder
from tmkd.models.student import Student, StudentOutput
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.bi_encoder_cosine import bi_encoder_cosine
from tmkd.pipeline.steps.fit import fit_and_save, state_folder
from tmkd.pipeline.store.fingerprint import depends_on, non_defaults
from tmkd.pipeline.store.token_cache import token_inputs
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.losses import soft_kl
from tmkd.training.token_cosine import TokenCosineConfig, TokenTargets, centred, soft_labels, token_cosine_objective
from tmkd.training.trainer import Trainer, TrainerConfig
from tmkd.training.training_set import TrainingSet

SEED = 0


@dataclass(frozen=True)
class Judgement:
    """What a teacher says of the pairs of the warm start.

    Attributes:
        teacher: Fingerprint of the teacher.
        log_odds: Of class 1, [N] on any scale.
    """

    teacher: str
    log_odds: NDArray[np.float32]


def warm_up(
    workspace: Workspace, recipe: Recipe, numbers: Training, pairs: Pairs, judgement: Judgement | None = None
) -> Step:
    """Train the recipe's encoder on its own bi-encoder cosine of some pairs, or on a teacher's scores of them.

    The loss is the KL divergence to a soft label of two classes, plus the token cosine (`TokenCosine`), which is the
    encoder's own in either case.

    Args:
        workspace: Keeps the step.
        recipe: The encoder, the maximum length and the precision.
        numbers: Of the training.
        pairs: N pairs; their golden labels are not read.
        judgement: A teacher's scores of the pairs; None: the encoder's own bi-encoder cosine.

    Returns:
        The finished step; its folder is a checkpoint.
    """
    source = find_encoder(recipe.encoder)
    cosine = bi_encoder_cosine(workspace, recipe, pairs)
    content = depends_on(
        settings={"training": non_defaults(numbers, without={"teacher", "share"}), "precision": recipe.precision},
        # the cosine, with the encoder, the maximum length and the pairs
        inputs={"token_cosine": cosine, "teacher": judgement and judgement.teacher},
    )

    def build(folder: Path) -> None:
        tokenizer = PairTokenizer(source, recipe.max_length)
        found = soft_labels(cosine.folder, pairs) if judgement is None else centred(judgement.log_odds, pairs)
        soft = torch.from_numpy(found).to(device())
        targets = TokenTargets(cosine.folder, pairs, tokenizer)

        def loss(output: StudentOutput, rows: Tensor) -> Tensor:
            return soft_kl(output.golden, soft[rows])

        torch.manual_seed(SEED)
        model = Student(load_encoder(source, 2, dropout=numbers.dropout, pooler="auto"), 2)
        trainer = Trainer(
            model,
            TrainingSet(token_inputs(workspace, tokenizer, pairs)),
            loss,
            TrainerConfig.of(numbers, SEED, recipe.precision),
            objectives=token_cosine_objective(model.encoder, targets, TokenCosineConfig(1.0, recipe.max_length)),
            name="warm-up",
            state_folder=state_folder(folder),
        )
        fit_and_save(trainer, folder, tokenizer, {"step": "warm-up"})

    return workspace.step("warmup", content, build, label="warm-up of the encoder")
