"""What all steps that train have in common: the training set, and the checkpoint with its learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.files import write_json
from tmkd.data.pairs import Pairs
from tmkd.models.card import Origin
from tmkd.models.checkpoint import save_student
from tmkd.models.inputs import TokenInputs
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.store.token_cache import tokens_of
from tmkd.pipeline.store.workspace import Workspace
from tmkd.training.trainer import Trainer
from tmkd.training.training_set import TrainingSet


def state_folder(folder: Path) -> Path:
    """The folder of a step's resumable state; the workspace deletes it when the step is done."""
    return folder / "state"


def training_set(
    workspace: Workspace,
    tokenizer: PairTokenizer,
    pairs: Pairs,
    questions: NDArray[np.int64] | None = None,
    *,
    replay: Pairs | None = None,
    replayed: int = 0,
) -> TrainingSet:
    """Encode the pairs of a training set, or read their token ids from the workspace.

    Args:
        workspace: Keeps the token ids.
        tokenizer: Encodes the pairs.
        pairs: The N pairs of an epoch.
        questions: The question of each pair, [N], for a loss that compares passages (`TrainingSet.questions`).
        replay: Pairs that are replayed; none unless given.
        replayed: How many pairs of a full step are replayed ones.
    """
    inputs = TokenInputs(tokens_of(workspace, tokenizer, pairs), tokenizer.pad_id)
    if replay is not None:
        pool = TokenInputs(tokens_of(workspace, tokenizer, replay), tokenizer.pad_id)
        return TrainingSet.with_replay(inputs, pool, replayed)
    return TrainingSet(inputs, questions)


def fit_and_save(
    trainer: Trainer, folder: Path, tokenizer: PairTokenizer, about: Origin, labels: Sequence[str] | None = None
) -> None:
    """Train, or continue an interrupted training, and write the checkpoint and its learning curve.

    Args:
        trainer: Its `state_folder` is that of `folder`.
        folder: Of the step.
        tokenizer: It is saved with the checkpoint.
        about: What made the model, for its model card file.
        labels: The names of its classes, where the task names them.
    """
    curve = trainer.fit()
    if labels:
        about = {**about, "labels": list(labels)}
    save_student(trainer.model, folder, tokenizer.folder, tokenizer.max_length, about)
    write_json(folder / "curve.json", curve)
