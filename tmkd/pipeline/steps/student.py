"""What the steps that train a student share: which student it is, and the weights that it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tmkd.config.methods import Method
from tmkd.config.recipe import Recipe
from tmkd.config.sections import Loss, Stage2, StatesTraining, Training
from tmkd.config.student_sections import Cached
from tmkd.data.pairs import Pairs
from tmkd.models.card import read_card
from tmkd.models.checkpoint import hidden_width, load_encoder, load_student
from tmkd.models.cut import lowest_layers
from tmkd.models.encoders.cached_files import ENCODER_FOLDER, first_encoders, question_folder
from tmkd.models.encoders.find import find_encoder, weights_fingerprint
from tmkd.models.encoders.interaction import InteractionEncoder, InteractionShape
from tmkd.models.encoders.text_batches import TrainedReaders
from tmkd.models.inputs import Inputs, StateInputs, TextInputs
from tmkd.models.student import Student
from tmkd.models.text_tokenizer import QUESTION_FOLDER
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.states import TextReading
from tmkd.pipeline.store.fingerprint import non_defaults
from tmkd.pipeline.store.token_cache import token_inputs
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.scores import COLUMN
from tmkd.training.targets import MEAN, STACKED, Targets
from tmkd.training.trainer import TrainerConfig

SAMPLE = 8192  # tokens whose states a cached student's projection begins as the principal components of
_NOT_SHAPE = {  # inputs, and how students are trained
    "encoder", "encoder_layers", "question_encoder", "encoder_learning_rate", "trains_in", "stage1", "stage2",
    "without_stage1",
}  # fmt: skip
READERS = "encoder.readers."  # begins the names of a student's encoders, where they are trained with it


@dataclass(frozen=True)
class StudentSpec:
    """Which student a step trains.

    Attributes:
        recipe: Its recipe.
        method: Its method.
        seed: Seed of its new weights, its data order and its dropout.
        begin: The teacher, or the warm start, whose layers it begins with; None: it begins with the recipe's encoder.
            For `bilstm`: the teacher whose word pieces and embeddings it takes.
        taught_by: The teachers whose hidden states it learns in stage 1, the best first; empty: it learns none.
    """

    recipe: Recipe
    method: Method
    seed: int
    begin: Step | None = None
    taught_by: tuple[Step, ...] = ()

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"{self.method.name}, seed {self.seed}"

    @property
    def encoder(self) -> Path:
        """The encoder that its tokenizer is of; of a cached student, the one that reads its texts."""
        return cached_encoder(self.recipe) if self.method.cached else find_encoder(self.recipe.encoder)

    @property
    def question_encoder(self) -> Path | None:
        """The encoder that reads the questions of a cached student, where it has one of its own."""
        spec = self.recipe.cached.question_encoder
        return find_encoder(spec) if self.method.cached and spec is not None else None

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoders of a cached student are trained with it."""
        return self.method.cached and self.recipe.cached.encoder_learning_rate > 0

    @property
    def by_passage(self) -> bool:
        """Whether the pairs of a passage stand together in the steps of its stage 1."""
        return self.trains_encoder and self.recipe.cached.stage1.by_passage

    @property
    def source(self) -> Path:
        """The checkpoint whose layers it begins with."""
        return self.encoder if self.begin is None else self.begin.folder

    @property
    def stage1(self) -> StatesTraining:
        """How stage 1 trains it."""
        return self.recipe.cached.stage1 if self.method.cached else self.recipe.stage1

    @property
    def stage2(self) -> Stage2:
        """How stage 2 trains it after a stage 1."""
        return self.recipe.cached.stage2 if self.method.cached else self.recipe.stage2

    def last_stage(self, continues: bool) -> Training:
        """How the last stage trains it: stage 2 where it continues a stage-1 student, else its only stage."""
        if continues:
            return self.stage2
        return self.recipe.cached.without_stage1 if self.method.cached else self.recipe.without_stage1

    @property
    def layers(self) -> int | None:
        """How many layers a layered student takes of `source`; None for all."""
        return None if self.method.encoder == "whole" else self.recipe.student.layers

    @property
    def layers_from(self) -> str:
        """Which layers of `source` it takes: `student.start`, resolved."""
        if self.begin is not None:
            return "spaced"
        return "bottom" if self.recipe.student.start == "teacher" else self.recipe.student.start

    def tokenizer(self) -> PairTokenizer:
        """The tokenizer that reads its pairs."""
        return PairTokenizer(self.encoder, self.recipe.max_length)

    def _reading(self, start: Path | None) -> TextReading:
        length, precision = self.recipe.max_length, self.recipe.precision
        if start is not None:
            return TextReading.of_student(start, precision, length)
        asking = self.question_encoder
        questions = None if asking is None else TextReading(asking, asking, length, precision)
        return TextReading(self.encoder, self.encoder, length, precision, questions)

    def states(self, workspace: Workspace, pairs: Pairs, start: Path | None = None) -> list[Step]:
        """The steps that hold the hidden states of the pairs' texts; none for a student that reads token ids.

        Args:
            workspace: Keeps the steps.
            pairs: N pairs.
            start: The stage-1 student that it continues, whose encoder may have been trained.
        """
        frozen = self.method.cached and not self.trains_encoder
        return self._reading(start).steps(workspace, pairs) if frozen else []

    def inputs(self, workspace: Workspace, pairs: Pairs, start: Path | None = None) -> Inputs:
        """Pairs in the form that the student reads; arguments as of `states`."""
        if self.trains_encoder:
            return self._reading(start).tokens(pairs)
        if self.method.cached:
            return self._reading(start).inputs(workspace, pairs)
        return token_inputs(workspace, self.tokenizer(), pairs)

    def trainer_config(self, numbers: Training) -> TrainerConfig:
        """The numbers of a training run."""
        rate = self.recipe.cached.encoder_learning_rate if self.trains_encoder else 0.0
        part = READERS if rate else None
        return TrainerConfig.of(numbers, self.seed, self.recipe.precision, part=part, part_rate=rate)

    def new_student(
        self, numbers: Training, inputs: Inputs, classes: int, soft_heads: int, *, use_golden: bool
    ) -> Student:
        """Make the student with new heads.

        Args:
            numbers: Their dropout is read.
            inputs: The pairs that it is trained on. A cached student's projection begins as the principal components
                of their passages' states.
            classes: C.
            soft_heads: K.
            use_golden: As in `Student`.
        """
        if isinstance(inputs, StateInputs | TextInputs):
            return self._new_cached(numbers, inputs, classes, soft_heads, use_golden)
        shape = self.recipe.student
        encoder = load_encoder(
            self.source,
            classes,
            layers=self.layers,
            start=self.layers_from,
            dropout=numbers.dropout,
            freeze_embeddings=shape.freeze_embeddings,
            pooler=shape.pooler if self.begin is None else "keep",  # that of a teacher or warm start was trained
        )
        return Student(encoder, classes, soft_heads, use_golden=use_golden)

    def _new_cached(
        self,
        numbers: Training,
        inputs: StateInputs | TextInputs,
        classes: int,
        soft_heads: int,
        use_golden: bool,
    ) -> Student:
        """A new cached student, which gives the bi-encoder cosine; arguments as of `new_student`."""
        encoder = InteractionEncoder(
            shape_of(self.recipe.cached, hidden_width(self.encoder)),
            self.encoder,
            dropout=numbers.dropout,
            question_source=self.question_encoder,
        )
        if isinstance(inputs, TextInputs):
            readers = self._readers(self.encoder, self.question_encoder, numbers)
            sample = inputs.sample(readers, SAMPLE, self.seed)
            sources = {ENCODER_FOLDER: self.encoder, QUESTION_FOLDER: self.question_encoder}
            encoder.trained_from = {name: weights_fingerprint(one) for name, one in sources.items() if one is not None}
            encoder.readers = readers
        else:
            sample = inputs.texts.sample(np.unique(inputs.passage), SAMPLE, self.seed)
        encoder.start_projection(torch.from_numpy(sample))
        student = Student(encoder, classes, soft_heads, use_golden=use_golden)
        student.start_at_cosine(self.recipe.positive_class)
        return student

    def _readers(self, passage: Path, question: Path | None, numbers: Training) -> TrainedReaders:
        """Load the encoders to train them; only the dropout of `numbers` is read."""
        frozen = self.recipe.student.freeze_embeddings
        passages, questions = (
            None if folder is None else load_encoder(folder, 2, dropout=numbers.dropout, freeze_embeddings=frozen)
            for folder in (passage, question)
        )
        assert passages is not None
        return TrainedReaders(passages, questions)

    def continued_student(self, stage1: Path, numbers: Training, targets: Targets | None) -> Student:
        """Make the student that continues a stage-1 student.

        The encoder continues. The heads continue where the teachers are the same (`carried_heads`), and the golden head
        then begins as their mean.

        Args:
            stage1: The stage-1 student's folder.
            numbers: Their dropout is read.
            targets: What it will learn in stage 2.
        """
        classes, frozen = self.recipe.classes, self.recipe.student.freeze_embeddings
        before = load_student(stage1, dropout=numbers.dropout, freeze_embeddings=frozen)
        if self.trains_encoder:
            assert isinstance(before.encoder, InteractionEncoder)
            before.encoder.trained_from = first_encoders(stage1)
            before.encoder.readers = self._readers(stage1 / ENCODER_FOLDER, question_folder(stage1), numbers)
        carried = targets and carried_heads(stage1, classes, targets)
        if carried:
            before.start_golden_from_soft()
            before.take_soft_heads(carried)
            return before
        soft_heads = len(targets.names) if targets else 0
        if self.method.cached:
            student = Student(before.encoder, classes, soft_heads)
            student.start_at_cosine(self.recipe.positive_class)
            return student
        encoder = load_encoder(stage1, classes, dropout=numbers.dropout, freeze_embeddings=frozen)
        return Student(encoder, classes, soft_heads)

    def settings(
        self, numbers: Training, *, without: set[str] | None = None, continues: bool = False
    ) -> dict[str, Any]:
        """Collect what the student depends on in the recipe, for the step's fingerprint.

        Args:
            numbers: The numbers of the training.
            without: Fields of them that the step does not read, or that it adds itself where it uses them.
            continues: Whether the student continues a stage-1 student, whose shape is that student's.
        """
        return {
            **(self._cached_shape(continues) if self.method.cached else self._layered_shape(continues)),
            "training": non_defaults(numbers, without=without),
            "classes": self.recipe.classes,
            "max_length": self.recipe.max_length,
            "precision": self.recipe.precision,
            "seed": self.seed,
        }

    def _layered_shape(self, continues: bool) -> dict[str, Any]:
        shape = self.recipe.student.model_copy(update={"start": self.layers_from})
        unread = {"pooler"} if self.begin is not None else set()  # a teacher's pooler is kept
        unread = {"layers", "start"} if self.layers is None else unread
        unread = {"layers", "start", "pooler"} if continues else unread
        depth = "all" if self.layers is None else None
        return {"student": non_defaults(shape, without={"kind", *unread}), "layers": depth}

    def _cached_shape(self, continues: bool) -> dict[str, Any]:
        positive = self.recipe.positive_class
        shape = {} if continues else non_defaults(self.recipe.cached, without=_NOT_SHAPE)
        thaws = self.trains_encoder and not self.recipe.student.freeze_embeddings
        return {
            "kind": "cached",
            "cached": shape,
            "positive": positive if positive != 1 else None,
            "encoder_learning_rate": self.recipe.cached.encoder_learning_rate or None,
            "trains_embeddings": thaws or None,
        }

    @property
    def begins_with(self) -> Step | Path | list[Path]:
        """The step or folder of `source`, and the encoder of questions, as an input of the step's fingerprint."""
        if self.question_encoder is not None:
            return [self.source, self.question_encoder]
        return self.begin or self.source


def cached_encoder(recipe: Recipe) -> Path:
    """The encoder of the passages of cached students, with the layers that are taken of it."""
    return lowest_layers(find_encoder(recipe.cached_encoder), recipe.cached.encoder_layers)


def shape_of(cached: Cached, encoder_width: int) -> InteractionShape:
    """The shape of a cached student over an encoder of some width."""
    return InteractionShape(
        encoder_width=encoder_width,
        state_size=cached.state_size,
        width=cached.width or encoder_width,
        layers=cached.layers,
        heads=cached.heads,
        ffn=cached.ffn,
        asks=cached.asks,
        self_attention=cached.self_attention,
    )


def soft_settings(loss: Loss, targets: Targets | None, *, without: set[str] | None = None) -> dict[str, Any]:
    """Collect what a step depends on in its loss on soft labels, for the step's fingerprint.

    Args:
        loss: The recipe's.
        targets: The soft labels; None for a student that learns none, whose step then reads nothing of the loss.
        without: Fields of the loss that the step does not read.
    """
    if targets is None:
        return {}
    unread = {"weighting", *(without or ()), *(() if loss.kind in ("kl", "list_kl") else ("temperature",))}
    return {"loss": non_defaults(loss, without=unread), "weights": targets.weighting}


def carried_heads(folder: Path, classes: int, targets: Targets) -> list[int | None] | None:
    """Decide which heads of a stage-1 student continue in stage 2.

    They continue if the teachers are the same. A column of scores that the pool did not have joins in stage 2, and its
    head begins as the mean of the others. The head of an ensemble continues even when a column joins it.

    Args:
        folder: The stage-1 student's.
        classes: Of the task.
        targets: What the student learns in stage 2.

    Returns:
        For each target the index of the head that continues, or None for a head that begins as the mean; None instead
        of a list if no head continues.
    """
    card = read_card(folder)
    before, now = list(card.teachers or ()), list(targets.names)
    if not before or card.classes != classes:
        return None
    if len(before) == len(now) == 1 and before[0].startswith((MEAN, STACKED)):
        return [0] if _same_ensemble(before[0], now[0]) else None
    known = [name for name in now if name in before]
    if known != before or any(not name.startswith(COLUMN) for name in now if name not in before):
        return None
    return [before.index(name) if name in before else None for name in now]


def _same_ensemble(before: str, now: str) -> bool:
    """Whether an ensemble is another one by its name, apart from columns of scores that joined it at any place."""
    (kind, _, left), (other, _, names) = before.partition(" of "), now.partition(" of ")
    waiting, joining = left.split("+"), False
    for name in names.split("+"):  # the name of a column may have a + itself
        if waiting[:1] == [name]:
            waiting, joining = waiting[1:], False
        elif not (joining := joining or name.startswith(COLUMN)):
            return False
    return kind == other and not waiting
