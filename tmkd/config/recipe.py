"""The recipe: one YAML file, validated into typed objects. Each field's text below is also the documentation.

`key=value` on the command line overrides a field: `stage1.epochs=4`, `methods=[teacher,tmkd]`, `stage1=PATH`.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from tmkd.config.methods import METHODS
from tmkd.config.sections import Bilstm, Export, Pool, Positive, Seeds, Stage1, Stage2, StudentShape
from tmkd.config.sections import Columns as Columns
from tmkd.config.sections import Data as Data
from tmkd.config.sections import Loss as Loss
from tmkd.config.sections import Part as Part
from tmkd.config.sections import Teacher as Teacher
from tmkd.config.sections import Training as Training
from tmkd.core.errors import RecipeError

P = TypeVar("P", bound="Part")


class Recipe(Part):
    """A task plus the methods to run on it."""

    name: str = Field("tmkd", pattern=r"^[A-Za-z0-9._-]+$", description="the run's name under runs/")
    encoder: str = Field("builtin:minilm-l6", description="pre-trained encoder: builtin:NAME, a folder, a hub id")
    classes: int = Field(2, ge=2, description="C")
    max_length: int = Field(
        192, ge=8, le=8192, description="tokens of a pair; longer pairs are cut, longest side first"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it")
    attention: Literal["auto", "matmul", "sdpa", "packed"] = Field(
        "auto", description="auto: what is fastest on the device; the results are the same, to rounding"
    )
    data: Data = Field(description="where the pairs come from")
    pool: Pool | None = Field(None, description="the pairs of stage 1, mined or taken in part")
    teachers: tuple[Teacher, ...] = Field(
        (), description="K teachers; columns of data.scores that none of them names come after them"
    )
    use_teachers: Positive | None = Field(None, description="use only so many of them, from the first")
    labels: Literal["own", "out-of-fold"] = Field(
        "own",
        description="soft labels of the training pairs: of the teachers that were trained on them, or of teachers that "
        "did not see the pair's question (each trained on the other folds; pool, dev and test keep the full teachers)",
    )
    folds: int = Field(5, ge=2, description="of out-of-fold labels")
    student: StudentShape = Field(default_factory=StudentShape, description="the student's shape")
    warm_up: Training | None = Field(
        None,
        description="before all else: the encoder learns its own embeddings' cosine on the pool's pairs, for sentence "
        "encoders, which never compared two texts in one sequence. Teachers of it begin with that; none unless given",
    )
    stage1: Stage1 | str = Field(
        default_factory=lambda: Stage1(learning_rate=3e-4, epochs=4),
        description="stage 1, or the path of an earlier run's stage-1 student to start stage 2 from",
    )
    stage2: Stage2 = Field(
        default_factory=lambda: Stage2(learning_rate=3e-5, epochs=2), description="students that had stage 1"
    )
    without_stage1: Training = Field(
        default_factory=lambda: Training(learning_rate=2e-4, epochs=4),
        description="students that skip stage 1 (finetune, 1-o-1, mkd, ...)",
    )
    bilstm: Bilstm = Field(default_factory=Bilstm, description="the bilstm baseline")
    loss: Loss = Field(default_factory=Loss, description="the loss on soft labels")
    methods: tuple[str, ...] = Field(
        ("teacher", "teacher-ensemble", "finetune", "tmkd"),
        description="of: " + "; ".join(f"{method.name} ({method.text})" for method in METHODS.values()),
    )
    seeds: Seeds = Field((0,), description="one student of every method per seed")
    combination: Literal["logit", "probability", "golden"] = Field(
        "logit",
        description="how the headers of measured students become one output: mean of their logits, mean of their "
        "probabilities (the paper's), or the golden header alone; an export always folds, which is `logit`",
    )
    take: str = Field("tmkd", description="the method whose first seed is exported")
    export: Export = Field(default_factory=Export, description="what is written for serving")

    @property
    def all_teachers(self) -> tuple[Teacher, ...]:
        """Those that are listed, and the score columns that count as teachers without being listed."""
        listed = {teacher.scores for teacher in self.teachers} | {self.data.reference}
        columns = [column for column in self.data.scores if column not in listed]
        named = {re.sub(r"[^\w.-]", "-", column, flags=re.ASCII): column for column in columns}
        return (*self.teachers, *(Teacher(name=name, scores=column) for name, column in named.items()))

    def encoder_of(self, teacher: Teacher) -> str:
        """What a teacher that is no column begins with, as `find_encoder` takes it."""
        return teacher.checkpoint or teacher.encoder or self.encoder

    def length_of(self, teacher: Teacher) -> int:
        """Tokens of a pair that a teacher reads."""
        return teacher.max_length or self.max_length

    def fine_tunes_own(self, teacher: Teacher) -> bool:
        """Whether a teacher is fine-tuned here from the recipe's own encoder."""
        return teacher.trained and self.encoder_of(teacher) == self.encoder

    @property
    def used_teachers(self) -> tuple[Teacher, ...]:
        """The first `use_teachers` of them."""
        return self.all_teachers[: self.use_teachers]

    @field_validator("methods")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in METHODS:
                raise ValueError(f"{name!r} is not a method; there are: {', '.join(METHODS)}")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = [teacher.name for teacher in self.all_teachers]
        if not names:
            raise ValueError("teachers: give one or more, or score columns made elsewhere (data.scores)")
        if len(set(names)) < len(names):
            raise ValueError(f"teachers: names must differ, got {', '.join(names)}")
        if (self.use_teachers or 1) > len(names):
            raise ValueError(f"use_teachers: {self.use_teachers}, but there are {len(names)} teachers")
        if self.stage2.replay and self.pool is not None and self.pool.teachers:
            raise ValueError("stage2.replay: the pool is of another task (pool.teachers), stage 2 has no labels for it")
        if self.labels == "out-of-fold" and not any(teacher.trained for teacher in self.used_teachers):
            raise ValueError("labels: out-of-fold needs a teacher that is trained here, and none is")
        if self.take not in self.methods:
            raise ValueError(f"take: {self.take!r} is not among the methods ({', '.join(self.methods)}); set take, too")
        if not METHODS[self.take].trains:
            raise ValueError(f"take: {self.take!r} trains no student; take a method that does")
        for teacher in self.teachers:
            if teacher.scores is not None and teacher.scores not in self.data.scores:
                raise ValueError(f"teachers: {teacher.name}: score column {teacher.scores!r} is not in data.scores")
        if (self.data.reference or any(teacher.scores for teacher in self.all_teachers)) and self.classes != 2:
            raise ValueError("a column of scores can be a teacher or the reference of two classes only")
        if self.data.reference and all(teacher.scores == self.data.reference for teacher in self.used_teachers):
            raise ValueError("teachers: the reference cannot be the only one, it is not measured against itself")
        if self.student.start == "teacher" and not any(map(self.fine_tunes_own, self.used_teachers)):
            raise ValueError(
                f"student.start: teacher needs a teacher that is fine-tuned from {self.encoder!r}, and there is none; "
                "use spaced"
            )
        if isinstance(self.stage1, Stage1) and self.stage1.states and self.student.start != "teacher":
            raise ValueError(
                f"stage1.states: {self.stage1.states:g}, but a student learns the states of the teacher that it begins "
                f"with, and student.start is {self.student.start}; set student.start=teacher, or stage1.states=0"
            )
        self._classes_fit()
        self._methods_fit()
        return self

    def _methods_fit(self) -> None:
        """Each method has the teachers it needs, and the loss the rows and classes it needs."""
        for name in self.methods:
            like = METHODS[name].alone
            if like and len(self.all_teachers) < 2:  # of several, `use_teachers: 1` takes one on purpose
                raise ValueError(
                    f"methods: {name} needs two or more teachers, and {self.all_teachers[0].name} is the only one; add "
                    f"another, or take {like} instead (methods=[...] and take={like})"
                )
        if isinstance(self.stage1, str) and (made := [n for n in self.methods if METHODS[n].self_taught]):
            raise ValueError(
                f"methods: {made[0]} makes a stage 1 of its own, and stage1 names a finished one, {self.stage1}; "
                "leave one of them out"
            )
        if self.loss.kind == "margin_mse":
            if self.classes != 2:
                raise ValueError(f"loss.kind: margin_mse is defined for two classes, and there are {self.classes}")
            if self.stage2.replay:
                raise ValueError("stage2.replay mixes in single pairs, and loss.kind margin_mse compares passages")
            for key in ("stage1", "stage2", "without_stage1", "bilstm"):
                numbers = getattr(self, key)
                if isinstance(numbers, Training) and numbers.batch_size < 4:
                    raise ValueError(
                        f"{key}.batch_size: {numbers.batch_size} is too small for loss.kind margin_mse, which compares "
                        "passages of one step; use 4 or more"
                    )

    def _classes_fit(self) -> None:
        """Label maps name every class of the task and no other."""
        maps = {"data.labels": {name: value for name, value in self.data.labels.items() if value is not None}}
        maps |= {f"teachers: {teacher.name}: label_map": teacher.label_map or {} for teacher in self.teachers}
        for where, found in maps.items():
            for name, value in found.items():
                if not 0 <= value < self.classes:
                    raise ValueError(f"{where}: {name!r} is class {value}; there are {self.classes}, counted from 0")
            absent = sorted(set(range(self.classes)) - set(found.values()))
            if found and absent:
                raise ValueError(f"{where}: nothing stands for class {absent[0]} of {self.classes}")


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` with dots into parts; the value is YAML.

    Raises:
        RecipeError: missing file, bad YAML, unknown or ill-typed key (the nearest right one is named).
    """
    return parse_recipe(read_content(path, overrides), str(path))


def read_content(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The mapping that a YAML file holds, with `key=value` overrides applied; not validated.

    Raises:
        RecipeError: missing file, bad YAML, an override that does not fit.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe; see recipes/ for examples") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, this file holds {type(content).__name__}")
    for override in overrides or []:
        _override(content, override)
    return content


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate the content of a recipe; RecipeError says which key, what it holds and what fits."""
    return validate(Recipe, content, where)


def validate(kind: type[P], content: dict[str, Any], where: str) -> P:
    """Validate a mapping as one kind of part; RecipeError says which key, what it holds and what fits."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(detail, kind) for detail in error.errors() if not _other_branch(detail, error)]
        raise RecipeError(f"{where}: " + f"\n{where}: ".join(dict.fromkeys(lines))) from error


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: write key=value, for example stage1.epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML") from error
    set_key(content, key, value, f"override {override!r}")


def set_key(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a key of a recipe's content in place; `key` has dots into parts, `where` begins an error's text.

    Raises:
        RecipeError: an index that a list does not have.
    """
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        if isinstance(place, list):
            place = place[_index(place, parent, where)]
        elif isinstance(place, dict):
            if not isinstance(place.get(parent), dict | list):
                place[parent] = {}
            place = place[parent]
    if isinstance(place, list):
        place[_index(place, last, where)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"{where}: {place!r} holds no keys")


def _index(items: list[Any], text: str, where: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise RecipeError(f"{where}: {text!r} is not an index of a list of {len(items)} (they count from 0)")
    return int(text)


def number(value: Any) -> Any:
    """The number that a text holds, since YAML 1.1 reads 1e-4 as text; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def describe() -> str:
    """The documentation of every key, one line each."""
    lines: list[str] = []
    _describe(Recipe, "", lines)
    return "\n".join(lines)


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The part that a field holds, alone, in a tuple or in a union; None where it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inside in get_args(annotation) if (found := _inner(inside))), None)


def _describe(part: type[BaseModel], prefix: str, lines: list[str]) -> None:
    for name, field in part.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        inner = _inner(field.annotation)
        lines.append(f"{prefix}{name}: {field.description or ''}" + ("" if inner else f" (default: {default})"))
        if inner is not None:
            _describe(inner, prefix + f"{name}" + (".0." if name in ("teachers", "sources") else "."), lines)


def _other_branch(detail: Any, error: ValidationError) -> bool:
    """Of a `stage1: mapping | path` union, hide the complaint that a mapping is not a path."""
    return detail["type"] == "string_type" and detail["loc"][:1] == ("stage1",) and len(error.errors()) > 1


def _explain(detail: Any, root: type[BaseModel]) -> str:
    location = [str(part) for part in detail["loc"] if part not in ("Stage1", "str")]
    key = ".".join(location) or root.__name__.lower()
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_at(location[:-1], root), n=1, cutoff=0.4)
        known = ", ".join(_keys_at(location[:-1], root))
        return f"{key}: unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known are: {known}")
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "value_error"):
        return message if message.startswith(f"{key}: ") else f"{key}: {message}"
    message = message.replace("a valid tuple", "a list, such as [a, b]").replace("Tuple", "The list")
    return f"{key}: {message[0].lower() + message[1:]}, got {detail['input']!r}"


def _keys_at(location: list[str], root: type[BaseModel]) -> list[str]:
    part: type[BaseModel] | None = root
    for name in location:
        if part is not None and not name.isdigit():
            part = _inner(part.model_fields[name].annotation) if name in part.model_fields else None
    return list(part.model_fields) if part is not None else []
