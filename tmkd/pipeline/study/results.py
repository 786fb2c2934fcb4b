"""The results of a study: means over seeds with intervals, and which variants differ significantly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from rich.table import Table

from tmkd.data.pairs import Pairs
from tmkd.evaluation.bootstrap import Distribution, Interval, Resamples, distributions, interval
from tmkd.evaluation.comparison import labelled_questions, turned
from tmkd.evaluation.ranking import Floats
from tmkd.evaluation.results import METRICS
from tmkd.evaluation.significance import TITLES, Difference, one_seed_sentence, verdict
from tmkd.pipeline.study.plan import Cell, Study

TOGETHER = "all"
RESAMPLES = 2000


@dataclass(frozen=True)
class MeasuredCell:
    """One student on the development set.

    Attributes:
        logits: [N, C] float64.
        seconds: how long its last stage trained; None where it is not known.
    """

    logits: Floats
    seconds: float | None


@dataclass(frozen=True)
class VariantResult:
    """One variant on one task.

    Attributes:
        task: the task, or "all" for the mean over all tasks.
        variant: the variant.
        metrics: each defined metric's mean over seeds with its 95% interval.
        seconds: how long the last stage of one student trained, mean over seeds; None where it is not known.
    """

    task: str
    variant: str
    metrics: dict[str, Interval]
    seconds: float | None = None


@dataclass(frozen=True)
class StudyResults:
    """A finished study.

    Attributes:
        study: the study.
        rows: one for each task and variant; in a study of several tasks the means over all tasks come last.
        differences: by task, for every two variants and every metric: the later variant minus the earlier one, where
            the study's reference counts as the earliest. Both are measured on the same resamples.
        sizes: by task, the number of labelled pairs in the development set and of their questions.
        provenance: what a reader needs to repeat it, as `tmkd.pipeline.provenance` gives it.
    """

    study: Study
    rows: list[VariantResult]
    differences: dict[str, list[Difference]]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks; "all" comes last where there are several."""
        return list(dict.fromkeys(row.task for row in self.rows))

    @property
    def metrics(self) -> list[str]:
        """The metrics that are defined for some task: the study's own first, then in the order of METRICS."""
        there = [name for name in METRICS if any(name in row.metrics for row in self.rows)]
        return [self.study.metric, *(name for name in there if name != self.study.metric)]

    @property
    def last(self) -> str:
        """The task of the study's verdict: the only one, or the mean over all."""
        return self.tasks[-1]

    def against_reference(self, task: str, variant: str, metric: str) -> Difference | None:
        """The variant minus the reference in a metric; None where they cannot be compared."""
        wanted = (variant, self.study.reference, metric)
        found = self.differences.get(task, [])
        return next((d for d in found if (d.first, d.second, d.metric) == wanted), None)

    @property
    def no_worse(self) -> dict[str, bool]:
        """For each variant whether the reference is worse by at most the margin (lower bound of the 95% interval)."""
        margin, found = self.study.margin, {}
        for difference in self.differences[self.last] if margin is not None else []:
            if difference.second == self.study.reference and difference.metric == self.study.metric:
                found[difference.first] = -difference.value.high > -(margin or 0)
        return found

    def to_json(self) -> dict[str, Any]:
        """{"study", "metric", "seeds", "against", "rows": [{"task", "variant", metric: {"mean", ...}}], ...}."""
        rows = []
        for row in self.rows:
            entry: dict[str, Any] = {"task": row.task, "variant": row.variant}
            entry |= {name: value.to_json() for name, value in row.metrics.items()}
            rows.append(entry | ({} if row.seconds is None else {"seconds": row.seconds}))
        study = self.study
        return {
            "study": study.name,
            "metric": study.metric,
            "seeds": list(study.seeds),
            "against": study.reference,
            "tasks": {task: {"rows": rows, "questions": questions} for task, (rows, questions) in self.sizes.items()},
            "rows": rows,
            "differences": [
                {"task": task, **difference.to_json()}
                for task, found in self.differences.items()
                for difference in found
            ],
            "verdicts": self.sentences(),
            **({} if study.margin is None else {"margin": study.margin, "no_worse": self.no_worse}),
            **({"provenance": self.provenance} if self.provenance else {}),
        }

    def columns(self) -> list[str]:
        """The heads of the table's columns: task (where there are several), variant, metrics, difference, seconds."""
        names = [TITLES[name] for name in self.metrics]
        names.insert(1, f"{TITLES[self.study.metric]} against {self.study.reference}")
        return [*(["task"] if len(self.tasks) > 1 else []), "variant", *names, "s a student"]

    def lines(self) -> list[list[str]]:
        """The cells of the table, line by line."""
        found = []
        for row in self.rows:
            cells = [f"{row.metrics[name]:.4f}" if name in row.metrics else "" for name in self.metrics]
            difference = self.against_reference(row.task, row.variant, self.study.metric)
            cells.insert(1, "" if difference is None else f"{difference.value:+.4f}")
            seconds = "" if row.seconds is None else f"{row.seconds:,.0f}"
            found.append([*([row.task] if len(self.tasks) > 1 else []), row.variant, *cells, seconds])
        return found

    def table(self) -> Table:
        """The table for a terminal: the deciding metric with its interval, the means of the other metrics."""
        seeds = len(self.study.seeds)
        title = f"{self.study.name}: {seeds} seed{'s' if seeds > 1 else ''}, development set, 95% intervals"
        shown, deciding = Table(title=title, title_justify="left"), TITLES[self.study.metric]
        for column in self.columns():
            left = column in ("task", "variant")
            shown.add_column(column, justify="left" if left else "right", no_wrap=column.startswith(deciding))
        first = len(self.columns()) - len(self.metrics) - 2  # where the numbers begin
        for line in self.lines():
            with_interval = [cell.replace(" (", "\n").removesuffix(")") for cell in line[first : first + 2]]
            others = [cell.partition(" ")[0] for cell in line[first + 2 :]]
            shown.add_row(*line[:first], *with_interval, *others)
        return shown

    def markdown(self) -> str:
        """The table and the verdicts in Markdown."""
        columns = self.columns()
        rule = ["---" if name in ("task", "variant") else "---:" for name in columns]
        table = "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in [columns, rule, *self.lines()])
        sizes = ", ".join(f"{pairs:,} pairs of {questions:,} questions" for pairs, questions in self.sizes.values())
        seeds = ", ".join(str(seed) for seed in self.study.seeds)
        note = f"Measured on the development set ({sizes}): mean over seeds {seeds} with its 95% interval."
        return f"{table}\n\n{note}\n\n" + "\n".join(f"- {sentence}" for sentence in self.sentences()) + "\n"

    def sentences(self) -> list[str]:
        """Which variants differ significantly, one sentence for each task; then which are within the margin."""
        reference, margin = self.study.reference, self.study.margin
        found = []
        for task in self.tasks:
            own = [d for d in self.differences[task] if d.second == reference and d.metric == self.study.metric]
            where = "" if len(self.tasks) == 1 else "mean of all tasks: " if task == TOGETHER else f"{task}: "
            found.append(where + verdict(reference, own) if own else f"{where}nothing to compare on one question")
        if len(self.study.seeds) == 1 and any(self.differences.values()):
            found.append(one_seed_sentence(["every variant"]))
        for name, passed in self.no_worse.items():
            comparison = "no worse than" if passed else "not shown to be as good as"
            found.append(f"{reference} is {comparison} {name} (margin {margin:g})")
        return found

    def lead(self) -> str:
        """The verdict in one sentence; with more than four other variants only how many of them differ."""
        own = [d for d in self.differences[self.last] if d.second == self.study.reference]
        own = [d for d in own if d.metric == self.study.metric]
        if len(own) <= 4:
            return self.sentences()[len(self.tasks) - 1]
        value = {row.variant: row.metrics[self.study.metric] for row in self.rows if row.task == self.last}
        best = max(value, key=lambda variant: value[variant].mean)
        better, worse = (sum(d.significant and d.value.mean * sign > 0 for d in own) for sign in (1, -1))
        return (
            f"Of the {len(own)} other variants {better} {'is' if better == 1 else 'are'} significantly better in "
            f"{TITLES[self.study.metric]} than {self.study.reference} ({value[self.study.reference].mean:.3f}), "
            f"{worse} significantly worse, {len(own) - better - worse} not significantly different; the highest is "
            f"{best} ({value[best].mean:.3f})."
        )


def _plain(cell: str) -> str:
    return cell.replace("|", "\\|")


def compare_variants(
    study: Study, cells: Sequence[tuple[Cell, MeasuredCell]], rows: Mapping[str, Pairs]
) -> StudyResults:
    """Compute intervals and differences from the logits of every cell.

    Args:
        study: the study.
        cells: every cell of the study; the seeds of a variant come one after another.
        rows: each task's labelled development pairs, which the N rows of the logits belong to.
    """
    found, differences, sizes = [], {}, {}
    counts: dict[str, dict[str, int]] = {}  # by task and metric: on how many questions it is defined
    drawn: dict[str, dict[str, dict[str, Distribution]]] = {}  # by task, variant, metric
    for number, (task, pairs) in enumerate(rows.items()):
        positive = next(cell.recipe.positive_class for cell, _ in cells if cell.task == task)
        _, questions = labelled_questions(pairs, positive)
        sizes[task] = (len(pairs), len(questions.names))
        counts[task] = {name: questions.count(name) for name in METRICS}
        draws = Resamples(questions, RESAMPLES, seed=number)  # all variants share them: differences are paired
        drawn[task] = {}
        for variant in study.all_variants():
            own = [measured for cell, measured in cells if (cell.task, cell.variant) == (task, variant)]
            drawn[task][variant] = distributions(
                draws, turned(np.stack([measured.logits for measured in own]), positive)
            )
            times = [measured.seconds for measured in own if measured.seconds is not None]
            metrics = {name: interval(*one) for name, one in drawn[task][variant].items()}
            found.append(VariantResult(task, variant, metrics, float(np.mean(times)) if times else None))
    if len(drawn) > 1:
        drawn[TOGETHER] = {name: _mean([one[name] for one in drawn.values()]) for name in study.all_variants()}
        for variant, one in drawn[TOGETHER].items():
            found.append(VariantResult(TOGETHER, variant, {name: interval(*values) for name, values in one.items()}))
    counts[TOGETHER] = {name: min(one[name] for one in counts.values()) for name in METRICS}
    for task, by_variant in drawn.items():
        comparable = {
            variant: {name: one for name, one in by_metric.items() if counts[task][name] > 1}
            for variant, by_metric in by_variant.items()
        }
        differences[task] = _differences(comparable, study.reference)
    return StudyResults(study, found, differences, sizes)


def _differences(by_variant: dict[str, dict[str, Distribution]], reference: str) -> list[Difference]:
    """Every two variants in every metric: the later minus the earlier one; the reference counts as the earliest."""
    names = [reference, *(name for name in by_variant if name != reference)]
    found = []
    for earlier, later in combinations(names, 2):
        for metric, (value, spread) in by_variant[later].items():
            theirs, their_spread = by_variant[earlier][metric]
            found.append(Difference(later, earlier, metric, interval(value - theirs, spread - their_spread)))
    return found


def _mean(found: Sequence[dict[str, Distribution]]) -> dict[str, Distribution]:
    """The mean over tasks of the metrics that all tasks have. Tasks have other questions: resamples are independent."""
    shared = [name for name in found[0] if all(name in one for one in found)]
    return {
        name: (
            float(np.mean([one[name][0] for one in found])),
            np.mean([one[name][1] for one in found], axis=0),
        )
        for name in shared
    }
