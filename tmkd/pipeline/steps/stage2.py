"""Stage 2 of METHOD.md as a step: distillation on the task's labelled pairs. Also the only stage of other methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tmkd.data.pairs import Pairs
from tmkd.models.card import Origin
from tmkd.models.inputs import Inputs
from tmkd.models.student import Student
from tmkd.pipeline.steps.fit import fit_and_save, state_folder
from tmkd.pipeline.steps.student import StudentSpec, carried_heads, soft_settings
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.targets import Replay, Targets, questions_of, stage2_loss
from tmkd.training.trainer import Trainer
from tmkd.training.training_set import TrainingSet


def stage2(
    workspace: Workspace,
    spec: StudentSpec,
    pairs: Pairs,
    targets: Targets | None,
    stage1: Step | Path | None = None,
    replay: Replay | None = None,
) -> Step:
    """Train a student on golden labels, and on soft labels where the method has them (METHOD.md, "Stage 2").

    Args:
        workspace: Keeps the step.
        spec: Which student. Its `begin` is for a method without stage 1.
        pairs: N pairs with golden labels.
        targets: Their soft labels; None for a method that learns from no teacher.
        stage1: The stage-1 student that it continues (a step, or a folder from elsewhere); None without stage 1.
        replay: Pairs of the pool that are trained on again (`stage2.replay`), with soft labels of the same teachers.

    Returns:
        The finished step; its folder is a checkpoint.
    """
    recipe = spec.recipe
    start = stage1.folder if isinstance(stage1, Step) else stage1
    questions = questions_of(pairs, recipe.loss) if targets else None

    def build(folder: Path) -> None:
        tokenizer = spec.tokenizer()
        torch.manual_seed(spec.seed)
        data = TrainingSet(spec.inputs(workspace, pairs, start), questions)
        model = _first_student(spec, data.inputs, targets, start)
        if replay is not None:
            pool = spec.inputs(workspace, replay.pool, start)
            data = TrainingSet.with_replay(data.inputs, pool, spec.stage2.replayed)
        all_pairs, soft = replay.behind(pairs, targets) if replay is not None else (pairs, targets)
        trainer = Trainer(
            model,
            data,
            stage2_loss(all_pairs, soft, recipe.loss, questions),
            spec.trainer_config(spec.last_stage(start is not None)),
            name=spec.name,
            state_folder=state_folder(folder),
        )
        about: Origin = {"step": spec.method.name, "teachers": list(targets.names) if targets else []}
        fit_and_save(trainer, folder, tokenizer, about, recipe.class_names)

    some = (pairs, *([replay.pool] if replay else []))
    read = [step for one in some for step in spec.states(workspace, one, start)]
    content = _content(spec, pairs, targets, stage1, replay, read)
    return workspace.step("student", content, build, label=spec.name)


def _content(
    spec: StudentSpec,
    pairs: Pairs,
    targets: Targets | None,
    stage1: Step | Path | None,
    replay: Replay | None,
    states: list[Step],
) -> dict[str, Any]:
    """What the student depends on; arguments as of `stage2`, and the steps with the states of its texts."""
    recipe = spec.recipe
    numbers = spec.last_stage(stage1 is not None)
    start = stage1.folder if isinstance(stage1, Step) else stage1
    return depends_on(
        settings={
            **spec.settings(numbers, without=None if replay else {"replay"}, continues=start is not None),
            **soft_settings(recipe.loss, targets),
            "heads": spec.method.heads if targets else None,
            "carried_heads": carried_heads(start, recipe.classes, targets) if start and targets else None,
        },
        inputs={
            "encoder": spec.begins_with,
            "stage1": stage1,
            "train": pairs,
            "targets": targets and targets.names,
            "folds": targets and targets.folds,
            "replay": replay and replay.pool,
            "replay_folds": replay and replay.targets.folds,
            "states": states,
        },
    )


def _first_student(spec: StudentSpec, inputs: Inputs, targets: Targets | None, start: Path | None) -> Student:
    """The student as stage 2 begins: the continued stage-1 student in `start`, or a new one."""
    numbers = spec.last_stage(start is not None)
    if start is not None:
        return spec.continued_student(start, numbers, targets)
    soft_heads = len(targets.names) if targets and spec.method.heads == "golden+soft" else 0
    return spec.new_student(numbers, inputs, spec.recipe.classes, soft_heads, use_golden=True)
