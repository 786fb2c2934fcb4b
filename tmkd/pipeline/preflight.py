"""What is refused before any training: files, checkpoints and rows that the recipe's steps could not use.

A recipe that contradicts itself was refused when it was read (`tmkd.config`). Here is what only its files can show.
Checks that read no rows come first, those that need the pool (which may have to be mined) last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tmkd.config.methods import Method
from tmkd.config.rates import unread_rates
from tmkd.config.recipe import Recipe
from tmkd.core.errors import DataError, RecipeError, TmkdError
from tmkd.data.pairs import Pairs
from tmkd.data.row_counts import RowCounts
from tmkd.data.split import folds
from tmkd.models.card import has_card, read_card
from tmkd.models.checkpoint import hidden_width, require_fit
from tmkd.models.encoders.cached_files import (
    ENCODER_FOLDER,
    first_encoders,
    interaction_shape,
    is_cached,
)
from tmkd.models.encoders.find import find_encoder, weights_fingerprint
from tmkd.models.text_tokenizer import QUESTION_FOLDER, TextTokenizer
from tmkd.models.tokenizer import PairTokenizer
from tmkd.models.weights import require_finite_weights
from tmkd.pipeline.preflight_teachers import (
    require_columns,
    require_keys,
    require_known_scores,
    require_labeller,
    require_pool_teachers,
    require_teachers,
    say_coverage,
)
from tmkd.pipeline.run_data import RunData, share_of_pairs
from tmkd.pipeline.steps.student import cached_encoder, shape_of
from tmkd.pipeline.steps.teacher_logits import stored_teacher
from tmkd.teachers.bi_encoder import BiEncoderTeacher
from tmkd.teachers.ensemble import require_every_class
from tmkd.training.losses import GROUPED

_SAMPLE = 1000  # pairs of a part whose tokens are looked at
_UNKNOWN, _CUT = 0.05, 0.2  # shares of tokens and of pairs from which it is said

_Reader = tuple[str, Path, int, str]
"""What is read (pairs, passages or questions), the tokenizer's folder, most tokens, and the teacher that reads."""


def require_runnable(data: RunData) -> None:
    """Look at everything that a recipe names, and train nothing. The pool is mined if the checks need it.

    Raises:
        EncoderError: an encoder or checkpoint cannot be found, or has too few layers or positions, or another number of
            classes.
        RecipeError: a checkpoint's classes are in another order than the task's, or `pool.teachers` names something
            that is no teacher.
        DataError: rows that cannot be used (also of a task that the pool is mined from), a share that leaves nothing,
            a score column with gaps.
        EndpointError: an endpoint that is to be asked has no key.
        TmkdError: `stage1_from` is no stage-1 student, or one of another shape.
    """
    recipe = data.recipe
    methods = list(recipe.chosen_methods)
    _say_unread_rates(data)
    require_teachers(data)
    require_keys(data)
    _require_encoders(data)
    _ = data.others  # their files are read at once, not when the pool is mined
    for folder in dict.fromkeys(filter(None, map(recipe.finished_stage1, methods))):
        _require_stage1(
            recipe, Path(folder), [one for one in methods if one.stage1 and recipe.finished_stage1(one) == folder]
        )
    require_pool_teachers(data)
    require_known_scores(data, methods)
    _require_training_rows(data, methods)
    require_columns(data)
    say_coverage(data)
    _require_ranked_class(recipe)
    _require_taught(recipe)
    _require_pool(data, methods)
    _warn_of_unread_text(data)


def _say_unread_rates(data: RunData) -> None:
    """Say which entries of `rates` are of methods that the run does not train, such as those of the other kind."""
    recipe = data.recipe
    for name in unread_rates(recipe.rates, recipe.chosen_methods, recipe.student.kind):
        data.cache.say_once(f"rates: {name} is not among the methods of this run ({', '.join(recipe.methods)})")


def _require_encoders(data: RunData) -> None:
    recipe = data.recipe
    trained = [method for method in recipe.chosen_methods if method.trains]
    if any(method.encoder == "bottom" for method in trained):
        require_fit(find_encoder(recipe.encoder), layers=recipe.student.layers, length=recipe.max_length)
    if any(method.encoder == "whole" for method in trained):
        require_fit(find_encoder(recipe.encoder), length=recipe.max_length)
    if any(method.cached for method in recipe.chosen_methods):
        _require_cached(recipe)


def _require_cached(recipe: Recipe) -> None:
    """The encoder of cached students can read the texts, and their shape fits it."""
    shape, spec = recipe.cached, recipe.cached_encoder
    width = _require_reader(cached_encoder(recipe), recipe)
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
    asker = shape.question_encoder
    if asker is not None and (asking := _require_reader(find_encoder(asker), recipe)) != width:
        raise RecipeError(
            f"cached.question_encoder: the hidden states of {asker} are {asking} numbers, and those of "
            f"{recipe.cached_encoder}, which reads the passages, are {width}: the two embeddings have no cosine, at "
            "which training starts; give encoders of one width",
            key="cached.question_encoder",
            value=asker,
        )


def _require_reader(source: Path, recipe: Recipe) -> int:
    """An encoder of single texts can read them; gives the width of its hidden states."""
    require_fit(source, length=recipe.max_length)
    require_finite_weights(source)
    return hidden_width(source)


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


def _require_training_rows(data: RunData, methods: list[Method]) -> None:
    """Every share of the training set leaves some pairs, and they have what the methods need."""
    train, recipe = data.train, data.recipe
    if any(method.trains for method in methods) and not data.student_pairs.has_labels:
        raise DataError("the training set has no labels; stage 2 and `finetune` need some")
    for teacher in recipe.used_teachers:
        share_of_pairs(teacher, train)
        if teacher.other_tasks:
            if not data.others:
                found = f"teacher {teacher.name}: other_tasks: the pool has no other task"
                fix = "name one (pool.sources: [{task: OTHER.yaml}]), or leave this key out"
                raise RecipeError(f"{found}; {fix}", key="teachers")
            _ = data.labelled_others
    calibrated = any(one.learns_labels and one.calibration != "none" for one in recipe.used_teachers)
    if recipe.labels == "out-of-fold" or recipe.ensemble == "stacked" or (calibrated and train.has_labels):
        folds(train, recipe.folds)
    _require_stackable(data)
    if any(method.targets != "none" for method in methods):
        require_labeller(data, data.student_pairs, "train")
        for kind in _losses(recipe, methods):
            require_comparable(data.student_pairs, kind, "train")


def _require_stackable(data: RunData) -> None:
    """The labelled pairs on which the weights of a stacked ensemble are fitted are enough for that."""
    recipe = data.recipe
    if recipe.ensemble == "stacked-dev":
        if data.test is data.dev:
            raise RecipeError(
                "ensemble: stacked-dev fits weights on the development set, and without a test set the report is on "
                "the same pairs; give data.test or data.hold_out.test, or take ensemble: stacked",
                key="ensemble",
            )
        folds(data.dev, recipe.folds)
    if recipe.ensemble != "mean":
        fitted_on = data.train if recipe.ensemble == "stacked" else data.dev
        require_every_class(fitted_on.labels, recipe.classes, recipe.ensemble)


def _require_ranked_class(recipe: Recipe) -> None:
    """`list_kl` and `adr_mse` give the passages with the highest log-odds of class 1 the most weight."""
    if recipe.loss.kind in ("list_kl", "adr_mse") and recipe.positive_class == 0:
        raise RecipeError(
            f"loss.kind: {recipe.loss.kind} ranks passages by class 1, and data.positive says that class 0 is right; "
            "number the classes the other way round with data.labels",
            key="loss.kind",
        )


def _require_taught(recipe: Recipe) -> None:
    """There are several teachers whose hidden states can be learned, where the recipe names each of them."""
    able = [teacher.name for teacher in recipe.used_teachers if recipe.fine_tunes_own(teacher)]
    sections = {"stage1": recipe.stage1.states_from, "cached.stage1": recipe.cached.stage1.states_from}
    for key in (key for key, states_from in sections.items() if states_from == "each" and len(able) < 2):
        raise RecipeError(
            f"{key}.states_from: each is for two or more teachers that are fine-tuned from {recipe.encoder!r}, and "
            f"there is {able[0] if able else 'none'}; leave it out",
            key=key,
        )


def _warn_of_unread_text(data: RunData) -> None:
    """Say where a model cannot read much of the text: tokens unknown to its vocabulary, texts that are cut."""
    task = data.task
    for what, folder, length, teacher in [*_encoders(data.recipe), *_embedding_teachers(data)]:
        looked = f"looked at {what} of {id(task)} with {folder}, {length}"
        if looked in data.cache.said:  # a study asks for every student
            continue
        data.cache.said.add(looked)
        tokenizer = (PairTokenizer if what == "pairs" else TextTokenizer)(folder, length)
        for name, part in task.parts.items():
            warn_of_unread_text(part, tokenizer, task.counts[name], what, teacher)


def _encoders(recipe: Recipe) -> Iterator[_Reader]:
    """What reads texts for students, and for teachers that are fine-tuned here."""
    kinds = {method.encoder for method in recipe.chosen_methods if method.trains}
    length = recipe.max_length
    if kinds & {"bottom", "whole"} or any(map(recipe.fine_tunes_own, recipe.used_teachers)):
        yield "pairs", find_encoder(recipe.encoder), length, ""
    if "cached" in kinds:
        yield "passages", find_encoder(recipe.cached_encoder), length, ""
        if (spec := recipe.cached.question_encoder) is not None:
            yield "questions", find_encoder(spec), length, ""


def _embedding_teachers(data: RunData) -> Iterator[_Reader]:
    """What reads texts for embedding models that are teachers, where their files tell."""
    for teacher in data.recipe.used_teachers:
        if teacher.model is not None:
            found = stored_teacher(data.recipe, teacher, data.cache.stored_teachers)
            assert isinstance(found, BiEncoderTeacher)
            if (reads := found.reads) is not None:
                yield "passages", *reads, teacher.name


def warn_of_unread_text(
    part: Pairs,
    tokenizer: PairTokenizer | TextTokenizer,
    counts: RowCounts,
    what: str = "passages",
    teacher: str = "",
) -> None:
    """Warn where many tokens of pairs are unknown to a tokenizer, or many texts are cut; measured on a sample.

    Args:
        part: the pairs.
        tokenizer: of the model that reads them, or of one that reads their passages or their questions alone.
        counts: keeps the warnings.
        what: which texts a `TextTokenizer` reads: `passages` or `questions`.
        teacher: the teacher that reads them; none where the recipe's encoder does.
    """
    sample = part.take(np.unique(np.linspace(0, len(part) - 1, _SAMPLE).astype(np.int64))) if len(part) else part
    if not len(sample):
        return
    if isinstance(tokenizer, TextTokenizer):
        encoded, tokens = tokenizer.encode_counted(getattr(sample, what))
    else:
        what, (encoded, tokens) = "pairs", tokenizer.encode_counted(sample.questions, sample.passages)
    ids = np.concatenate([np.asarray(one) for one in encoded.ids])
    unknown = float((ids == tokenizer.unknown_id).mean()) if tokenizer.unknown_id is not None else 0.0
    cut = float((tokens > tokenizer.max_length).mean())
    of, whose = (" of the questions", "cached.question_encoder") if what == "questions" else ("", "the encoder")
    if unknown >= _UNKNOWN:
        counts.warn(
            f"{unknown:.0%} of the tokens{of} are unknown to {f'teacher {teacher}' if teacher else whose}'s "
            "vocabulary: it cannot read this text. Take an encoder that was trained on its language"
        )
    if cut >= _CUT:
        limit = f"what teacher {teacher} reads" if teacher else "max_length"
        fix = "give it a larger max_length, if it has the positions" if teacher else "raise it"
        counts.warn(
            f"{cut:.0%} of the {what} are longer than {limit} ({tokenizer.max_length} tokens) and are cut; {fix}, or "
            f"cut the {what if what == 'questions' else 'passages'}"
        )


def _require_pool(data: RunData, methods: list[Method]) -> None:
    """The pool, where the warm start or a method learns from it, has what they need."""
    recipe = data.recipe
    if recipe.warm_up is not None and recipe.warm_up.share < 1:
        _ = data.warm_up_pairs
    methods = [method for method in methods if recipe.trains_stage1(method)]
    if not methods:
        return
    if recipe.stage1.share < 1:
        data.stage1_share(data.pool)
    if not any(method.targets != "none" for method in methods):
        return
    if all(teacher.of_kind == "scores" for teacher in recipe.used_teachers) and not recipe.foreign_pool:
        require_labeller(data, data.pool, "pool")
    for kind in _losses(recipe, methods):
        require_comparable(data.pool, kind, "pool")


def _losses(recipe: Recipe, methods: list[Method]) -> set[str]:
    """The kinds of losses with which students of these methods learn soft labels."""
    return {recipe.of_method(method).loss.kind for method in methods if method.targets != "none"}


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
    names, groups = pairs.groups()
    alone = np.flatnonzero(np.bincount(groups)[groups] == 1)
    if len(alone):
        row = int(alone[0])
        (question,), qid = pairs.take([row]).questions, names[groups[row]]
        named = repr(question) if qid == question else f"{question!r} (qid {qid})"
        raise DataError(
            f"loss.kind {loss} compares the passages of a question, and {len(alone):,} of the {len(names):,} questions "
            f"of the {where} pairs have a single one, first {named}, pair {row}; add passages, leave those out, or "
            "use loss.kind kl"
        )
