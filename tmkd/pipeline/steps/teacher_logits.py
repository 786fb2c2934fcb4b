"""The logits of any kind of teacher, and the calibration that brings them onto one scale.

Raw scores are stored, and the calibration is a step of its own, fitted on labelled training pairs: another way to
calibrate labels nothing again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.config.recipe import Recipe
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import EncoderError, named
from tmkd.core.files import digest_of, read_json, write_json
from tmkd.data.pairs import Pairs
from tmkd.models.encoders.find import find_folder
from tmkd.models.label_map import find_label_map
from tmkd.models.ready import needs_library
from tmkd.pipeline.steps.label import label, label_stored
from tmkd.pipeline.steps.tune import TUNED, tuned_teacher, untuned
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Step, StepMissing, Workspace
from tmkd.teachers.calibration import NEGATE, Calibration, fit, reliability, standardised
from tmkd.teachers.cross_encoder import CrossEncoderTeacher
from tmkd.teachers.interface import StoredTeacher
from tmkd.teachers.score_file import ScoreFileTeacher
from tmkd.teachers.scores import ScoresTeacher
from tmkd.teachers.served import ServedTeacher

logger = logging.getLogger(__name__)

_FILE = "calibration.json"
_REMEDIES = {
    "scores": NEGATE,
    "served": "Check its model, what its scores mean (`holds`), and of form chat its prompt and `answers` or `scale`",
    "reranker": "If its classes are numbered the other way round, say so with `label_map`",
}
"""What may help where a finished teacher's scores fall as the labels rise, by its kind."""
StoredTeachers = dict[str, StoredTeacher]
"""The teachers that a process has opened, by their names in the recipe: each embeds a text once."""


def is_step(teacher: Teacher) -> bool:
    """Whether a teacher is a model that the workspace keeps as a step, and not one that another library runs."""
    if teacher.checkpoint is None:
        return teacher.learns_labels
    local = teacher.checkpoint.startswith("builtin:") or Path(teacher.checkpoint).exists()
    folder = Path(teacher.checkpoint) if local else find_folder(teacher.checkpoint)
    with named(f"teacher {teacher.name}"):
        return not needs_library(folder)


def stored_teacher(recipe: Recipe, teacher: Teacher, opened: StoredTeachers) -> StoredTeacher:
    """The teacher that labels pairs itself: any but a model of the workspace (`is_step`) and a column of scores.

    Args:
        recipe: the precision and the positive class.
        teacher: the recipe's teacher.
        opened: keeps it for the next call.

    Raises:
        EncoderError: its model cannot be used.
    """
    key = _key(recipe, teacher)
    if key not in opened:
        with named(f"teacher {teacher.name}"):
            opened[key] = _open(recipe, teacher)
    found = opened[key]
    if teacher.file is not None:
        found = opened.get(f"{key} {_pairs_of(recipe)}", found)
    if isinstance(found, CrossEncoderTeacher) and teacher.calibration == "none":
        with named(f"teacher {teacher.name}"):
            found.require_log_odds()
    return found


def _key(recipe: Recipe, teacher: Teacher) -> str:
    return f"{teacher.model_dump_json(exclude={'calibrate'})} {recipe.precision} {recipe.positive_class}"


def _pairs_of(recipe: Recipe) -> str:
    """What the pairs that a recipe's teachers label depend on in it."""
    pooled = any(map(recipe.trains_stage1, recipe.chosen_methods))
    return digest_of(
        [recipe.data.model_dump(exclude={"train_share"}), recipe.classes, recipe.model_dump(include={"pool"}), pooled]
    )


def join_score_files(recipe: Recipe, opened: StoredTeachers, parts: Callable[[], Mapping[str, Pairs]]) -> None:
    """Join the files of scores that name pairs by qid and pid with the pairs of a run (`ScoreFileTeacher.of_run`).

    From then on `stored_teacher` gives the joined teachers to this recipe.

    Args:
        recipe: the recipe.
        opened: keeps the teachers.
        parts: gives the pairs of the run, by what messages call them. A workspace that is only read may lack the pool:
            then nothing is joined.

    Raises:
        DataError: a qid and a pid name two pairs, or a pair has two scores.
    """
    for teacher in recipe.used_teachers:
        if teacher.file is not None and (found := score_file(recipe, teacher, opened)).by_ids:
            key = f"{_key(recipe, teacher)} {_pairs_of(recipe)}"
            if key not in opened:
                with suppress(StepMissing):  # the pool is not mined: rows have the scores of their own qid and pid
                    opened[key] = found.of_run(parts())


def score_file(recipe: Recipe, teacher: Teacher, opened: StoredTeachers) -> ScoreFileTeacher:
    """The teacher of `stored_teacher` that a file of scores is."""
    found = stored_teacher(recipe, teacher, opened)
    assert isinstance(found, ScoreFileTeacher)
    return found


def _open(recipe: Recipe, teacher: Teacher) -> StoredTeacher:
    if teacher.file is not None:
        assert teacher.holds is not None
        return ScoreFileTeacher(teacher.file, teacher.column, teacher.holds, teacher.name, partial=teacher.partial)
    if teacher.checkpoint is not None:
        return _open_reranker(recipe, teacher)
    if teacher.endpoint is not None:
        return ServedTeacher(teacher.endpoint, teacher.name, recipe.positive_class, partial=teacher.partial)
    return untuned(recipe, teacher)


def _open_reranker(recipe: Recipe, teacher: Teacher) -> CrossEncoderTeacher:
    """A finished cross-encoder that another library runs, with the task's classes in their order."""
    assert teacher.checkpoint is not None
    found = CrossEncoderTeacher(
        teacher.checkpoint, name=teacher.name, max_length=teacher.max_length, precision=recipe.precision
    )
    if found.classes != recipe.classes:
        raise EncoderError(
            f"{found.folder}: a finished teacher needs a head of {recipe.classes} classes, this one gives "
            f"{found.width} logits",
            source=found.folder,
        )
    found.class_order = find_label_map(found.folder, teacher, recipe, found.width)
    return found


class TeacherLogits:
    """What labels pairs with the teachers of a recipe.

    Args:
        workspace: keeps labels and calibrations.
        recipe: the recipe.
        opened: teachers that are open already.
    """

    def __init__(self, workspace: Workspace, recipe: Recipe, opened: StoredTeachers | None = None) -> None:
        self.workspace = workspace
        self.recipe = recipe
        self.opened: StoredTeachers = {} if opened is None else opened

    def fingerprint(self, teacher: Teacher, step: Step | None) -> str:
        """What a teacher's uncalibrated logits depend on, besides the pairs."""
        if step is not None:
            return step.fingerprint
        if teacher.is_column:
            return ScoresTeacher.of(teacher, self.recipe.data).fingerprint
        return stored_teacher(self.recipe, teacher, self.opened).logits_fingerprint

    def can_label(self, teacher: Teacher, pairs: Pairs) -> bool:
        """Whether a teacher has scores for the pairs: a column if they carry it, a file if it names one of them."""
        if teacher.is_column:
            return ScoresTeacher.of(teacher, self.recipe.data).can_label(pairs)
        return is_step(teacher) or stored_teacher(self.recipe, teacher, self.opened).can_label(pairs)

    def by_ids(self, teacher: Teacher) -> bool:
        """Whether a teacher is a file of scores that names pairs by qid and pid."""
        return teacher.file is not None and score_file(self.recipe, teacher, self.opened).by_ids

    def uncalibrated(self, teacher: Teacher, step: Step | None, pairs: Pairs, where: str) -> NDArray[np.float32]:
        """A teacher's logits before they are calibrated, [N, C] float32; nan where a partial one has none.

        Args:
            teacher: the recipe's teacher.
            step: the model of a teacher that is one of the workspace (`is_step`).
            pairs: the N pairs.
            where: what errors call the pairs: train, dev or pool.

        Raises:
            DataError: a column of scores that the pairs do not carry, or not for every pair.
        """
        if teacher.is_column:
            return ScoresTeacher.of(teacher, self.recipe.data).logits(pairs, where)
        if step is not None:
            return self.of_step(step, pairs, teacher.name)
        labeller = stored_teacher(self.recipe, teacher, self.opened)
        if isinstance(labeller, ScoreFileTeacher):
            labeller.require_all(pairs, where)
        store = label_stored(self.workspace, labeller, pairs)
        return labeller.from_raw(store.logits_for(pairs.ids, allow_missing=teacher.partial))

    def of_step(self, step: Step, pairs: Pairs, name: str) -> NDArray[np.float32]:
        """The logits of a model of the workspace, [N, C] float32 in the order of the pairs.

        Args:
            step: a finished cross-encoder, student or tuned bi-encoder.
            pairs: the N pairs.
            name: what the log calls the model.
        """
        if step.kind != TUNED:
            store = label(self.workspace, step, pairs, name=name, precision=self.recipe.precision)
            return store.logits_for(pairs.ids)
        teacher = self.opened.setdefault(step.folder.name, tuned_teacher(self.recipe, step, name))
        return teacher.from_raw(label_stored(self.workspace, teacher, pairs).logits_for(pairs.ids))

    def calibration(self, teacher: Teacher, names: Sequence[str], pairs: Pairs, logits: NDArray[np.float32]) -> Step:
        """Fit a teacher's calibration, or find it.

        Args:
            teacher: the recipe's teacher.
            names: the fingerprints of what gave the logits.
            pairs: N training pairs; those without a label are not looked at.
            logits: [N, C] the teacher's logits of these pairs; it has not learned from their labels.

        Raises:
            DataError: the labels have one class, or the scores do not rise with them.
        """
        targets = pairs.reference_probabilities if pairs.reference is not None else pairs.labels.astype(np.float64)
        assert targets is not None
        known = np.flatnonzero((pairs.labels >= 0) & np.isfinite(logits).all(axis=1))
        labelled = pairs.take(known)
        settings = {"kind": teacher.calibration, "precision": self.recipe.precision}
        content = depends_on(settings=settings, inputs={"teacher": list(names), "train": labelled})

        def build(folder: Path) -> None:
            remedy = _REMEDIES.get(teacher.of_kind, "Take another model")
            found = fit(teacher.calibration, logits[known], targets[known], teacher.name, remedy)
            before, after = (reliability(one, targets[known]) for one in (logits[known], found.apply(logits[known])))
            about = {"pairs": len(known), "before": before, "after": after}
            write_json(folder / _FILE, {"calibration": found.to_json(), "fitted_on": about})
            logger.info(
                f"teacher {teacher.name}: {found.kind} on {len(known):,} training pairs; calibration error "
                f"{before['error']:.3f} before, {after['error']:.3f} after"
            )

        return self.workspace.step("calibration", content, build, label=f"calibration of {teacher.name}")


def read_calibration(step: Step) -> Calibration:
    """The calibration that a step holds."""
    return Calibration.of_json(read_json(step.folder / _FILE)["calibration"])


def calibrated(
    teacher: Teacher, calibration: Step | None, logits: NDArray[np.float32], pairs: Pairs
) -> NDArray[np.float32]:
    """A teacher's logits on the scale of all teachers.

    Args:
        teacher: the recipe's teacher.
        calibration: its calibration; None where there is none to fit.
        logits: [N, C] uncalibrated.
        pairs: the N pairs.

    Returns:
        [N, C] float32: as given if the teacher is not calibrated; standardised within each question if it is to be, and
        no training pair has a label.
    """
    if teacher.calibration == "none":
        return logits
    return (
        standardised(logits, pairs.groups()[1]) if calibration is None else read_calibration(calibration).apply(logits)
    )
