"""A study: variants of recipes with several seeds each. It is read, checked and laid out as cells before it runs."""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from tmkd.config.load import number, parse_beside, read_content, set_keys, validate
from tmkd.config.methods import chosen_method
from tmkd.config.recipe import BEST, Recipe
from tmkd.config.sections import Part, Seeds
from tmkd.core.errors import RecipeError
from tmkd.core.files import named_twice
from tmkd.evaluation.results import METRICS

OWN_KEYS = ("seeds", "methods")  # of a recipe, set by the study


class StudyTask(Part):
    """One recipe of a study, and the keys that all variants change in it."""

    recipe: str = Field(description="a recipe's file, beside the study's or as given")
    keys: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, such as `stage1.epochs: 2`")


class Study(Part):
    """Variants of recipes over seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="the study's name under studies/")
    tasks: tuple[StudyTask, ...] = Field(min_length=1, description="measured together: a number is the mean over them")
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict, description="keys of the recipe by variant")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="values by key of the recipe; each combination of them is a variant"
    )
    against: str | None = Field(None, description="the variant that others are compared with; the first unless given")
    seeds: Seeds = Field((0, 1, 2, 3, 4), description="one student of every variant per seed")
    metric: str = Field("auc", description=f"what decides, of: {', '.join(METRICS)}; the others are in the table")
    margin: float | None = Field(
        None, gt=0, description="also ask whether the variant `against` is worse than another by no more than this"
    )

    @field_validator("grid")
    @classmethod
    def _values(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in grid.items():
            if not values:
                raise ValueError(f"{key} has no values; list two or more")
            if len({repr(number(value)) for value in values}) < len(values):
                raise ValueError(f"{key} has a value twice: {values}")
        return {key: [number(value) for value in values] for key, values in grid.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if self.metric not in METRICS:
            raise ValueError(f"metric: {self.metric!r} is not one; there are: {', '.join(METRICS)}")
        names = list(self.all_variants())
        if twice := named_twice([*self.variants, *(name for name, _ in self._of_grid())]):
            raise ValueError(
                f"two variants are called {twice[0]!r}; rename the one in `variants`, or change the `grid`"
            )
        if len(names) < 2:
            raise ValueError("give two or more `variants`, or a `grid` of two or more values")
        if self.against is not None and self.against not in names:
            near = difflib.get_close_matches(self.against, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
            raise ValueError(f"against: {self.against!r} is not a variant; {hint}")
        own = {key: f"variant {name!r}" for name, keys in self.all_variants().items() for key in keys}
        own |= {key: f"task {task.recipe}" for task in self.tasks for key in task.keys}
        for key in OWN_KEYS:
            if key in own:
                raise ValueError(f"{own[key]} sets {key!r}, which a study sets itself (a method is the key `take`)")
        return self

    def all_variants(self) -> dict[str, dict[str, Any]]:
        """The keys of each variant: the named ones, then the grid's combinations, which their keys and values name."""
        return {**self.variants, **dict(self._of_grid())}

    def _of_grid(self) -> list[tuple[str, dict[str, Any]]]:
        """The name and the keys of each combination of the grid's values."""
        every = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        named = [(", ".join(f"{self.short(key)}={value}" for key, value in keys.items()), keys) for keys in every]
        return named if self.grid else []  # no key at all has one combination

    def short(self, key: str) -> str:
        """The short name of a key of the grid: its last part, unless another key ends in the same way."""
        last = key.rpartition(".")[2]
        return last if sum(other.rpartition(".")[2] == last for other in self.grid) == 1 else key

    @property
    def reference(self) -> str:
        """The variant that others are compared with."""
        return self.against or next(iter(self.all_variants()))


@dataclass(frozen=True)
class Cell:
    """One student to train and measure: a task, a variant and a seed. The recipe trains this student alone."""

    task: str
    variant: str
    seed: int
    recipe: Recipe

    def __str__(self) -> str:
        return f"{self.task}, {self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A study and its cells: task by task, variant by variant, seed by seed."""

    study: Study
    cells: list[Cell]

    @property
    def tasks(self) -> list[str]:
        """The tasks' names."""
        return list(dict.fromkeys(cell.task for cell in self.cells))


def load_study(path: Path, overrides: list[str] | None = None) -> Plan:
    """Read and validate a study and all of its recipes, so that nothing fails late. Each file is read once.

    Args:
        path: the study's YAML file.
        overrides: `key=value` pairs that replace keys of the study.

    Raises:
        RecipeError: a file or key that `load_recipe` would refuse (the error names the variant), two tasks with the
            same name, or a metric that is not defined for the number of classes.
    """
    study = validate(Study, read_content(path, overrides), str(path))
    contents: dict[str, dict[str, Any]] = {}
    cells: list[Cell] = []
    for task in study.tasks:
        file = str(found if (found := path.parent / task.recipe).is_file() else task.recipe)
        if file not in contents:
            contents[file] = read_content(Path(file))
        by_variant = {
            name: _recipe(study, contents[file], file, task, name, keys) for name, keys in study.all_variants().items()
        }
        name = _name(by_variant.values())
        if name in {cell.task for cell in cells}:
            raise RecipeError(f"{path}: two tasks are called {name!r}; give one of them another `keys: {{name: ...}}`")
        for variant, recipe in by_variant.items():
            cells += [Cell(name, variant, seed, recipe.model_copy(update={"seeds": (seed,)})) for seed in study.seeds]
    return Plan(study, cells)


def _recipe(
    study: Study, content: dict[str, Any], file: str, task: StudyTask, variant: str, keys: dict[str, Any]
) -> Recipe:
    """The recipe of one variant, which trains only the method that is measured."""
    where = f"study {study.name}, variant {variant!r}"
    of_task = {key: value for key, value in task.keys.items() if key not in keys}
    changed, recipe_keys = copy.deepcopy(content), {**of_task, **keys}  # in this order: the variant's are set last
    try:
        set_keys(changed, [(key, copy.deepcopy(value), f"key {key!r}") for key, value in recipe_keys.items()])
        if recipe_keys.get("take", BEST) != BEST:
            changed["methods"] = [changed["take"]]
        recipe = parse_beside(changed, Path(file))
    except RecipeError as error:
        raise error.within(where) from error
    if recipe.take == BEST:
        raise RecipeError(
            f"{where}: take: best chooses among several methods, and a study trains one; set the method, for example "
            "`keys: {take: tmkd}`",
            key="take",
        )
    if recipe.classes != 2 and study.metric != "accuracy":
        raise RecipeError(f"{where}: metric {study.metric!r} is not defined for {recipe.classes} classes; use accuracy")
    if recipe.ensemble == "stacked-dev" and chosen_method(recipe.take, recipe.student.kind).targets == "mean":
        raise RecipeError(
            f"{where}: ensemble: stacked-dev fits its weights on the development set, and a study measures "
            f"{recipe.take}, which learns that ensemble, on the same pairs; take ensemble: stacked",
            key="ensemble",
        )
    return recipe.model_copy(update={"methods": (recipe.take,)})


def _name(recipes: Iterable[Recipe]) -> str:
    """The recipe's name, and the method where it is the same in every variant."""
    names, taken = ({getattr(recipe, key): None for recipe in recipes} for key in ("name", "take"))
    return ", ".join([next(iter(names)), *(taken if len(taken) == 1 else [])])
