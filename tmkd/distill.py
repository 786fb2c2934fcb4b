"""Students: stage 1 and stage 2 of METHOD.md for any method of the table, each a resumable step of the workspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.encoder.checkpoint import load_encoder, load_student, read_card, save_student
from tmkd.encoder.find import encoder_fingerprint, find_encoder
from tmkd.errors import DataError
from tmkd.files import write_json
from tmkd.losses import golden_loss, soft_loss
from tmkd.methods import Method
from tmkd.pairs.record import Pairs
from tmkd.recipe import Loss, Recipe, Training
from tmkd.student import Logits, Student, combine
from tmkd.teachers import golden_only
from tmkd.tokenizer import Encoded, PairTokenizer
from tmkd.tokens import tokens_of
from tmkd.training import Fit, train
from tmkd.workspace import Step, Workspace

MEAN = "mean of "  # before the names of the teachers whose mean a header learns
COLUMN = "column "  # before the name of a score column, where a header's teacher is one


@dataclass(frozen=True)
class Targets:
    """Soft labels of some pairs.

    Attributes:
        names: what each header learns, [K] (teachers' fingerprints, or one name for their mean).
        logits: [N, K, C] float32, in the order of the pairs.
        folds: fingerprints of the teachers that made them, where those are not the ones named but out-of-fold ones.
    """

    names: tuple[str, ...]
    logits: NDArray[np.float32]
    folds: tuple[str, ...] = ()

    @classmethod
    def choose(cls, method: Method, names: list[str], logits: list[NDArray[np.float32]], best: int) -> Targets | None:
        """What a method learns from K teachers' logits (each [N, C]); None where it learns from none."""
        if method.targets == "none":
            return None
        if method.targets == "one":
            return cls((names[best],), logits[best][:, None])
        if method.targets == "mean":
            return cls((MEAN + "+".join(names),), ensemble_logits(logits).astype(np.float32)[:, None])
        return cls(tuple(names), np.stack(logits, axis=1))


def ensemble_logits(logits: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
    """Log of the mean of the teachers' probabilities, [N, C] float64: unsquashed, so that ranking never ties."""
    return combine(np.stack(logits, axis=1), "probability")


def pretrain(
    workspace: Workspace,
    recipe: Recipe,
    method: Method,
    pool: Pairs,
    targets: Targets,
    seed: int,
    *,
    teacher: Step | None = None,
) -> Step:
    """Stage 1: encoder and soft headers on the soft labels of the pool alone.

    Args:
        teacher: whose layers the student begins with; the recipe's encoder's unless given.
    """
    assert isinstance(recipe.stage1, Training)
    depends = {**_common(recipe, recipe.stage1, seed, teacher), "pool": pool.digest(), "targets": targets.names}
    depends["loss"] = recipe.loss.model_dump(exclude={"alpha"})
    classes = depends["classes"] = targets.logits.shape[2]  # of the pool's task, where that is another one

    def build(folder: Path) -> None:
        assert isinstance(recipe.stage1, Training)
        torch.manual_seed(seed)
        model = _new_student(recipe, recipe.stage1, classes, len(targets.names), teacher, use_golden=False)
        soft = torch.from_numpy(targets.logits)

        def loss(logits: Logits, rows: Tensor) -> Tensor:
            return soft_loss(logits.soft, soft[rows].to(logits.soft.device), recipe.loss.kind, recipe.loss.temperature)

        _train_and_save(
            workspace, model, recipe, recipe.stage1, pool, loss, folder, seed, f"stage 1 ({method.name}, seed {seed})",
            {"step": "stage1", "teachers": list(targets.names)},
        )  # fmt: skip

    return workspace.step("stage1", depends, build, label=f"stage 1 of {method.name}, seed {seed}")


def distill(
    workspace: Workspace,
    recipe: Recipe,
    method: Method,
    rows: Pairs,
    targets: Targets | None,
    stage1: Step | Path | None,
    seed: int,
    *,
    teacher: Step | None = None,
    replay: Replay | None = None,
) -> Step:
    """Stage 2, or the only stage of a method without stage 1: golden labels, and soft ones where the method has them.

    Args:
        teacher: as in `pretrain`, for a method without stage 1.
        replay: what stage 2 mixes in (`stage2.replay`); the targets must be of the same teachers.

    Raises:
        DataError: no row has a golden label.
    """
    if not rows.has_labels:
        raise DataError("the training rows have no golden labels; stage 2 and `finetune` need some")
    numbers = recipe.stage2 if stage1 is not None else recipe.without_stage1
    start = stage1.folder if isinstance(stage1, Step) else stage1
    depends = _common(recipe, numbers, seed, None if stage1 is not None else teacher)
    depends |= {"train": rows.digest(), "targets": targets.names if targets else None}
    depends["loss"] = recipe.loss.model_dump() if targets else None
    if rows.reference:
        depends["reference"] = rows.reference
    if targets and targets.folds:
        depends["folds"] = targets.folds
    if replay is not None:
        depends["replay"] = {"share": recipe.stage2.replay, "pool": replay.pool.digest()}
    depends["stage1"] = stage1.fingerprint if isinstance(stage1, Step) else (start and encoder_fingerprint(start))
    if start is not None and targets is not None and None in (carried_headers(start, recipe.classes, targets) or ()):
        depends["headers"] = "those of the same teachers"

    def build(folder: Path) -> None:
        torch.manual_seed(seed)
        count = len(targets.names) if targets else 0
        if start is None:
            model = _new_student(recipe, numbers, recipe.classes, count, teacher, use_golden=True)
        else:
            model = _from_stage1(start, recipe, numbers, targets)
        mixed, soft = replay.behind(rows, targets) if replay is not None else (rows, targets)
        _train_and_save(
            workspace, model, recipe, numbers, rows, stage2_loss(mixed, soft, recipe.loss), folder, seed,
            f"{method.name}, seed {seed}",
            {"step": method.name, "teachers": list(targets.names) if targets else []},
            replay.pool if replay is not None else None,
        )  # fmt: skip

    return workspace.step("student", depends, build, label=f"{method.name}, seed {seed}")


@dataclass(frozen=True)
class Replay:
    """Pairs of stage 1 that stage 2 mixes in, and their soft labels."""

    pool: Pairs
    targets: Targets

    def behind(self, rows: Pairs, targets: Targets | None) -> tuple[Pairs, Targets]:
        """Rows and targets of the task, then those of the pool, which have no golden label."""
        assert targets is not None
        if targets.names != self.targets.names:
            raise DataError(
                "stage2.replay: a teacher is a column of scores that the training rows carry and the pool does not; "
                "give it to the pool too, or leave replay out"
            )
        logits = np.concatenate([targets.logits, self.targets.logits])
        return rows.and_unlabelled(self.pool), Targets(targets.names, logits)


def stage2_loss(rows: Pairs, targets: Targets | None, loss: Loss) -> Callable[[Logits, Tensor], Tensor]:
    """L2 = (1 - a) CE(s_g, y) + a soft loss (METHOD.md, "Stage 2"); cross-entropy alone where there are no targets."""
    labels = torch.from_numpy(rows.golden)
    if targets is None:
        plain: Callable[[Logits, Tensor], Tensor] = golden_only(labels)
        return plain
    soft = torch.from_numpy(targets.logits)

    def combined(logits: Logits, which: Tensor) -> Tensor:
        where = logits.golden.device
        golden = golden_loss(logits.golden, labels[which].to(where))
        distilled = soft_loss(logits.soft, soft[which].to(where), loss.kind, loss.temperature)
        return (1 - loss.alpha) * golden + loss.alpha * distilled

    return combined


def _common(recipe: Recipe, numbers: Training, seed: int, teacher: Step | None) -> dict[str, Any]:
    shape = recipe.student.model_dump() | {"start": _start(recipe, teacher)}
    usual = {key for key, value in (("start", "bottom"), ("pooler", "keep")) if shape[key] == value}
    return {
        "encoder": teacher.fingerprint if teacher else encoder_fingerprint(find_encoder(recipe.encoder)),
        "student": {key: value for key, value in shape.items() if key not in usual},
        "training": numbers.model_dump(exclude={"replay"}),
        "classes": recipe.classes,
        "max_length": recipe.max_length,
        "precision": recipe.precision,
        "seed": seed,
    }


def _start(recipe: Recipe, teacher: Step | None) -> str:
    """`student.start`, as a student without a teacher to begin with reads it."""
    return "spaced" if recipe.student.start == "teacher" and teacher is None else recipe.student.start


def _new_student(
    recipe: Recipe, numbers: Training, classes: int, soft_headers: int, teacher: Step | None, *, use_golden: bool
) -> Student:
    shape = recipe.student
    encoder = load_encoder(
        find_encoder(recipe.encoder) if teacher is None else teacher.folder,
        classes,
        layers=shape.layers,
        start="spaced" if teacher is not None else _start(recipe, teacher),
        dropout=numbers.dropout,
        freeze_embeddings=shape.freeze_embeddings,
        pooler=shape.pooler if teacher is None else "keep",  # a teacher's was trained
    )
    return Student(encoder, classes, soft_headers, use_golden=use_golden)


def _from_stage1(folder: Path, recipe: Recipe, numbers: Training, targets: Targets | None) -> Student:
    """The stage-1 encoder; its headers too where the teachers are the same, the golden one as their mean."""
    before = load_student(folder, dropout=numbers.dropout, freeze_embeddings=recipe.student.freeze_embeddings)
    carried = targets and carried_headers(folder, recipe.classes, targets)
    if carried:
        before.start_golden_from_soft()
        before.take_soft_headers(carried)
        return before
    encoder = load_encoder(
        folder, recipe.classes, dropout=numbers.dropout, freeze_embeddings=recipe.student.freeze_embeddings
    )
    return Student(encoder, recipe.classes, len(targets.names) if targets else 0)


def carried_headers(folder: Path, classes: int, targets: Targets) -> list[int | None] | None:
    """For each target the header of a stage-1 student that goes on with it; None: no header goes on.

    They do where the teachers are the same. A column of scores that the pool did not carry joins in stage 2: its header
    (None in the list) begins as the mean of the others; a mean of teachers goes on when a column joins it.
    """
    card = read_card(folder)
    before, now = list(card.get("teachers", ())), list(targets.names)
    if not before or int(card["classes"]) != classes:
        return None
    if len(before) == len(now) == 1 and before[0].startswith(MEAN) and now[0].startswith(MEAN):
        joined = now[0].removeprefix(before[0])
        return [0] if not joined or (joined != now[0] and joined.startswith(f"+{COLUMN}")) else None
    known = [name for name in now if name in before]
    if known != before or any(not name.startswith(COLUMN) for name in now if name not in before):
        return None
    return [before.index(name) if name in before else None for name in now]


def _train_and_save(
    workspace: Workspace,
    model: Student,
    recipe: Recipe,
    numbers: Training,
    rows: Pairs,
    loss: Callable[[Logits, Tensor], Tensor],
    folder: Path,
    seed: int,
    name: str,
    about: dict[str, Any],
    replayed: Pairs | None = None,
) -> None:
    source = find_encoder(recipe.encoder)
    tokenizer = PairTokenizer(source, recipe.max_length)
    fit = Fit(
        numbers.learning_rate, numbers.epochs, numbers.batch_size, seed,
        numbers.warmup, numbers.weight_decay, numbers.clip, recipe.precision,
        recipe.stage2.replayed if replayed is not None else 0,
    )  # fmt: skip
    encoded = tokens_of(workspace, tokenizer, rows)
    if replayed is not None:
        pool = tokens_of(workspace, tokenizer, replayed)
        encoded = Encoded([*encoded.ids, *pool.ids], [*encoded.type_ids, *pool.type_ids])
    curve = train(
        model, encoded, tokenizer.pad_id, loss, fit, name=name, state_folder=folder / "state", own=len(rows)
    )  # fmt: skip
    save_student(model, folder, source, recipe.max_length, about)
    write_json(folder / "curve.json", curve)
