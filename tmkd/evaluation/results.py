"""What a comparison of models gives: the results of every model, the differences, the table for a terminal.

`Results.to_json` is the content of results.json; `tmkd.evaluation.comparison.compare` makes `Results`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tmkd.core.errors import DataError
from tmkd.evaluation.bootstrap import MAX_SEEDS, Interval
from tmkd.evaluation.ranking import Floats
from tmkd.evaluation.significance import (
    TITLES,
    Difference,
    against_free_sentence,
    ensemble_sentence,
    one_seed_sentence,
    unmeasured_sentence,
    verdict,
)
from tmkd.evaluation.terminal import followed_table, reliability_table

Kind = Literal["teacher", "ensemble", "baseline", "student", "free"]
METRICS = ("accuracy", "auc", "spearman", "mrr", "map", "ndcg@10")
ENSEMBLE = "teacher-ensemble"
AGREEMENT = "agreement"


@dataclass
class ModelOutput:
    """The logits of one model on the measured pairs, with its size and its speed.

    Attributes:
        name: what tables and reports call it.
        kind: teacher, ensemble, baseline, student, or free (nothing is trained, and it only ranks).
        logits: [S, N, C] floats: S seeds (a teacher has one), N pairs, C classes.
        parameters: number of parameters, None where unknown.
        encoder_parameters: how many of them are of an encoder that reads each text by itself, passages beforehand; None
            for models that read question and passage together.
        cached: of a student that reads passages once, how its encoder was made: `encoder`, `encoder_layers`, `trained`
            ("no"; "along": in all stages; "last": in the last one; "before": by the run that its stage 1 is from),
            `encoder_learning_rate`, `question_encoder`, `state_size` and `layers`.
        bytes: size of the weights file in bytes, None where unknown.
        layers: transformer layers, None where unknown.
        pairs_per_second: throughput on many pairs, tokenizing included.
        milliseconds: latency of one question, by its number of passages.
        reliability: of a teacher: how well its probabilities agree with the labels (`tmkd.teachers.calibration`), as
            its scores are `given` and, where it is calibrated, `calibrated`.
    """

    name: str
    kind: Kind
    logits: NDArray[np.floating[Any]]
    parameters: int | None = None
    encoder_parameters: int | None = None
    cached: dict[str, Any] | None = None
    bytes: int | None = None
    layers: int | None = None
    pairs_per_second: float | None = None
    milliseconds: dict[int, float] | None = None
    reliability: dict[str, dict[str, float]] = field(default_factory=dict)

    def checked(self, pairs: int, classes: int) -> Floats:
        """Return the logits as float64 [S, N, C].

        Args:
            pairs: the N that is expected.
            classes: the C that is expected.

        Returns:
            The logits, checked.

        Raises:
            DataError: the logits have another shape, or some are not finite (a nan would get a rank as if it were a
                score).
        """
        logits = np.asarray(self.logits, dtype=np.float64)
        if logits.ndim != 3 or logits.shape[1:] != (pairs, classes) or not 0 < len(logits) <= MAX_SEEDS:
            raise DataError(
                f"logits of {self.name} have shape {logits.shape}; expected (seeds, {pairs}, {classes}) with 1 to "
                f"{MAX_SEEDS} seeds: one [N, C] array for each seed, where N is the number of pairs"
            )
        bad = np.argwhere(~np.isfinite(logits))
        if len(bad):
            raise DataError(
                f"logits of {self.name} hold {len(bad)} values that are not finite, the first at seed {bad[0][0]}, "
                f"row {bad[0][1]}; label the pairs again, or train that model with a lower learning rate"
            )
        return logits


@dataclass
class ModelResult:
    """The metrics of one model: a row of the comparison.

    Attributes:
        name: what tables and reports call it.
        kind: teacher, ensemble, baseline, student, or free (nothing is trained, and it only ranks).
        seeds: how many seeds the metrics are averaged over.
        metrics: mean over seeds with its 95% interval, by metric.
        kept: the metric divided by the ensemble's (or the only teacher's), by metric. Students and baselines only.
        kept_above_chance: the same with the chance level subtracted from both (`chance_levels`), where the ensemble is
            significantly above it.
        recovered: (metric - finetune's) / (ensemble's - finetune's), where the ensemble is significantly better than
            finetune. All three with 95% intervals, on the same resamples.
        size: "layers", "parameters", "encoder_parameters", "cached", "bytes", "pairs_per_second" and
            "milliseconds" as in `ModelOutput`.
    """

    name: str
    kind: Kind
    seeds: int
    metrics: dict[str, Interval]
    kept: dict[str, Interval] = field(default_factory=dict)
    kept_above_chance: dict[str, Interval] = field(default_factory=dict)
    recovered: dict[str, Interval] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Metrics, shares (`kept`) with their intervals (`kept_intervals`), size, speed; without what is unknown."""
        shares = {"kept": self.kept, "kept_above_chance": self.kept_above_chance, "recovered": self.recovered}
        return {
            "name": self.name,
            "kind": self.kind,
            "seeds": self.seeds,
            **{name: value.to_json() for name, value in self.metrics.items()},
            **{name: {of: one.mean for of, one in found.items()} for name, found in shares.items() if found},
            **{
                f"{name}_intervals": {of: {"low": one.low, "high": one.high} for of, one in found.items()}
                for name, found in shares.items()
                if found
            },
            **{name: _with_text_keys(value) for name, value in self.size.items() if value is not None},
        }


def _with_text_keys(value: Any) -> Any:
    """JSON has text keys only."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Component:
    """One component of a whole: the ensemble without a teacher, one combination of the heads, or one model's agreement.

    Attributes:
        name: the teacher that is left out, the combination, or the model.
        metrics: of this output, with 95% intervals.
        differences: whole minus component, by metric; for a teacher that is left out, what it adds to the ensemble.
            Absent where a metric is computed from a single question.
    """

    name: str
    metrics: dict[str, Interval]
    differences: dict[str, Difference]

    def to_json(self, key: str) -> dict[str, Any]:
        """Return {key: name, each metric, "behind": {metric: {"mean", "low", "high", "real"}}}."""
        behind = {
            name: {**difference.value.to_json(), "real": difference.significant}
            for name, difference in self.differences.items()
        }
        metrics = {name: value.to_json() for name, value in self.metrics.items()}
        return {key: self.name, **metrics, **({"behind": behind} if behind else {})}


@dataclass
class Results:
    """The comparison of all models on one set of labelled pairs.

    Attributes:
        task: name of the task or of the file that was measured.
        rows: labelled pairs.
        questions: their questions.
        methods: one entry per model.
        differences: of every two students or baselines, and of each of them to the ensemble.
        pairs_digest: a hash of the labelled pairs' ids in whatever order; the same of the same pairs.
        ranked: the questions that MRR, MAP and nDCG@10 are averaged over: those with a positive and a negative pair.
        taken: the model that the run exports.
        choice: how it was chosen, where the development set decided: {"method", "metrics", "development"}, and "equal"
            where other methods are.
        relative_to: the model that shares are relative to: the better of the ensemble and the best single teacher, or
            the only teacher.
        free: baselines that train nothing, with what they have of the metrics.
        against_free: the exported student minus each model that trains nothing, the best of these first.
        ensemble_lead: the ensemble minus the teacher that is best on the development set.
        ensemble_differences: the same in every metric.
        training: by method and stage the learning rate and the epochs of its students
            (`tmkd.pipeline.steps.evaluate.training_numbers`).
        development: what the development set says of the teachers (`tmkd.pipeline.development`).
        reference_column: the score column that stood for golden labels, if one did. The teacher that made it, and every
            ensemble with that teacher, is not measured.
        chance: what each metric is by chance.
        exports: the run's backends on the same pairs.
        leave_one_out: the ensemble without each teacher.
        combinations: the heads of the taken student, combined in each way.
        agreement: how often each student or baseline decides as the ensemble does.
        followed: how closely the taken student follows each of its teachers (`tmkd.pipeline.followed`).
        ensemble: how the teachers are weighed where the ensemble is no plain mean: {"kind": the
            recipe's `ensemble`, "weights": {teacher: weight}, "intercept", "ridge", "log_loss", "fitted_to"}.
        taught_by: how many teachers' soft labels the exported student learned; None where it is not known.
        unmeasured: by teacher that these pairs cannot measure, why. No ensemble here has it.
        coverage: of each partial teacher, how many pairs of each part have its label: {"judge": {"train": {"pairs",
            "labelled"}}}.
        reliability: of each teacher's probabilities, before and after calibration (`ModelOutput.reliability`).
        data: what became of the rows of each part: {"test": {"read", "used", "left_out", "warnings"}, ...}, as
            `tmkd.data.row_counts.RowCounts` gives it.
        provenance: the recipe, the code, the machine and the libraries that the figures come from.
    """

    task: str
    rows: int
    questions: int
    methods: list[ModelResult]
    differences: list[Difference]
    ranked: int = 0
    pairs_digest: str = ""
    taken: str = "tmkd"
    choice: dict[str, Any] = field(default_factory=dict)
    relative_to: str = ENSEMBLE
    free: list[ModelResult] = field(default_factory=list)
    against_free: list[Difference] = field(default_factory=list)
    ensemble_lead: Difference | None = None
    ensemble_differences: list[Difference] = field(default_factory=list)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    development: dict[str, Any] = field(default_factory=dict)
    reference_column: str | None = None
    chance: dict[str, float] = field(default_factory=dict)
    exports: list[dict[str, Any]] = field(default_factory=list)
    leave_one_out: list[Component] = field(default_factory=list)
    combinations: list[Component] = field(default_factory=list)
    agreement: list[Component] = field(default_factory=list)
    followed: dict[str, dict[str, float]] = field(default_factory=dict)
    ensemble: dict[str, Any] = field(default_factory=dict)
    taught_by: int | None = None
    unmeasured: dict[str, str] = field(default_factory=dict)
    coverage: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    reliability: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """The metrics that are defined for these pairs, in the order of METRICS."""
        return [name for name in METRICS if any(name in row.metrics for row in self.methods)]

    @property
    def headline_metrics(self) -> list[str]:
        """The metrics that short texts name: ROC-AUC and MRR, or accuracy where there are neither."""
        return [name for name in ("auc", "mrr") if name in self.metrics] or ["accuracy"]

    def standing(self) -> list[str]:
        """Whether the exported student is ahead of what is free, and the ensemble of its best teacher."""
        found = [against_free_sentence(self.taken, self.against_free[0])] if self.against_free else []
        if self.ensemble_lead is not None:
            found.append(ensemble_sentence(self.ensemble_lead, self.relative_to))
        if self.development.get("behind"):
            behind = ", ".join(self.development["behind"])
            found.append(f"Behind the cosine of the encoder with nothing trained, on the development set: {behind}.")
        if self.unmeasured:
            found.append(unmeasured_sentence(self.unmeasured, [row.name for row in self.methods]))
        return found

    def verdicts(self, name: str = "") -> list[str]:
        """One sentence per headline metric: which models this one is significantly better or worse than.

        Args:
            name: the model; the taken one unless given.

        Returns:
            The sentences, and which trained models have a single seed; none where there is nothing to compare with.
        """
        name = name or self.taken
        own = [difference for difference in self.differences if name in (difference.first, difference.second)]
        by_metric = {metric: [d for d in own if d.metric == metric] for metric in self.headline_metrics}
        sentences = [verdict(name, found) for found in by_metric.values() if found]
        trained = [
            row for row in self.methods if row.kind in ("student", "baseline") and row.name.split()[0] != "cosine"
        ]
        single = [row.name for row in trained if row.seeds == 1]
        return [*sentences, one_seed_sentence(single)] if sentences and single else sentences

    def to_json(self) -> dict[str, Any]:
        """The content of results.json; what is empty is absent."""
        lead = self.ensemble_lead
        better: dict[str, Any] = {}
        if lead is not None:
            better = {"against": lead.second, "lead": lead.to_json(), "relative_to": self.relative_to}
            better["differences"] = [difference.to_json() for difference in self.ensemble_differences]
        optional = {
            "standing": self.standing(),
            "free": [row.to_json() for row in self.free],
            "against_free": [difference.to_json() for difference in self.against_free],
            "training": self.training,
            "development": self.development,
            "choice": self.choice,
            "ensemble": {**self.ensemble, **better},
            "unmeasured": self.unmeasured,
            "coverage": self.coverage,
            "reliability": self.reliability,
            "exports": self.exports,
            "leave_one_out": [component.to_json("teacher") for component in self.leave_one_out],
            "combinations": [component.to_json("combination") for component in self.combinations],
            "agreement": [component.to_json("model") for component in self.agreement],
            "followed": self.followed,
            "data": self.data,
            "provenance": self.provenance,
        }
        return {
            "task": self.task,
            "taken": self.taken,
            "rows": self.rows,
            "questions": self.questions,
            "ranked_questions": self.ranked,
            **({"pairs_digest": self.pairs_digest} if self.pairs_digest else {}),
            "chance": self.chance,
            "methods": [row.to_json() for row in self.methods],
            "differences": [difference.to_json() for difference in self.differences],
            **({"reference": self.reference_column} if self.reference_column else {}),
            **({"taught_by": self.taught_by} if self.taught_by is not None else {}),
            "verdicts": self.verdicts(),
            **{key: value for key, value in optional.items() if value},
        }

    def table(self) -> Table:
        """The table for a terminal: metrics with intervals, what is kept, speed and size."""
        names = self.metrics
        kept_title = f"kept ({', '.join(TITLES[name].removeprefix('ROC-') for name in self.headline_metrics)})"
        title = f"{self.task}: {self.rows:,} pairs, {self.questions:,} questions"
        if self.reference_column:
            title += f", against the reference {self.reference_column!r} (no golden labels)"
        table = Table(title=title, title_justify="left")
        for column in ("model", *(TITLES[name] for name in names), kept_title, "pairs/s", "parameters"):
            table.add_column(column, justify="left" if column == "model" else "right", no_wrap=column == "model")
        for row in [*self.methods, *self.free]:
            cells = [f"{m.mean:.3f}\n{m.ends()}" if (m := row.metrics.get(n)) else "" for n in names]
            shares = [row.kept[name] for name in self.headline_metrics if name in row.kept]
            kept = "\n".join(f"{one.mean:.1%} ({100 * one.low:.0f}-{100 * one.high:.0f})" for one in shares)
            speed, parameters = row.size.get("pairs_per_second"), row.size.get("parameters")
            table.add_row(
                row.name,
                *cells,
                kept,
                f"{speed:,.0f}" if speed else "",
                f"{parameters / 1e6:.1f} M" if parameters else "",
            )
        return table

    def run_tables(self) -> list[Table]:
        """The tables that a run shows: the models, and how closely the student follows its teachers."""
        return [self.table(), *([followed_table(self.taken, self.followed)] if self.followed else [])]

    def tables(self) -> list[Table]:
        """All tables for a terminal: the models, then the components and the agreement where they were measured."""
        headline, taken = self.headline_metrics, self.taken
        components = (
            ("the ensemble without each teacher", self.leave_one_out, headline, "it adds"),
            (f"{taken}: its heads combined", self.combinations, headline, "logit minus it"),
            (f"share of pairs decided as {self.relative_to} does", self.agreement, [AGREEMENT], f"{taken} minus it"),
        )
        shown = [_component_table(title, found, metrics, lead) for title, found, metrics, lead in components if found]
        return [self.table(), *([reliability_table(self.reliability)] if self.reliability else []), *shown]


def _component_table(title: str, components: Sequence[Component], metrics: Sequence[str], column: str) -> Table:
    """The components as a table for a terminal.

    Args:
        title: above the table.
        components: its rows.
        metrics: the metrics to show.
        column: title of the column "whole minus component".
    """
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for name in metrics:
        shown.add_column(TITLES[name], justify="right")
        shown.add_column(column, justify="right")
    for component in components:
        cells = []
        for name in metrics:
            lead = component.differences[name].value if name in component.differences else None
            cells.append(f"{component.metrics[name].mean:.3f}" if name in component.metrics else "")
            cells.append("" if lead is None else f"{lead:+.3f}")
        shown.add_row(component.name, *cells)
    return shown
