"""A teacher as a step: fine-tuned here on golden labels, or copied from a finished checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tmkd.config.recipe import Recipe
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import named
from tmkd.data.pairs import Pairs
from tmkd.models.card import Origin
from tmkd.models.checkpoint import load_encoder, save_student
from tmkd.models.encoders.find import find_encoder
from tmkd.models.label_map import class_names, find_label_map
from tmkd.models.own_length import own_length
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.fit import fit_and_save, state_folder
from tmkd.pipeline.store.fingerprint import depends_on, non_defaults
from tmkd.pipeline.store.token_cache import token_inputs
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.encoder import EncoderTeacher
from tmkd.training.losses import GoldenLoss
from tmkd.training.trainer import Trainer, TrainerConfig
from tmkd.training.training_set import TrainingSet

# Fields of a teacher that enter as inputs (encoder, and with `share` the training pairs), are resolved (max_length),
# say what kind of teacher it is, or change none of its logits (name, calibrate).
_NOT_SETTINGS = {
    "name", "kind", "encoder", "checkpoint", "scores", "max_length", "share", "other_tasks", "label_map", "calibrate",
}  # fmt: skip


def length_of(recipe: Recipe, teacher: Teacher) -> int:
    """How many tokens of a pair a teacher reads that is a model of the workspace; a finished one its own length.

    Raises:
        EncoderError: the checkpoint cannot be found or read.
    """
    if teacher.max_length is not None:
        return teacher.max_length
    return recipe.max_length if teacher.checkpoint is None else own_length(find_encoder(teacher.checkpoint))


def teach(
    workspace: Workspace,
    recipe: Recipe,
    teacher: Teacher,
    train_rows: Pairs,
    warmed_up: Step | None = None,
    others: Sequence[Pairs] = (),
) -> Step:
    """Make one teacher.

    Args:
        workspace: keeps the teacher.
        recipe: the classes, the maximum length and the precision.
        teacher: the recipe's teacher, an encoder, or a checkpoint that tmkd reads itself.
        train_rows: the pairs that it is fine-tuned on; a finished checkpoint does not read them.
        warmed_up: the step whose encoder it begins with in place of its own (`tmkd.pipeline.steps.warm_up`).
        others: training pairs of other tasks, which it is fine-tuned on as well (`other_tasks`).

    Raises:
        EncoderError: the encoder cannot be read, or a checkpoint has a head of another number of classes.
        RecipeError: a checkpoint's classes have other names than the task's, or another order that no label map states.
    """
    if teacher.checkpoint is not None:
        source = find_encoder(teacher.checkpoint)
        order = find_label_map(source, teacher, recipe)
        length, labels = length_of(recipe, teacher), recipe.class_names
        return copy_checkpoint(workspace, source, order, length, name=teacher.name, labels=labels)
    source, length = find_encoder(recipe.encoder_of(teacher)), length_of(recipe, teacher)
    folder = warmed_up.folder if warmed_up else source
    content = depends_on(
        settings={
            "teacher": non_defaults(teacher, without=_NOT_SETTINGS),
            "classes": recipe.classes,
            "max_length": length,
            "precision": recipe.precision,
        },
        inputs={"encoder": warmed_up or source, "train": train_rows, "others": others},
    )

    def build(target: Path) -> None:
        torch.manual_seed(teacher.seed)  # the new head
        with named(f"teacher {teacher.name}"):
            encoder = load_encoder(folder, recipe.classes, dropout=teacher.dropout, pooler=teacher.pooler)
        model = Student(encoder, recipe.classes)
        tokenizer = PairTokenizer(folder, length)
        numbers = {name: getattr(teacher, name) for name in ("learning_rate", "epochs", "batch_size", "seed")}
        rows = functools.reduce(Pairs.and_unlabelled, others, train_rows)
        trainer = Trainer(
            model,
            TrainingSet(token_inputs(workspace, tokenizer, rows)),
            GoldenLoss(golden_of([train_rows, *others], recipe.classes)),
            TrainerConfig(**numbers, precision=recipe.precision),
            name=f"teacher {teacher.name}",
            state_folder=state_folder(target),
        )
        fit_and_save(trainer, target, tokenizer, {"step": "teacher"}, recipe.class_names)

    return workspace.step("teacher", content, build, label=f"teacher {teacher.name}")


def golden_of(parts: Sequence[Pairs], classes: int) -> Tensor:
    """What the golden head learns of the pairs of every part, one after another: classes [N], or probabilities [N, C].

    They are probabilities for all pairs where they are for some: a class is then a 1, and no label a row of zeros.
    """
    found = [torch.from_numpy(part.golden) for part in parts]
    if any(one.ndim == 2 for one in found):
        rows = torch.cat([torch.eye(classes), torch.zeros(1, classes)])  # the last one, which -1 takes, for no label
        found = [one if one.ndim == 2 else rows[one] for one in found]
    return torch.cat(found)


def copy_checkpoint(
    workspace: Workspace, source: Path, order: list[int], length: int, *, name: str, labels: Sequence[str] | None = None
) -> Step:
    """Save a finished checkpoint as a step, with its classes in the order of the task.

    Args:
        workspace: keeps it.
        source: the checkpoint.
        order: for each class of the task, the checkpoint's class that it is, [C].
        length: most tokens of a pair.
        name: what the log calls the teacher.
        labels: the names of the task's classes; the checkpoint's own, where it names its classes, come first.
    """
    content = depends_on(
        settings={"classes": len(order), "class_order": order, "max_length": length},
        inputs={"checkpoint": source},
    )

    def build(target: Path) -> None:
        with named(f"teacher {name}"):
            model = EncoderTeacher(source, max_length=length, class_order=order).model
        own = class_names(source)
        names = [own[was] for was in order] if own else labels
        about: Origin = {"step": "teacher", "class_order": order}
        save_student(model, target, source, length, {**about, "labels": list(names)} if names else about)

    return workspace.step("teacher", content, build, label=f"teacher {name}")
