"""Every model of a run side by side on the same rows, and which differences are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.table import Table

from tmkd.core.errors import DataError
from tmkd.data.pairs import Pairs
from tmkd.evaluation.bootstrap import MAX_SEEDS, Interval, Resamples, distributions, interval
from tmkd.evaluation.metrics import Floats, Questions, log_odds, ranking

if TYPE_CHECKING:
    from tmkd.evaluation.components import Part

Kind = Literal["teacher", "ensemble", "baseline", "student"]
METRICS = ("accuracy", "auc", "spearman", "mrr", "map", "ndcg@10")
ENSEMBLE = "teacher-ensemble"
TITLES = {
    "accuracy": "accuracy",
    "auc": "ROC-AUC",
    "spearman": "Spearman",
    "mrr": "MRR",
    "map": "MAP",
    "ndcg@10": "nDCG@10",
    "agreement": "agreement",
    "mean": "the mean over tasks",
}


@dataclass
class ModelOutput:
    """One model's logits on the rows, [S, N, C] (S seeds; a teacher has one), its size and its speed."""

    name: str
    kind: Kind
    logits: Any
    parameters: int | None = None
    bytes: int | None = None
    layers: int | None = None
    pairs_per_second: float | None = None
    milliseconds: dict[int, float] | None = None


@dataclass
class Row:
    """One line of the comparison: metrics with intervals, and shares of the ensemble (or of the only teacher).

    kept: metric / ensemble's. kept_above_chance: both less chance (AUC 0.5, accuracy the majority's share).
    recovered: (metric - finetune's) / (ensemble's - finetune's), where the ensemble is really ahead (95% interval of
        the difference above zero).
    """

    name: str
    kind: Kind
    seeds: int
    metrics: dict[str, Interval]
    kept: dict[str, float] = field(default_factory=dict)
    kept_above_chance: dict[str, float] = field(default_factory=dict)
    recovered: dict[str, float] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Metrics by name, shares, size and speed; what is unknown is absent."""
        shares = {"kept": self.kept, "kept_above_chance": self.kept_above_chance, "recovered": self.recovered}
        return {
            "name": self.name,
            "kind": self.kind,
            "seeds": self.seeds,
            **{name: value.to_json() for name, value in self.metrics.items()},
            **{name: value for name, value in shares.items() if value},
            **{name: _plain(value) for name, value in self.size.items() if value is not None},
        }


def _plain(value: Any) -> Any:
    """JSON has text keys only."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Difference:
    """metric(first) - metric(second) on the same resamples."""

    first: str
    second: str
    metric: str
    value: Interval

    @property
    def real(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.value.low > 0 or self.value.high < 0

    def sentence(self) -> str:
        """The difference in words."""
        by = f"{abs(self.value.mean):.3f}"
        verdict = "level with" if by == "0.000" else "ahead of" if self.value.mean > 0 else "behind"
        text = f"{self.first} is {verdict} {self.second} in {TITLES[self.metric]}"
        text += "" if by == "0.000" else f" by {by}"
        span = f"(95% interval {self.value.low:+.3f} to {self.value.high:+.3f})"
        return f"{text} {span}" + ("" if self.real else ": not a real difference on these rows")

    def to_json(self) -> dict[str, Any]:
        """Names, interval and verdict."""
        return {
            "first": self.first,
            "second": self.second,
            "metric": self.metric,
            **self.value.to_json(),
            "real": self.real,
        }


def verdict(whose: str, differences: Sequence[Difference]) -> str:
    """One sentence for `whose`, which takes part in every difference (all of one metric): what is real, what is not.

    Real: the 95% interval of that difference leaves zero out; each interval stands for itself.
    """
    ahead, behind, open_ = [], [], []
    for difference in differences:
        other = difference.second if difference.first == whose else difference.first
        value = difference.value if difference.first == whose else difference.value.negated()
        span = f"{value.low:+.3f} to {value.high:+.3f}"
        if not difference.real:
            open_.append(f"{other} ({span})")
        elif value.mean > 0:
            ahead.append(f"{other} by {value.mean:.3f} ({span})")
        else:
            away = value.negated()
            behind.append(f"{other} by {away.mean:.3f} ({away.low:+.3f} to {away.high:+.3f})")
    parts = [f"is really {word} {_listed(names)}" for word, names in (("ahead of", ahead), ("behind", behind)) if names]
    parts += [f"is not shown to differ from {_listed(open_)}"] if open_ else []
    return f"In {TITLES[differences[0].metric]} {whose} {'; it '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


@dataclass
class Results:
    """The comparison of all models on one set of rows."""

    task: str
    rows: int
    questions: int
    methods: list[Row]
    differences: list[Difference]
    ranked: int = 0  # questions that MRR, MAP and nDCG@10 are over: those with a positive and a negative row
    taken: str = "tmkd"  # the model that the run exports
    reference: str = ENSEMBLE  # the model that shares are relative to
    exports: list[dict[str, Any]] = field(default_factory=list)  # the run's back ends on the same rows
    against: str | None = None  # the score column that stood for golden labels; it and what contains it is left out
    leave_one_out: list[Part] = field(default_factory=list)  # the ensemble without each teacher
    combinations: list[Part] = field(default_factory=list)  # the taken student's headers, combined in each way
    agreement: list[Part] = field(default_factory=list)  # how often each small model decides as the ensemble does

    @property
    def metrics(self) -> list[str]:
        """The metrics that have a meaning for these rows, in the order of METRICS."""
        return [name for name in METRICS if any(name in row.metrics for row in self.methods)]

    @property
    def shared(self) -> list[str]:
        """The metrics that the short texts name: ROC-AUC and MRR, or accuracy where there are neither."""
        return [name for name in ("auc", "mrr") if name in self.metrics] or ["accuracy"]

    def verdicts(self, name: str = "") -> list[str]:
        """What is real and what is not shown about a model (the taken one unless named), a sentence a metric."""
        name = name or self.taken
        own = [difference for difference in self.differences if name in (difference.first, difference.second)]
        by_metric = {metric: [d for d in own if d.metric == metric] for metric in self.shared}
        return [verdict(name, found) for found in by_metric.values() if found]

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "task": self.task,
            "rows": self.rows,
            "questions": self.questions,
            "ranked_questions": self.ranked,
            "methods": [row.to_json() for row in self.methods],
            "differences": [difference.to_json() for difference in self.differences],
            **({"reference": self.against} if self.against else {}),
            "verdicts": self.verdicts(),
            **({"exports": self.exports} if self.exports else {}),
            **(
                {"leave_one_out": [part.to_json("teacher") for part in self.leave_one_out]}
                if self.leave_one_out
                else {}
            ),
            **({"combinations": [p.to_json("combination") for p in self.combinations]} if self.combinations else {}),
            **({"agreement": [part.to_json("model") for part in self.agreement]} if self.agreement else {}),
        }

    def table(self) -> Table:
        """For a terminal."""
        names = self.metrics
        kept_of = f"kept ({', '.join(TITLES[name].removeprefix('ROC-') for name in self.shared)})"
        title = f"{self.task}: {self.rows:,} rows, {self.questions:,} questions"
        title += f", against the reference {self.against!r} (no golden labels)" if self.against else ""
        table = Table(title=title, title_justify="left")
        for column in ("model", *(TITLES[name] for name in names), kept_of, "pairs/s", "parameters"):
            table.add_column(column, justify="left" if column == "model" else "right", no_wrap=column == "model")
        for row in self.methods:
            cells = [f"{m.mean:.3f}\n{m.low:.2f}-{m.high:.2f}" if (m := row.metrics.get(n)) else "" for n in names]
            kept = ", ".join(f"{row.kept[name]:.1%}" for name in self.shared if name in row.kept)
            speed, parameters = row.size.get("pairs_per_second"), row.size.get("parameters")
            table.add_row(
                row.name,
                *cells,
                kept,
                f"{speed:,.0f}" if speed else "",
                f"{parameters / 1e6:.1f} M" if parameters else "",
            )
        return table


def compare(
    pairs: Pairs,
    outputs: Sequence[ModelOutput],
    *,
    classes: int,
    task: str,
    ensemble: str = ENSEMBLE,
    baseline: str = "finetune",
    taken: str = "tmkd",
    resamples: int = 1000,
    seed: int = 0,
) -> Results:
    """Measure every model on the labelled rows of `pairs`.

    Args:
        outputs: one entry per model; logits [S, N, C] for all N rows.
        ensemble, baseline: the names that shares are relative to; a run of one teacher has no ensemble, there the
            teacher stands for it.
        taken: the name of the model that the run exports.
        resamples: bootstrap resamples.

    Raises:
        DataError: no row is labelled, or a model's logits have another shape or are not finite.
    """
    teachers = [output.name for output in outputs if output.kind == "teacher"]
    if len(teachers) == 1 and ensemble not in {output.name for output in outputs}:
        ensemble = teachers[0]
    known = np.flatnonzero(pairs.labels >= 0)
    if len(known) == 0:
        raise DataError("no row has a label, so nothing can be measured; give pairs with a label column")
    qids = pairs.qids
    probabilities = pairs.reference_probabilities
    reference = None if probabilities is None else probabilities[known]
    questions = Questions.of(pairs.labels[known], [qids[row] for row in known], reference)
    draws = Resamples(questions, resamples, seed)
    drawn = {o.name: distributions(draws, checked(o, len(pairs), classes)[:, known]) for o in outputs}
    chance = {"auc": 0.5, "accuracy": float(np.bincount(questions.labels, minlength=classes).max() / len(known))}
    rows = []
    for output in outputs:
        row = Row(
            output.name,
            output.kind,
            len(output.logits),
            {name: interval(value, spread) for name, (value, spread) in drawn[output.name].items()},
            size={
                "layers": output.layers,
                "parameters": output.parameters,
                "bytes": output.bytes,
                "pairs_per_second": output.pairs_per_second,
                "milliseconds": output.milliseconds,
            },
        )
        if output.kind in ("student", "baseline"):
            _shares(row, drawn, chance, ensemble, baseline)
        rows.append(row)
    differences = _differences(outputs, drawn, ensemble, questions)
    return Results(
        task, len(known), len(questions.names), rows, differences, int(questions.ranked.sum()), taken, ensemble,
        against=pairs.reference.column if pairs.reference else None,
    )  # fmt: skip


def checked(output: ModelOutput, rows: int, classes: int) -> Floats:
    """The logits as float64 [S, N, C]; a nan would be ranked somewhere and look like an answer."""
    logits = np.asarray(output.logits, dtype=np.float64)
    if logits.ndim != 3 or logits.shape[1:] != (rows, classes) or not 0 < len(logits) <= MAX_SEEDS:
        raise DataError(
            f"logits of {output.name} have shape {logits.shape}; expected (seeds, {rows}, {classes}) with 1 to "
            f"{MAX_SEEDS} seeds: one [N, C] array for each seed, N being the rows of the pairs"
        )
    bad = np.argwhere(~np.isfinite(logits))
    if len(bad):
        raise DataError(
            f"logits of {output.name} hold {len(bad)} values that are not finite, the first at seed {bad[0][0]}, row "
            f"{bad[0][1]}; label the pairs again, or train that model with a lower learning rate"
        )
    return logits


def _shares(
    row: Row, drawn: dict[str, dict[str, tuple[float, Floats]]], chance: dict[str, float], ensemble: str, baseline: str
) -> None:
    if ensemble not in drawn:
        return
    for name, metric in row.metrics.items():
        top = drawn[ensemble][name][0]
        if top > 0:
            row.kept[name] = metric.mean / top
        if name in chance and top > chance[name]:
            row.kept_above_chance[name] = (metric.mean - chance[name]) / (top - chance[name])
        if baseline in drawn and row.name != baseline:
            base = drawn[baseline][name][0]
            if interval(top - base, drawn[ensemble][name][1] - drawn[baseline][name][1]).low > 0:
                row.recovered[name] = (metric.mean - base) / (top - base)


def _differences(
    outputs: Sequence[ModelOutput],
    drawn: dict[str, dict[str, tuple[float, Floats]]],
    ensemble: str,
    questions: Questions,
) -> list[Difference]:
    """Every two trained small models, and each of them against the ensemble; a student is named before a baseline.

    A metric over a single question is left out: every resample is that question, and an interval without width would
    call any difference real.
    """
    order = {"baseline": 0, "student": 1}
    small = sorted((o for o in outputs if o.kind in order), key=lambda o: order[o.kind])
    tops = [output for output in outputs if output.name == ensemble]
    found = []
    for place, first in enumerate(small):
        for second in (*small[:place], *tops):
            for name, (value, spread) in drawn[first.name].items():
                if questions.count(name) < 2:
                    continue
                theirs, their_spread = drawn[second.name][name]
                found.append(Difference(first.name, second.name, name, interval(value - theirs, spread - their_spread)))
    return found


@dataclass(frozen=True)
class Disagreement:
    """A question where the student ranks its first right passage lower than the teachers do."""

    question: str
    student_rank: int
    teacher_rank: int
    student_first: str
    teacher_first: str
    student_first_right: bool
    teacher_first_right: bool


def disagreements(pairs: Pairs, student: Floats, teacher: Floats, limit: int = 20) -> list[Disagreement]:
    """The questions where the student's reciprocal rank falls most below the teachers'.

    Args:
        student, teacher: logits [N, 2] on the pairs; empty for other numbers of classes.
    """
    if student.shape[1] != 2:
        return []
    known = np.flatnonzero(pairs.labels >= 0)
    pairs, student, teacher = pairs.take(known), student[known], teacher[known]
    questions = Questions.of(pairs.labels, pairs.qids)
    texts, passages = pairs.questions, pairs.passages
    by_question = np.split(np.argsort(questions.group, kind="stable"), np.cumsum(np.bincount(questions.group))[:-1])
    found = []
    for number in np.flatnonzero(questions.ranked):
        rows = by_question[number]
        orders = [rows[ranking(log_odds(logits[rows]), questions.labels[rows])] for logits in (student, teacher)]
        ranks = [int(np.flatnonzero(questions.labels[order] == 1)[0]) + 1 for order in orders]
        if ranks[0] > ranks[1]:
            first, second = int(orders[0][0]), int(orders[1][0])
            found.append(
                Disagreement(
                    question=texts[first],
                    student_rank=ranks[0],
                    teacher_rank=ranks[1],
                    student_first=passages[first],
                    teacher_first=passages[second],
                    student_first_right=bool(questions.labels[first] == 1),
                    teacher_first_right=bool(questions.labels[second] == 1),
                )
            )
    found.sort(key=lambda d: (1 / d.student_rank - 1 / d.teacher_rank, d.question))
    return found[:limit]
