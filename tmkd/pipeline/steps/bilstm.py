"""The `bilstm` baseline as a step: a bidirectional LSTM with one head, which learns golden and soft labels."""

from __future__ import annotations

from pathlib import Path

import torch

from tmkd.data.pairs import Pairs
from tmkd.models.card import Origin
from tmkd.models.checkpoint import word_embeddings
from tmkd.models.encoders.lstm import LstmEncoder, LstmShape
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.fit import fit_and_save, state_folder
from tmkd.pipeline.steps.student import StudentSpec, soft_settings
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.token_cache import token_inputs
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.targets import Targets, questions_of, stage2_loss
from tmkd.training.trainer import Trainer, TrainerConfig
from tmkd.training.training_set import TrainingSet


def bilstm(workspace: Workspace, spec: StudentSpec, pairs: Pairs, targets: Targets) -> Step:
    """Train the `bilstm` baseline.

    Args:
        workspace: Keeps the step.
        spec: Which student. Its `begin` is the teacher whose word pieces and their embeddings it takes; those of the
            recipe's encoder if the teacher is a column of scores.
        pairs: N pairs with golden labels.
        targets: Their soft labels, of one teacher.

    Returns:
        The finished step.
    """
    recipe, numbers, source = spec.recipe, spec.recipe.bilstm, spec.source
    content = depends_on(
        settings={
            "bilstm": numbers,
            "freeze_embeddings": recipe.student.freeze_embeddings,
            "classes": recipe.classes,
            "max_length": recipe.max_length,
            "precision": recipe.precision,
            "seed": spec.seed,
            **soft_settings(recipe.loss, targets),
        },
        inputs={"encoder": spec.begins_with, "train": pairs, "targets": targets.names, "folds": targets.folds},
    )
    questions = questions_of(pairs, recipe.loss)

    def new_student(tokenizer: PairTokenizer) -> Student:
        table = word_embeddings(source)
        separator = int(tokenizer.encode(["a"], ["a"]).ids[0][-1])
        shape = LstmShape(table.shape[0], table.shape[1], numbers.width, separator, tokenizer.pad_id)
        frozen = recipe.student.freeze_embeddings
        encoder = LstmEncoder(shape, dropout=numbers.dropout, freeze_embeddings=frozen)
        with torch.no_grad():
            encoder.embeddings.weight.copy_(table)
        return Student(encoder, recipe.classes)

    def build(folder: Path) -> None:
        tokenizer = PairTokenizer(source, recipe.max_length)
        torch.manual_seed(spec.seed)
        model = new_student(tokenizer)
        trainer = Trainer(
            model,
            TrainingSet(token_inputs(workspace, tokenizer, pairs), questions),
            stage2_loss(pairs, targets, recipe.loss, questions),
            TrainerConfig.of(numbers, spec.seed, recipe.precision),
            name=spec.name,
            state_folder=state_folder(folder),
        )
        about: Origin = {"step": spec.method.name, "teachers": list(targets.names)}
        fit_and_save(trainer, folder, tokenizer, about, recipe.class_names)

    return workspace.step("student", content, build, label=spec.name)
