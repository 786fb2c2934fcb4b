"""From pairs to a finished checkpoint with its learning curve: what teachers, warm-up and students have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.files import write_json
from tmkd.data.pairs import Pairs
from tmkd.models.card import Origin
from tmkd.models.checkpoint import save_student
from tmkd.models.student import Student
from tmkd.models.tokenizer import Encoded, PairTokenizer
from tmkd.pipeline.store.token_cache import tokens_of
from tmkd.pipeline.store.workspace import Workspace
from tmkd.training.trainer import Fit, LossOfRows, train


def fit_and_save(
    workspace: Workspace,
    model: Student,
    rows: Pairs,
    loss: LossOfRows,
    fit: Fit,
    folder: Path,
    *,
    name: str,
    tokenizer: PairTokenizer,
    about: Origin,
    questions: NDArray[np.int64] | None = None,
    replayed: Pairs | None = None,
) -> None:
    """Train in place and write the checkpoint to `folder`; a call that was interrupted goes on where it was.

    Args:
        name: what the log calls it.
        tokenizer: reads the pairs, and is saved with the checkpoint.
        about: what made the model, for its model card file.
        questions: as in `tmkd.training.trainer.train`.
        replayed: pairs behind the rows that stage 2 mixes in (`Fit.replayed`).
    """
    encoded = tokens_of(workspace, tokenizer, rows)
    if replayed is not None:
        pool = tokens_of(workspace, tokenizer, replayed)
        encoded = Encoded([*encoded.ids, *pool.ids], [*encoded.type_ids, *pool.type_ids])
    curve = train(
        model, encoded, tokenizer.pad_id, loss, fit, name=name, state_folder=folder / "state", own=len(rows),
        questions=questions,
    )  # fmt: skip
    save_student(model, folder, tokenizer.folder, tokenizer.max_length, about)
    write_json(folder / "curve.json", curve)
