"""The files of a finished study in `studies/<name>/`: report.html (one file), results.json, table.md, figures/."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tmkd.core.files import write_text
from tmkd.evaluation.charts import standalone
from tmkd.evaluation.report import page_templates
from tmkd.evaluation.significance import TITLES, verdict
from tmkd.pipeline.provenance import as_lines
from tmkd.pipeline.study.charts import Points, differences_chart, metric_over_values
from tmkd.pipeline.study.results import StudyResults


def write_study(folder: Path, results: StudyResults) -> None:
    """Write the study's files.

    Args:
        folder: `studies/<name>/`; earlier files there are replaced.
        results: the finished study.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    sections = [_section(results, task) for task in results.tasks]
    study = results.study
    text = page_templates().get_template("study.html.jinja").render(
        results=results,
        sections=sections,
        sentences=results.sentences(),
        titles=TITLES,
        variants=len(study.all_variants()),
        sizes=results.sizes,
        seeds=study.seeds,
        environment=as_lines(results.provenance) if results.provenance else {},
        study_text=yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False),
    )  # fmt: skip
    for section, name in zip(sections, figure_names([section["task"] for section in sections]), strict=True):
        for kind, figure in section["figures"].items():
            write_text(folder / "figures" / f"{name}-{kind}.svg", standalone(figure))
    write_text(folder / "table.md", results.markdown())
    write_text(folder / "results.json", json.dumps(results.to_json(), indent=2, allow_nan=False) + "\n")
    write_text(folder / "report.html", text)


def figure_names(tasks: Sequence[str]) -> list[str]:
    """How the figures of each task are called: by its name, with `-` for characters that are special in file names.

    Where two are called the same, also on a disk that ignores upper and lower case, the second has `-2` behind it.
    """
    found: list[str] = []
    for task in tasks:
        plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in task.replace(", ", "-"))
        names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        found.append(next(name for name in names if name.lower() not in {one.lower() for one in found}))
    return found


def _section(results: StudyResults, task: str) -> dict[str, Any]:
    rows = [row for row in results.rows if row.task == task]
    study, found = results.study, results.differences[task]
    own = [d for d in found if d.second == study.reference]
    deciding = [d for d in own if d.metric == study.metric]
    metrics = [name for name in results.metrics if any(name in row.metrics for row in rows)]
    figures = {
        "values": values_chart(results, task),
        "differences": differences_chart(deciding) if deciding else "",
    }
    return {
        "task": task,
        "rows": rows,
        "metrics": metrics,
        "timed": any(row.seconds is not None for row in rows),
        "figures": {kind: figure for kind, figure in figures.items() if figure},
        "metrics_differences": [
            verdict(study.reference, [d for d in own if d.metric == name]) for name in metrics if own
        ],
        "others": [d for d in found if d.second != study.reference and d.metric == study.metric],
    }  # fmt: skip


def values_chart(results: StudyResults, task: str) -> str:
    """The metric over the values of a grid with one or two keys, one of numbers; an empty text for other studies."""
    grid, metric = results.study.grid, results.study.metric
    numeric = [key for key, values in grid.items() if all(_is_number(value) for value in values) and len(values) > 1]
    if results.study.variants or not numeric or len(grid) > 2:
        return ""
    key = numeric[0]
    by = next((other for other in grid if other != key), "")
    lines: dict[str, list[tuple[float, Any]]] = {}
    value_of = {row.variant: row.metrics[metric] for row in results.rows if row.task == task and metric in row.metrics}
    for variant, keys in results.study.all_variants().items():
        lines.setdefault(str(keys[by]) if by else "", []).append((float(keys[key]), value_of[variant]))
    shown: dict[str, Points] = dict(lines.items())
    return metric_over_values(shown, key, by, metric)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
