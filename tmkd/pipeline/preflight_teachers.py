"""What is refused of a recipe's teachers before any training: files, checkpoints and scores that cannot be used."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from tmkd.config.methods import Method
from tmkd.config.recipe import Recipe
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import (
    DataError,
    EncoderError,
    EndpointError,
    LabelError,
    RecipeError,
    TmkdError,
    named,
)
from tmkd.data.pairs import Pairs
from tmkd.data.row_checks import grades
from tmkd.inference.score_file import RAW_SCORE
from tmkd.models.card import has_card, read_card
from tmkd.models.checkpoint import require_fit
from tmkd.models.encoders.find import find_encoder
from tmkd.models.label_map import class_names, find_label_map, unlike_order
from tmkd.models.ready import head_classes, require_head, require_log_odds
from tmkd.models.weights import require_finite_weights
from tmkd.pipeline.all_labels import label_all
from tmkd.pipeline.run_data import RunData
from tmkd.pipeline.steps.label import has_scores
from tmkd.pipeline.steps.pool import is_run, other_teachers_of_run, teachers_of_run
from tmkd.pipeline.steps.teach import length_of
from tmkd.pipeline.steps.teacher_logits import TeacherLogits, is_step, join_score_files, score_file, stored_teacher
from tmkd.pipeline.steps.tune import require_tunable
from tmkd.pipeline.store.workspace import StepMissing
from tmkd.pipeline.teacher_labels import TeacherLabels
from tmkd.teachers.interface import StoredTeacher
from tmkd.teachers.score_file import shown
from tmkd.teachers.scores import ScoresTeacher
from tmkd.teachers.served import ServedTeacher


def require_teachers(data: RunData) -> None:
    """Every teacher's model can be found and read.

    Raises:
        EncoderError: one cannot be found or read, or has too few positions, or another number of classes.
        RecipeError: a checkpoint's classes are in another order than the task's, or two teachers are the same.
    """
    recipe = data.recipe
    _require_different(recipe)
    _require_odds_of_class_1(recipe)
    for teacher in recipe.used_teachers:
        if teacher.model is not None or not is_step(teacher):
            if not teacher.is_column:
                stored_teacher(recipe, teacher, data.cache.stored_teachers)
            if teacher.tune is not None:
                require_tunable(recipe, teacher, data.train)
            continue
        with named(f"teacher {teacher.name}"):
            source = find_encoder(recipe.encoder_of(teacher))
            length = length_of(recipe, teacher)
            require_fit(source, length=length)
            require_finite_weights(source)
            if teacher.checkpoint:
                require_head(source, recipe.classes)
        if teacher.checkpoint:
            find_label_map(source, teacher, recipe)
            said = "max_length of the teacher" if teacher.max_length else "its own length; max_length replaces it"
            data.cache.say_once(f"teacher {teacher.name} reads up to {length:,} tokens of a pair ({said})")


def require_keys(data: RunData) -> None:
    """The key of every endpoint is there, unless the workspace or its shared address holds all labels that it gives.

    Raises:
        EndpointError: the environment has no key, or one that no header can hold.
    """
    asked = [teacher for teacher in data.recipe.used_teachers if teacher.endpoint is not None]
    served = {one.name: stored_teacher(data.recipe, one, data.cache.stored_teachers) for one in asked}
    try:
        for one in served.values():
            assert isinstance(one, ServedTeacher)
            one.key_header()
    except EndpointError:
        if _lacks_labels(data) and not all(_are_shared(data, one, served[one.name]) for one in asked):
            raise


def _lacks_labels(data: RunData) -> bool:
    """Whether labels are left to make: those that students learn, or those of the test set for the report."""
    cache = replace(data.cache, pools={}, logits={})  # the run itself is to ask for its steps, which it records
    labels = TeacherLabels(RunData(data.recipe, data.workspace.read_only(), cache))
    try:
        label_all(labels)
        if labels.needed:
            labels.logits(labels.data.test, "test", labels.labellers(labels.data.test))
    except (StepMissing, LabelError):
        return True
    return False


def _are_shared(data: RunData, teacher: Teacher, served: StoredTeacher) -> bool:
    """Whether a workspace with a shared address lacks no label of an endpoint, there or here. The pool is mined for it.

    Which pairs `pool.sampling` leaves is known only when teachers have labelled the pool: then it counts as lacking.
    """
    recipe = data.recipe
    if data.workspace.labels is None or (recipe.pool is not None and recipe.pool.sampling is not None):
        return False
    learning, sets = TeacherLabels(data).learning, [data.dev, data.test]
    if teacher.calibration != "none" or recipe.ensemble == "stacked":
        sets.append(data.train)
    if any(method.stage2 for method in learning):
        sets.append(data.student_pairs)
    if any(map(recipe.trains_stage1, learning)) and not recipe.foreign_pool:
        sets.append(data.stage1_share(data.pool))
    if recipe.warm_up is not None and recipe.warm_up.teacher == teacher.name:
        sets.append(data.warm_up_pairs)
    return all(has_scores(data.workspace, served, pairs) for pairs in sets)


def _require_different(recipe: Recipe) -> None:
    """Refuse two teachers that differ in their names alone: their labels are the same and would count twice."""
    known: dict[str, str] = {}
    for teacher in recipe.used_teachers:
        usual = {"kind": teacher.of_kind, "encoder": recipe.encoder_of(teacher), "calibrate": teacher.calibration,
                 "max_length": _length(recipe, teacher)}  # fmt: skip
        other = known.setdefault(teacher.model_copy(update=usual).model_dump_json(exclude={"name"}), teacher.name)
        if other != teacher.name:
            seed = "tune: {seed: 1}" if teacher.tune is not None else "seed: 1"
            fix = f"give each a seed of its own ({seed})" if teacher.learns_labels else "leave one of them out"
            raise RecipeError(
                f"teachers: {other} and {teacher.name} differ in their names alone, so their labels are the same and "
                f"would count twice; {fix}",
                key="teachers",
            )


def _length(recipe: Recipe, teacher: Teacher) -> int | None:
    """How many tokens a teacher reads; None where a library finds it in the model's files, or nothing is read."""
    if teacher.max_length is not None or teacher.model is not None:
        return teacher.max_length
    with named(f"teacher {teacher.name}"):
        return length_of(recipe, teacher) if is_step(teacher) else None


def _require_odds_of_class_1(recipe: Recipe) -> None:
    """Refuse scores that tmkd wrote as those of the right passages where these are class 0 of the task."""
    if recipe.positive_class == 1:
        return
    for teacher in recipe.used_teachers:
        column = teacher.scores if teacher.is_column else teacher.column if teacher.file is not None else None
        if column == RAW_SCORE:
            raise RecipeError(
                f"teachers: {teacher.name}: the column {column} holds the log-odds of the right passages, and a "
                "teacher's scores are those of class 1, where data.positive says that class 0 is right. Write its "
                "numbers times -1 into a column of another name, or number the classes the other way round with "
                "data.labels",
                key="teachers",
            )


def require_pool_teachers(data: RunData) -> None:
    """Each folder that `pool.teachers` names is a checkpoint with a head or a run, all with one number of classes.

    Where a chosen method has no stage 2, its student keeps their classes and is called by the task's: these must be the
    same, in one order.
    """
    recipe = data.recipe
    places = [Path(place) for place in recipe.pool.teachers] if recipe.pool is not None else []
    folders: dict[int, Path] = {}  # a folder for each number of classes
    for place in places:
        folders |= dict.fromkeys(_classes_of(place), place)
    if len(folders) > 1:
        found = ", ".join(f"{folder} has {count}" for count, folder in folders.items())
        raise RecipeError(f"pool.teachers: their numbers of classes differ: {found}", key="pool.teachers")
    _require_one_order([folder for place in places for folder in _folders_of(place)])
    for place in filter(is_run, places):
        if others := other_teachers_of_run(place):
            data.cache.say_once(
                f"pool.teachers: of the teachers of {place}, {', '.join(others)} {'do' if len(others) > 1 else 'does'} "
                "not label the pool: only cross-encoders that the run trained do",
                logging.WARNING,
            )
    if kept := [method.name for method in recipe.chosen_methods if method.stage1 and not method.stage2]:
        for place in places:
            _require_classes_of_task(recipe, place, kept[0])


def _require_classes_of_task(recipe: Recipe, place: Path, method: str) -> None:
    """The teachers in a folder of `pool.teachers` have the task's classes, in its order."""
    why = f"{method} learns no labels of the task, so that its classes are those of pool.teachers"
    counts = set(_classes_of(place))
    if counts != {recipe.classes}:
        raise RecipeError(
            f"pool.teachers: {place} has {counts.pop()} classes, the task {recipe.classes} (`classes`), and {why}",
            key="pool.teachers",
        )
    for folder in _folders_of(place):
        if problem := unlike_order(folder, recipe):
            raise RecipeError(
                f"pool.teachers: {place}: {problem}, and {why}; number the classes in data.labels as they are there, "
                "or add the names that they have there",
                key="pool.teachers",
            )


def _require_one_order(folders: list[Path]) -> None:
    """The checkpoints that name their classes have them in one order: the mean of their logits is over classes."""
    named = {tuple(name.lower() for name in names): folder for folder in folders if (names := class_names(folder))}
    if len({tuple(sorted(names)) for names in named}) < len(named):
        found = ", ".join(f"{folder} has {', '.join(names)}" for names, folder in named.items())
        raise RecipeError(f"pool.teachers: their classes are in different orders: {found}", key="pool.teachers")


def _folders_of(place: Path) -> list[Path]:
    """The checkpoint, or those of the teachers that a run trained."""
    return [step.folder for step in teachers_of_run(place)] if is_run(place) else [place]


def _classes_of(folder: Path) -> list[int]:
    """The number of classes of a checkpoint, or of every trained teacher of a run."""
    if is_run(folder):
        found = teachers_of_run(folder)
        if not found:
            raise RecipeError(f"pool.teachers: the run {folder} trained no cross-encoder", key="pool.teachers")
        return [read_card(step.folder).classes for step in found]
    if has_card(folder):
        return [read_card(folder).classes]
    if not (folder / "config.json").is_file():
        raise RecipeError(
            f"pool.teachers: {folder} is neither a checkpoint (config.json) nor a run (manifest.json)",
            key="pool.teachers",
            value=str(folder),
        )
    classes = head_classes(folder)
    if classes == 0:
        raise EncoderError(f"pool.teachers: {folder} has no classification head", source=folder)
    require_log_odds(folder)
    return [classes]


def require_columns(data: RunData) -> None:
    """Every score column that is a teacher has a number in every row of a file that carries it.

    Two numbers for one pair get a word, as two labels do: each row is learned as it stands.
    """
    recipe, task = data.recipe, data.task
    columns = [teacher for teacher in recipe.used_teachers if teacher.scores]
    for where, part in task.parts.items():
        for teacher in columns:
            if teacher.scores in part.score_names:
                column = ScoresTeacher.of(teacher, recipe.data)
                column.logits(part, where)
                if len(rows := column.contradicted(part)):
                    data.cache.say_once(
                        f"teacher {teacher.name}: {len(rows):,} {where} rows have another {teacher.scores!r} than a "
                        f"later row of the same question and passage, first {shown(part, int(rows[0]))}; each row is "
                        "learned with its own",
                        logging.WARNING,
                    )
    mined = recipe.pool is not None and bool(recipe.pool.sources)
    known = [] if mined else (task.train if task.pool is None else task.pool).score_names
    absent = [teacher.name for teacher in columns if teacher.scores not in known]
    if absent:
        _require_no_replay(recipe, absent[0])


def _require_no_replay(recipe: Recipe, teacher: str, has: str = "training set", lacks: str = "pool") -> None:
    """No student sees pairs of the pool in stage 2: a teacher has scores for one of the two sets alone."""
    for method in (one for one in recipe.chosen_methods if one.stage1):
        own, key = recipe.of_method(method), "cached.stage2" if method.cached else "stage2"
        if (own.cached.stage2 if method.cached else own.stage2).replay:
            raise DataError(
                f"{key}.replay: teacher {teacher} has scores for the {has} and none for the {lacks}; give it to the "
                f"{lacks}, too, or leave replay out"
            )


def require_known_scores(data: RunData, methods: list[Method]) -> None:
    """Every file of scores is for pairs of this run, and for all pairs of a part or for none."""
    files = [teacher for teacher in data.recipe.used_teachers if teacher.file is not None]
    if not files:
        return
    parts = data.labelled_by_teachers
    join_score_files(data.recipe, data.cache.stored_teachers, lambda: parts)
    for teacher in files:
        assert teacher.file is not None
        scores = score_file(data.recipe, teacher, data.cache.stored_teachers)
        count, unknown = scores.unknown(list(parts.values()))
        if unknown == count:
            raise DataError(
                f"teacher {teacher.name}: none of the {count:,} scores of {teacher.file} is for a pair of this run. It "
                f"names pairs by {scores.named_by}: are these the run's own? Without that column it may name them by "
                "pair_id, by question and passage, or by qid and pid, in this order",
                path=teacher.file,
            )
        if scores.kind == "logit" and (word := grades(scores.values)):
            data.cache.say_once(f"teacher {teacher.name}: {teacher.file} is {word}", logging.WARNING)
        if unknown:
            data.cache.say_once(
                f"teacher {teacher.name}: {unknown:,} of the {count:,} scores of {teacher.file} are for pairs that "
                "this run does not have"
            )
        able = [where for where, part in parts.items() if scores.can_label(part)]
        for where in able:
            scores.require_all(parts[where], where)
        if "pool" in parts and "pool" not in able:
            _require_no_replay(data.recipe, teacher.name)
        elif "pool" in parts and "train" not in able:
            _require_no_replay(data.recipe, teacher.name, has="pool", lacks="training set")
        each = any(method.stage1 and method.stage2 and method.targets == "each" for method in methods)
        if each and not teacher.partial and "pool" in able and "train" not in able:
            raise DataError(
                f"teacher {teacher.name}: {teacher.file} has scores of the pool, and none of the "
                f"{len(parts['train']):,} training pairs, from which stage 2 learns the same teachers; add these "
                "scores, say `partial: true` for the teacher, or take the method stage1-only",
                path=teacher.file,
            )


def coverage_of(data: RunData) -> dict[str, dict[str, dict[str, int]]]:
    """How many pairs of each part every teacher of partial scores labels: {"judge": {"train": {"pairs", "labelled"}}}.

    What an endpoint leaves out is known once it is asked, and is logged then.
    """
    recipe = data.recipe
    partial = [teacher for teacher in recipe.used_teachers if teacher.partial and teacher.of_kind == "scores"]
    parts = data.labelled_by_teachers if partial else {}
    found: dict[str, dict[str, dict[str, int]]] = {}
    for teacher in partial:
        counts = found.setdefault(teacher.name, {})
        for where, part in parts.items():
            if teacher.is_column:
                there = teacher.scores in part.score_names
                labelled = int((~np.isnan(part.score(str(teacher.scores)))).sum()) if there else 0
            else:
                labelled = len(score_file(recipe, teacher, data.cache.stored_teachers).known(part))
            counts[where] = {"pairs": len(part), "labelled": labelled}
    return found


def say_coverage(data: RunData) -> None:
    """Log what partial teachers label.

    Raises:
        DataError: a column has no score for any pair.
    """
    for name, counts in coverage_of(data).items():
        if not any(found["labelled"] for found in counts.values()):
            raise DataError(f"teacher {name}: it is partial, and no pair of this run has a score of it")
        listed = ", ".join(
            f"{found['labelled']:,} of {found['pairs']:,} {where} pairs" for where, found in counts.items()
        )
        data.cache.say_once(f"teacher {name} labels {listed}; its head learns from those alone")


def require_labeller(data: RunData, pairs: Pairs, where: str) -> None:
    """At least one teacher can label the pairs: a model, or a column of scores that they carry."""
    sources = TeacherLogits(data.workspace, data.recipe, data.cache.stored_teachers)
    if not any(sources.can_label(teacher, pairs) for teacher in data.recipe.used_teachers):
        raise TmkdError(
            f"no teacher can label the {where} pairs: they have none of the recipe's score columns, and no file "
            "of scores is for them"
        )
