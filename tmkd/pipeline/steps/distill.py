"""Students: stage 1 and stage 2 of METHOD.md for any method of the table, each a resumable step of the workspace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmkd.config.methods import Method
from tmkd.config.recipe import Recipe
from tmkd.config.sections import Training
from tmkd.data.pairs import Pairs
from tmkd.models.card import read_card
from tmkd.models.checkpoint import load_encoder, load_student, word_embeddings
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.encoders.lstm import LstmEncoder, LstmShape
from tmkd.models.student import Logits, Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.bi_encoder_cosine import bi_encoder_cosine
from tmkd.pipeline.steps.fit import fit_and_save
from tmkd.pipeline.store.token_cache import tokens_of
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.scores import COLUMN
from tmkd.training.hidden_states import Following
from tmkd.training.targets import MEAN, Replay, Targets, loss_depends, questions_of, soft_part, stage2_loss
from tmkd.training.token_cosine import Comparing, TokenTargets
from tmkd.training.trainer import Fit


def pretrain(
    workspace: Workspace,
    recipe: Recipe,
    method: Method,
    pool: Pairs,
    targets: Targets,
    seed: int,
    *,
    begin: Step | None = None,
) -> Step:
    """Stage 1: encoder and soft headers on the soft labels of the pool alone, and on the encoder's own cosine of its
    pairs and the states of the teacher it begins with where the recipe gives them a weight.

    Args:
        begin: the teacher whose layers the student begins with; the recipe's encoder's unless given.
    """
    numbers = recipe.stage1
    weight = numbers.cosine or float(method.self_taught)  # without teachers there is nothing else to learn
    told = bi_encoder_cosine(workspace, recipe, pool) if weight else None
    depends = {**_common(recipe, numbers, seed, begin), "pool": pool.digest(), "targets": targets.names}
    if told is not None:
        depends["cosine"] = (told.fingerprint, weight)
    followed = begin if numbers.states else None
    if followed is not None:
        depends["states"] = numbers.states
    depends |= loss_depends(recipe.loss, targets, exclude={"alpha"})
    questions = questions_of(pool, recipe.loss)
    classes = depends["classes"] = targets.logits.shape[2]  # of the pool's task, where that is another one

    def build(folder: Path) -> None:
        torch.manual_seed(seed)
        width = recipe.max_length if told else 0
        kind: Callable[..., Student] = partial(Comparing, width=width) if told else Student
        if followed is not None:
            kind = partial(Following, width=width, teacher=followed.folder, precision=recipe.precision)
        model = _new_student(recipe, numbers, classes, len(targets.names), begin, kind, use_golden=False)
        if isinstance(model, Following) and numbers.epochs > 1:
            model.keep(folder / "state", tokens_of(workspace, _reads(recipe), pool).lengths)
        loss = _stage1_loss(soft_part(targets, recipe.loss, questions), recipe, weight, told, pool)
        fit_and_save(
            workspace, model, pool, loss, Fit.of(numbers, seed, recipe.precision), folder,
            name=f"stage 1 ({method.name}, seed {seed})", tokenizer=_reads(recipe),
            about={"step": "stage1", "teachers": list(targets.names)}, questions=questions,
        )  # fmt: skip

    return workspace.step("stage1", depends, build, label=f"stage 1 of {method.name}, seed {seed}")


def _stage1_loss(
    soft: Callable[[Tensor, Tensor], Tensor], recipe: Recipe, weight: float, told: Step | None, pool: Pairs
) -> Callable[[Logits, Tensor], Tensor]:
    """L1 (METHOD.md, "Stage 1"), and by their weights (ours) the error of the tokens' numbers where the cosine is told,
    and that of the states of a student that follows a teacher's."""
    tokens, follow = TokenTargets(told.folder, pool, _reads(recipe)) if told else None, recipe.stage1.states

    def first(logits: Logits, rows: Tensor) -> Tensor:
        found = soft(logits.soft, rows)
        if tokens is not None:
            found = found + weight * tokens.loss(logits, rows)
        return found + follow * logits.states if logits.states.numel() else found

    return first


def distill(
    workspace: Workspace,
    recipe: Recipe,
    method: Method,
    rows: Pairs,
    targets: Targets | None,
    stage1: Step | Path | None,
    seed: int,
    *,
    begin: Step | None = None,
    replay: Replay | None = None,
) -> Step:
    """Stage 2, or the only stage of a method without stage 1: golden labels, and soft ones where the method has them.

    Args:
        begin: as in `pretrain`, for a method without stage 1.
        replay: what stage 2 mixes in (`stage2.replay`); the targets must be of the same teachers.
    """
    numbers = recipe.stage2 if stage1 is not None else recipe.without_stage1
    start = stage1.folder if isinstance(stage1, Step) else stage1
    depends = _common(recipe, numbers, seed, None if stage1 is not None else begin)
    depends |= _learnt(recipe, rows, targets)
    if targets and method.heads == "golden":
        depends["headers"] = "golden"
    if replay is not None:
        depends["replay"] = {"share": recipe.stage2.replay, "pool": replay.pool.digest()}
    questions = questions_of(rows, recipe.loss) if targets else None
    depends["stage1"] = stage1.fingerprint if isinstance(stage1, Step) else (start and encoder_fingerprint(start))
    if start is not None and targets is not None and None in (carried_heads(start, recipe.classes, targets) or ()):
        depends["headers"] = "those of the same teachers"

    def build(folder: Path) -> None:
        torch.manual_seed(seed)
        count = len(targets.names) if targets and method.heads == "golden+soft" else 0
        if start is None:
            model = _new_student(recipe, numbers, recipe.classes, count, begin, use_golden=True)
        else:
            model = _from_stage1(start, recipe, numbers, targets)
        mixed, soft = replay.behind(rows, targets) if replay is not None else (rows, targets)
        mixed_in = recipe.stage2.replayed if replay is not None else 0
        fit_and_save(
            workspace, model, rows, stage2_loss(mixed, soft, recipe.loss, questions),
            Fit.of(numbers, seed, recipe.precision, mixed_in), folder,
            name=f"{method.name}, seed {seed}", tokenizer=_reads(recipe),
            about={"step": method.name, "teachers": list(targets.names) if targets else []},
            questions=questions, replayed=replay.pool if replay is not None else None,
        )  # fmt: skip

    return workspace.step("student", depends, build, label=f"{method.name}, seed {seed}")


def _learnt(recipe: Recipe, rows: Pairs, targets: Targets | None) -> dict[str, Any]:
    """What a step depends on in the rows and labels that it learns from."""
    depends: dict[str, Any] = {"train": rows.digest(), "targets": targets.names if targets else None}
    depends |= loss_depends(recipe.loss, targets) if targets else {"loss": None}
    if rows.reference:
        depends["reference"] = rows.reference
    if targets and targets.folds:
        depends["folds"] = targets.folds
    return depends


def distill_lstm(
    workspace: Workspace, recipe: Recipe, method: Method, rows: Pairs, targets: Targets, teacher: Step | None, seed: int
) -> Step:
    """The `bilstm` baseline: golden and soft labels into one header over a bidirectional LSTM.

    Args:
        teacher: whose word pieces and their embeddings it takes; the recipe's encoder's where the teacher is a column
            of scores.
    """
    numbers, source = recipe.bilstm, find_encoder(recipe.encoder) if teacher is None else teacher.folder
    depends = {
        "encoder": encoder_fingerprint(source) if teacher is None else teacher.fingerprint,
        "bilstm": numbers.model_dump(),
        "freeze_embeddings": recipe.student.freeze_embeddings,
        **{key: getattr(recipe, key) for key in ("classes", "max_length", "precision")},
        "seed": seed,
        **_learnt(recipe, rows, targets),
    }
    questions = questions_of(rows, recipe.loss)

    def build(folder: Path) -> None:
        torch.manual_seed(seed)
        table, tokenizer = word_embeddings(source), PairTokenizer(source, recipe.max_length)
        separator = int(tokenizer.encode(["a"], ["a"]).ids[0][-1])
        shape = LstmShape(table.shape[0], table.shape[1], numbers.width, separator, tokenizer.pad_id)
        freeze = recipe.student.freeze_embeddings
        encoder = LstmEncoder(shape, dropout=numbers.dropout, freeze_embeddings=freeze)
        with torch.no_grad():
            encoder.embeddings.weight.copy_(table)
        fit_and_save(
            workspace, Student(encoder, recipe.classes), rows, stage2_loss(rows, targets, recipe.loss, questions),
            Fit.of(numbers, seed, recipe.precision), folder, name=f"{method.name}, seed {seed}",
            tokenizer=tokenizer, about={"step": method.name, "teachers": list(targets.names)}, questions=questions,
        )  # fmt: skip

    return workspace.step("student", depends, build, label=f"{method.name}, seed {seed}")


def _reads(recipe: Recipe) -> PairTokenizer:
    return PairTokenizer(find_encoder(recipe.encoder), recipe.max_length)


def _common(recipe: Recipe, numbers: Training, seed: int, begin: Step | None) -> dict[str, Any]:
    start = _start(recipe, begin)
    # not "spaced": a workspace may hold students from when those layers were others, the last among them
    shape = recipe.student.model_dump() | {"start": "spaced from the first" if start == "spaced" else start}
    usual = {key for key, value in (("start", "bottom"), ("pooler", "auto")) if shape[key] == value}
    return {
        "encoder": begin.fingerprint if begin else encoder_fingerprint(find_encoder(recipe.encoder)),
        "student": {key: value for key, value in shape.items() if key not in usual},
        "training": numbers.model_dump(exclude={"replay", "cosine", "states", "share"}),
        "classes": recipe.classes,
        "max_length": recipe.max_length,
        "precision": recipe.precision,
        "seed": seed,
    }


def _start(recipe: Recipe, begin: Step | None) -> str:
    """`student.start`, as the layers of whatever the student begins with are taken."""
    if begin is not None:
        return "spaced"
    return "bottom" if recipe.student.start == "teacher" else recipe.student.start


def _new_student(
    recipe: Recipe,
    numbers: Training,
    classes: int,
    soft_heads: int,
    begin: Step | None,
    kind: Callable[..., Student] = Student,
    *,
    use_golden: bool,
) -> Student:
    shape = recipe.student
    encoder = load_encoder(
        find_encoder(recipe.encoder) if begin is None else begin.folder,
        classes,
        layers=shape.layers,
        start=_start(recipe, begin),
        dropout=numbers.dropout,
        freeze_embeddings=shape.freeze_embeddings,
        pooler=shape.pooler if begin is None else "keep",  # that one was trained
    )
    return kind(encoder, classes, soft_heads, use_golden=use_golden)


def _from_stage1(folder: Path, recipe: Recipe, numbers: Training, targets: Targets | None) -> Student:
    """The stage-1 encoder; its headers too where the teachers are the same, the golden one as their mean."""
    before = load_student(folder, dropout=numbers.dropout, freeze_embeddings=recipe.student.freeze_embeddings)
    carried = targets and carried_heads(folder, recipe.classes, targets)
    if carried:
        before.start_golden_from_soft()
        before.take_soft_heads(carried)
        return before
    encoder = load_encoder(
        folder, recipe.classes, dropout=numbers.dropout, freeze_embeddings=recipe.student.freeze_embeddings
    )
    return Student(encoder, recipe.classes, len(targets.names) if targets else 0)


def carried_heads(folder: Path, classes: int, targets: Targets) -> list[int | None] | None:
    """For each target the header of a stage-1 student that goes on with it; None: no header goes on.

    They do where the teachers are the same. A column of scores that the pool did not carry joins in stage 2: its header
    (None in the list) begins as the mean of the others; a mean of teachers goes on when a column joins it.
    """
    card = read_card(folder)
    before, now = list(card.teachers or ()), list(targets.names)
    if not before or card.classes != classes:
        return None
    if len(before) == len(now) == 1 and before[0].startswith(MEAN) and now[0].startswith(MEAN):
        joined = now[0].removeprefix(before[0])
        return [0] if not joined or (joined != now[0] and joined.startswith(f"+{COLUMN}")) else None
    known = [name for name in now if name in before]
    if known != before or any(not name.startswith(COLUMN) for name in now if name not in before):
        return None
    return [before.index(name) if name in before else None for name in now]
