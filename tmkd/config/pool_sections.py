"""The recipe's `pool`: where the unlabelled pairs of stage 1 come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from tmkd.config.sections import QUOTING, Part
from tmkd.config.unused import refuse_same_columns, refuse_unused
from tmkd.core.files import Quoting

OWN, DOCS = "own", "debian-docs"
"""What `file` of a source may name in place of a file: the task's training set; the built-in documentation."""


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

    @model_validator(mode="after")
    def _used(self, info: ValidationInfo) -> Source:
        refuse_unused(self, self._unused(), info)
        return self

    def _unused(self) -> dict[str, str]:
        """The keys that do nothing for this source, and why."""
        if self.hub is not None:
            return {"quoting": "it is of CSV and TSV files, and this is a hub data set"}
        reason = f"it is of a hub data set, and {self.file} is none"
        return {"config": reason, "split": reason}

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

    @property
    def is_text_file(self) -> bool:
        """Whether they are the lines or paragraphs of a text file."""
        return self.file is not None and self.file.removesuffix(".gz").lower().endswith(".txt")

    def _unused(self) -> dict[str, str]:
        if not self.is_text_file and self.file not in (OWN, DOCS):
            return super()._unused()
        return {
            **super()._unused(),
            "column": f"{self.file} has no columns that are named here",
            "quoting": f"it is of CSV and TSV files, and {self.file} is none",
        }


class ReadyPairs(Source):
    """Ready-made pairs: a question and a passage in each row."""

    question: str = Field("question", description="column of the question (premise)")
    passage: str = Field("passage", description="column of the passage (hypothesis)")

    @model_validator(mode="after")
    def _two_columns(self, info: ValidationInfo) -> ReadyPairs:
        refuse_same_columns(self, [("question", "passage")], info)
        return self


class OtherTask(Part):
    """Another recipe, whose questions and passages a pool is mined from. A single path means `{recipe: ...}`."""

    recipe: str = Field(description="the recipe's file, beside this one or as given")
    keys: dict[str, Any] = Field(
        default_factory=dict, description="keys of it that are changed, such as `data.train: my-rows.jsonl`"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value


class PoolSource(Part):
    """One source of the pool: questions and the passages that they retrieve, or ready-made pairs."""

    share: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="its share of `size`, relative to the shares of the other sources"
    )
    questions: Texts | None = Field(None, description="`own`, a file, or a hub data set")
    passages: Texts | None = Field(None, description="`own`, `debian-docs`, a file, or a hub data set")
    pairs: ReadyPairs | None = Field(None, description="instead: ready-made pairs of `own`, a file, or a hub data set")
    task: OtherTask | None = Field(
        None,
        description="instead: another recipe. The questions of its training set and pool search the passages of these "
        "(of the built-in data set, all passages); its development and test set stay out of the whole pool, and the "
        "report measures the students on its development set, too",
    )
    ask: Literal["questions", "passages"] = Field(
        "questions",
        description="which side searches the other. `passages`: each passage (hypothesis) is paired with the "
        "questions (premises) that it finds, except with those that it has in the training set",
    )

    @model_validator(mode="after")
    def _one_kind(self, info: ValidationInfo) -> PoolSource:
        mined = self.questions is not None and self.passages is not None
        given = [mined, self.pairs is not None, self.task is not None]
        if sum(given) != 1 or (self.questions is None) != (self.passages is None):
            raise ValueError("give `questions` and `passages`, or `pairs`, or `task`")
        if self.pairs is not None:
            refuse_unused(self, {"ask": "no side of ready-made `pairs` searches the other"}, info)
        return self


class Sampling(Part):
    """Which of a question's passages students see in stage 1, by the scores of a teacher."""

    kind: Literal["top", "stratified"] = Field(
        "stratified",
        description="top: the passages with the best scores; stratified: some of every quantile of the scores",
    )
    keep: int = Field(ge=2, description="passages of each question that are kept; all, where there are no more")
    quantiles: int = Field(4, ge=2, description="of stratified: how many quantiles a question's passages are cut into")
    by: str | None = Field(
        None,
        description="the teacher whose scores decide; the others then label only what is kept, so let a cheap one, "
        "such as a bi_encoder, decide. The mean of all teachers unless given",
    )

    @model_validator(mode="after")
    def _some_of_each(self) -> Sampling:
        if self.kind == "stratified" and self.keep < self.quantiles:
            raise ValueError(f"keep: {self.keep} leaves none of some of {self.quantiles} quantiles; keep more")
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
    sampling: Sampling | None = Field(
        None,
        description="of the passages that are found for a question, those that students see, chosen by a teacher's "
        "scores; all unless given",
    )
    teachers: tuple[str, ...] = Field(
        (),
        description="for a pool of another task (question-answer pairs for an NLI task): the teachers that label it "
        "in place of the recipe's. Finished checkpoints, or a run's folder for all cross-encoders that it trained. "
        "Stage 2 then keeps the encoder and the pooler of stage 1, and starts with new heads",
    )

    def require_origin(self, *, own: bool, builtin: bool) -> None:
        """Check that the pairs come from one place.

        Args:
            own: whether the recipe names a file of ready pairs (`data.pool`).
            builtin: whether its data is the built-in data set.

        Raises:
            ValueError: they come from two places, or from none.
        """
        if self.sources and own:
            raise ValueError("give pool.sources or data.pool, not both; a file is a source too: {pairs: FILE}")
        if self.size and not self.sources and not own and not builtin:
            raise ValueError("pool.size: there is no pool to take from; give pool.sources or data.pool")

    def require_sampling(self, teachers: Sequence[str], classes: int) -> None:
        """Check that one of these teachers decides.

        Raises:
            ValueError: `sampling.by` is none of them, the pool has teachers of its own, or there are not two classes.
        """
        if self.sampling is None:
            return
        if classes != 2:
            raise ValueError(f"pool.sampling: passages have an order in two classes only, and there are {classes}")
        if self.teachers:
            raise ValueError("pool.sampling: the pool has teachers of its own (pool.teachers); leave one of them out")
        if self.sampling.by is not None and self.sampling.by not in teachers:
            raise ValueError(
                f"pool.sampling.by: {self.sampling.by!r} is not one of the teachers, {', '.join(teachers)}"
            )

    @model_validator(mode="after")
    def _shares(self) -> Pool:
        shares = [source.share for source in self.sources]
        if shares and sum(shares) <= 0:
            given = ", ".join(f"{share:g}" for share in shares)
            raise ValueError(f"the shares of pool.sources are {given}; one must be above 0")
        if self.size is None and len(set(filter(None, shares))) > 1:
            raise ValueError("different shares are shares of `size`; give pool.size")
        return self

    @model_validator(mode="after")
    def _used(self, info: ValidationInfo) -> Pool:
        if not self.sources:
            reason = "no passages are retrieved without pool.sources"
            refuse_unused(self, {"passages_per_question": reason}, info)
            if self.size is None and (self.sampling is None or self.sampling.kind != "stratified"):
                reason = "nothing is drawn without pool.sources, pool.size or a stratified pool.sampling"
                refuse_unused(self, {"seed": reason}, info)
        return self
