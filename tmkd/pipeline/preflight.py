"""What can be refused before hours of work: encoders, lengths, layers, score columns, shares of rows."""

from __future__ import annotations

from pathlib import Path

from tmkd.config.methods import METHODS
from tmkd.config.recipe import Recipe
from tmkd.core.errors import DataError, TmkdError
from tmkd.models.card import has_card, read_card
from tmkd.models.checkpoint import require_fit, require_head
from tmkd.models.encoders.find import find_encoder
from tmkd.models.label_map import find_label_map
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.run_data import Rows
from tmkd.teachers.scores import ScoresTeacher


def require_runnable(rows: Rows) -> None:
    """Look at everything that a recipe names, and train nothing.

    Raises:
        EncoderError: an encoder or checkpoint that is not to be had, too few layers, more tokens than it has positions.
        RecipeError: classes of a checkpoint in another order.
        DataError: rows that cannot be used, or a score column with gaps.
        TmkdError: `stage1_from` is no stage-1 student, or one of another shape.
    """
    _require_encoders(rows.recipe)
    if rows.recipe.stage1_from is not None and any(METHODS[name].stage1 for name in rows.recipe.methods):
        _require_stage1(rows.recipe, Path(rows.recipe.stage1_from))
    _ = rows.student_rows
    _require_columns(rows)


def _require_encoders(recipe: Recipe) -> None:
    for teacher in recipe.used_teachers:
        if teacher.scores is not None:
            continue
        source = find_encoder(recipe.encoder_of(teacher))
        require_fit(source, length=recipe.length_of(teacher))
        if teacher.checkpoint:
            require_head(source, recipe.classes)
            find_label_map(source, teacher, recipe)
    if any(METHODS[name].trains and METHODS[name].encoder == "bottom" for name in recipe.methods):
        require_fit(find_encoder(recipe.encoder), layers=recipe.student.layers, length=recipe.max_length)


def _require_stage1(recipe: Recipe, folder: Path) -> None:
    """The recipe's students can go on from an earlier run's stage-1 student."""
    card = read_card(folder) if has_card(folder) else None
    if card is None or card.step != "stage1":
        raise TmkdError(f"stage1_from: {folder} is not a stage-1 student; an earlier run's is at runs/NAME/stage1")
    length, encoder = recipe.max_length, find_encoder(recipe.encoder)
    if PairTokenizer(folder, length).fingerprint() != PairTokenizer(encoder, length).fingerprint():
        raise TmkdError(f"stage1_from: {folder} reads text with another tokenizer than the encoder, {recipe.encoder}")
    if (layers := card.layers) != recipe.student.layers:
        raise TmkdError(f"stage1_from: {folder} has {layers} layers, student.layers is {recipe.student.layers}")


def _require_columns(rows: Rows) -> None:
    """Every score column that is a teacher has a number in every row that carries it."""
    recipe, data = rows.recipe, rows.data
    parts = {"train": data.train, "dev": data.dev, "test": data.test}
    if data.pool is not None:
        parts["pool"] = data.pool
    columns = [teacher for teacher in recipe.used_teachers if teacher.scores]
    for where, part in parts.items():
        for teacher in columns:
            if teacher.scores in part.score_names:
                ScoresTeacher.of(teacher, recipe.data).logits(part, where)
    mined = recipe.pool is not None and bool(recipe.pool.sources)
    known = [] if mined else (data.train if data.pool is None else data.pool).score_names
    absent = [teacher.name for teacher in columns if teacher.scores not in known]
    if absent and recipe.stage2.replay and any(METHODS[name].stage1 for name in recipe.methods):
        raise DataError(
            f"stage2.replay: teacher {absent[0]} is a column of scores that the training rows carry and the pool does "
            "not; give it to the pool too, or leave replay out"
        )
