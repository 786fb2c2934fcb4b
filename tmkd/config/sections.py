"""Parts of a recipe that stand alone: rows, teachers, numbers of a training, loss, pool, the shape of the student."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from tmkd.core.backends import KNOWN_BACKENDS, BackendName

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]


def _differ(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"one of them is there twice: {list(seeds)}")
    return seeds


Seeds = Annotated[tuple[int, ...], Field(min_length=1, max_length=64), AfterValidator(_differ)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Part(BaseModel):
    """A mapping of a recipe: unknown keys are errors, and it does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(Part):
    """The names that your files give to what tmkd reads."""

    question: str = Field("question", description="column of the question (premise)")
    passage: str = Field("passage", description="column of the passage (hypothesis)")
    label: str = Field("label", description="column of the golden label, an integer from 0")
    qid: str = Field("qid", description="column that groups rows by question; without it the question's text does")
    pid: str = Field("pid", description="column that names the passage")


class DebianDocs(Part):
    """Sizes of the built-in data set."""

    pool_per_question: Positive = Field(30, description="passages retrieved for each training question")
    headings: int = Field(4000, ge=0, description="section headings taken as questions of the pool")
    pool_per_heading: Positive = Field(6, description="passages retrieved for each heading")
    train_headings: int = Field(0, ge=0, description="section headings taken as questions of the training rows")
    max_questions: int | None = Field(None, gt=0, description="use only so many FAQ questions (for trials)")
    packages: tuple[str, ...] | None = Field(None, description="use only these packages (for trials)")


class Training(Part):
    """The numbers of one training run."""

    learning_rate: Rate = Field(description="AdamW's learning rate at its peak")
    epochs: Positive = Field(description="passes over the rows")
    batch_size: Positive = Field(32, description="pairs of one optimiser step")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of matrices, not of biases and norms")
    clip: float = Field(1.0, gt=0, description="gradient norm is clipped at this")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout while training")


class Stage1(Training):
    """The numbers of stage 1."""

    cosine: float = Field(
        0.0,
        ge=0,
        description="weight of the encoder's own cosine of each pair, token by token, beside the teachers' soft "
        "labels; 0: the soft labels alone, as in the paper",
    )
    states: float = Field(
        0.0,
        ge=0,
        description="weight of the hidden states of the teacher that the student begins with (student.start: teacher): "
        "after each layer but the last, every token learns to look as it does there; 0: not at all, as in the paper",
    )
    share: float = Field(
        1,
        gt=0,
        le=1,
        description="share of the pool's questions that the student sees, a smaller one part of a larger one; warm-up "
        "and teachers are not touched",
    )


class Stage2(Training):
    """The numbers of stage 2."""

    replay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of every step's pairs that come from the pool, with their soft labels alone; an epoch stays "
        "a pass over the training pairs",
    )

    @property
    def replayed(self) -> int:
        """Pairs of a whole step that come from the pool."""
        return round(self.replay * self.batch_size)

    @model_validator(mode="after")
    def _room(self) -> Stage2:
        if self.replay and not 0 < self.replayed < self.batch_size:
            raise ValueError(f"replay: {self.replay} of {self.batch_size} pairs leaves no pair of the pool or the task")
        return self


class HoldOut(Part):
    """Shares of the training questions (premises) that are set aside by a hash of their text."""

    dev: Share | None = Field(None, description="for development, where data.dev is not given; a fifth unless given")
    test: Share | None = Field(None, description="for test, where data.test is not given")

    @model_validator(mode="after")
    def _leaves_some(self) -> HoldOut:
        if (self.dev or 0) + (self.test or 0) >= 1:
            raise ValueError(f"dev {self.dev:g} and test {self.test:g} leave nothing to train on")
        return self


def _text_keys(labels: Any) -> Any:
    """YAML reads a bare 0 as a number; label maps are by text."""
    if isinstance(labels, dict) and any(isinstance(key, bool) for key in labels):
        raise ValueError("YAML reads yes, no, on, off, true, false as switches; quote them: {'yes': 1, 'no': 0}")
    return {str(key): value for key, value in labels.items()} if isinstance(labels, dict) else labels


class Data(Part):
    """Where the pairs come from: `builtin: debian-docs`, files, or a hub data set."""

    builtin: Literal["debian-docs"] | None = Field(None, description="a data set that tmkd builds itself")
    debian_docs: DebianDocs = Field(default_factory=DebianDocs, description="sizes of the built-in set")
    hub: str | None = Field(None, description="a hub data set, or a local folder in the hub's layout")
    config: str | None = Field(None, description="configuration of the hub data set, such as `mnli` of nyu-mll/glue")
    train: str | None = Field(
        None, description="labelled pairs: a file (JSONL, CSV, TSV, Parquet, plain or .gz) or a split"
    )
    dev: str | None = Field(None, description="development pairs; without it a fifth of train's questions is held out")
    test: str | None = Field(
        None, description="test pairs, read once for the report; without it dev stands in and the report says so"
    )
    hold_out: HoldOut | None = Field(None, description="shares of train's questions set aside")
    pool: str | None = Field(None, description="unlabelled pairs for stage 1; without it the training pairs")
    train_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the training questions that students see in stage 2 or without stage 1, by a hash: a "
        "smaller share is part of a larger one; teachers, and stage 1 without a pool, see all",
    )
    columns: Columns = Field(default_factory=Columns, description="column names")
    scores: dict[str, Literal["logit", "probability"]] = Field(
        default_factory=dict,
        description="score columns made elsewhere and what they hold: teachers, listed or not, save for the reference",
    )
    labels: dict[str, int | None] = Field(
        default_factory=dict,
        description="classes by what the label column holds: {entailment: 0, neutral: 1}; null: leave such rows out",
    )
    reference: str | None = Field(
        None, description="the score column that stands for golden labels, where there are none; declared in scores"
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _named(cls, labels: Any) -> Any:
        return _text_keys(labels)

    @model_validator(mode="after")
    def _one_source(self) -> Data:
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
        for part in ("dev", "test"):
            if self.hold_out is not None and getattr(self.hold_out, part) and getattr(self, part):
                raise ValueError(f"data: give {part} or hold_out.{part}, not both")
        if self.reference is not None and self.reference not in self.scores:
            raise ValueError(f"data: reference: {self.reference!r} is not in scores; declare it there")
        return self


class Teacher(Part):
    """One teacher: trained here, a finished checkpoint, or a column of scores."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="what the report calls it")
    encoder: str | None = Field(None, description="what to fine-tune; the recipe's encoder unless given")
    checkpoint: str | None = Field(None, description="a finished sequence-classification checkpoint instead")
    scores: str | None = Field(None, description="a column of data.scores instead")
    seed: int = Field(0, description="of its new head and the order of its rows")
    learning_rate: Rate = Field(1e-4, description="AdamW's learning rate at its peak")
    epochs: Positive = Field(3, description="passes over the training rows")
    batch_size: Positive = Field(32, description="pairs of one optimiser step")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout while training")
    max_length: int | None = Field(None, ge=8, description="tokens of a pair; the recipe's unless given")
    share: float = Field(
        1,
        gt=0,
        le=1,
        description="share of the training questions that it sees, drawn by its seed: teachers of different questions "
        "differ more (bagging, Breiman 1996, without replacement)",
    )
    label_map: dict[str, int] | None = Field(
        None, description="of a checkpoint whose classes are in another order: the class that each of its names is"
    )
    pooler: Literal["auto", "keep", "identity"] = Field(
        "auto",
        description="how its pooler begins: as the checkpoint has it, or as the identity; "
        "auto: the identity where it was never trained (a bias of zeros, as in mean-pooled encoders)",
    )

    @field_validator("label_map", mode="before")
    @classmethod
    def _named(cls, labels: Any) -> Any:
        return _text_keys(labels)

    @property
    def trained(self) -> bool:
        """Whether it is fine-tuned here."""
        return self.checkpoint is None and self.scores is None

    @model_validator(mode="after")
    def _one_kind(self) -> Teacher:
        if sum(value is not None for value in (self.encoder, self.checkpoint, self.scores)) > 1:
            raise ValueError("give one of encoder, checkpoint, scores")
        if self.label_map is not None and self.checkpoint is None:
            raise ValueError("label_map is for a checkpoint; what is trained here has the task's classes")
        if self.share < 1 and not self.trained:
            raise ValueError("share is for a teacher that is trained here; others see no rows")
        return self


class Source(Part):
    """A place that texts come from. A bare word or path stands for `{file: ...}`."""

    file: str | None = Field(None, description="`own` (the task's training rows), or a file")
    hub: str | None = Field(None, description="a hub data set, or a local folder in the hub's layout, instead")
    config: str | None = Field(None, description="configuration of the hub data set")
    split: str = Field("train", description="split of the hub data set, such as train or train[:5000]")

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
        """What messages call it."""
        if self.hub is None:
            return str(self.file)
        return f"{self.hub}{f':{self.config}' if self.config else ''}[{self.split}]"


class Texts(Source):
    """Questions or passages: of a file with columns, or of a text file (a question a line, a passage a paragraph)."""

    column: str | None = Field(None, description="their column; `question` or `passage` unless given")
    cut: bool = Field(False, description="cut them into passages of about 70 words, for whole documents")


class ReadyPairs(Source):
    """Pairs that are taken as they are."""

    question: str = Field("question", description="column of the question (premise)")
    passage: str = Field("passage", description="column of the passage (hypothesis)")


class PoolSource(Part):
    """One source of the pool: questions that search passages, or ready-made pairs."""

    share: float = Field(1.0, ge=0, allow_inf_nan=False, description="its part of `size`, relative to the others'")
    questions: Texts | None = Field(None, description="`own`, a file, or a hub data set")
    passages: Texts | None = Field(None, description="`own`, `debian-docs`, a file, or a hub data set")
    pairs: ReadyPairs | None = Field(None, description="ready-made pairs instead: `own`, a file, or a hub data set")
    ask: Literal["questions", "passages"] = Field(
        "questions",
        description="which side searches the other; `passages`: each passage (hypothesis) is paired with the questions "
        "(premises) that it finds, its own in the training rows left out",
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
        None, gt=0, description="pairs in all; a smaller pool is part of a larger one. Every pair there is unless given"
    )
    sources: tuple[PoolSource, ...] = Field(
        (), description="where it is mined from; without any, `size` takes from data.pool or the built-in pool"
    )
    passages_per_question: int = Field(30, gt=0, description="passages retrieved for each question")
    seed: int = Field(0, description="chooses the questions that come first")
    teachers: tuple[str, ...] = Field(
        (),
        description="who labels it in place of the recipe's teachers, where it is of another task (Q&A pairs for an "
        "NLI task): finished checkpoints, or a run's folder for all teachers trained there. Stage 2 then goes on with "
        "encoder and pooler only",
    )

    @model_validator(mode="after")
    def _shares(self) -> Pool:
        shares = [source.share for source in self.sources]
        if shares and sum(shares) <= 0:
            told = ", ".join(f"{share:g}" for share in shares)
            raise ValueError(f"the shares of pool.sources are {told}; one must be above 0")
        if self.size is None and len(set(shares)) > 1:
            raise ValueError("shares that differ are shares of `size`; give pool.size")
        return self


class Loss(Part):
    """The loss on soft labels."""

    kind: Literal["kl", "mse", "mse_logits", "margin_mse"] = Field(
        "kl",
        description="kl: divergence at a temperature; mse: the paper's, on probabilities; mse_logits: on logits "
        "centred over the classes; margin_mse: on differences of log-odds between passages of one question",
    )
    temperature: float = Field(1.0, gt=0, description="of kl")
    alpha: float = Field(0.7, ge=0, le=1, description="share of the soft loss in stage 2; the rest is cross-entropy")
    weighting: Literal["uniform", "development", "confidence"] = Field(
        "uniform",
        description="of the teachers in the loss of a header each (mkd, tmkd): equal; by ROC-AUC (accuracy) above "
        "chance on development rows; per pair by confidence, 1 - entropy / log C",
    )


class Bilstm(Training):
    """The `bilstm` baseline: its size and the numbers of its training."""

    learning_rate: Rate = Field(2e-3, description="AdamW's learning rate at its peak")
    epochs: Positive = Field(6, description="passes over the rows")
    width: Positive = Field(256, description="numbers of its state, in each direction")


class StudentShape(Part):
    """The shape of the student."""

    layers: Positive = Field(3, description="how many layers it keeps")
    start: Literal["bottom", "spaced", "random", "teacher"] = Field(
        "bottom",
        description="what its layers begin as: the encoder's bottom ones; evenly spaced ones from the first on "
        "(of six the first, third and fifth: Sanh et al. 2019, DistilBERT, section 3); "
        "random ones over the encoder's embeddings; the evenly spaced ones of the best teacher of the same encoder "
        "(methods that learn from no teacher: bottom)",
    )
    pooler: Literal["auto", "keep", "identity"] = Field("auto", description="how its pooler begins, as of a teacher")
    freeze_embeddings: bool = Field(True, description="leave the embedding tables as they are")


class Export(Part):
    """What is written for serving."""

    backends: tuple[BackendName, ...] | None = Field(
        None,
        description=f"what to write beside the checkpoint, of: {', '.join(KNOWN_BACKENDS)}; every one whose tools are "
        "installed unless given",
    )
