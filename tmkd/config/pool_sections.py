"""The recipe's `pool`: where the unlabelled pairs of stage 1 come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tmkd.config.sections import QUOTING, Part
from tmkd.core.files import Quoting


class Source(Part):
    """A place that texts come from. A single word or path means `{file: ...}`."""

    file: str | None = Field(None, description="a file, or `own`: the task's training set")
    hub: str | None = Field(None, description="instead: a hub data set, or a local folder in the hub's layout")
    config: str | None = Field(None, description="configuration of the hub data set")
    split: str = Field("train", description="split of the hub data set, such as train or train[:5000]")
    quoting: Quoting = Field("auto", description=QUOTING)

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.file is None) == (self.hub is None):
            raise ValueError("give one of file, hub")
        return self

    @property
    def name(self) -> str:
        """Its name in messages."""
        if self.hub is None:
            return str(self.file)
        return f"{self.hub}{f':{self.config}' if self.config else ''}[{self.split}]"


class Texts(Source):
    """Questions or passages of a file with columns, or of a text file: one question a line, one passage a paragraph."""

    column: str | None = Field(None, description="the column that holds them; `question` or `passage` unless given")
    cut: bool = Field(False, description="cut each text into passages of about 70 words: for whole documents")


class ReadyPairs(Source):
    """Ready-made pairs: a question and a passage in each row."""

    question: str = Field("question", description="column of the question (premise)")
    passage: str = Field("passage", description="column of the passage (hypothesis)")


class PoolSource(Part):
    """One source of the pool: questions and the passages that they retrieve, or ready-made pairs."""

    share: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="its share of `size`, relative to the shares of the other sources"
    )
    questions: Texts | None = Field(None, description="`own`, a file, or a hub data set")
    passages: Texts | None = Field(None, description="`own`, `debian-docs`, a file, or a hub data set")
    pairs: ReadyPairs | None = Field(None, description="instead: ready-made pairs of `own`, a file, or a hub data set")
    ask: Literal["questions", "passages"] = Field(
        "questions",
        description="which side searches the other. `passages`: each passage (hypothesis) is paired with the "
        "questions (premises) that it finds, except with those that it has in the training set",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> PoolSource:
        mined = self.questions is not None and self.passages is not None
        if mined == (self.pairs is not None) or (self.questions is None) != (self.passages is None):
            raise ValueError("give `questions` and `passages`, or `pairs`")
        return self


class Pool(Part):
    """The unlabelled pairs of stage 1."""

    size: int | None = Field(
        None, gt=0, description="pairs in all, a smaller pool being part of a larger one; all pairs unless given"
    )
    sources: tuple[PoolSource, ...] = Field(
        (),
        description="what it is mined from; without sources, it is `size` pairs of data.pool or of the built-in pool",
    )
    passages_per_question: int = Field(30, gt=0, description="passages retrieved for each question")
    seed: int = Field(0, description="decides which questions are used first")
    teachers: tuple[str, ...] = Field(
        (),
        description="for a pool of another task (question-answer pairs for an NLI task): the teachers that label it "
        "in place of the recipe's. Finished checkpoints, or a run's folder for all teachers that the run trained. "
        "Stage 2 then keeps the encoder and the pooler of stage 1, and starts with new heads",
    )

    @model_validator(mode="after")
    def _shares(self) -> Pool:
        shares = [source.share for source in self.sources]
        if shares and sum(shares) <= 0:
            given = ", ".join(f"{share:g}" for share in shares)
            raise ValueError(f"the shares of pool.sources are {given}; one must be above 0")
        if self.size is None and len(set(shares)) > 1:
            raise ValueError("different shares are shares of `size`; give pool.size")
        return self
