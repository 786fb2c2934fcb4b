"""What all steps that train have in common: the resumable state, and the checkpoint with its learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tmkd.core.files import write_json
from tmkd.models.card import Origin
from tmkd.models.checkpoint import save_student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.training.trainer import Trainer


def state_folder(folder: Path) -> Path:
    """The folder of a step's resumable state; the workspace deletes it when the step is done."""
    return folder / "state"


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
