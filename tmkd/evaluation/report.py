"""Write `report/`: results.json, and report.html, which is self-contained (it loads nothing from elsewhere)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tmkd.core.files import write_text
from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.charts import learning_curves, quality_against_latency
from tmkd.evaluation.comparison import Disagreement
from tmkd.evaluation.results import ENSEMBLE, ModelResult, Results
from tmkd.evaluation.significance import TITLES, Difference
from tmkd.evaluation.terminal import SETS

_COSTS = {"layers": "layers", "parameters": "parameters", "bytes": "file", "pairs_per_second": "pairs/s"}


def write_report(
    folder: Path,
    results: Results,
    *,
    curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    parity: Sequence[Mapping[str, Any]] = (),
    disagreements: Sequence[Disagreement] = (),
    recipe_text: str = "",
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Write report.html and results.json into `folder`; each file is written under another name and renamed.

    Args:
        folder: made where it does not exist.
        results: the comparison of the models.
        curves: points of the training loss, by training run.
        parity: rows of the export's parity table.
        disagreements: questions where the student does worse than its teachers.
        recipe_text: the resolved recipe as YAML.
        environment: versions, machine and data, for readers who want to repeat the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = (
        page_templates()
        .get_template("report.html.jinja")
        .render(
            **_columns(results),
            **_differences(results),
            results=results,
            metrics=results.metrics,
            titles=TITLES,
            ranking_titles="MRR, MAP and nDCG@10",
            headline=headline(results),
            verdicts=results.verdicts(student.name) if (student := _headline_model(results)) else [],
            speedup=speedups(results),
            reads_once=[row.name for row in results.methods if row.size.get("encoder_parameters")],
            cached=cached_students(results),
            latency_chart=quality_against_latency(results),
            curve_charts=learning_curves(curves or {}),
            parity=list(parity),
            parity_metric=next(
                (TITLES.get(row["metric_name"], "") for row in parity if row.get("metric_name")), "quality"
            ),
            ranked_parity=any(row.get("kendall_tau") is not None for row in parity),
            ndcg_parity=any(row.get("ndcg_pytorch") is not None for row in parity),
            exports=results.exports,
            followed_sets=SETS,
            parity_reasons=any(row.get("reason") for row in parity),
            disagreements=list(disagreements),
            recipe_text=recipe_text,
            environment=dict(environment or {}),
        )
    )
    write_text(folder / "results.json", json.dumps(results.to_json(), indent=2, allow_nan=False) + "\n")
    write_text(folder / "report.html", text)


def page_templates() -> Environment:
    """The Jinja environment of this package's pages, with the filters that they use."""
    page = Environment(
        loader=PackageLoader("tmkd.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page.filters["count"] = lambda value: f"{value:,.0f}"
    page.filters["quality"] = _quality
    page.filters["percent"] = percent
    page.filters["numbers"] = _numbers
    return page


def percent(value: Interval) -> str:
    """A share with its interval, such as "96.4% (90.7 to 102.1)"."""
    return f"{value.mean:.1%} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _quality(row: Mapping[str, Any], whose: str) -> str:
    """Return the task's metric and nDCG@10 of a parity row; `whose` is "export" or "pytorch"."""
    values = [row.get(f"{metric}_{whose}") for metric in ("metric", "ndcg")]
    return ", ".join(f"{value:.4f}" for value in values if value is not None)


def _numbers(stage: Mapping[str, Any]) -> str:
    """How a stage was trained, such as "0.0003 × 4"; the folder of a finished one; nothing where there is none."""
    if "from" in stage:
        return f"from {stage['from']}"
    return f"{stage['learning_rate']:g} × {stage['epochs']}" if stage else ""


def _columns(results: Results) -> dict[str, Any]:
    """Return the columns of the table of shares and costs that have a number in at least one row."""
    rows = results.methods
    names = [*dict.fromkeys(("accuracy", *results.headline_metrics))]
    return {
        "shares": [name for name in names if any(name in row.kept for row in rows)],
        "chance": [name for name in names if any(name in row.kept_above_chance for row in rows)],
        "recovered": [name for name in results.headline_metrics if any(name in row.recovered for row in rows)],
        "costs": {key: title for key, title in _COSTS.items() if any(row.size.get(key) for row in rows)},
    }


def _differences(results: Results) -> dict[str, list[Difference]]:
    """Return the differences of the headline's student to other models, and those between the other models."""
    named = [difference for difference in results.differences if difference.metric in results.headline_metrics]
    student = _headline_model(results)
    own = [difference for difference in named if student and student.name in (difference.first, difference.second)]
    return {"differences": own, "other_differences": [difference for difference in named if difference not in own]}


def _headline_model(results: Results) -> ModelResult | None:
    students = [row for row in results.methods if row.kind in ("student", "baseline")]
    return next((row for row in students if row.name == results.taken), students[-1] if students else None)


def speedups(results: Results) -> dict[str, float]:
    """Return the speed of every model relative to the deepest teacher (of several equally deep ones, the slowest)."""
    deepest = _deepest(results)
    if deepest is None:
        return {}
    base = deepest.size["pairs_per_second"]
    return {
        row.name: row.size["pairs_per_second"] / base for row in results.methods if row.size.get("pairs_per_second")
    }


def _deepest(results: Results) -> ModelResult | None:
    """The deepest teacher that was timed, of several the slowest; None where none was."""
    timed = [row for row in results.methods if row.kind == "teacher" and row.size.get("pairs_per_second")]
    return max(timed, key=lambda row: (row.size.get("layers") or 0, -row.size["pairs_per_second"]), default=None)


def headline(results: Results) -> str:
    """Say in one sentence how many teachers became which student, what it keeps and how much faster it is."""
    student = _headline_model(results)
    if student is None:
        return ""
    teachers = [row for row in results.methods if row.kind == "teacher"]
    once = student.size.get("encoder_parameters")
    text = "one student"
    if student.size.get("layers"):
        kind = "interaction layer" if once else "layer"
        text += f" of {student.size['layers']} {kind}{'s' if student.size['layers'] > 1 else ''}"
    keeps = " keeps"
    if results.taught_by:
        text, keeps = f"{_who_taught(results.taught_by, results)} became {text}", " that keeps"
    elif results.taught_by == 0:
        text, keeps = f"{text}, trained on labels alone", ", keeps"
    whose = "the ensemble's" if results.relative_to == ENSEMBLE else "the teacher's"
    if results.relative_to != ENSEMBLE and len(teachers) + len(results.unmeasured) > 1:
        best = results.relative_to.removeprefix("teacher:")
        whose = f"{best}'s" if results.unmeasured else "the best teacher's"
    kept = [
        f"{percent(student.kept[name])} of {whose} {TITLES[name]}"
        for name in results.headline_metrics
        if name in student.kept
    ]
    if kept:
        text += f"{keeps} {' and '.join(kept)}"
    every = speedups(results)
    if (deepest := _deepest(results)) is not None and student.name in every:
        timed = all(row.size.get("pairs_per_second") for row in teachers)
        one = "one teacher" if timed else f"the teacher {deepest.name.removeprefix('teacher:')}"
        text += f", {every[student.name]:.1f} times as fast as {one}"
        text += " once passages are read" if once else ""
        if ENSEMBLE in every:
            text += f" and {every[student.name] / every[ENSEMBLE]:.1f} times as fast as the ensemble"
        fastest = max(results.exports, key=lambda row: float(row["pairs_per_second"]), default=None)
        if fastest is not None and student.name == results.taken:
            faster = fastest["pairs_per_second"] / deepest.size["pairs_per_second"]
            text += f"; exported ({fastest['backend']}) {faster:.1f} times as fast as that teacher in PyTorch"
    return text[0].upper() + text[1:] + "."


def _who_taught(number: int, results: Results) -> str:
    """The teachers in words; with their depth where it is known of all, which that of embedding models is not."""
    depths = {row.size.get("layers") or 0 for row in results.methods if row.kind == "teacher"}
    text = "1 teacher" if number == 1 else f"{number} teachers"
    if results.unmeasured or not depths or not all(depths):
        return text
    return f"{text} of {'up to ' if len(depths) > 1 else ''}{max(depths)} layers"


def cached_students(results: Results) -> list[str]:
    """Say how the encoders of cached students were made, in a sentence for those that were made alike."""
    alike: dict[str, list[str]] = {}
    for row in results.methods:
        if about := row.size.get("cached"):
            alike.setdefault(_encoder_in_words(about), []).append(row.name)
    return [f"{', '.join(names)}: {words}" for words, names in alike.items()]


def _encoder_in_words(about: Mapping[str, Any]) -> str:
    rate = f"trained along with the interaction layers at a peak learning rate of {about['encoder_learning_rate']:g}"
    before = "trained along by the run that stage 1 is from, and frozen in this one"
    how = {"no": "frozen", "along": rate, "last": f"{rate}, in the last stage alone", "before": before}[
        about["trained"]
    ]
    encoder = f"{about['encoder']} with {_counted(about['encoder_layers'], 'layer')}"
    text = f"the encoder is {encoder}, {how}"
    if about["question_encoder"]:
        text = f"the encoder of passages is {encoder}, that of questions {about['question_encoder']}; both are {how}"
    text += f". {about['state_size']} numbers of each token of a passage are stored, and the question reads them in "
    return f"{text}{_counted(about['layers'], 'interaction layer')}."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
