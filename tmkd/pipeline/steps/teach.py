"""Teachers: trained here, a checkpoint, or a column of scores made elsewhere. Only their logits travel on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tmkd.config.recipe import Recipe
from tmkd.config.sections import Teacher
from tmkd.core.console import progress
from tmkd.core.errors import DataError, TmkdError
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_encoder, load_finished, load_student, read_card, save_student
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.label_map import class_order, reorder
from tmkd.models.predict import score, score_heads
from tmkd.models.student import Combination, Student, combine
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.fit import fit_and_save
from tmkd.pipeline.store.label_store import LabelStore, imported_logits
from tmkd.pipeline.store.token_cache import tokens_of
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.losses import GoldenLoss
from tmkd.training.trainer import Fit

logger = logging.getLogger(__name__)

CHUNK = 2048  # pairs between two writes of the label store: what a kill can lose


def teach(
    workspace: Workspace, recipe: Recipe, teacher: Teacher, train_rows: Pairs, warmed_up: Step | None = None
) -> Step:
    """Fine-tune one teacher on golden labels, or copy a finished checkpoint into the workspace.

    Args:
        warmed_up: what it begins with in place of its encoder (`tmkd.pipeline.steps.warm_up`).

    Raises:
        EncoderError, RecipeError: a checkpoint with other classes than the task's, or in an order that is not told.
    """
    length = recipe.length_of(teacher)
    source = warmed_up.folder if warmed_up else find_encoder(recipe.encoder_of(teacher))
    order = class_order(source, teacher, recipe) if teacher.checkpoint else []
    unset = {key for key in ("label_map", "share") if getattr(teacher, key) == Teacher.model_fields[key].default}
    depends = {
        "teacher": teacher.model_dump(exclude={"name", *unset}),
        "encoder": encoder_fingerprint(source),
        "classes": recipe.classes,
        "max_length": length,
        "precision": recipe.precision,
        "train": None if teacher.checkpoint else train_rows.digest(),
        **({"reference": train_rows.reference} if train_rows.reference and not teacher.checkpoint else {}),
    }

    def build(folder: Path) -> None:
        if teacher.checkpoint:
            finished = load_finished(source, recipe.classes)
            reorder(finished, order)
            save_student(finished, folder, source, length, {"step": "teacher", "class_order": order})
            return
        torch.manual_seed(teacher.seed)  # the new head
        encoder = load_encoder(source, recipe.classes, dropout=teacher.dropout, pooler=teacher.pooler)
        model = Student(encoder, recipe.classes)
        fit = Fit(teacher.learning_rate, teacher.epochs, teacher.batch_size, teacher.seed, precision=recipe.precision)
        fit_and_save(
            workspace, model, train_rows, GoldenLoss(torch.from_numpy(train_rows.golden)), fit, folder,
            name=f"teacher {teacher.name}", tokenizer=PairTokenizer(source, length), about={"step": "teacher"},
        )  # fmt: skip

    return workspace.step("teacher", depends, build, label=f"teacher {teacher.name}")


def label(workspace: Workspace, model: Step, pairs: Pairs, *, name: str, precision: str) -> LabelStore:
    """Every logit of one model for every pair, computed once and stored; resumes after the last stored chunk."""
    return _label(workspace, model, pairs, _Labelling("labels", name, precision, score), {})


def head_logits(workspace: Workspace, model: Step, pairs: Pairs, *, name: str, precision: str) -> NDArray[np.float32]:
    """Logits of each trained header of a student, [N, H, C] in the order of the pairs, golden first; stored likewise.

    `tmkd.models.student.combine` makes one output of them.
    """
    card = read_card(model.folder)
    count = int(card["soft_headers"]) + int(card["use_golden"])
    how = _Labelling("headers", f"the headers of {name}", precision, score_heads)
    store = _label(workspace, model, pairs, how, {"headers": count})
    return store.logits_for(pairs.pair_ids).reshape(len(pairs), count, int(card["classes"]))


def combined_logits(
    workspace: Workspace, model: Step, pairs: Pairs, how: Combination, *, name: str, precision: str
) -> NDArray[np.floating[Any]]:
    """A student's output under one of the combinations, [N, C] in the order of the pairs.

    Raises:
        TmkdError: `golden` of a student that stopped after stage 1.
    """
    card = read_card(model.folder)
    if how == "golden" and not card["use_golden"]:
        raise TmkdError(f"{name}: a student that stopped after stage 1 has no golden header; combination: logit")
    if how == "logit" or not card["soft_headers"]:
        return label(workspace, model, pairs, name=name, precision=precision).logits_for(pairs.pair_ids)
    headers = head_logits(workspace, model, pairs, name=name, precision=precision)
    return combine(headers, how, golden=bool(card["use_golden"]))


def method_logits(
    workspace: Workspace,
    models: Sequence[Step],
    pairs: Pairs,
    how: Combination = "logit",
    *,
    each: int = 1,
    name: str,
    precision: str,
) -> NDArray[np.float64]:
    """The outputs of a method's students, [S, N, C] in the order of the pairs, one for every seed.

    Args:
        models: the students, seed after seed.
        how: the combination of a student's headers.
        each: students of a seed (K of m-o-m): their output is the log of the mean of their probabilities, as a teacher
            ensemble's is.
    """
    outputs = [
        combined_logits(workspace, model, pairs, how, name=name, precision=precision).astype(np.float64)
        for model in models
    ]
    if each == 1:
        return np.stack(outputs)
    seeds = [np.stack(outputs[start : start + each], axis=1) for start in range(0, len(outputs), each)]
    return np.stack([combine(seed, "probability") for seed in seeds])


class _Labelling(NamedTuple):
    """How pairs are labelled: the kind of step, what the log calls it, the precision, and what scores the rows."""

    kind: str
    name: str
    precision: str
    score: Callable[..., NDArray[np.float32]]


def _label(workspace: Workspace, model: Step, pairs: Pairs, how: _Labelling, extra: dict[str, Any]) -> LabelStore:
    unique = pairs.take(np.unique(np.array(pairs.pair_ids), return_index=True)[1])
    card = read_card(model.folder)
    header = {
        "teacher": model.fingerprint,
        "tokenizer": PairTokenizer(model.folder, card["max_length"]).fingerprint(),
        "max_length": card["max_length"],
        "classes": card["classes"],
        "class_order": card.get("class_order", list(range(card["classes"]))),
        "dtype": "float32",
        **extra,
    }
    depends = {"model": model.fingerprint, "pairs": unique.digest(), "precision": how.precision}

    def build(folder: Path) -> None:
        store = LabelStore.open(folder, header=header)
        _borrow(store, workspace, unique, how.kind, depends)
        _fill(store, model, unique, how, workspace)

    step = workspace.step(how.kind, depends, build, label=f"label {len(unique):,} pairs with {how.name}")
    store = LabelStore.open(step.folder, header=header)
    _fill(store, model, unique, how, workspace)  # a part that was damaged since is labelled again
    return store


def _borrow(store: LabelStore, workspace: Workspace, pairs: Pairs, kind: str, depends: dict[str, Any]) -> None:
    """Take over what other stores of this model and precision hold of the pairs: no pair is labelled twice."""
    wanted = set(pairs.pair_ids) - store.done_ids()
    for folder, theirs in workspace.finished(kind):
        if {**theirs, "pairs": None} != {**depends, "pairs": None}:
            continue
        other = LabelStore.open(folder, header=store.manifest["header"])
        shared = sorted(wanted & other.done_ids())
        if shared:
            logger.info(f"{len(shared):,} of the pairs are labelled already ({folder.name})")
            store.append(shared, other.logits_for(shared))
            wanted.difference_update(shared)


def _fill(store: LabelStore, model: Step, pairs: Pairs, how: _Labelling, workspace: Workspace) -> None:
    """Label the pairs that the store does not have yet."""
    done = store.done_ids()
    todo = np.flatnonzero([pair_id not in done for pair_id in pairs.pair_ids])
    if len(todo) == 0:
        return
    student = load_student(model.folder)
    logger.info(f"{how.name}: {student.encoder.path}")
    tokenizer = PairTokenizer(model.folder, read_card(model.folder)["max_length"])
    encoded = tokens_of(workspace, tokenizer, pairs)
    # Chunks of like length: the batches inside a chunk hold next to no padding.
    order = todo[np.argsort(-encoded.lengths[todo], kind="stable")]
    ids = np.array(pairs.pair_ids)
    with progress(f"label with {how.name}", len(pairs), done=len(pairs) - len(todo)) as bar:
        for start in range(0, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            found = how.score(student, encoded, tokenizer.pad_id, rows, how.precision)
            store.append(list(ids[rows]), found.reshape(len(rows), -1))
            bar.advance(len(rows))


def made_reference(teacher: Teacher, pairs: Pairs) -> bool:
    """Whether the pairs' labels are this teacher's own scores: then it is not measured on them (METHOD.md)."""
    return pairs.reference is not None and teacher.scores == pairs.reference.column


def column_logits(recipe: Recipe, teacher: Teacher, pairs: Pairs, where: str) -> NDArray[np.float32]:
    """The logits of a teacher that is a column of scores, [N, 2] float32.

    Raises:
        DataError: the column is absent, or some rows have no score.
    """
    assert teacher.scores is not None
    if teacher.scores not in pairs.score_names:
        raise DataError(f"teacher {teacher.name}: the {where} rows have no column {teacher.scores!r}")
    values = pairs.score(teacher.scores)
    if np.isnan(values).any():
        raise DataError(
            f"teacher {teacher.name}: {int(np.isnan(values).sum())} {where} rows have no {teacher.scores!r}"
        )
    return imported_logits(values, recipe.data.scores[teacher.scores]).astype(np.float32)
