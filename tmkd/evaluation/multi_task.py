"""What a method keeps over several tasks, and whether it is significantly better than the others on their mean.

Reads the results.json of finished runs. Each task counts by one metric: what is kept of the ensemble's figure, above
chance where the results give the chance level; a share of more than 100% counts as 100% in the mean. Results of earlier
versions give no intervals of shares: theirs are those of the difference to the ensemble, divided by the ensemble's
figure, which takes that figure as known. They give no chance level for ranking metrics: tables say so.

Tasks have different pairs, so their figures are independent: each half-width of the interval of their mean is the root
of the sum of the squared half-widths, divided by the number of tasks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from tmkd.core.errors import DataError
from tmkd.core.files import read_json
from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.results import METRICS
from tmkd.evaluation.significance import TITLES, Difference, verdict

logger = logging.getLogger(__name__)

MEAN = "mean"
_ENSEMBLES, _BEST_TEACHERS = "the teachers' ensemble", "the best single teacher"  # of all tasks
_ABOVE = "kept_above_chance"


@dataclass(frozen=True)
class TaskResult:
    """One run's results, and the metric that the task counts by.

    Attributes:
        name: the task's name.
        metric: the metric that it counts by.
        methods: the entries of results.json, by method.
        differences: first minus second in that metric, by the two methods' names.
        chance: the chance level of each metric; empty in results of earlier versions.
        lead: the teachers' ensemble minus the single teacher that is best on the development set; None where they were
            not compared.
        digest: the hash of the measured pairs; empty in results of earlier versions.
        counts: their number, and that of their questions; 0 where the results do not say it.
    """

    name: str
    metric: str
    methods: dict[str, dict[str, Any]]
    differences: dict[tuple[str, str], Interval]
    chance: dict[str, float] = field(default_factory=dict)
    lead: Difference | None = None
    digest: str = ""
    counts: tuple[int, int] = (0, 0)

    @classmethod
    def read(cls, given: str) -> TaskResult:
        """Read one run.

        Args:
            given: `PATH` or `PATH=METRIC`: a run's folder or its results.json, whose own path may have a `=`. Without a
                metric the task counts by ROC-AUC, or by accuracy where there is no ROC-AUC.

        Returns:
            The results, and the metric that the task counts by.

        Raises:
            DataError: there is no such file, it is not a results.json, or it does not have the metric.
        """
        path, wanted = _place_and_metric(given)
        path = path / "report" / "results.json" if path.is_dir() else path
        try:
            content = read_json(path)
            methods = {row["name"]: row for row in content["methods"]}
            found = [
                (one["metric"], one["first"], one["second"], Interval(one["mean"], one["low"], one["high"]))
                for one in content["differences"]
            ]
            name = str(content["task"])
            leads = _ensemble_leads(content)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; give a finished run's folder or its results.json") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a results.json of `tmkd run` ({type(error).__name__}: {error})") from None
        there = [metric for metric in METRICS if any(metric in row for row in methods.values())]
        metric = wanted or ("auc" if "auc" in there else "accuracy")
        if metric not in there:
            raise DataError(f"{given}: {path} has no {metric!r}; it has {', '.join(there)}")
        own = [(first, second, value) for of, first, second, value in found if of == metric]
        differences = {(first, second): value for first, second, value in own}
        differences |= {(second, first): value.negated() for first, second, value in own}
        lead = next((one for one in leads if one.metric == metric), leads[0] if leads else None)
        digest, counts = content.get("pairs_digest", ""), (content.get("rows", 0), content.get("questions", 0))
        return cls(name, metric, methods, differences, content.get("chance", {}), lead, digest, counts)

    @property
    def above_chance(self) -> bool:
        """Whether shares have the chance level subtracted."""
        return any(self.metric in row.get(_ABOVE, {}) for row in self.methods.values())

    def kept(self, method: str) -> Interval | None:
        """The share of the ensemble's (or only teacher's) figure, above chance where the level is known.

        An interval that is not known has no width.
        """
        name = _ABOVE if self.above_chance else "kept"
        row = self.methods[method]
        if self.metric not in row.get(name, {}):
            return None
        share = float(row[name][self.metric])
        ends = row.get(f"{name}_intervals", {}).get(self.metric)
        if ends is not None:
            return Interval(share, float(ends["low"]), float(ends["high"]))
        return self._of_difference(method, share)

    def _of_difference(self, method: str, share: float) -> Interval:
        """The interval of a share from that of the difference to the ensemble."""
        tops = [name for name, row in self.methods.items() if row.get("kind") in ("ensemble", "teacher")]
        for top in tops:
            difference = self.differences.get((method, top))
            if difference is not None and share != 1:
                way = difference.mean / (share - 1)  # the ensemble's figure, above chance
                return Interval(share, 1 + difference.low / way, 1 + difference.high / way)
        return Interval(share, share, share)


@dataclass(frozen=True)
class MultiTaskResults:
    """The results of several tasks side by side.

    Attributes:
        tasks: one entry per task.
        method: the method that is compared with the others.
        kept: by method that all tasks have, its share on each task, then the mean of these shares, none of them counted
            as more than 1.
        differences: `method` minus every other method, on the mean of the tasks' metrics.
        lead: the ensemble minus the best single teacher of each task, on the mean of the tasks' metrics. None where a
            task does not have it.
    """

    tasks: list[TaskResult]
    method: str
    kept: dict[str, list[Interval]]
    differences: list[Difference]
    lead: Difference | None = None

    @classmethod
    def of(cls, tasks: Sequence[TaskResult], method: str) -> MultiTaskResults:
        """Put the results of several tasks side by side.

        Args:
            tasks: at least one.
            method: the method to compare with the others.

        Returns:
            The shares of all methods and the differences to `method`.

        Raises:
            DataError: a task is named twice, lacks the method, or has no teacher that shares could be relative to.
        """
        _require_comparable(tasks, method)
        shared = [name for name in tasks[0].methods if all(name in task.methods for task in tasks)]
        kept: dict[str, list[Interval]] = {}
        for name in shared:
            shares = [share for task in tasks if (share := task.kept(name)) is not None]
            if len(shares) == len(tasks):
                kept[name] = [*shares, mean_of([_at_most_one(share) for share in shares])]
        differences = []
        for other in shared:
            found = [task.differences[method, other] for task in tasks if (method, other) in task.differences]
            if len(found) == len(tasks):
                differences.append(Difference(method, other, MEAN, mean_of(found)))
        leads = [task.lead for task in tasks if task.lead is not None]
        lead = None
        if len(leads) == len(tasks):
            lead = Difference(_ENSEMBLES, _BEST_TEACHERS, MEAN, mean_of([one.value for one in leads]))
        return cls(list(tasks), method, kept, differences, lead)

    def table(self) -> Table:
        """The table for a terminal: what each method keeps on each task and on their mean, and the differences."""
        table = Table(title="share of the ensemble's figure that is kept, above chance where the chance level is known")
        heads = [
            f"{task.name}\n{TITLES[task.metric]}{'' if task.above_chance else chr(10) + '(chance not removed)'}"
            for task in self.tasks
        ]
        for column in ("method", *heads, "mean\n(none above 100%)"):
            table.add_column(column, justify="left" if column == "method" else "right")
        table.add_column(f"{self.method} minus it\n(mean of the metrics)", justify="right")
        minus = {one.second: f"{one.value:+.3f}" for one in self.differences}
        for name, shares in self.kept.items():
            table.add_row(name, *map(_percent, shares), minus.get(name, ""))
        return table

    def sentence(self) -> str:
        """Say which differences on the mean are significant."""
        return verdict(self.method, self.differences) if self.differences else "there is nothing to compare it with"

    def lead_sentence(self) -> str:
        """Say whether the ensembles are better than the best single teachers; empty where that is not known."""
        if self.lead is None:
            return ""
        each = (
            f"{task.name} {task.lead.value.mean:+.3f} in {TITLES[task.lead.metric]} "
            f"({task.lead.second.removeprefix('teacher:')})"
            for task in self.tasks
            if task.lead is not None
        )
        said = self.lead.sentence()
        return f"{said[0].upper()}{said[1:]} (the teacher that is best on the development set: {'; '.join(each)})"

    def to_json(self) -> dict[str, Any]:
        """Return {"method", "tasks", "chance_removed", "kept", "kept_intervals", "differences", "verdict"}.

        And "ensemble_lead", where it is known.
        """
        names = [*(task.name for task in self.tasks), MEAN]
        return {
            "method": self.method,
            "tasks": {task.name: task.metric for task in self.tasks},
            "chance_removed": {task.name: task.above_chance for task in self.tasks},
            "kept": {
                method: {name: share.mean for name, share in zip(names, shares, strict=True)}
                for method, shares in self.kept.items()
            },
            "kept_intervals": {
                method: {name: {"low": one.low, "high": one.high} for name, one in zip(names, shares, strict=True)}
                for method, shares in self.kept.items()
            },
            "differences": [one.to_json() for one in self.differences],
            "verdict": self.sentence(),
            **({"ensemble_lead": self.lead.to_json()} if self.lead else {}),
        }


def _ensemble_leads(content: dict[str, Any]) -> list[Difference]:
    """The ensemble minus the best single teacher, in every metric that a results.json has it in.

    The first is in the mean of ROC-AUC and MRR, or what there is of them: results of earlier versions have it alone.
    """
    ensemble = content.get("ensemble", {})
    every = [*([ensemble["lead"]] if "lead" in ensemble else []), *ensemble.get("differences", [])]
    return [
        Difference(one["first"], one["second"], one["metric"], Interval(one["mean"], one["low"], one["high"]))
        for one in every
    ]


def _place_and_metric(given: str) -> tuple[Path, str]:
    """The path and the metric of `PATH=METRIC`; the metric is empty where the last `=` belongs to the path."""
    place, _, metric = given.rpartition("=")
    whole, before = Path(given).exists(), bool(place) and Path(place).exists()
    if not place or (whole and not (before and metric in METRICS)) or not (before or metric in METRICS):
        return Path(given), ""
    return Path(place), metric


def _require_other_pairs(tasks: Sequence[TaskResult]) -> None:
    """Refuse tasks of the same pairs: their figures are not independent.

    Of results of earlier versions, which do not say which pairs they are of, those with as many pairs and questions and
    the same chance levels are warned of.
    """
    for number, task in enumerate(tasks):
        for other in tasks[:number]:
            said = f"the results of {other.name} and {task.name}"
            if task.digest and other.digest:
                if task.digest == other.digest:
                    raise DataError(f"{said} are of the same pairs, and so not of two tasks; leave one of them out")
            elif all(task.counts) and (task.counts, task.chance) == (other.counts, other.chance):
                logger.warning(
                    f"{said} have as many pairs and questions and the same chance levels; if they are of the same "
                    "pairs, leave one of them out: the interval of a mean takes tasks as independent"
                )


def _require_comparable(tasks: Sequence[TaskResult], method: str) -> None:
    """Check what `MultiTaskResults.of` is given; see there."""
    names = [task.name for task in tasks]
    _require_other_pairs(tasks)
    for task in tasks:
        if names.count(task.name) > 1:
            raise DataError(
                f"two of the results are of the task {task.name!r}; a task counts once. If they are of other pairs, "
                "measure one of them again with another name: tmkd evaluate --name NAME"
            )
        if method not in task.methods:
            raise DataError(f"the results of {task.name} have no {method!r}: {', '.join(task.methods)}")
        if task.metric in task.chance and not task.above_chance:
            raise DataError(
                f"the results of {task.name}: no teacher was measured, or its {TITLES[task.metric]} is not "
                "significantly above chance, so that a share of it means nothing; name another metric (RUN=METRIC)"
            )
        if all(task.kept(name) is None for name in task.methods):
            raise DataError(
                f"the results of {task.name} do not say what is kept of {task.metric}: no teacher was measured; "
                "add `teacher` or `teacher-ensemble` to the run's methods"
            )


def mean_of(found: Sequence[Interval]) -> Interval:
    """Return the mean of independent values, with an interval whose lower and upper half are propagated separately."""
    count = len(found)
    mean = sum(one.mean for one in found) / count
    below = math.sqrt(sum((one.mean - one.low) ** 2 for one in found)) / count
    above = math.sqrt(sum((one.high - one.mean) ** 2 for one in found)) / count
    return Interval(mean, mean - below, mean + above)


def _at_most_one(share: Interval) -> Interval:
    """A share as it counts in a mean: what one task has above 100% makes up for no other task."""
    return Interval(min(share.mean, 1.0), min(share.low, 1.0), min(share.high, 1.0))


def _percent(share: Interval) -> str:
    known = share.low < share.high
    return f"{share.mean:.1%}" + (f"\n{100 * share.low:.0f} to {100 * share.high:.0f}" if known else "")
