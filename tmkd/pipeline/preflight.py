"""What is refused before any training: files, checkpoints and rows that the recipe's steps could not use.

A recipe that contradicts itself was refused when it was read (`tmkd.config`). Here is what only its files can show.
Checks that read no rows come first, those that need the pool (which may have to be mined) last.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from tmkd.config.methods import Method
from tmkd.config.recipe import Recipe
from tmkd.core.errors import DataError, EncoderError, RecipeError, TmkdError, named
from tmkd.data.pairs import Pairs, grouped
from tmkd.data.row_counts import RowCounts
from tmkd.data.split import folds
from tmkd.models.card import has_card, read_card
from tmkd.models.checkpoint import hidden_width, require_fit
from tmkd.models.encoders.cached_files import (
    ENCODER_FOLDER,
    QUESTION_FOLDER,
    first_encoders,
    interaction_shape,
    is_cached,
)
from tmkd.models.encoders.find import find_encoder, weights_fingerprint
from tmkd.models.label_map import class_names, find_label_map
from tmkd.models.ready import head_classes, require_head, require_log_odds
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.models.tokenizer import PairTokenizer
from tmkd.models.weights import require_finite_weights
from tmkd.pipeline.run_data import RunData
from tmkd.pipeline.steps.pool import teachers_of_run
from tmkd.pipeline.steps.student import cached_encoder, shape_of
from tmkd.pipeline.steps.teacher_logits import TeacherLogits, is_step, stored_teacher
from tmkd.pipeline.teacher_labels import share_of_pairs
from tmkd.teachers.ensemble import require_every_class
from tmkd.teachers.score_file import ScoreFileTeacher
from tmkd.teachers.scores import ScoresTeacher
from tmkd.training.losses import GROUPED

_SAMPLE = 1000  # pairs of a part whose tokens are looked at
_UNKNOWN, _CUT = 0.05, 0.2  # shares of tokens and of pairs from which it is said


def require_runnable(data: RunData) -> None:
    """Look at everything that a recipe names, and train nothing. The pool is mined if the checks need it.

    Raises:
        EncoderError: an encoder or checkpoint cannot be found, or has too few layers or positions, or another number of
            classes.
        RecipeError: a checkpoint's classes are in another order than the task's, or `pool.teachers` names something
            that is no teacher.
        DataError: rows that cannot be used, a share that leaves nothing, a score column with gaps.
        TmkdError: `stage1_from` is no stage-1 student, or one of another shape.
    """
    recipe = data.recipe
    methods = list(recipe.chosen_methods)
    _require_encoders(data)
    for folder in dict.fromkeys(filter(None, map(recipe.finished_stage1, methods))):
        _require_stage1(
            recipe, Path(folder), [one for one in methods if one.stage1 and recipe.finished_stage1(one) == folder]
        )
    _require_pool_teachers(recipe)
    _require_known_scores(data, methods)
    _require_training_rows(data, methods)
    _require_columns(data)
    _require_pool(data, methods)
    _warn_of_unread_text(data)


def _require_encoders(data: RunData) -> None:
    recipe = data.recipe
    for teacher in recipe.used_teachers:
        if not is_step(teacher):
            if not teacher.is_column:
                stored_teacher(recipe, teacher, data.cache.stored_teachers)
            continue
        with named(f"teacher {teacher.name}"):
            source = find_encoder(recipe.encoder_of(teacher))
            require_fit(source, length=recipe.length_of(teacher))
            require_finite_weights(source)
            if teacher.checkpoint:
                require_head(source, recipe.classes)
        if teacher.checkpoint:
            find_label_map(source, teacher, recipe)
    if any(method.encoder == "bottom" for method in recipe.chosen_methods):
        require_fit(find_encoder(recipe.encoder), layers=recipe.student.layers, length=recipe.max_length)
    if any(method.cached for method in recipe.chosen_methods):
        _require_cached(recipe)


def _require_cached(recipe: Recipe) -> None:
    """The encoder of cached students can read the texts, and their shape fits it."""
    shape, spec = recipe.cached, recipe.cached_encoder
    source = cached_encoder(recipe)
    require_fit(source, length=recipe.max_length)
    require_finite_weights(source)
    width = hidden_width(source)
    if shape.state_size > width:
        raise RecipeError(
            f"cached.state_size: {shape.state_size}, but the hidden states of {spec} are {width} numbers; use at most "
            "that",
            key="cached.state_size",
            value=shape.state_size,
        )
    if shape.width is None and width % shape.heads:  # a width that is given was checked with the recipe
        raise RecipeError(
            f"cached.heads: {shape.heads}, but the width {width} is no multiple of it (that of {spec}; cached.width "
            "sets another)",
            key="cached.heads",
            value=shape.heads,
        )
    if shape.question_encoder is not None:
        _require_question_encoder(recipe, width)


def _require_question_encoder(recipe: Recipe, width: int) -> None:
    """The encoder of questions can read them, and its embeddings have a cosine with those of the passages."""
    spec = str(recipe.cached.question_encoder)
    asking = find_encoder(spec)
    require_fit(asking, length=recipe.max_length)
    require_finite_weights(asking)
    if hidden_width(asking) != width:
        raise RecipeError(
            f"cached.question_encoder: the hidden states of {spec} are {hidden_width(asking)} numbers, and those of "
            f"{recipe.cached_encoder}, which reads the passages, are {width}: the two embeddings have no cosine, at "
            "which training starts; give encoders of one width",
            key="cached.question_encoder",
            value=spec,
        )


def _require_stage1(recipe: Recipe, folder: Path, methods: list[Method]) -> None:
    """The students of these methods can start from this stage-1 student."""
    if not methods:
        return
    card = read_card(folder) if has_card(folder) else None
    if card is None or card.step != "stage1":
        raise TmkdError(f"stage1_from: {folder} is not a stage-1 student; an earlier run's is at runs/NAME/stage1")
    cached = is_cached(folder)
    for method in methods:
        if method.cached != cached:
            is_a = "one that reads passages once (cached)" if cached else "a layered one"
            raise TmkdError(
                f"stage1_from: {folder} is {is_a}, and the student of {method.name} is of the other kind; leave "
                f"{method.name} out of the methods, or give each kind its own: stage1_from a layered stage-1 student, "
                "cached.stage1_from a cached one"
            )
    length, spec = recipe.max_length, recipe.cached_encoder if cached else recipe.encoder
    if PairTokenizer(folder, length).fingerprint() != PairTokenizer(find_encoder(spec), length).fingerprint():
        raise TmkdError(f"stage1_from: {folder} reads text with another tokenizer than the encoder, {spec}")
    if cached:
        _require_same_shape(recipe, folder)
        return
    if (layers := card.layers) != recipe.student.layers:
        raise TmkdError(f"stage1_from: {folder} has {layers} layers, student.layers is {recipe.student.layers}")


def _require_same_shape(recipe: Recipe, folder: Path) -> None:
    """A cached stage-1 student has the encoder and the shape that the recipe's students have."""
    source, spec = cached_encoder(recipe), recipe.cached.question_encoder
    there = first_encoders(folder)
    if there[ENCODER_FOLDER] != weights_fingerprint(source):
        raise TmkdError(f"stage1_from: {folder} reads texts with another encoder than {recipe.cached_encoder}")
    if there.get(QUESTION_FOLDER) != (spec and weights_fingerprint(find_encoder(spec))):
        raise TmkdError(
            f"stage1_from: {folder} reads questions with another encoder than {spec or recipe.cached_encoder} "
            "(cached.question_encoder)"
        )
    wanted, shape = asdict(shape_of(recipe.cached, hidden_width(source))), interaction_shape(folder)
    for key, value in asdict(shape).items():
        if value != wanted[key]:
            raise TmkdError(f"stage1_from: {folder} has {key} {value}, cached.{key} is {wanted[key]}")


def _require_pool_teachers(recipe: Recipe) -> None:
    """Each folder that `pool.teachers` names is a checkpoint with a head or a run, all with one number of classes."""
    places = [Path(place) for place in recipe.pool.teachers] if recipe.pool is not None else []
    folders: dict[int, Path] = {}  # a folder for each number of classes
    for place in places:
        folders |= dict.fromkeys(_classes_of(place), place)
    if len(folders) > 1:
        found = ", ".join(f"{folder} has {count}" for count, folder in folders.items())
        raise RecipeError(f"pool.teachers: their numbers of classes differ: {found}", key="pool.teachers")
    _require_one_order([place for place in places if not (place / "manifest.json").is_file()])


def _require_one_order(folders: list[Path]) -> None:
    """The checkpoints that name their classes have them in one order: the mean of their logits is over classes."""
    named = {tuple(name.lower() for name in names): folder for folder in folders if (names := class_names(folder))}
    if len({tuple(sorted(names)) for names in named}) < len(named):
        found = ", ".join(f"{folder} has {', '.join(names)}" for names, folder in named.items())
        raise RecipeError(f"pool.teachers: their classes are in different orders: {found}", key="pool.teachers")


def _classes_of(folder: Path) -> list[int]:
    """The number of classes of a checkpoint, or of every trained teacher of a run."""
    if (folder / "manifest.json").is_file():
        found = teachers_of_run(folder)
        if not found:
            raise RecipeError(f"pool.teachers: the run {folder} trained no teacher", key="pool.teachers")
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


def _require_training_rows(data: RunData, methods: list[Method]) -> None:
    """Every share of the training set leaves some pairs, and they have what the methods need."""
    train, recipe = data.train, data.recipe
    if any(method.trains for method in methods) and not data.student_pairs.has_labels:
        raise DataError("the training set has no labels; stage 2 and `finetune` need some")
    for teacher in recipe.used_teachers:
        share_of_pairs(teacher, train)
    if recipe.labels == "out-of-fold" or recipe.ensemble == "stacked":
        folds(train, recipe.folds)
    if recipe.ensemble == "stacked":
        require_every_class(train.labels, recipe.classes)
    if any(method.targets != "none" for method in methods):
        _require_labeller(data, data.student_pairs, "train")
        require_comparable(data.student_pairs, recipe.loss.kind, "train")


def _warn_of_unread_text(data: RunData) -> None:
    """Say where the encoder cannot read much of the text: tokens unknown to its vocabulary, pairs that are cut."""
    recipe, task = data.recipe, data.task
    kinds = {method.encoder for method in recipe.chosen_methods}
    readers: list[tuple[type[PairTokenizer | TextTokenizer], str]] = []
    if "bottom" in kinds or any(map(recipe.fine_tunes_own, recipe.used_teachers)):
        readers.append((PairTokenizer, recipe.encoder))
    if "cached" in kinds:
        readers.append((TextTokenizer, recipe.cached_encoder))
    parts = task.labelled | ({} if task.pool is None else {"pool": task.pool})
    for reader, encoder in readers:
        looked = f"looked at {id(task)} with {reader.__name__} of {encoder}, {recipe.max_length}"
        if looked in data.cache.said:  # a study asks for every student
            continue
        data.cache.said.add(looked)
        tokenizer = reader(find_encoder(encoder), recipe.max_length)
        for name, part in parts.items():
            warn_of_unread_text(part, tokenizer, task.counts[name])


def warn_of_unread_text(part: Pairs, tokenizer: PairTokenizer | TextTokenizer, counts: RowCounts) -> None:
    """Warn where many tokens of pairs are unknown to a tokenizer, or many texts are cut; measured on a sample.

    Args:
        part: the pairs.
        tokenizer: of the model that reads them, or of one that reads their passages alone.
        counts: keeps the warnings.
    """
    sample = part.take(np.unique(np.linspace(0, len(part) - 1, _SAMPLE).astype(np.int64))) if len(part) else part
    if not len(sample):
        return
    if isinstance(tokenizer, TextTokenizer):
        what, (encoded, tokens) = "passages", tokenizer.encode_counted(sample.passages)
    else:
        what, (encoded, tokens) = "pairs", tokenizer.encode_counted(sample.questions, sample.passages)
    ids = np.concatenate([np.asarray(one) for one in encoded.ids])
    unknown = float((ids == tokenizer.unknown_id).mean()) if tokenizer.unknown_id is not None else 0.0
    cut = float((tokens > tokenizer.max_length).mean())
    if unknown >= _UNKNOWN:
        counts.warn(
            f"{unknown:.0%} of the tokens are unknown to the encoder's vocabulary: it cannot read this text. Take an "
            "encoder that was trained on its language"
        )
    if cut >= _CUT:
        counts.warn(
            f"{cut:.0%} of the {what} are longer than max_length ({tokenizer.max_length} tokens) and are cut; raise "
            "it, or cut the passages"
        )


def _require_columns(data: RunData) -> None:
    """Every score column that is a teacher has a number in every row of a file that carries it."""
    recipe, task = data.recipe, data.task
    parts = {"train": task.train, "dev": task.dev, "test": task.test}
    if task.pool is not None:
        parts["pool"] = task.pool
    columns = [teacher for teacher in recipe.used_teachers if teacher.scores]
    for where, part in parts.items():
        for teacher in columns:
            if teacher.scores in part.score_names:
                ScoresTeacher.of(teacher, recipe.data).logits(part, where)
    mined = recipe.pool is not None and bool(recipe.pool.sources)
    known = [] if mined else (task.train if task.pool is None else task.pool).score_names
    absent = [teacher.name for teacher in columns if teacher.scores not in known]
    if absent and _replays(recipe):
        raise _no_replay(absent[0])


def _replays(recipe: Recipe) -> bool:
    return any(
        method.stage1 and (recipe.cached.stage2 if method.cached else recipe.stage2).replay
        for method in recipe.chosen_methods
    )


def _no_replay(teacher: str) -> DataError:
    return DataError(
        f"stage2.replay: teacher {teacher} has scores for the training set and none for the pool; give it to the pool "
        "too, or leave replay out"
    )


def _require_pool(data: RunData, methods: list[Method]) -> None:
    """The pool, where a method learns from it, has what the method needs."""
    recipe = data.recipe
    methods = [method for method in methods if recipe.trains_stage1(method)]
    if not methods:
        return
    if recipe.stage1.share < 1:
        _ = data.stage1_rows
    if not any(method.targets != "none" for method in methods):
        return
    if all(teacher.of_kind == "scores" for teacher in recipe.used_teachers) and not data.foreign_pool:
        _require_labeller(data, data.pool, "pool")
    if recipe.loss.kind in GROUPED:
        require_comparable(data.pool, recipe.loss.kind, "pool")


def _require_known_scores(data: RunData, methods: list[Method]) -> None:
    """Every file of scores is for pairs of this run, and for all pairs of a part or for none."""
    files = [teacher for teacher in data.recipe.used_teachers if teacher.file is not None]
    if not files:
        return
    pooled = any(map(data.recipe.trains_stage1, methods)) and not data.foreign_pool
    parts = {**data.task.labelled, **({"pool": data.pool} if pooled else {})}
    for teacher in files:
        assert teacher.file is not None
        scores = stored_teacher(data.recipe, teacher, data.cache.stored_teachers)
        assert isinstance(scores, ScoreFileTeacher)
        count, unknown = scores.unknown(list(parts.values()))
        if unknown == count:
            raise DataError(
                f"teacher {teacher.name}: none of the {count:,} scores of {teacher.file} is for a pair of this run; "
                "are they for other pairs, or are the pairs named in another way?",
                path=teacher.file,
            )
        if unknown:
            data.cache.say_once(
                f"teacher {teacher.name}: {unknown:,} of the {count:,} scores of {teacher.file} are for pairs that "
                "this run does not have"
            )
        for where, part in parts.items():
            if scores.can_label(part):
                scores.require_all(part, where)
            elif where == "pool" and _replays(data.recipe):
                raise _no_replay(teacher.name)


def _require_labeller(data: RunData, pairs: Pairs, where: str) -> None:
    """At least one teacher can label the pairs: a model, or a column of scores that they carry."""
    sources = TeacherLogits(data.workspace, data.recipe, data.cache.stored_teachers)
    if not any(sources.can_label(teacher, pairs) for teacher in data.recipe.used_teachers):
        raise TmkdError(
            f"no teacher can label the {where} pairs: they have none of the recipe's score columns, and no file "
            "of scores is for them"
        )


def require_comparable(pairs: Pairs, loss: str, where: str) -> None:
    """For a loss that compares the passages of a question: every question has two or more.

    Args:
        pairs: the pairs that are learned from.
        loss: `loss.kind`; any pairs will do for a loss that does not compare.
        where: what the error calls the pairs.

    Raises:
        DataError: questions with a single passage; says how many there are, and names the first.
    """
    if loss not in GROUPED:
        return
    names, groups = grouped(pairs.qids)
    alone = np.flatnonzero(np.bincount(groups)[groups] == 1)
    if len(alone):
        row = int(alone[0])
        question = pairs.questions[row]
        named = repr(question) if pairs.qids[row] == question else f"{question!r} (qid {pairs.qids[row]})"
        raise DataError(
            f"loss.kind {loss} compares the passages of a question, and {len(alone):,} of the {len(names):,} questions "
            f"of the {where} pairs have a single one, first {named}, pair {row}; add passages, leave those out, or "
            "use loss.kind kl"
        )
