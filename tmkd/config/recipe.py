"""The recipe: a task and the methods to run on it, as a typed object that refuses what does not fit together.

The description of each field is also its documentation (`tmkd recipe`). `tmkd.config.load` reads a recipe from YAML.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tmkd.config.class_checks import class_names, positive_class, require_label_maps, require_positive
from tmkd.config.methods import METHODS, Method, chosen_method
from tmkd.config.pool_sections import Pool
from tmkd.config.rates import STAGES, MethodRates, own_numbers, require_rates
from tmkd.config.sections import (
    GROUPED_LOSSES,
    Bilstm,
    Data,
    Export,
    Loss,
    Part,
    Seeds,
    Stage1,
    Stage2,
    Training,
    WarmUp,
)
from tmkd.config.student_sections import Cached, StudentShape
from tmkd.config.teacher_sections import KINDS_OF_TWO, Chosen, Teacher, chosen_teachers

BEST = "best"
"""As `take`: the method that is best on the development set."""
NO_WARM_UP = "the recipe has none; give it one, such as warm_up={learning_rate: 3.0e-4, epochs: 1}"


class Recipe(Part):
    """A task and the methods to run on it."""

    name: str = Field("tmkd", pattern=r"^[A-Za-z0-9._-]+$", description="name of the run, and of its folder runs/NAME/")
    encoder: str = Field("builtin:minilm-l6", description="pre-trained encoder: builtin:NAME, a folder, or a hub id")
    classes: int = Field(2, ge=2, description="number of classes (C)")
    max_length: int = Field(
        192, ge=8, le=8192, description="tokens of a pair; of a longer pair the longer side is cut first"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where the hardware supports it, else fp32"
    )
    attention: Literal["auto", "matmul", "sdpa", "packed"] = Field(
        "auto", description="auto: the fastest on this device; results differ only by rounding"
    )
    data: Data = Field(description="where the labelled pairs come from")
    pool: Pool | None = Field(None, description="the unlabelled pairs of stage 1: where they are mined, and how many")
    teachers: tuple[Teacher, ...] = Field(
        (), description="the K teachers; columns of data.scores that none of them names are teachers, too, after them"
    )
    use_teachers: Chosen = Field(
        None, description="use only the first this many teachers, or only the ones with these names"
    )
    labels: Literal["own", "out-of-fold"] = Field(
        "own",
        description="who labels the training pairs. own: the teachers, which were trained on them. out-of-fold: "
        "teachers that did not see the pair's question, each trained on the other folds (a pool of other pairs and the "
        "development and test sets are labelled by the full teachers)",
    )
    folds: int = Field(5, ge=2, description="number of folds for out-of-fold labels, calibration and stacking")
    ensemble: Literal["mean", "stacked", "stacked-dev"] = Field(
        "mean",
        description="what `teacher-ensemble` is, and what 1avg-o-1 and 1avg-tkd learn. mean: of the teachers' "
        "probabilities; stacked: a sum of their log-odds with weights of 0 or more, fitted on training pairs that the "
        "teachers have not learned from; stacked-dev: the same, fitted on the development set, so that no teacher is "
        "trained again for each fold",
    )
    student: StudentShape = Field(
        default_factory=StudentShape, description="the kind of the students, and the shape of layered ones"
    )
    cached: Cached = Field(default_factory=Cached, description="students of the kind cached, and how they are trained")
    warm_up: WarmUp | None = Field(
        None,
        description="warm start, for bi-encoders, which have never read two texts in one sequence: before anything "
        "else the encoder learns its own bi-encoder cosine of the pool's pairs, and teachers with the recipe's "
        "encoder start from it. None unless given",
    )
    stage1: Stage1 = Field(
        default_factory=lambda: Stage1(learning_rate=3e-4, epochs=4), description="how stage 1 trains"
    )
    stage1_from: str | None = Field(
        None,
        description="the folder of an earlier run's stage-1 student (runs/NAME/stage1), from which stage 2 starts; "
        "stage 1 is then skipped, and `stage1` must not be given. It is for students of every kind, but cached ones "
        "start from cached.stage1_from where that is given",
    )
    stage2: Stage2 = Field(
        default_factory=lambda: Stage2(learning_rate=3e-5, epochs=2),
        description="how stage 2 trains students that had stage 1",
    )
    without_stage1: Training = Field(
        default_factory=lambda: Training(learning_rate=2e-4, epochs=4),
        description="how students train that skip stage 1 (finetune, 1-o-1, mkd, ...)",
    )
    rates: dict[str, MethodRates] = Field(
        default_factory=dict,
        description="learning rate and epochs of single methods, by the method's name as in `methods`, such as "
        "{finetune: {without_stage1: {learning_rate: 1.0e-4}}}; what is not given there is that of the sections above",
    )
    bilstm: Bilstm = Field(default_factory=Bilstm, description="the bilstm baseline")
    loss: Loss = Field(default_factory=Loss, description="the loss on soft labels")
    methods: tuple[str, ...] = Field(
        ("teacher", "teacher-ensemble", "finetune", "tmkd"),
        description="any of: " + "; ".join(f"{method.name} ({method.text})" for method in METHODS.values()) + ". "
        "NAME@cached and NAME@layers say which kind of student a method trains; without that, student.kind does",
    )
    seeds: Seeds = Field((0,), description="for each seed, one student of every method")
    combination: Literal["logit", "probability", "golden"] = Field(
        "logit",
        description="how the heads of a student become one output when it is evaluated: mean of their logits, mean of "
        "their probabilities (the paper's), or the golden head alone. An export always folds the heads, which is "
        "`logit`",
    )
    take: str = Field(
        "tmkd",
        description="the method whose first student is exported; best: the one whose students are best on the "
        "development set, by ROC-AUC plus MRR, or by accuracy where these are not defined",
    )
    export: Export = Field(default_factory=Export, description="what is exported for serving")

    @property
    def chosen_methods(self) -> tuple[Method, ...]:
        """The methods, each with the kind of its student."""
        return tuple(chosen_method(name, self.student.kind) for name in self.methods)

    def finished_stage1(self, method: Method) -> str | None:
        """The folder of the stage-1 student that a method's students start from; None where stage 1 is trained."""
        return (self.cached.stage1_from if method.cached else None) or self.stage1_from

    def trains_stage1(self, method: Method) -> bool:
        """Whether a method has a stage 1 that this run trains."""
        return method.stage1 and self.finished_stage1(method) is None

    def of_method(self, method: Method) -> Recipe:
        """The recipe as it trains one method's students: its own numbers (`rates`), no extras for `tmkd-paper`."""
        numbers = {stage: getattr(self.cached if method.cached else self, stage) for stage in STAGES}
        own: dict[str, Any] = dict(own_numbers(numbers, self.rates, method, self.student.kind))
        own = {"cached": self.cached.model_copy(update=own)} if method.cached and own else own
        if not method.extras:
            shape = self.student.model_copy(update={"start": "bottom"})
            own |= {"loss": Loss(kind="mse", alpha=self.loss.alpha), "student": shape}
        return self.model_copy(update=own) if own else self

    @property
    def cached_encoder(self) -> str:
        """The encoder of cached students, as `find_encoder` takes it."""
        return self.cached.encoder or self.encoder

    @property
    def all_teachers(self) -> tuple[Teacher, ...]:
        """The listed teachers, then the score columns that are teachers without being listed."""
        listed = {teacher.scores for teacher in self.teachers} | {self.data.reference}
        columns = [column for column in self.data.scores if column not in listed]
        named = {re.sub(r"[^\w.-]", "-", column, flags=re.ASCII): column for column in columns}
        return (*self.teachers, *(Teacher(name=name, scores=column) for name, column in named.items()))

    @property
    def positive_class(self) -> int:
        """The class of the right passages, where there are two classes (`data.positive`)."""
        return positive_class(self.data)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, in their order; None where `data.labels` has none, or has numbers for names."""
        return class_names(self.data)

    def encoder_of(self, teacher: Teacher) -> str:
        """The encoder or checkpoint that a teacher starts from, as `find_encoder` takes it; not for score columns."""
        return teacher.model or teacher.checkpoint or teacher.encoder or self.encoder

    @property
    def foreign_pool(self) -> bool:
        """Whether the pool is of another task, with teachers of its own (`pool.teachers`)."""
        return self.pool is not None and bool(self.pool.teachers)

    def fine_tunes_own(self, teacher: Teacher) -> bool:
        """Whether this run fine-tunes the teacher from the recipe's own encoder."""
        return teacher.trained and self.encoder_of(teacher) == self.encoder

    @property
    def used_teachers(self) -> tuple[Teacher, ...]:
        """The teachers that take part: all, the first `use_teachers` of them, or those that it names."""
        return chosen_teachers(self.all_teachers, self.use_teachers)

    @property
    def _replays(self) -> bool:
        """Whether stage 2 of some kind of student replays pairs of the pool."""
        return bool(self.stage2.replay or self.cached.stage2.replay)

    @field_validator("methods")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            chosen_method(name, "layers")
        return names

    @model_validator(mode="after")
    def _kinds_fit(self) -> Recipe:
        """No method is there under two names, and every method has a student of the kind that is asked for."""
        seen: dict[tuple[str, str], str] = {}
        for method in self.chosen_methods:
            base = method.name.partition("@")[0]
            other = seen.setdefault((base, method.encoder), method.name)
            if other != method.name:
                raise ValueError(f"methods: {other} and {method.name} are the same students; leave one of them out")
        return self

    @model_validator(mode="after")
    def _one_stage1(self) -> Recipe:
        # compared by value, since a recipe that was written with its default values must be readable again
        own = self.cached.stage1_from
        where = {"stage1": ("stage1_from", self.stage1_from), "cached.stage1": ("stage1_from", self.stage1_from)}
        if own is not None:
            where["cached.stage1"] = ("cached.stage1_from", own)
        parts: tuple[Recipe | Cached, ...] = (self, self.cached)
        for part, (key, (source, folder)) in zip(parts, where.items(), strict=True):
            usual = type(part).model_fields["stage1"].get_default(call_default_factory=True)
            if folder is not None and part.stage1 != usual:
                raise ValueError(
                    f"give {key} or {source}, not both: {source}={folder} starts stage 2 from a finished stage-1 "
                    f"student, so the numbers in {key} would have no effect"
                )
        return self

    @model_validator(mode="after")
    def _teachers_fit(self) -> Recipe:
        names = [teacher.name for teacher in self.all_teachers]
        if not names:
            raise ValueError("teachers: give one or more, or score columns made elsewhere (data.scores)")
        if len(set(names)) < len(names):
            raise ValueError(f"teachers: names must differ, got {', '.join(names)}")
        used = self.used_teachers
        if self._replays and self.foreign_pool:
            raise ValueError("stage2.replay: the pool is of another task (pool.teachers), stage 2 has no labels for it")
        if self.ensemble != "mean" and len(names) < 2:
            raise ValueError(f"ensemble: {self.ensemble} weighs two or more teachers, and {names[0]} is the only one")
        if self.ensemble != "mean" and (partial := [one.name for one in used if one.partial]):
            raise ValueError(
                f"ensemble: {self.ensemble} needs every teacher's label, {partial[0]} is partial: set ensemble: mean"
            )
        if self.warm_up is not None:
            finished = [one.name for one in used
                        if not (one.learns_labels or one.partial or one.of_kind == "scores")]  # fmt: skip
            self.warm_up.require_teacher(finished, self.classes)
        if self.labels == "out-of-fold" and not any(teacher.learns_labels for teacher in used):
            raise ValueError("labels: out-of-fold needs a teacher that is trained here, and none is")
        return self

    @model_validator(mode="after")
    def _one_pool(self) -> Recipe:
        if self.pool is None:
            return self
        self.pool.require_sampling([teacher.name for teacher in self.used_teachers], self.classes)
        self.pool.require_origin(own=self.data.pool is not None, builtin=self.data.builtin is not None)
        return self

    @model_validator(mode="after")
    def _take_fits(self) -> Recipe:
        if self.take == BEST:
            if not any(method.exportable for method in self.chosen_methods):
                raise ValueError(f"take: best, but no student of {', '.join(self.methods)} can be exported")
            return self
        taken = {method.name: method for method in self.chosen_methods}.get(self.take)
        if taken is None:
            raise ValueError(f"take: {self.take!r} is not among the methods ({', '.join(self.methods)}); set it to one")
        if not taken.trains:
            raise ValueError(f"take: {self.take!r} trains no student; take a method that does")
        return self

    @model_validator(mode="after")
    def _score_columns_fit(self) -> Recipe:
        for teacher in self.teachers:
            if teacher.scores is not None and teacher.scores not in self.data.scores:
                raise ValueError(f"teachers: {teacher.name}: score column {teacher.scores!r} is not in data.scores")
        if (self.data.reference or any(teacher.scores for teacher in self.all_teachers)) and self.classes != 2:
            raise ValueError("a column of scores can be a teacher or the reference of two classes only")
        for teacher in self.teachers:
            if self.classes != 2 and (teacher.of_kind in KINDS_OF_TWO or teacher.calibration != "none"):
                what = (
                    f"kind {teacher.of_kind}" if teacher.of_kind in KINDS_OF_TWO else f"calibrate: {teacher.calibrate}"
                )
                raise ValueError(f"teachers: {teacher.name}: {what} is for two classes, and there are {self.classes}")
        if self.data.reference and all(teacher.scores == self.data.reference for teacher in self.used_teachers):
            raise ValueError("teachers: the reference cannot be the only one, it is not measured against itself")
        return self

    @model_validator(mode="after")
    def _start_fits(self) -> Recipe:
        encoders = {method.encoder for method in self.chosen_methods}
        if "cached" in encoders and "bottom" not in encoders:
            if self.student.kind == "layers":  # methods named NAME@cached, taken out of a recipe of both kinds
                return self
            layered = {"student.start": self.student.start != "bottom", "stage1.states": self.stage1.states,
                       "stage1.cosine": self.stage1.cosine}  # fmt: skip
            for key in (key for key, given in layered.items() if given):
                raise ValueError(
                    f"{key} is for layered students, and all students here are cached; leave it out ({key}="
                    f"{'bottom' if key == 'student.start' else 0})"
                )
            return self
        if self.student.start == "teacher" and not any(map(self.fine_tunes_own, self.used_teachers)):
            raise ValueError(
                f"student.start: teacher needs a teacher that is fine-tuned from {self.encoder!r}, and there is none; "
                "use spaced"
            )
        if self.stage1.states and self.student.start != "teacher":
            raise ValueError(
                f"stage1.states: {self.stage1.states:g}, but a student learns the states of the teacher whose layers "
                f"it starts from, and student.start is {self.student.start}; set student.start=teacher, or "
                "stage1.states=0"
            )
        return self

    @model_validator(mode="after")
    def _states_fit(self) -> Recipe:
        """A cached student can learn the hidden states of a teacher that has its tokens and its width."""
        weight, shape = self.cached.stage1.states, self.cached
        if not weight or not any(method.cached for method in self.chosen_methods):
            return self
        if not any(map(self.fine_tunes_own, self.used_teachers)):
            raise ValueError(
                f"cached.stage1.states: {weight:g} needs a teacher that is fine-tuned from {self.encoder!r}, and there "
                "is none; set cached.stage1.states=0"
            )
        given = {"width": shape.width is not None, "encoder": self.cached_encoder != self.encoder,
                 "question_encoder": shape.question_encoder is not None}  # fmt: skip
        for key in (key for key, is_given in given.items() if is_given):
            raise ValueError(
                f"cached.stage1.states: {weight:g}, but cached.{key} is given, and the teacher's hidden states have "
                f"the tokens and the width of {self.encoder!r}; leave out cached.{key}, or set cached.stage1.states=0"
            )
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Recipe:
        require_label_maps(self.data, self.teachers, self.classes)
        require_positive(self.data, self.classes)
        return self

    @model_validator(mode="after")
    def _rates_fit(self) -> Recipe:
        try:
            require_rates(self.rates, self.student.kind)
        except ValueError as error:
            raise ValueError(f"rates: {error}") from error
        for name, own in self.rates.items():
            folder = self.finished_stage1(chosen_method(name, self.student.kind))
            if folder is not None and "stage1" in own.given():
                raise ValueError(
                    f"rates: {name}.stage1 would have no effect: stage 2 of {name} starts from the finished stage-1 "
                    f"student {folder}; leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> Recipe:
        """Each method has the teachers and the stage 1 that it needs."""
        for name, method in zip(self.methods, self.chosen_methods, strict=True):
            like = method.alone
            if like and len(self.all_teachers) < 2:  # `use_teachers: 1` of several is allowed: an ablation wants it
                raise ValueError(
                    f"methods: {name} needs two or more teachers, and {self.all_teachers[0].name} is the only one; add "
                    f"another, or take {like} instead (methods=[...] and take={like})"
                )
            if method.warm and self.warm_up is None:
                raise ValueError(f"methods: {name} starts from the warm start, and {NO_WARM_UP}, or leave {name} out")
            method.require_stage1(self.finished_stage1(method), self.combination)
            if self.stage1_from is not None and method.self_taught:
                raise ValueError(
                    f"methods: {name} makes a stage 1 of its own, and stage1_from names a finished one, "
                    f"{self.stage1_from}; leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _loss_fits(self) -> Recipe:
        """A loss that compares the passages of a question has the classes and batches that it needs."""
        kind = self.loss.kind
        if kind not in GROUPED_LOSSES:
            return self
        if self.classes != 2:
            raise ValueError(f"loss.kind: {kind} is defined for two classes, and there are {self.classes}")
        if self.cached.stage1.by_passage:
            raise ValueError(f"cached.stage1.by_passage keeps passages together, and loss.kind {kind} questions")
        if self._replays:
            raise ValueError(f"stage2.replay mixes in single pairs, and loss.kind {kind} compares passages")
        stages = ("stage1", "stage2", "without_stage1")
        trainings: dict[str, Training] = {key: getattr(self, key) for key in (*stages, "bilstm")}
        trainings |= {f"cached.{key}": getattr(self.cached, key) for key in stages}
        for key, numbers in trainings.items():
            if (size := numbers.batch_size) < 4:
                raise ValueError(f"{key}.batch_size: {size} is too small for loss.kind {kind}; use 4 or more")
        return self
