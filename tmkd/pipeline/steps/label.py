"""Labelling as a step: the logits of a teacher or student for a set of pairs, computed once and stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.cluster import Cluster
from tmkd.core.errors import TmkdError, named
from tmkd.core.files import digest_of
from tmkd.data.pairs import Pairs
from tmkd.models.batching import spread_chunks
from tmkd.models.card import read_card
from tmkd.models.checkpoint import load_student
from tmkd.models.encoders.cached_files import is_cached
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import require_finite_logits, score, score_heads
from tmkd.models.student import Combination, combine
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.states import model_inputs
from tmkd.pipeline.steps.stored_labels import Labels, are_stored, stored
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.interface import Scored, StoredTeacher
from tmkd.teachers.on_cluster import FEWEST, ScorePairs, score_on

logger = logging.getLogger(__name__)

CHUNK = 2048  # pairs between two writes of the label store: a killed process loses at most so many


def label(workspace: Workspace, model: Step, pairs: Pairs, *, name: str, precision: str) -> LabelStore:
    """Store the logits of one model for every pair. A call that was interrupted continues after its last stored chunk.

    Args:
        workspace: keeps the labels.
        model: the step of a teacher or student.
        pairs: N pairs; each distinct pair is labelled once.
        name: what the log calls the model.
        precision: of the model's arithmetic, as in a recipe.

    Returns:
        A store of C numbers a pair that has all pairs.
    """
    return _label(workspace, model, pairs, _Labelling("labels", name, precision, score), {})


def head_logits(workspace: Workspace, model: Step, pairs: Pairs, *, name: str, precision: str) -> NDArray[np.float32]:
    """The logits of every trained head of a student, stored as `label` stores those of the whole model.

    `tmkd.models.student.combine` makes one output of them.

    Args:
        workspace: keeps the labels.
        model: the student's step.
        pairs: N pairs.
        name: what the log calls the student.
        precision: of the model's arithmetic, as in a recipe.

    Returns:
        [N, H, C] float32 in the order of the pairs, the golden head first if it was trained.
    """
    card = read_card(model.folder)
    heads = card.heads
    how = _Labelling("headers", f"the heads of {name}", precision, score_heads)
    store = _label(workspace, model, pairs, how, {"headers": heads})
    return store.logits_for(pairs.ids).reshape(len(pairs), heads, card.classes)


def combined_logits(
    workspace: Workspace, model: Step, pairs: Pairs, how: Combination, *, name: str, precision: str
) -> NDArray[np.floating[Any]]:
    """A student's output under one of the combinations of its heads.

    Args:
        workspace: keeps the labels.
        model: the student's step.
        pairs: N pairs.
        how: the combination.
        name: what the log calls the student.
        precision: of the model's arithmetic, as in a recipe.

    Returns:
        [N, C] in the order of the pairs.

    Raises:
        TmkdError: the combination is `golden`, and the student stopped after stage 1.
    """
    card = read_card(model.folder)
    if how == "golden" and not card.use_golden:
        raise TmkdError(f"{name}: a student that stopped after stage 1 has no golden head; use combination: logit")
    if how == "logit" or not card.soft_heads:
        return label(workspace, model, pairs, name=name, precision=precision).logits_for(pairs.ids)
    heads = head_logits(workspace, model, pairs, name=name, precision=precision)
    return combine(heads, how, golden=card.use_golden)


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
    """The outputs of a method's students for every seed.

    Args:
        workspace: keeps the labels.
        models: the students' steps, seed after seed.
        pairs: N pairs.
        how: the combination of a student's heads.
        each: students of one seed (K for `m-o-m`). Their output is the log of the mean of their probabilities, as for
            a teacher ensemble.
        name: what the log calls the method.
        precision: of the models' arithmetic, as in a recipe.

    Returns:
        [S, N, C] float64 for S seeds, in the order of the pairs.
    """
    outputs = [
        combined_logits(workspace, model, pairs, how, name=name, precision=precision).astype(np.float64)
        for model in models
    ]
    if each == 1:
        return np.stack(outputs)
    seeds = [np.stack(outputs[start : start + each], axis=1) for start in range(0, len(outputs), each)]
    return np.stack([combine(seed, "probability") for seed in seeds])


@dataclass(frozen=True)
class _Labelling:
    """How pairs are labelled.

    Attributes:
        kind: the kind of step.
        name: what the log calls the model.
        precision: of the model's arithmetic.
        score: gives the logits of some of the encoded pairs (`tmkd.models.predict`).
    """

    kind: str
    name: str
    precision: str
    score: Callable[..., NDArray[np.float32]]


def label_stored(workspace: Workspace, teacher: StoredTeacher, pairs: Pairs) -> LabelStore:
    """Store the raw scores of a teacher for every pair, as it gives them.

    Args:
        workspace: keeps the scores.
        teacher: the teacher.
        pairs: N pairs; each distinct pair is labelled once.

    Returns:
        A store of `teacher.width` numbers a pair that has all pairs.

    Raises:
        TmkdError: the teacher stopped; the scores that it gave before are kept.
    """
    wanted = _scores_of(teacher, pairs)
    if workspace.mode != "read":
        teacher.keep_in(workspace.tokens / f"embeddings-{digest_of(teacher.fingerprint)}", len(wanted.pairs))
    return stored(workspace, wanted, lambda some: teacher.scored(some, _cluster_for(workspace, some)))


def has_scores(workspace: Workspace, teacher: StoredTeacher, pairs: Pairs) -> bool:
    """Whether `label_stored` has nothing to label: the scores are in the workspace, or at its shared address."""
    return are_stored(workspace, _scores_of(teacher, pairs))


def _scores_of(teacher: StoredTeacher, pairs: Pairs) -> Labels:
    """The raw scores of a teacher for the distinct ones of the pairs."""
    header = {"teacher": teacher.fingerprint, "holds": "raw scores", "classes": teacher.width, "dtype": "float32"}
    unique = pairs.distinct()
    content = depends_on(settings={}, inputs={"model": teacher, "pairs": unique})
    return Labels("labels", header, content, unique, teacher.name, borrow=teacher.by_texts)


def _cluster_for(workspace: Workspace, pairs: Pairs) -> Cluster | None:
    """The workspace's cluster, if there are pairs enough."""
    return workspace.cluster if len(pairs) >= FEWEST else None


def _label(workspace: Workspace, model: Step, pairs: Pairs, how: _Labelling, extra: dict[str, Any]) -> LabelStore:
    card = read_card(model.folder)
    header = {
        "teacher": model.fingerprint,
        "tokenizer": PairTokenizer(model.folder, card.max_length).fingerprint(),
        "max_length": card.max_length,
        "classes": card.classes,
        "class_order": list(card.class_order or range(card.classes)),
        "dtype": "float32",
        **extra,
    }
    unique = pairs.distinct()
    content = depends_on(settings={"precision": how.precision}, inputs={"model": model, "pairs": unique})
    return stored(
        workspace, Labels(how.kind, header, content, unique, how.name), partial(_scored, workspace, model, how)
    )


def _scored(workspace: Workspace, model: Step, how: _Labelling, pairs: Pairs) -> Iterator[Scored]:
    """Score pairs with a model of the workspace, chunk by chunk; as `StoredTeacher.scored`."""
    cluster = _cluster_for(workspace, pairs)
    if cluster is not None and not is_cached(model.folder):  # whose states of texts lie in the workspace
        yield from score_on(cluster, _OnWorkers(model.folder, how), pairs)
        return
    with named(how.name):
        student = load_student(model.folder)
    logger.info(f"{how.name}: {student.encoder.path}")
    inputs = model_inputs(workspace, model.folder, pairs, how.precision)
    for rows in spread_chunks(inputs.lengths, CHUNK):  # of similar length, so their batches hold almost no padding
        logits = how.score(student, inputs, rows, how.precision).reshape(len(rows), -1)
        require_finite_logits(logits, pairs.take(rows), f"{how.name} ({model.folder})", how.precision)
        yield rows, logits


class _OnWorkers(ScorePairs):
    """A model of the workspace on the workers of a cluster.

    Args:
        folder: the model's folder.
        how: how pairs are labelled.
    """

    def __init__(self, folder: Path, how: _Labelling) -> None:
        self.folder, self.how = folder, how

    def open_model(self, folder: Path) -> Callable[[Pairs], NDArray[np.float32]]:
        """See `ScorePairs`."""
        student = load_student(folder)
        tokenizer = PairTokenizer(folder, read_card(folder).max_length)

        def scored(pairs: Pairs) -> NDArray[np.float32]:
            inputs = TokenInputs(tokenizer.encode(pairs.questions, pairs.passages), tokenizer.pad_id)
            logits = self.how.score(student, inputs, None, self.how.precision).reshape(len(pairs), -1)
            require_finite_logits(logits, pairs, f"{self.how.name} ({self.folder})", self.how.precision)
            return logits

        return scored
