"""Every model of a run on labelled pairs: their outputs, and the comparison of them.

This joins the steps of the pipeline with `tmkd.evaluation`, which knows nothing of training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.config.class_checks import unlike_classes
from tmkd.config.recipe import Recipe
from tmkd.config.sections import Training
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import TmkdError
from tmkd.core.files import digest_of
from tmkd.core.hardware import prepare
from tmkd.data.pairs import Pairs
from tmkd.evaluation.comparison import ComparisonOptions, compare
from tmkd.evaluation.components import measure_agreement, measure_components
from tmkd.evaluation.results import ENSEMBLE, ModelOutput, Results
from tmkd.models.card import read_card
from tmkd.models.checkpoint import depth, load_student
from tmkd.models.encoders.cached_files import (
    ENCODER_FOLDER,
    interaction_shape,
    is_cached,
    question_folder,
    was_trained,
)
from tmkd.models.encoders.families import last_linear
from tmkd.models.encoders.find import WEIGHTS_FILE, weight_files
from tmkd.models.encoders.lstm import is_lstm
from tmkd.models.student import COMBINATIONS
from tmkd.models.weights import count_parameters
from tmkd.pipeline.steps.finished_run import FinishedRun, RunModel
from tmkd.pipeline.steps.free_baselines import COSINE, free_baselines, untrained_teachers
from tmkd.pipeline.steps.label import method_logits
from tmkd.pipeline.steps.speed import add_speed
from tmkd.pipeline.steps.stacking import StackedTeachers
from tmkd.pipeline.steps.student import StudentSpec
from tmkd.pipeline.steps.teacher_logits import StoredTeachers, TeacherLogits, calibrated
from tmkd.pipeline.steps.tune import TUNED
from tmkd.teachers.calibration import reliability
from tmkd.teachers.ensemble import ensemble_logits
from tmkd.teachers.scores import ScoresTeacher

logger = logging.getLogger(__name__)


def evaluate(
    run: FinishedRun,
    pairs: Pairs,
    *,
    timed: bool = True,
    task: str | None = None,
    opened: StoredTeachers | None = None,
    beside: Sequence[FinishedRun] = (),
) -> Results:
    """Compare every model of a run on labelled pairs.

    Args:
        run: the finished run.
        pairs: labelled pairs.
        timed: whether to measure the speed of the models too.
        task: what the results call the pairs; the recipe's name unless given.
        opened: teachers that are open already.
        beside: other runs (`require_comparable`), whose students and baselines are compared with this run's; their
            speed is not measured.

    Raises:
        TmkdError: no pair has a label, or a label is not a class of the run.
    """
    if not pairs.has_labels:
        raise TmkdError("these pairs have no labels; `tmkd evaluate` needs a label column, `tmkd score` does not")
    if int(pairs.labels.max()) >= run.recipe.classes:
        raise TmkdError(f"label {int(pairs.labels.max())} is out of range: the run has {run.recipe.classes} classes")
    prepare(attention=run.recipe.attention)
    found, unmeasured = outputs(run, pairs, timed=timed, opened=opened)
    for other in beside:
        students = (model for model in other.models if model.kind in ("baseline", "student"))
        found += [replace(made, name=f"{made.name} ({other.recipe.name})")
                  for made in (_output(other, model, pairs) for model in students)]  # fmt: skip
    return compare_outputs(run, pairs, found, task=task or run.recipe.name, unmeasured=unmeasured)


def require_comparable(run: FinishedRun, others: Sequence[FinishedRun]) -> None:
    """TmkdError if two of the runs have one name, or the outputs of their models do not mean the same."""
    names = [run.recipe.name]
    for other in others:
        if (name := other.recipe.name) in names:
            raise TmkdError(f"two of these runs are called {name!r}; give one of them another name, with name=...")
        names.append(name)
        for what, mine, theirs in (
            ("classes", run.recipe.classes, other.recipe.classes),
            ("data.positive", run.recipe.positive_class, other.recipe.positive_class),
        ):
            if mine != theirs:
                raise TmkdError(
                    f"{what} is {mine} in the run {names[0]} and {theirs} in {name}; they cannot be compared"
                )
        if differing := unlike_classes(run.recipe.data, other.recipe.data):
            raise TmkdError(
                f"the classes of the runs {names[0]} and {name} are not the same: {differing}. Give both recipes the "
                "same data.labels, and run them anew"
            )


def outputs(
    run: FinishedRun, pairs: Pairs, *, timed: bool, own: bool = False, opened: StoredTeachers | None = None
) -> tuple[list[ModelOutput], dict[str, str]]:
    """The output of every model of a run: teachers, their ensemble, baselines, students, then what is free.

    Args:
        run: the finished run.
        pairs: the pairs.
        timed: whether to measure the speed of the models too.
        own: whether they are the run's own test pairs. Of other pairs a file of scores that names pairs by qid and pid
            is left out: there the same numbers may stand for other texts.
        opened: teachers that are open already.

    Returns:
        The outputs; and for each teacher that these pairs cannot measure, by its name, why.
    """
    sources = TeacherLogits(run.workspace, run.recipe, opened)
    found, unmeasured = list[ModelOutput](), dict[str, str]()
    for model in run.models:
        made = _teacher(run, model, pairs, sources, own) if model.kind == "teacher" else _output(run, model, pairs)
        if isinstance(made, ModelOutput):
            found.append(made)
        else:
            unmeasured[model.name.removeprefix("teacher:")] = made
            logger.info(f"{model.name} is not measured, nor is an ensemble with it: {made}")
    teachers = [output for output in found if output.kind == "teacher"]
    if len(teachers) > 1:
        found.insert(len(teachers), _ensemble(run, teachers))
    free = free_baselines(run.workspace, run.recipe, pairs, teachers)
    if COSINE in run.recipe.methods and free:
        first = next((n for n, output in enumerate(found) if output.kind in ("baseline", "student")), len(found))
        (named,) = (output for output in free if output.name == COSINE)
        free.remove(named)
        found.insert(first, replace(named, kind="baseline"))
    found += free
    if timed:
        add_speed(run, found, pairs)
    return found, unmeasured


def _output(run: FinishedRun, model: RunModel, pairs: Pairs) -> ModelOutput:
    """The output of a student or baseline."""
    recipe, steps = run.recipe, run.steps(model.steps)
    logits = method_logits(
        run.workspace, steps, pairs, recipe.combination, each=model.each, name=model.name, precision=recipe.precision
    )
    folders = [step.folder for step in steps[: model.each]]
    return ModelOutput(model.name, model.kind, logits, cached=_cached(recipe, folders[0]), **_sizes(folders))


def _cached(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """How a cached student's encoder was made, as `ModelOutput` has it; None for other models."""
    if not is_cached(folder):
        return None
    section, shape = recipe.cached, interaction_shape(folder)
    here = {"all": "along", "last": "last"}[section.trains_in] if section.encoder_learning_rate else "before"
    return {
        "encoder": recipe.cached_encoder,
        "encoder_layers": depth(folder / ENCODER_FOLDER),
        "trained": here if was_trained(folder) else "no",
        "encoder_learning_rate": section.encoder_learning_rate,
        "question_encoder": section.question_encoder,
        "state_size": shape.state_size,
        "layers": shape.layers,
    }


def _teacher(run: FinishedRun, model: RunModel, pairs: Pairs, sources: TeacherLogits, own: bool) -> ModelOutput | str:
    """The output of a teacher; where the pairs cannot measure it, why."""
    recipe = run.recipe
    teacher = next(one for one in recipe.all_teachers if one.name == model.name.removeprefix("teacher:"))
    if why := _cannot_measure(recipe, teacher, pairs, sources, own):
        return why
    steps = run.steps(model.steps)
    given = sources.uncalibrated(teacher, steps[0] if steps else None, pairs, "evaluation")
    if teacher.partial and (gaps := int((~np.isfinite(given).all(axis=1)).sum())):
        return f"it has no score for {gaps:,} of {len(pairs):,} pairs"
    calibration = run.steps((model.calibration,))[0] if model.calibration else None
    logits = calibrated(teacher, calibration, given, pairs)
    found = ModelOutput(model.name, model.kind, logits[None].astype(np.float64))
    if recipe.classes == 2:
        known = np.flatnonzero(pairs.labels >= 0)
        labels = pairs.labels[known]
        found.reliability = {"given": reliability(given[known], labels)}
        if teacher.calibration != "none":
            found.reliability["calibrated"] = reliability(logits[known], labels)
    sized = steps and steps[0].kind != TUNED  # a tuned bi-encoder reads each text once: no cost of a pair
    return replace(found, **_sizes([steps[0].folder])) if sized else found


def _cannot_measure(recipe: Recipe, teacher: Teacher, pairs: Pairs, sources: TeacherLogits, own: bool) -> str:
    """Why the pairs cannot measure a teacher that is a column or a file of scores; empty if they can."""
    if not sources.can_label(teacher, pairs):
        place = f"column {teacher.scores!r}" if teacher.is_column else f"file {teacher.file}"
        return f"its {place} has no score for these pairs"
    if not own and sources.by_ids(teacher):
        return (
            f"{teacher.file} names pairs by qid and pid, which may stand for other texts here; give it the columns "
            "question and passage, or pair_id"
        )
    if teacher.is_column and ScoresTeacher.of(teacher, recipe.data).is_reference_of(pairs):
        return f"it made the reference {teacher.scores!r}"
    return ""


def _sizes(folders: list[Path]) -> dict[str, Any]:
    """The size of all models that run for one output: `parameters`, `encoder_parameters`, `bytes`, `layers`."""
    parameters = encoders = size = 0
    for folder in folders:
        student = load_student(folder)
        # Our heads replace the module's own last layer.
        unused = {id(p) for p in last_linear(student.encoder.model).parameters()} if _has_module(folder) else set()
        parameters += sum(p.numel() for p in student.parameters() if id(p) not in unused)
        size += (folder / WEIGHTS_FILE).stat().st_size
        if is_cached(folder):
            for inner in filter(None, (folder / ENCODER_FOLDER, question_folder(folder))):
                encoders += count_parameters(inner)
                size += sum(path.stat().st_size for path in weight_files(inner))
    return {
        "parameters": parameters + encoders,
        "encoder_parameters": encoders or None,
        "bytes": size,
        "layers": read_card(folders[0]).layers,
    }


def _has_module(folder: Path) -> bool:
    """Whether a model is a checkpoint of transformers, whose module has a last layer of its own."""
    return not is_lstm(folder) and not is_cached(folder)


def _ensemble(run: FinishedRun, teachers: list[ModelOutput]) -> ModelOutput:
    """The teacher ensemble; its size is that of its teachers, where all are models whose size is known."""
    models = teachers if all(teacher.parameters is not None for teacher in teachers) else []
    return ModelOutput(
        name=ENSEMBLE,
        kind="ensemble",
        logits=_together(run.stacked, teachers)[None],
        parameters=sum(teacher.parameters or 0 for teacher in models) or None,
        bytes=sum(teacher.bytes or 0 for teacher in models) or None,
        layers=max((teacher.layers or 0 for teacher in models), default=0) or None,
    )


def _together(stacked: StackedTeachers | None, teachers: list[ModelOutput]) -> NDArray[np.float64]:
    """The logits of the ensemble of some teachers, [N, C]."""
    logits = {teacher.name.removeprefix("teacher:"): teacher.logits[0] for teacher in teachers}
    found = None if stacked is None else stacked.together(logits)
    return ensemble_logits(list(logits.values())) if found is None else found


def compare_outputs(
    run: FinishedRun, pairs: Pairs, found: list[ModelOutput], *, task: str, unmeasured: dict[str, str]
) -> Results:
    """Compare the outputs of a run's models.

    Args:
        run: the finished run.
        pairs: labelled pairs.
        found: the outputs of the run's models on these pairs.
        task: what the results call the pairs.
        unmeasured: why a teacher is not among the outputs, by its name.

    Returns:
        The comparison, with what each teacher adds to the ensemble, each combination of the student's heads, and how
        often each small model decides as the ensemble does.
    """
    classes = run.recipe.classes
    options = ComparisonOptions(
        taken=run.take,
        positive=run.recipe.positive_class,
        best_teacher=run.development.get("best", ""),
        free=(COSINE, *untrained_teachers(run.recipe)),
    )
    results = compare(pairs, found, classes=classes, task=task, options=options)
    by_name = {output.name: output for output in found}
    if ENSEMBLE in by_name:
        results.leave_one_out = measure_components(
            pairs, by_name[ENSEMBLE], _without_each(run, found), classes=classes, options=options
        )
        if (stacked := run.stacked) is not None:
            names = stacked.members(one.name.removeprefix("teacher:") for one in found if one.kind == "teacher")
            results.ensemble = {"kind": run.recipe.ensemble, **(stacked.of(names).to_json() if names else {})}
    ways = _combinations(run, pairs)
    if ways:
        results.combinations = measure_components(pairs, ways["logit"], ways, classes=classes, options=options)
    results.pairs_digest = digest_of(sorted(pairs.take(np.flatnonzero(pairs.labels >= 0)).pair_ids))
    results.training = training_numbers(run.recipe)
    results.taught_by, results.unmeasured = _taught_by(run), unmeasured
    results.development = run.development
    results.reliability = {output.name: output.reliability for output in found if output.reliability}
    if run.choice.get("development"):
        results.choice = run.choice
    top, taken = by_name.get(results.relative_to), by_name[run.take]
    others = [output for output in found if output.kind in ("student", "baseline") and output is not taken]
    if top is not None:
        results.agreement = measure_agreement(pairs, top, taken, others, classes=classes)
    return results


def training_numbers(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The learning rate and the epochs that each method's students are trained with.

    Returns:
        By method, by stage (`stage1`, `stage2`, `without_stage1`, or `bilstm`): {"learning_rate", "epochs"}; where
        stage 2 starts from a finished stage-1 student, {"from": its folder} for `stage1`.
    """
    found: dict[str, dict[str, Any]] = {}
    for method in (one for one in recipe.chosen_methods if one.trains):
        spec = StudentSpec(recipe.of_method(method), method, seed=0)
        stages: dict[str, Training] = {"without_stage1": spec.last_stage(continues=False)}
        if method.stage1:
            stages = {"stage1": spec.stage1, "stage2": spec.stage2}
        if method.encoder == "lstm":
            stages = {"bilstm": recipe.bilstm}
        about: dict[str, Any] = {
            stage: {"learning_rate": numbers.learning_rate, "epochs": numbers.epochs}
            for stage, numbers in stages.items()
        }
        if (folder := recipe.finished_stage1(method)) is not None and method.stage1:
            about["stage1"] = {"from": folder}
        found[method.name] = about
    return found


def _taught_by(run: FinishedRun) -> int | None:
    """How many teachers' soft labels the exported student learned; None if some are of another run or task."""
    recipe = run.recipe
    method = next(one for one in recipe.chosen_methods if one.name == run.take)
    if method.stage1 and (recipe.foreign_pool or recipe.finished_stage1(method) is not None):
        return None
    return {"none": 0, "one": 1}.get(method.targets, len(recipe.used_teachers))


def _without_each(run: FinishedRun, found: list[ModelOutput]) -> dict[str, ModelOutput]:
    """The ensemble without one of its teachers, by the name of that teacher."""
    teachers = [output for output in found if output.kind == "teacher"]
    without, stacked = {}, run.stacked
    for left_out in teachers:
        rest = [output for output in teachers if output is not left_out]
        name = left_out.name.removeprefix("teacher:")
        without[name] = ModelOutput(f"{ENSEMBLE} without {name}", "ensemble", _together(stacked, rest)[None])
    return without


def _combinations(run: FinishedRun, pairs: Pairs) -> dict[str, ModelOutput]:
    """The exported method's students under every combination of their heads; empty if they have one head."""
    model = next(model for model in run.models if model.name == run.take)
    steps = run.steps(model.steps)
    if not steps or not (card := read_card(steps[0].folder)).soft_heads:
        return {}
    found = {}
    for how in COMBINATIONS:
        if how == "golden" and not card.use_golden:  # it stopped after stage 1
            continue
        logits = method_logits(run.workspace, steps, pairs, how, name=run.take, precision=run.recipe.precision)
        found[str(how)] = ModelOutput(f"{run.take} ({how})", "student", logits)
    return found
