"""What a method keeps over several tasks, and whether it is significantly better than the others on their mean.

Reads the results.json of finished runs. Each task counts by one metric: what is kept above chance where the chance
level is known (ROC-AUC, accuracy), else the share of the ensemble's figure. Tasks have different pairs, so their
differences are independent: each half-width of the interval of their mean is the root of the sum of the squared
half-widths, divided by the number of tasks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tmkd.core.errors import DataError
from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.results import METRICS
from tmkd.evaluation.significance import TITLES, Difference, verdict

MEAN = "mean"


@dataclass(frozen=True)
class TaskResult:
    """One run's results, and the metric that the task counts by.

    Attributes:
        name: the task's name.
        metric: the metric that it counts by.
        methods: the entries of results.json, by method.
        differences: first minus second in that metric, by the two methods' names.
    """

    name: str
    metric: str
    methods: dict[str, dict[str, Any]]
    differences: dict[tuple[str, str], Interval]

    @classmethod
    def read(cls, given: str) -> TaskResult:
        """Read one run.

        Args:
            given: `PATH` or `PATH=METRIC`: a run's folder or its results.json. Without a metric the task counts by
                ROC-AUC, or by accuracy where there is no ROC-AUC.

        Returns:
            The results, and the metric that the task counts by.

        Raises:
            DataError: there is no such file, it is not a results.json, or it does not have the metric.
        """
        place, _, wanted = given.partition("=")
        path = Path(place)
        path = path / "report" / "results.json" if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            methods = {row["name"]: row for row in content["methods"]}
            found = [
                (one["metric"], one["first"], one["second"], Interval(one["mean"], one["low"], one["high"]))
                for one in content["differences"]
            ]
            name = str(content["task"])
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
        return cls(name, metric, methods, differences)

    def kept(self, method: str) -> float | None:
        """Return the share of the ensemble's (or only teacher's) figure, above chance where the level is known."""
        row = self.methods[method]
        for shares in ("kept_above_chance", "kept"):
            if self.metric in row.get(shares, {}):
                return float(row[shares][self.metric])
        return None


@dataclass(frozen=True)
class MultiTaskResults:
    """The results of several tasks side by side.

    Attributes:
        tasks: one entry per task.
        method: the method that is compared with the others.
        kept: by method that all tasks have, its share on each task, then the mean of these shares.
        differences: `method` minus every other method, on the mean of the tasks' metrics.
    """

    tasks: list[TaskResult]
    method: str
    kept: dict[str, list[float]]
    differences: list[Difference]

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
        kept: dict[str, list[float]] = {}
        for name in shared:
            shares = [share for task in tasks if (share := task.kept(name)) is not None]
            if len(shares) == len(tasks):
                kept[name] = [*shares, sum(shares) / len(shares)]
        differences = []
        for other in shared:
            found = [task.differences[method, other] for task in tasks if (method, other) in task.differences]
            if len(found) == len(tasks):
                differences.append(Difference(method, other, MEAN, mean_of(found)))
        return cls(list(tasks), method, kept, differences)

    def table(self) -> Table:
        """The table for a terminal: what each method keeps on each task and on their mean, and the differences."""
        table = Table(title="share of the ensemble's figure that is kept, above chance where the chance level is known")
        for column in ("method", *(f"{task.name}\n{TITLES[task.metric]}" for task in self.tasks), "mean"):
            table.add_column(column, justify="left" if column == "method" else "right")
        table.add_column(f"{self.method} minus it\n(mean of the metrics)", justify="right")
        minus = {one.second: f"{one.value:+.3f}" for one in self.differences}
        for name, shares in self.kept.items():
            table.add_row(name, *(f"{share:.1%}" for share in shares), minus.get(name, ""))
        return table

    def sentence(self) -> str:
        """Say which differences on the mean are significant."""
        return verdict(self.method, self.differences) if self.differences else "there is nothing to compare it with"

    def to_json(self) -> dict[str, Any]:
        """Return {"method", "tasks", "kept", "differences", "verdict"}."""
        names = [*(task.name for task in self.tasks), MEAN]
        return {
            "method": self.method,
            "tasks": {task.name: task.metric for task in self.tasks},
            "kept": {method: dict(zip(names, shares, strict=True)) for method, shares in self.kept.items()},
            "differences": [one.to_json() for one in self.differences],
            "verdict": self.sentence(),
        }


def _require_comparable(tasks: Sequence[TaskResult], method: str) -> None:
    """Check what `MultiTaskResults.of` is given; see there."""
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise DataError(f"two of the results are of the task {task.name!r}; a task counts once")
        if method not in task.methods:
            raise DataError(f"the results of {task.name} have no {method!r}: {', '.join(task.methods)}")
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
