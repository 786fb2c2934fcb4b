"""Stage 1 of METHOD.md as a step: distillation on the unlabelled pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tmkd.config.rates import EXTRAS
from tmkd.data.pairs import Pairs
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.bi_encoder_cosine import bi_encoder_cosine
from tmkd.pipeline.steps.fit import fit_and_save, state_folder
from tmkd.pipeline.steps.question_states import question_states_of, question_targets
from tmkd.pipeline.steps.student import StudentSpec, soft_settings
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.hidden_states import HiddenStatesConfig, hidden_states_objectives
from tmkd.training.objectives import AuxiliaryObjective
from tmkd.training.question_states import QuestionStates
from tmkd.training.targets import SoftLabelLoss, Targets, questions_of
from tmkd.training.token_cosine import TokenCosineConfig, TokenTargets, token_cosine_objective
from tmkd.training.trainer import Trainer
from tmkd.training.training_set import TrainingSet

_ADDED = {*EXTRAS, "share"}  # they count where the step adds them; the pool is what `share` leaves


def stage1(workspace: Workspace, spec: StudentSpec, pool: Pairs, targets: Targets) -> Step:
    """Train encoder and soft heads on the soft labels of the pool (METHOD.md, "Stage 1").

    Where the recipe gives them a weight, a layered student also learns the token cosine and teachers' hidden states,
    and a cached student teachers' hidden states of the questions' tokens.

    Args:
        workspace: Keeps the step.
        spec: Which student.
        pool: N unlabelled pairs.
        targets: Their soft labels.

    Returns:
        The finished step; its folder is a checkpoint with soft heads only.
    """
    recipe, numbers, weight, states = spec.recipe, spec.stage1, _cosine_weight(spec), spec.states(workspace, pool)
    cosine = bi_encoder_cosine(workspace, recipe, pool) if weight else None
    teachers = spec.taught_by if spec.method.cached else ()
    taught = [question_states_of(workspace, recipe, one, pool) for one in teachers]
    classes = targets.logits.shape[2]  # the pool's task may have other classes
    content = depends_on(
        settings={
            **spec.settings(numbers, without=_ADDED),
            **soft_settings(recipe.loss, targets, without={"alpha"}),
            "classes": classes,
            "token_cosine": weight or None,
            "hidden_states": numbers.states if spec.taught_by else None,
            "states_until": numbers.states_until if spec.taught_by and numbers.states_until < 1 else None,
        },
        inputs={
            "encoder": spec.begins_with, "pool": pool, "targets": targets.names, "folds": targets.folds,
            "token_cosine": cosine,
            "states": states[0] if len(states) == 1 else states, "states_of": spec.taught_by[1:],
            "question_states": taught[0] if taught else None,
        },
    )  # fmt: skip
    questions = questions_of(pool, recipe.loss)

    def build(folder: Path) -> None:
        tokenizer = spec.tokenizer()
        data = TrainingSet(spec.inputs(workspace, pool), questions, by_passage=spec.by_passage)
        torch.manual_seed(spec.seed)
        model = spec.new_student(numbers, data.inputs, classes, len(targets.names), use_golden=False)
        objectives = [] if cosine is None else _token_cosine(model, cosine, pool, tokenizer, weight)
        objectives += _question_states(spec, taught) if taught else _hidden_states(model, spec, data, folder)
        trainer = Trainer(
            model,
            data,
            SoftLabelLoss(targets, recipe.loss, questions),
            spec.trainer_config(numbers),
            objectives=objectives,
            name=f"stage 1 ({spec.name})",
            state_folder=state_folder(folder),
        )
        # the teachers of another task have its classes
        labels = None if recipe.foreign_pool else recipe.class_names
        fit_and_save(trainer, folder, tokenizer, {"step": "stage1", "teachers": list(targets.names)}, labels)

    return workspace.step("stage1", content, build, label=f"stage 1 of {spec.name}")


def _cosine_weight(spec: StudentSpec) -> float:
    """The weight of the token cosine: of a student without teachers, which has nothing else to learn, 1."""
    if spec.method.cached:
        return 0.0
    return spec.recipe.stage1.cosine or float(spec.method.self_taught)


def _token_cosine(
    model: Student, cosine: Step, pool: Pairs, tokenizer: PairTokenizer, weight: float
) -> list[AuxiliaryObjective]:
    targets = TokenTargets(cosine.folder, pool, tokenizer)
    return [*token_cosine_objective(model.encoder, targets, TokenCosineConfig(weight, tokenizer.max_length))]


def _question_states(spec: StudentSpec, taught: Sequence[Step]) -> list[AuxiliaryObjective]:
    weight, until = spec.stage1.states / len(taught), spec.stage1.states_until
    targets = [question_targets(one.folder) for one in taught]
    return [QuestionStates(one, weight, until, number) for number, one in enumerate(targets)]


def _hidden_states(model: Student, spec: StudentSpec, data: TrainingSet, folder: Path) -> list[AuxiliaryObjective]:
    numbers = spec.stage1
    config = HiddenStatesConfig(numbers.states, spec.recipe.precision, numbers.states_until)
    found = hidden_states_objectives(model.encoder, [one.folder for one in spec.taught_by], config)
    if numbers.epochs * numbers.states_until > 1:  # else no pair is read twice
        for objective in found:
            objective.store(state_folder(folder) / f"teacher-{objective.number}", data.lengths)
    return [*found]
