"""The warm-up of the teachers: what it learns, who begins with it, and that it is done once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Tmkd, pair_rows
from encoder_fixtures import tiny

from tmkd.encoder.checkpoint import load_student
from tmkd.encoder.cosine import cosine_logits
from tmkd.pairs.record import Pairs
from tmkd.recipe import Training, load_recipe
from tmkd.tokenizer import PairTokenizer
from tmkd.training import score
from tmkd.warmup import warm_up
from tmkd.workspace import Workspace

WARM = "warm_up={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}"


@pytest.fixture
def tiny_recipe(recipe_file: Path, tmp_path: Path) -> Path:
    recipe_file.write_text(
        recipe_file.read_text().replace("builtin:minilm-l6", str(tiny("bert", tmp_path / "encoder")))
    )
    return recipe_file


def test_it_learns_the_encoders_own_cosine(tiny_recipe: Path, tmp_path: Path) -> None:
    rows = pair_rows(2)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    recipe = load_recipe(tiny_recipe)
    numbers = Training(learning_rate=2e-3, epochs=12, batch_size=8)
    step = warm_up(Workspace(tmp_path / "w"), recipe, numbers, pairs)
    model, tokenizer = load_student(step.folder), PairTokenizer(step.folder, 64)
    assert model.encoder.layers == 3  # whole, not cut as the student is
    logits = score(model, tokenizer.encode(pairs.questions, pairs.passages), tokenizer.pad_id, precision="fp32")
    cosine = cosine_logits(Path(recipe.encoder), pairs.questions, pairs.passages, 64)[:, 1]
    assert np.corrcoef(logits[:, 1] - logits[:, 0], cosine)[0, 1] > 0.8


def test_teachers_of_the_recipes_encoder_begin_with_it(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    steps = tmp_path / "workspace" / "steps"
    tmkd("teach", tiny_recipe)
    cold = {path.name for path in steps.glob("teacher-*")}
    other = tiny("mpnet", tmp_path / "other")
    first = tmkd("teach", tiny_recipe, WARM, f"teachers.1.encoder={other}")
    assert len(list(steps.glob("warmup-*"))) == 1
    assert "warm-up of the teachers: done in" in first.stderr
    assert "teacher a: done before" not in first.stderr
    again = tmkd("teach", tiny_recipe, WARM, f"teachers.1.encoder={other}")
    assert "warm-up of the teachers: done before" in again.stderr
    tmkd("teach", tiny_recipe, f"teachers.1.encoder={other}")  # without it the other encoder's teacher is the same
    assert len(list(steps.glob("teacher-*"))) == len(cold) + 2
