"""A study: variants of recipes, several seeds each, measured on development rows against the first variant.

Every student is a step of the workspace, so variants share what they have in common (teachers, labels, stage 1), an
interrupted study continues, and a longer one runs only what is missing. Test rows are not read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from rich.table import Table

from tmkd.errors import RecipeError
from tmkd.evaluation.compare import METRICS, TITLES
from tmkd.evaluation.intervals import Interval, Resamples, distributions, interval
from tmkd.evaluation.metrics import Floats, Questions
from tmkd.files import write_json
from tmkd.pipeline import Pipeline
from tmkd.progress import say
from tmkd.recipe import Part, Recipe, load_recipe, read_content, validate
from tmkd.workspace import Workspace

Distribution = tuple[float, Floats]
"""A metric's value and its bootstrap distribution, [B]."""


class Task(Part):
    """One recipe, and what every variant changes in it."""

    recipe: str = Field(description="a recipe's file, beside the study's or as given")
    keys: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, such as `stage1.epochs: 2`")


class Study(Part):
    """Variants of recipes over seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="the study's name under studies/")
    tasks: tuple[Task, ...] = Field(min_length=1, description="measured together: a number is the mean over them")
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="keys of the recipe by variant; the first one is what others are held against"
    )
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="values by key of the recipe; each combination of them is a variant"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1, description="one student of every variant per seed")
    metric: str = Field("auc", description=f"of: {', '.join(METRICS)}")
    margin: float = Field(0.015, gt=0, description="the first variant may be worse than another by no more than this")

    @model_validator(mode="after")
    def _has_variants(self) -> Study:
        if self.metric not in METRICS:
            raise ValueError(f"metric: {self.metric!r} is not one; there are: {', '.join(METRICS)}")
        if len(self.all_variants()) < 2:
            raise ValueError("give two or more `variants`, or a `grid` of two or more values")
        return self

    def all_variants(self) -> dict[str, dict[str, Any]]:
        """The named variants, then the grid's combinations, named by their values."""
        found = dict(self.variants)
        if self.grid:
            for values in itertools.product(*self.grid.values()):
                keys = dict(zip(self.grid, values, strict=True))
                found[", ".join(f"{key}={value}" for key, value in keys.items())] = keys
        return found


@dataclass(frozen=True)
class Cell:
    """One variant on one task, or on the mean of all (task: "all").

    Attributes:
        value: the metric, mean over seeds.
        ahead: the first variant's metric less this one's, on the same resamples.
        seconds: of training, of one student, mean over seeds; None where it is not known.
    """

    task: str
    variant: str
    value: Interval
    ahead: Interval | None
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished study."""

    study: Study
    cells: list[Cell]

    @property
    def no_worse(self) -> dict[str, bool]:
        """By variant: whether the first one is worse by no more than the margin (lower 95% bound, mean over tasks)."""
        together = [cell for cell in self.cells if cell.task == "all" and cell.ahead is not None]
        return {cell.variant: cell.ahead.low > -self.study.margin for cell in together if cell.ahead}

    def to_json(self) -> dict[str, Any]:
        """{"study", "metric", "seeds", "margin", "no_worse", "rows": [{"task", "variant", "mean", ...}]}."""
        rows = []
        for cell in self.cells:
            row = {"task": cell.task, "variant": cell.variant, **cell.value.to_json()}
            row |= {} if cell.ahead is None else {"ahead": cell.ahead.to_json()}
            row |= {} if cell.seconds is None else {"seconds": cell.seconds}
            rows.append(row)
        told = {"metric": self.study.metric, "seeds": list(self.study.seeds), "margin": self.study.margin}
        return {"study": self.study.name, **told, "no_worse": self.no_worse, "rows": rows}

    def table(self) -> Table:
        """For a terminal."""
        first = next(iter(self.study.all_variants()))
        shown = Table(title=f"{self.study.name}: {len(self.study.seeds)} seeds, development rows", title_justify="left")
        columns = ("task", "variant", TITLES[self.study.metric], f"{first} is ahead by", "s a student")
        for column in columns:
            shown.add_column(column, justify="left" if column in ("task", "variant") else "right")
        for cell in self.cells:
            ahead = "" if cell.ahead is None else _span(cell.ahead, "+")
            seconds = "" if cell.seconds is None else f"{cell.seconds:,.0f}"
            shown.add_row(cell.task, cell.variant, _span(cell.value, ""), ahead, seconds)
        return shown

    def sentences(self) -> list[str]:
        """What is held against the first variant, in words."""
        first, margin = next(iter(self.study.all_variants())), self.study.margin
        return [
            f"{first} is {'no worse than' if passed else 'not shown to be as good as'} {name} (margin {margin:g})"
            for name, passed in self.no_worse.items()
        ]


def _span(value: Interval, sign: str) -> str:
    return f"{value.mean:{sign}.4f} ({value.low:{sign}.4f} to {value.high:{sign}.4f})"


def load_study(path: Path, overrides: list[str] | None = None) -> Study:
    """Read and validate a study and, so that nothing fails late, every recipe that it would run.

    Raises:
        RecipeError: as `load_recipe` does.
    """
    study = validate(Study, read_content(path, overrides), str(path))
    beside = [
        task.model_copy(
            update={"recipe": str(found if (found := path.parent / task.recipe).is_file() else task.recipe)}
        )
        for task in study.tasks
    ]
    study = study.model_copy(update={"tasks": tuple(beside)})
    for _ in _recipes(study):
        pass
    return study


def _recipes(study: Study) -> Iterator[tuple[int, str, Recipe]]:
    """Every task (its number) with every variant, as a recipe that trains what is measured and no more."""
    for number, task in enumerate(study.tasks):
        for name, keys in study.all_variants().items():
            changed = {**task.keys, **keys, "seeds": list(study.seeds)}
            if "take" in changed:
                changed.setdefault("methods", [changed["take"]])
            try:
                recipe = load_recipe(
                    Path(task.recipe), [f"{key}={json.dumps(value)}" for key, value in changed.items()]
                )
            except RecipeError as error:
                raise RecipeError(f"study {study.name}, variant {name!r}: {error}") from error
            yield number, name, recipe.model_copy(update={"methods": (recipe.take,)})


def run_study(study: Study, workspace: Workspace) -> Outcome:
    """Train what is missing, measure on development rows."""
    whole = list(_recipes(study))
    drawn: dict[str, dict[str, Distribution]] = {}
    seconds: dict[tuple[str, str], float] = {}
    for done, (number, variant, recipe) in enumerate(whole, start=1):
        say(f"study {study.name}: {recipe.name}, {variant} ({done} of {len(whole)})")
        pipeline = Pipeline(recipe, workspace)
        task = f"{recipe.name}, {recipe.take}"
        drawn.setdefault(task, {})[variant] = _measure(pipeline, study.metric, seed=number)
        seconds[task, variant] = _training_seconds(pipeline)
    steps = [step.folder.name for step in workspace.used]
    write_json(workspace.root / "studies" / study.name / "manifest.json", {"study": study.model_dump(), "steps": steps})
    cells = [
        Cell(task, variant, interval(*found), _ahead(by_variant, variant), seconds[task, variant])
        for task, by_variant in drawn.items()
        for variant, found in by_variant.items()
    ]
    together = {variant: _mean([found[variant] for found in drawn.values()]) for variant in study.all_variants()}
    cells += [Cell("all", name, interval(*found), _ahead(together, name)) for name, found in together.items()]
    return Outcome(study, cells)


def _measure(pipeline: Pipeline, metric: str, seed: int) -> Distribution:
    """The taken method's metric on development rows, over seeds; `seed` draws the same resamples for every variant."""
    dev = pipeline.data.dev
    known = np.flatnonzero(dev.labels >= 0)
    labelled = dev.take(known)
    questions = Questions.of(labelled.labels, labelled.qids)
    taken = pipeline.taken()
    found = distributions(Resamples(questions, 2000, seed), pipeline.student_logits(taken, dev)[:, known])
    if metric not in found:
        raise RecipeError(f"metric: {metric!r} has no meaning on {pipeline.recipe.name}; there are: {', '.join(found)}")
    return found[metric]


def _training_seconds(pipeline: Pipeline) -> float:
    """Of one student's last stage, mean over seeds: pairs over the rate that its curve ends with."""
    rows = len(pipeline.data.train)
    found = []
    for step in pipeline.taken().steps:
        curve = json.loads((step.folder / "curve.json").read_text())
        found.append(rows * curve[-1]["epoch"] / curve[-1]["pairs_per_second"])
    return float(np.mean(found))


def _ahead(by_variant: Mapping[str, Distribution], variant: str) -> Interval | None:
    """The first variant's metric less that of `variant`."""
    first = next(iter(by_variant))
    if variant == first:
        return None
    (value, drawn), (theirs, their_drawn) = by_variant[first], by_variant[variant]
    return interval(value - theirs, drawn - their_drawn)


def _mean(found: list[Distribution]) -> Distribution:
    """Over tasks; their questions differ, so their resamples are independent of one another."""
    return float(np.mean([value for value, _ in found])), np.mean([drawn for _, drawn in found], axis=0)
