"""The step that computes the bi-encoder cosine of a set of pairs, token by token (`tmkd.training.token_cosine`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tmkd.config.recipe import Recipe
from tmkd.data.pairs import Pairs
from tmkd.models.bi_encoder import cosine_by_token
from tmkd.models.encoders.find import find_encoder
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.token_cosine import TARGETS


def bi_encoder_cosine(workspace: Workspace, recipe: Recipe, pairs: Pairs) -> Step:
    """The bi-encoder cosine of the pairs by the recipe's encoder, computed once for teachers and students.

    Args:
        workspace: Keeps the result.
        recipe: Names the encoder, the maximum length and the precision.
        pairs: N pairs; their labels are not read.

    Returns:
        A step that holds `TARGETS`: `cosine`, [N] float32; `tokens`, float16, one number for each token of a passage,
        pair after pair; `lengths`, [N] int64, how many of them each pair has.
    """
    source = find_encoder(recipe.encoder)
    content = depends_on(
        settings={"max_length": recipe.max_length, "precision": recipe.precision},
        inputs={"encoder": source, "pairs": pairs},
    )

    def build(folder: Path) -> None:
        length = recipe.max_length
        cosine, by_token = cosine_by_token(source, pairs.questions, pairs.passages, length, recipe.precision)
        lengths = np.array([len(one) for one in by_token], dtype=np.int64)
        save_file({"cosine": cosine, "tokens": np.concatenate(by_token), "lengths": lengths}, folder / TARGETS)

    return workspace.step("token-cosine", content, build, label="bi-encoder cosine, token by token")
