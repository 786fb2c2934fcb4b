"""The section of a recipe that describes one teacher: its kind, what it is made of, and its scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from tmkd.config.sections import Part, Positive, Rate, Training, text_keys
from tmkd.config.unused import refuse_unused

Kind = Literal["encoder", "reranker", "bi_encoder", "served", "scores"]
Calibrate = Literal["none", "platt", "isotonic"]
KINDS_OF_TWO = ("bi_encoder", "served", "scores")
"""Kinds that give one number for each pair, and so know two classes only."""


class Endpoint(Part):
    """Where a served teacher is, and how it is asked."""

    url: str = Field(
        pattern=r"^https?://\S+$", description="its address; without a path, the usual one of the form is asked"
    )
    form: Literal["tei", "cohere", "chat"] = Field(
        "tei",
        description="tei: POST /rerank as text-embeddings-inference has it, raw scores; cohere: POST /v2/rerank; chat: "
        "POST /v1/chat/completions as OpenAI has it, a model that judges each pair",
    )
    holds: Literal["logit", "probability"] | None = Field(
        None,
        description="what its scores are: log-odds, or probabilities of relevance. Unless given, log-odds of form tei "
        "and probabilities of form cohere; chat has none",
    )
    model: str | None = Field(None, description="the model that is asked for (cohere, chat)")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key")
    prompt: str | None = Field(
        None, description="of chat: the file of the prompt, with {question} and {passage} where the texts are put"
    )
    answers: dict[str, float] | None = Field(
        None,
        description="of chat: what each answer says of the probability of relevance: {'yes': 1, 'no': 0}; weighed by "
        "the model's probabilities where the endpoint gives them",
    )
    scale: tuple[float, float] | None = Field(
        None, description="of chat, instead: the answer is a number from [low, high]"
    )
    request_size: Positive = Field(32, description="most passages in one request (tei, cohere)")
    concurrency: int = Field(4, gt=0, le=256, description="most requests at a time")
    timeout: float = Field(60, gt=0, description="seconds that one request may take")
    retries: int = Field(
        5, ge=0, le=100, description="how often a request is sent again after 429, 5xx or a broken connection"
    )
    max_requests: Positive | None = Field(
        None, description="most requests that one command may send to it, those that are sent again included"
    )

    @field_validator("url")
    @classmethod
    def _asked(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError as error:
            raise ValueError(f"{url!r} is no address: {error}") from None
        if not usable:
            raise ValueError(f"{url!r} is no address of the form http://HOST:PORT/PATH")
        return url

    @field_validator("answers", mode="before")
    @classmethod
    def _worded(cls, answers: Any) -> Any:
        return text_keys(answers)

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> Endpoint:
        if self.form == "chat":
            if self.prompt is None or self.model is None or (self.answers is None) == (self.scale is None):
                raise ValueError("form chat needs `model`, `prompt`, and either `answers` or `scale`")
            if self.holds is not None:
                raise ValueError("holds is for the forms tei and cohere; of chat, `answers` or `scale` say it")
            if self.answers is not None:
                _require_answers(self.answers)
            if self.scale is not None and not -math.inf < self.scale[0] < self.scale[1] < math.inf:
                raise ValueError(f"scale is [low, high], two finite numbers, got {list(self.scale)}")
        elif given := [key for key in ("prompt", "answers", "scale") if getattr(self, key) is not None]:
            raise ValueError(f"{given[0]} is for form chat")
        if self.form == "chat":
            refuse_unused(self, {"request_size": "an endpoint of form chat is asked for one pair at a time"}, info)
        return self


def plain_answer(text: str) -> str:
    """An answer of a chat model as it is compared: in lower case, without quotes, asterisks and marks around it."""
    return text.strip().strip(".!?…*\"'“”‘’").strip().lower()


def _require_answers(answers: Mapping[str, float]) -> None:
    """ValueError if two of a chat model's answers are the same text once compared, or their values no probabilities."""
    if not all(0 <= value <= 1 for value in answers.values()):
        raise ValueError(f"answers are probabilities from 0 to 1, got {dict(answers)}")
    if len({plain_answer(name) for name in answers} - {""}) < len(answers) or not answers:
        raise ValueError(
            "answers are texts that differ by more than capitals, quotes and full stops, got "
            f"{', '.join(map(repr, answers)) or 'none'}"
        )


class Tune(Training):
    """How a bi-encoder is fine-tuned on the labels, before it labels anything."""

    learning_rate: Rate = Field(2e-5, description="peak learning rate of AdamW")
    epochs: Positive = Field(1, description="passes over the right passages of the training questions")
    batch_size: Positive = Field(
        32, description="questions in one optimiser step, each with a right passage; those of the others are wrong ones"
    )
    seed: int = Field(0, description="seed of the order of the questions and of the choice of wrong passages")
    negatives: int = Field(2, ge=0, description="wrong passages of its own (labelled so) that a question has in a step")
    scale: float | None = Field(
        None, gt=0, description="what the similarity is multiplied by; 20 unless given, 1 of a dot product"
    )


class Teacher(Part):
    """One teacher: trained here, a finished model, or scores made elsewhere."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="its name in the report")
    kind: Kind | None = Field(
        None,
        description="encoder: fine-tuned here on the labels; reranker: a finished cross-encoder (`checkpoint`); "
        "bi_encoder: an embedding model (`model`), the cosine of two embeddings; served: an HTTP endpoint "
        "(`endpoint`); scores: a column or a file of scores. Unless given, what the other keys say: encoder if none is",
    )
    encoder: str | None = Field(None, description="the encoder to fine-tune; the recipe's encoder unless given")
    checkpoint: str | None = Field(
        None,
        description="instead: a finished cross-encoder: for sequence classification, or any other that "
        "sentence-transformers opens",
    )
    scores: str | None = Field(None, description="instead: a column of data.scores")
    file: str | None = Field(
        None,
        description="instead: a file of scores, with columns that name the pair: pair_id, or question and passage, or "
        "qid and pid",
    )
    column: str = Field("score", description="the column of `file` that holds the scores")
    holds: Literal["logit", "probability"] | None = Field(
        None, description="what the scores of `file` are: log-odds, or probabilities of class 1"
    )
    partial: bool = Field(
        False,
        description="of scores: whether pairs may be without one. Its head then learns from the pairs that have one; "
        "without this key a part of the data has a score for every pair or for none. Of an endpoint of form chat: "
        "whether pairs whose answer cannot be used, such as a refusal, are left out",
    )
    model: str | None = Field(
        None, description="of a bi_encoder: builtin:NAME, a folder of sentence-transformers, or a hub id"
    )
    endpoint: Endpoint | None = Field(None, description="of a served teacher: its HTTP endpoint")
    pooling: Literal["mean", "cls", "max", "lasttoken"] | None = Field(
        None, description="of a bi_encoder: how token vectors become one, where the model's own files do not say"
    )
    query_prompt: str | None = Field(
        None, description="of a bi_encoder: what is put before every question; the model's own prompt unless given"
    )
    passage_prompt: str | None = Field(
        None, description="of a bi_encoder: what is put before every passage; the model's own prompt unless given"
    )
    tune: Tune | None = Field(
        None,
        description="of a bi_encoder: fine-tune it on the training labels first, every question's right passages "
        "against those of other questions and wrong ones of its own. Not tuned unless given; {} takes the defaults",
    )
    calibrate: Calibrate | None = Field(
        None,
        description="how its scores become log-odds of relevance, fitted on the training labels: platt (a line with a "
        "positive slope), isotonic (any rising curve), or none. platt for a bi_encoder and a served teacher unless "
        "given, else none",
    )
    seed: int = Field(0, description="seed of its new head and of the order of the training pairs")
    learning_rate: Rate = Field(1e-4, description="peak learning rate of AdamW")
    epochs: Positive = Field(3, description="passes over the training pairs")
    batch_size: Positive = Field(32, description="pairs in one optimiser step")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout while training")
    max_length: int | None = Field(
        None,
        ge=8,
        description="tokens of a pair; unless given the recipe's max_length, of a finished model what its files say",
    )
    share: float = Field(
        1,
        gt=0,
        le=1,
        description="share of the training questions that it sees, drawn by its seed: teachers that see different "
        "questions differ more (bagging without replacement; Breiman 1996)",
    )
    other_tasks: bool = Field(
        False,
        description="of an encoder: it learns the training pairs of the pool's other recipes, too "
        "(`pool.sources.N.task`), except those that are near a development or test set",
    )
    label_map: dict[str, int] | None = Field(
        None,
        description="for a checkpoint whose classes are in another order: the task's class for each of its class names",
    )
    pooler: Literal["auto", "keep", "identity"] = Field(
        "auto",
        description="what its pooler starts as: keep (as in the checkpoint), identity, or auto: the identity if the "
        "pooler was never trained (its bias is all zeros, as in mean-pooled encoders)",
    )

    @field_validator("label_map", mode="before")
    @classmethod
    def _named(cls, labels: Any) -> Any:
        return text_keys(labels)

    @property
    def of_kind(self) -> Kind:
        """Its kind: as given, or as the keys say that are given."""
        if self.kind is not None:
            return self.kind
        if self.scores is not None or self.file is not None:
            return "scores"
        if self.endpoint is not None:
            return "served"
        return "reranker" if self.checkpoint is not None else "encoder"

    @property
    def trained(self) -> bool:
        """Whether this run fine-tunes it as a cross-encoder."""
        return self.of_kind == "encoder"

    @property
    def learns_labels(self) -> bool:
        """Whether it has seen the training labels: this run fine-tunes it, as a cross-encoder or as a bi-encoder."""
        return self.trained or self.tune is not None

    @property
    def is_column(self) -> bool:
        """Whether it is a score column of the pairs."""
        return self.scores is not None

    @property
    def calibration(self) -> Calibrate:
        """How its scores are calibrated: `calibrate`, or what is usual for its kind."""
        return self.calibrate or ("platt" if self.of_kind in ("bi_encoder", "served") else "none")

    @model_validator(mode="after")
    def _one_kind(self) -> Teacher:
        given = [key for key in _SOURCES if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(_SOURCES)}")
        needed = _SOURCES_OF[self.of_kind]
        either = " or ".join(f"`{key}`" for key in needed)
        if self.of_kind != "encoder" and not given:
            raise ValueError(f"kind {self.of_kind} needs {either}")
        if given and given[0] not in needed:
            raise ValueError(f"`{given[0]}` is not for kind {self.of_kind}; give {either}")
        if (self.file is None) != (self.holds is None):
            raise ValueError(
                "file needs `holds`: logit or probability" if self.file else "holds is for a file of scores (`file`)"
            )
        judge = self.endpoint is not None and self.endpoint.form == "chat"
        if self.partial and not judge and self.of_kind != "scores":
            raise ValueError(
                f"partial is for scores made elsewhere and for endpoints of form chat, not for {self.name}"
            )
        if self.label_map is not None and self.checkpoint is None:
            raise ValueError("label_map is for a checkpoint; a teacher that is trained here has the task's classes")
        if self.other_tasks and not self.trained:
            raise ValueError(f"other_tasks is for kind encoder, and this teacher is of kind {self.of_kind}")
        if self.share < 1 and not self.learns_labels:
            raise ValueError(
                "share is for a teacher that is trained here; other teachers are not trained on these rows"
            )
        self._require_used_keys()
        for key in ("pooling", "query_prompt", "passage_prompt", "tune"):
            if getattr(self, key) is not None and self.of_kind != "bi_encoder":
                raise ValueError(f"{key} is for kind bi_encoder, and this teacher is of kind {self.of_kind}")
        return self

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """The keys that this kind of teacher does not read."""
        found: tuple[str, ...] = () if self.trained else _OF_TRAINING
        found += () if self.trained or self.share < 1 else ("seed",)
        found += ("max_length",) if self.of_kind in ("served", "scores") else ()
        return found if self.file is not None else (*found, "column")

    def _require_used_keys(self) -> None:
        """ValueError for a key that was given a value and would have no effect."""
        for key in self.unused_keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                of = {"column": "a file of scores (`file`)", "max_length": "teachers that are models run here"}
                under = "; what fine-tunes a bi_encoder is under `tune`" if self.of_kind == "bi_encoder" else ""
                raise ValueError(
                    f"{key} is for {of.get(key, 'kind encoder, which is trained here')}, and this teacher is of kind "
                    f"{self.of_kind}{under}"
                )


def _number_or_names(value: Any) -> Any:
    """A choice of teachers as it was given; ValueError, in one sentence, if it is none."""
    names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    number = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if value is None or names or number:
        return value
    raise ValueError(f"give a number of teachers above 0, or a list of their names such as [a, b], got {value!r}")


Chosen = Annotated[Positive | tuple[str, ...] | None, BeforeValidator(_number_or_names)]
"""Which of a recipe's teachers take part: the first so many, those with these names, or all."""


def chosen_teachers(teachers: tuple[Teacher, ...], chosen: Chosen) -> tuple[Teacher, ...]:
    """The teachers that take part, in the order of the recipe.

    Raises:
        ValueError: none is chosen, a name is not a teacher's or stands there twice, or there are fewer teachers.
    """
    if not isinstance(chosen, tuple):
        if (chosen or 1) > len(teachers):
            raise ValueError(f"use_teachers: {chosen}, but there are {len(teachers)} teachers")
        return teachers[:chosen]
    names = [teacher.name for teacher in teachers]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"use_teachers: give one or more names, each once, got {', '.join(chosen) or 'none'}")
    if unknown := [name for name in chosen if name not in names]:
        raise ValueError(f"use_teachers: {unknown[0]!r} is not a teacher; the teachers are {', '.join(names)}")
    return tuple(teacher for teacher in teachers if teacher.name in chosen)


_OF_TRAINING = ("epochs", "learning_rate", "batch_size", "dropout", "pooler")
_SOURCES_OF: dict[Kind, tuple[str, ...]] = {
    "encoder": ("encoder",), "reranker": ("checkpoint",), "bi_encoder": ("model",),
    "served": ("endpoint",), "scores": ("scores", "file"),
}  # fmt: skip
"""The keys that say what a teacher of each kind is made of, one of which is given; an encoder's need not be."""
NOT_ALWAYS_READ = (*_OF_TRAINING, "seed", "max_length", "column")
"""Keys that some kinds of teachers do not read."""
_SOURCES = tuple(key for keys in _SOURCES_OF.values() for key in keys)
