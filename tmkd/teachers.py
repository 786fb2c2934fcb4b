"""Teachers: trained here, a checkpoint, or a column of scores made elsewhere. Only their logits travel on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.class_order import class_order, reorder
from tmkd.encoder.checkpoint import load_encoder, load_finished, load_student, read_card, save_student
from tmkd.encoder.find import encoder_fingerprint, find_encoder
from tmkd.errors import DataError
from tmkd.files import write_json
from tmkd.labels import LabelStore, imported_logits
from tmkd.losses import golden_loss
from tmkd.pairs.record import Pairs
from tmkd.progress import progress, say
from tmkd.recipe import Recipe, Teacher
from tmkd.student import Logits, Student
from tmkd.tokenizer import PairTokenizer
from tmkd.tokens import tokens_of
from tmkd.training import Fit, score, train
from tmkd.workspace import Step, Workspace

CHUNK = 2048  # pairs between two writes of the label store: what a kill can lose


def teach(workspace: Workspace, recipe: Recipe, teacher: Teacher, train_rows: Pairs) -> Step:
    """Fine-tune one teacher on golden labels, or copy a finished checkpoint into the workspace.

    Raises:
        EncoderError, RecipeError: a checkpoint with other classes than the task's, or in an order that is not told.
    """
    length = teacher.max_length or recipe.max_length
    source = find_encoder(teacher.checkpoint or teacher.encoder or recipe.encoder)
    order = class_order(source, teacher, recipe) if teacher.checkpoint else []
    unset = {"label_map"} if teacher.label_map is None else set()
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
        tokenizer = PairTokenizer(source, length)
        labels = torch.from_numpy(train_rows.golden)
        curve = train(
            model,
            tokens_of(workspace, tokenizer, train_rows),
            tokenizer.pad_id,
            golden_only(labels),
            fit,
            name=f"teacher {teacher.name}",
            state_folder=folder / "state",
        )
        save_student(model, folder, source, length, {"step": "teacher"})
        write_json(folder / "curve.json", curve)

    return workspace.step("teacher", depends, build, label=f"teacher {teacher.name}")


def golden_only(labels: Tensor) -> Any:
    """The loss of teachers and of `finetune`: cross-entropy of the golden header. labels: `Pairs.golden`."""

    def loss(logits: Logits, rows: Tensor) -> Tensor:
        return golden_loss(logits.golden, labels[rows].to(logits.golden.device))

    return loss


def label(workspace: Workspace, model: Step, pairs: Pairs, *, name: str, precision: str) -> LabelStore:
    """Every logit of one model for every pair, computed once and stored; resumes after the last stored chunk."""
    unique = pairs.take(np.unique(np.array(pairs.pair_ids), return_index=True)[1])
    card = read_card(model.folder)
    header = {
        "teacher": model.fingerprint,
        "tokenizer": PairTokenizer(model.folder, card["max_length"]).fingerprint(),
        "max_length": card["max_length"],
        "classes": card["classes"],
        "class_order": card.get("class_order", list(range(card["classes"]))),
        "dtype": "float32",
    }
    depends = {"model": model.fingerprint, "pairs": unique.digest(), "precision": precision}

    def build(folder: Path) -> None:
        store = LabelStore.open(folder, header=header)
        _borrow(store, workspace, unique, depends)
        _fill(store, model, unique, name, precision, workspace)

    step = workspace.step("labels", depends, build, label=f"label {len(unique):,} pairs with {name}")
    store = LabelStore.open(step.folder, header=header)
    _fill(store, model, unique, name, precision, workspace)  # a part that was damaged since is labelled again
    return store


def _borrow(store: LabelStore, workspace: Workspace, pairs: Pairs, depends: dict[str, Any]) -> None:
    """Take over what other stores of this model and precision hold of the pairs: no pair is labelled twice."""
    wanted = set(pairs.pair_ids) - store.done_ids()
    for folder, theirs in workspace.finished("labels"):
        if {**theirs, "pairs": None} != {**depends, "pairs": None}:
            continue
        other = LabelStore.open(folder, header=store.manifest["header"])
        shared = sorted(wanted & other.done_ids())
        if shared:
            say(f"{len(shared):,} of the pairs are labelled already ({folder.name})")
            store.append(shared, other.logits_for(shared))
            wanted.difference_update(shared)


def _fill(store: LabelStore, model: Step, pairs: Pairs, name: str, precision: str, workspace: Workspace) -> None:
    """Label the pairs that the store does not have yet."""
    done = store.done_ids()
    todo = np.flatnonzero([pair_id not in done for pair_id in pairs.pair_ids])
    if len(todo) == 0:
        return
    student = load_student(model.folder)
    say(f"{name}: {student.encoder.path}")
    tokenizer = PairTokenizer(model.folder, read_card(model.folder)["max_length"])
    encoded = tokens_of(workspace, tokenizer, pairs)
    # Chunks of like length: the batches inside a chunk hold next to no padding.
    order = todo[np.argsort(-encoded.lengths[todo], kind="stable")]
    ids = np.array(pairs.pair_ids)
    with progress(f"label with {name}", len(pairs), done=len(pairs) - len(todo)) as bar:
        for start in range(0, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            store.append(list(ids[rows]), score(student, encoded, tokenizer.pad_id, rows, precision))
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
