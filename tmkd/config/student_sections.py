"""The sections of a recipe about its students: which kind they are, their shape, and how a `cached` one is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tmkd.config.methods import StudentKind
from tmkd.config.sections import Part, Positive, Stage2, StatesTraining, Training


class StudentShape(Part):
    """The kind of the students, and the shape of a layered one."""

    kind: StudentKind = Field(
        "layers",
        description="what students are, of methods that do not say it (tmkd@cached, tmkd@layers). layers: some layers "
        "of an encoder (see student.start), which read question and passage together. cached: a whole encoder, which "
        "reads every passage once, when it is indexed, and small layers in which the question reads the passage's "
        "stored states (section `cached`)",
    )
    layers: Positive = Field(3, description="number of layers")
    start: Literal["bottom", "spaced", "random", "teacher"] = Field(
        "bottom",
        description="what its layers start as. bottom: the encoder's lowest layers; spaced: evenly spaced layers, "
        "from the first (of six: the first, third and fifth; Sanh et al. 2019, DistilBERT, section 3); random: random "
        "weights over the encoder's embeddings; teacher: as spaced, of the best teacher with the same encoder "
        "(bottom, for methods that learn from no teacher)",
    )
    pooler: Literal["auto", "keep", "identity"] = Field(
        "auto", description="what its pooler starts as; see teachers.0.pooler"
    )
    freeze_embeddings: bool = Field(True, description="do not train the embedding tables")


class CachedStage1(StatesTraining):
    """How stage 1 trains a cached student."""

    states: float = Field(
        0.0,
        ge=0,
        description="weight of an auxiliary objective: after each interaction layer, the tokens of the question learn "
        "the hidden states that they have in the best teacher with the same encoder, which reads question and passage "
        "together. 0: soft labels only, as in the paper",
    )
    by_passage: bool = Field(
        False,
        description="put the pairs of a passage into the same steps, so that an encoder that is trained in stage 1 "
        "(cached.encoder_learning_rate, cached.trains_in: all) reads the passage once for all of them: the more "
        "questions a passage has, the more time that saves",
    )


class Cached(Part):
    """A student of the kind `cached`: its encoder, its interaction layers, and how these are trained."""

    encoder: str | None = Field(
        None, description="the encoder that reads passages, and questions, too; the recipe's encoder unless given"
    )
    encoder_layers: Positive | None = Field(
        None, description="take only this many of its layers, the lowest ones; all unless given"
    )
    question_encoder: str | None = Field(
        None,
        description="another encoder that reads questions, as wide as that of the passages. Training starts at the "
        "cosine of their embeddings, so the two should come from one model. The passages' encoder unless given",
    )
    encoder_learning_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="peak learning rate of the encoders, such as 2e-5: they are then trained with the interaction "
        "layers, in the stages of trains_in, which takes many times as long. 0: they stay as they are, and training "
        "reads their states from a file. student.freeze_embeddings holds for them, too",
    )
    trains_in: Literal["all", "last"] = Field(
        "all",
        description="where encoder_learning_rate is not 0: the stages in which the encoders are trained. all; last: "
        "stage 2 (or the only stage) alone, so that stage 1 reads states from a file and is as fast as with a frozen "
        "encoder",
    )
    layers: Positive = Field(2, description="number of interaction layers")
    heads: Positive = Field(6, description="attention heads of each; the width is a multiple of it")
    ffn: Positive = Field(384, description="inner width of their feed-forward part")
    width: Positive | None = Field(None, description="their width; that of the encoder unless given")
    state_size: Positive = Field(
        64, description="how many numbers of each token of a passage are stored; at most the encoder's width"
    )
    asks: Literal["all", "first"] = Field(
        "first",
        description="which tokens of the question read the passage in the last layer: the first alone, which is "
        "faster, or all. In the layers before it all do",
    )
    self_attention: bool = Field(
        True, description="the question's tokens read each other, too, in every layer, before they read the passage"
    )
    stage1_from: str | None = Field(
        None,
        description="the folder of an earlier run's cached stage-1 student, from which stage 2 of cached students "
        "starts. The recipe's stage1_from unless given; layered students never start from it",
    )
    stage1: CachedStage1 = Field(
        default_factory=lambda: CachedStage1(learning_rate=1e-3, epochs=4), description="how stage 1 trains"
    )
    stage2: Stage2 = Field(
        default_factory=lambda: Stage2(learning_rate=1e-4, epochs=2),
        description="how stage 2 trains students that had stage 1",
    )
    without_stage1: Training = Field(
        default_factory=lambda: Training(learning_rate=5e-4, epochs=4),
        description="how students train that skip stage 1 (finetune, 1-o-1, mkd, ...)",
    )

    def frozen_before_the_last(self) -> Cached:
        """The section as stage 1 reads it: with a frozen encoder where the last stage alone trains it."""
        return self.model_copy(update={"encoder_learning_rate": 0.0}) if self.trains_in == "last" else self

    @model_validator(mode="after")
    def _keys_fit(self) -> Cached:
        if self.width is not None and self.width % self.heads:
            raise ValueError(f"cached: width {self.width} is no multiple of {self.heads} heads")
        if self.trains_in == "last" and not self.encoder_learning_rate:
            raise ValueError("cached: trains_in: last trains no encoder; give encoder_learning_rate, such as 2e-5")
        if self.stage1.by_passage and not self.frozen_before_the_last().encoder_learning_rate:
            raise ValueError(
                "cached.stage1.by_passage: stage 1 trains no encoder and reads stored states, so there is nothing to "
                "read once; leave it out, or train the encoder: encoder_learning_rate, such as 2e-5, and trains_in: all"
            )
        return self
