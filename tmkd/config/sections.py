"""The sections of a recipe: data, training runs, loss, export.

Each section refuses what it can see to be wrong by itself; `tmkd.config.recipe` refuses what does not fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tmkd.config.unused import refuse_same_columns, refuse_unused
from tmkd.core.backends import KNOWN_BACKENDS, BackendName
from tmkd.core.files import Quoting

DEV_SHARE = 0.2  # of the training questions, held out where there is no development set and no other share is given
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]


def _differ(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"one of them is there twice: {list(seeds)}")
    return seeds


Seeds = Annotated[tuple[int, ...], Field(min_length=1, max_length=64), AfterValidator(_differ)]
Rate = Annotated[float, Field(gt=0, le=1)]
QUOTING = (
    "what a quote in CSV and TSV files means. csv: cells in quotes may hold separators and line breaks; none: quotes "
    "are text, as in MS MARCO and GLUE; auto: csv for CSV, and for TSV what the file shows"
)


class Part(BaseModel):
    """A section of a recipe. An unknown key is an error, and values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(Part):
    """The names of the columns in your files."""

    question: str = Field("question", description="column of the question (premise)")
    passage: str = Field("passage", description="column of the passage (hypothesis)")
    label: str = Field("label", description="column of the label, an integer from 0")
    qid: str = Field("qid", description="column that groups pairs by question; the question's text unless given")
    pid: str = Field("pid", description="column that names the passage")

    @model_validator(mode="after")
    def _differ(self, info: ValidationInfo) -> Columns:
        of_labels = [(one, "label") for one in ("question", "passage", "qid", "pid")]
        refuse_same_columns(self, [("question", "passage"), *of_labels], info)
        return self


class DebianDocsSizes(Part):
    """Sizes of the built-in data set."""

    pool_per_question: Positive = Field(30, description="passages retrieved for each training question")
    headings: int = Field(4000, ge=0, description="section headings that serve as questions of the pool")
    pool_per_heading: Positive = Field(6, description="passages retrieved for each heading")
    train_headings: int = Field(0, ge=0, description="section headings that serve as questions of the training set")
    max_questions: int | None = Field(None, gt=0, description="use only this many FAQ questions (for trials)")
    packages: tuple[str, ...] | None = Field(None, description="use only these packages (for trials)")


class Training(Part):
    """How one model is trained."""

    learning_rate: Rate = Field(description="peak learning rate of AdamW")
    epochs: Positive = Field(description="passes over the training pairs")
    batch_size: Positive = Field(32, description="pairs in one optimiser step")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="learning-rate warm-up: the share of the steps in which the rate rises"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW, for weight matrices only")
    clip: float = Field(1.0, gt=0, description="largest gradient norm; longer gradients are scaled down")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout while training")


class WarmUp(Training):
    """How the warm start trains the encoder, and whose judgement of the pool's pairs it learns."""

    epochs: Positive = Field(description="passes over the pairs of the pool that it sees (`share`)")
    teacher: str | None = Field(
        None,
        description="the name of a teacher whose scores of the pool it learns, in place of the encoder's own "
        "bi-encoder cosine: a finished model, such as a stronger bi_encoder. The tokens of the passage learn their "
        "shares of the encoder's own cosine in either case",
    )
    share: float = Field(
        1,
        gt=0,
        le=1,
        description="share of the pool's questions that it sees; a smaller share is part of a larger one, and of "
        "stage1.share",
    )

    def require_teacher(self, finished: Sequence[str], classes: int) -> None:
        """Refuse a `teacher` that is none of the finished models, and scores where there are not two classes."""
        if self.teacher is None:
            return
        if classes != 2:
            raise ValueError(f"warm_up: a teacher's scores are of two classes, and there are {classes}")
        if self.teacher not in finished:
            there = f"there are: {', '.join(finished)}" if finished else "there is none"
            raise ValueError(f"warm_up: {self.teacher!r} is not a teacher that is a finished model; {there}")


class StatesTraining(Training):
    """How stage 1 trains a student that may learn a teacher's hidden states; each kind of student says which."""

    epochs: Positive = Field(description="passes over the pairs of stage 1: those of the pool that students see")
    states: float = Field(0.0, ge=0)
    states_until: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the steps, from the first, in which hidden states are learned; in the rest soft labels "
        "are alone. At a weight of 100 hidden states have nearly all of the gradient as long as they are learned",
    )
    states_from: Literal["best", "each"] = Field(
        "best",
        description="whose hidden states are learned. best: those of the best teacher with the recipe's encoder; each: "
        "those of every teacher with that encoder, which share the weight; for each but the best the student's states "
        "go through a trained projection that is dropped after stage 1. Methods that learn from one teacher (tkd) "
        "learn those of the best in either case",
    )

    @model_validator(mode="after")
    def _states_are_there(self) -> StatesTraining:
        given = {"states_until": self.states_until if self.states_until < 1 else None,
                 "states_from": self.states_from if self.states_from != "best" else None}  # fmt: skip
        for key in (key for key, value in given.items() if value is not None and not self.states):
            raise ValueError(f"{key}: {given[key]}, but states is 0, so there are none to learn; leave it out")
        return self


class Stage1(StatesTraining):
    """How stage 1 trains the student."""

    cosine: float = Field(
        0.0,
        ge=0,
        description="weight of the token cosine, an auxiliary objective: the bi-encoder cosine of a pair, split over "
        "the passage's tokens. 0: soft labels only, as in the paper",
    )
    states: float = Field(
        0.0,
        ge=0,
        description="weight of an auxiliary objective: after each layer but the last, the student's hidden states "
        "learn to equal those of the teacher whose layers it starts from (student.start: teacher). 0: soft labels "
        "only, as in the paper",
    )
    share: float = Field(
        1,
        gt=0,
        le=1,
        description="share of the pool's questions whose pairs are labelled and that the student sees; a smaller share "
        "is part of a larger one, and its labels are used again. The encoder's warm start and the teachers do not "
        "depend on it",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_path(cls, numbers: Any) -> Any:
        if isinstance(numbers, str):
            raise ValueError(
                f"it holds numbers, not {numbers!r}; the folder of an earlier run's stage-1 student has a key of its "
                f"own: stage1_from={numbers}"
            )
        return numbers


class Stage2(Training):
    """How stage 2 trains the student."""

    replay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the pairs of every step that come from the pool, with soft labels only; an epoch is "
        "still one pass over the training pairs",
    )

    @property
    def replayed(self) -> int:
        """How many pairs of a full step come from the pool."""
        return round(self.replay * self.batch_size)

    @model_validator(mode="after")
    def _room(self) -> Stage2:
        if self.replay and not 0 < self.replayed < self.batch_size:
            raise ValueError(f"replay: {self.replay} of {self.batch_size} pairs leaves no pair of the pool or the task")
        return self


class HoldOut(Part):
    """Shares of the training questions (premises) that are held out, chosen by a hash of the question."""

    dev: Share | None = Field(
        None, description="the development set, where data.dev is not given; a fifth unless given"
    )
    test: Share | None = Field(None, description="the test set, where data.test is not given")


class Grades(Part):
    """What graded labels mean, such as 0 to 3 in TREC and BEIR."""

    relevant_from: Positive = Field(
        description="the lowest grade that counts as relevant (class 1), such as 2 of 0 to 3; lower ones are class 0"
    )


_SWITCHES = "YAML reads yes, no, on, off, true, false as switches; quote them"


def text_keys(labels: Any) -> Any:
    """A label map with text for keys: YAML reads a bare 0 as a number."""
    if isinstance(labels, dict) and any(isinstance(key, bool) for key in labels):
        raise ValueError(f"{_SWITCHES}: {{'yes': 1, 'no': 0}}")
    if not isinstance(labels, dict):
        return labels
    if twice := [key for key in labels if not isinstance(key, str) and str(key) in labels]:
        raise ValueError(f"{twice[0]} stands there as a number and as a text, which are the same; keep one of them")
    return {str(key): value for key, value in labels.items()}


class Data(Part):
    """Where the labelled pairs come from: `builtin: debian-docs`, files, or a hub data set."""

    builtin: Literal["debian-docs"] | None = Field(
        None, description="the data set that tmkd builds from Debian's documentation packages"
    )
    debian_docs: DebianDocsSizes = Field(default_factory=DebianDocsSizes, description="sizes of the built-in data set")
    hub: str | None = Field(
        None,
        description="a hub data set, or a local folder in the hub's layout; train, dev and test are then its splits",
    )
    config: str | None = Field(None, description="configuration of the hub data set, such as `mnli` of nyu-mll/glue")
    train: str | None = Field(
        None, description="labelled pairs: a file (JSON, JSONL, CSV, TSV, Parquet, plain or .gz) or a split"
    )
    dev: str | None = Field(
        None, description="the development set; without it a fifth of the training questions is held out"
    )
    test: str | None = Field(
        None,
        description="the test set, read once for the report; without it the development set is used, and the report "
        "says so",
    )
    hold_out: HoldOut | None = Field(None, description="shares of the training questions to hold out")
    shared_pairs: Literal["refuse", "remove"] = Field(
        "refuse",
        description="pairs of two parts that are the same, in whatever spelling: an error, or removed: test pairs from "
        "dev and train, dev pairs from train; the report counts them",
    )
    pool: str | None = Field(None, description="unlabelled pairs for stage 1; the training pairs unless given")
    train_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the training questions that students see in stage 2, or if they skip stage 1; chosen by "
        "a hash, a smaller share is part of a larger one. Teachers, and stage 1 without a pool, see all questions",
    )
    columns: Columns = Field(default_factory=Columns, description="column names")
    quoting: Quoting = Field("auto", description=QUOTING)
    scores: dict[str, Literal["logit", "probability"]] = Field(
        default_factory=dict,
        description="score columns made elsewhere, and what each holds. Every one is a teacher, listed or not, except "
        "the reference",
    )
    labels: dict[str, int | None] = Field(
        default_factory=dict,
        description="the class that each value of the label column stands for: {entailment: 0, neutral: 1}; rows "
        "whose value stands for null are left out",
    )
    positive: int | str = Field(
        1,
        description="of two classes, the one that ranking metrics and decontamination take for the right passages: its "
        "number, or a name of data.labels",
    )
    grades: Grades | None = Field(
        None,
        description="the label column holds grades, integers where more is more relevant: classes are made of them "
        "for training, and nDCG@10 takes the grades themselves as gains (negative ones as 0), as trec_eval does",
    )
    reference: str | None = Field(
        None, description="the score column to use in place of labels, where there are none; it must be in data.scores"
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _named(cls, labels: Any) -> Any:
        return text_keys(labels)

    @field_validator("positive", mode="before")
    @classmethod
    def _no_switch(cls, positive: Any) -> Any:
        if isinstance(positive, bool):  # it would be taken for the number 1 or 0, whatever class has the name
            raise ValueError(f"{_SWITCHES}: 'yes'")
        return positive

    @model_validator(mode="after")
    def _one_source(self, info: ValidationInfo) -> Data:
        if self.builtin is None and self.train is None:
            raise ValueError("data: give `builtin: debian-docs` or `train: FILE`")
        if self.builtin is not None:
            usual = {key: field.get_default(call_default_factory=True) for key, field in Data.model_fields.items()}
            usual |= {key: getattr(self, key) for key in ("builtin", "debian_docs", "train_share")}
            own = [key for key, value in usual.items() if getattr(self, key) != value]
            if own:
                raise ValueError(
                    f"data: {own[0]} is for your own rows, and `builtin: {self.builtin}` is given too; leave one of "
                    "them out (data.builtin=null on the command line)"
                )
        if self.hub is None:
            refuse_unused(self, {"config": "it is of a hub data set, and data.hub is not given"}, info)
        for part in ("dev", "test"):
            if self.hold_out is not None and getattr(self.hold_out, part) and getattr(self, part):
                raise ValueError(f"data: give {part} or hold_out.{part}, not both")
        if self.hold_out is not None:
            dev = 0.0 if self.dev is not None else self.hold_out.dev or DEV_SHARE
            if dev + (test := self.hold_out.test or 0.0) >= 1:
                raise ValueError(f"data: hold_out: dev {dev:g} and test {test:g} leave nothing to train on")
        if self.grades is not None and (self.labels or self.reference):
            raise ValueError(f"data: give grades or {'labels' if self.labels else 'reference'}, not both")
        if self.grades is not None and self.positive != 1:
            raise ValueError("data: positive: of grades, class 1 holds the relevant passages; leave it out")
        if self.reference is not None and self.reference not in self.scores:
            raise ValueError(f"data: reference: {self.reference!r} is not in scores; declare it there")
        return self


GROUPED_LOSSES = ("list_kl", "margin_mse", "margin_mse_scaled", "adr_mse")
"""The kinds of losses on soft labels that compare the passages of one question."""


class Loss(Part):
    """The loss on soft labels."""

    kind: Literal["kl", "mse", "mse_logits", "list_kl", "margin_mse", "margin_mse_scaled", "adr_mse"] = Field(
        "kl",
        description="kl: KL divergence at a temperature; mse: mean squared error of probabilities, as in the paper; "
        "mse_logits: of logits, centred over the classes. The others compare the passages of one question. list_kl: KL "
        "divergence over the passages; margin_mse: mean squared error of differences in log-odds; margin_mse_scaled: "
        "the same with the teacher's differences rescaled to the student's; adr_mse: of ranks, for teachers whose "
        "order alone counts",
    )
    temperature: float = Field(1.0, gt=0, description="temperature of kl and list_kl")
    alpha: float = Field(
        0.7, ge=0, le=1, description="share of the loss on soft labels in stage 2; the rest is cross-entropy"
    )
    weighting: Literal["uniform", "development", "confidence"] = Field(
        "uniform",
        description="weight of each teacher's loss, for students with a head for each teacher (mkd, tmkd). uniform: "
        "equal; development: the teacher's ROC-AUC (accuracy) minus chance on the development set; confidence: 1 - "
        "entropy / log C of its soft label, for each pair",
    )

    @model_validator(mode="after")
    def _temperature_is_used(self, info: ValidationInfo) -> Loss:
        if self.kind not in ("kl", "list_kl"):
            refuse_unused(self, {"temperature": f"the loss {self.kind} has none (kl and list_kl have)"}, info)
        return self


class Bilstm(Training):
    """The `bilstm` baseline: its size and how it is trained."""

    learning_rate: Rate = Field(2e-3, description="peak learning rate of AdamW")
    epochs: Positive = Field(6, description="passes over the training pairs")
    width: Positive = Field(256, description="size of its state in each direction")


class Export(Part):
    """What is written for serving."""

    every: bool = Field(
        False,
        description="also export the first student of every other method, into methods/METHOD/ of the run's folder",
    )
    backends: tuple[BackendName, ...] | None = Field(
        None,
        description=f"backends to write, of: {', '.join(KNOWN_BACKENDS)}; all whose tools are installed unless given",
    )
