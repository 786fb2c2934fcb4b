"""A finished run as its manifest describes it: the recipe, and the steps that hold its models."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmkd.config.load import parse_recorded_recipe
from tmkd.config.recipe import Recipe
from tmkd.core.errors import TmkdError
from tmkd.core.files import read_json
from tmkd.evaluation.results import Kind
from tmkd.pipeline.steps.stacking import StackedTeachers
from tmkd.pipeline.store.fingerprint import with_precision_of_machine
from tmkd.pipeline.store.workspace import Step, Workspace


@dataclass(frozen=True)
class RunModel:
    """One model of a run: a teacher, a baseline or a student.

    Attributes:
        name: what reports call it; a teacher's name begins with `teacher:`.
        kind: what it is in a comparison.
        steps: the folders' names of its steps, one after the other for every seed; none for a teacher that is no model
            of the workspace.
        each: how many steps belong to one seed (K for `m-o-m`, otherwise 1).
        calibration: the folder's name of a teacher's calibration; None if it has none.
    """

    name: str
    kind: Kind
    steps: tuple[str, ...]
    each: int = 1
    calibration: str | None = None


@dataclass(frozen=True)
class FinishedRun:
    """What a run's manifest says.

    Attributes:
        folder: the run's folder, `runs/NAME/`.
        recipe: the resolved recipe, with the precision of this machine where it says `auto`.
        models: the run's models, teachers first.
        take: the method whose student is exported.
        choice: how it was chosen (`tmkd.pipeline.choice.Choice.to_json`); empty in runs of earlier versions.
        stage1: the folder's name of that student's stage-1 step; empty if it has none.
        ensemble: the folder's name of the step of the stacked ensemble (`step`), and its `teachers`; empty where the
            ensemble is the mean.
        development: what the development set says of the teachers (`tmkd.pipeline.development`); empty in runs of
            earlier versions.
        workspace: the workspace that holds the steps.
    """

    folder: Path
    recipe: Recipe
    models: tuple[RunModel, ...]
    take: str
    choice: dict[str, Any]
    stage1: tuple[str, ...]
    workspace: Workspace
    ensemble: dict[str, Any] = field(default_factory=dict)
    development: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def stacked(self) -> StackedTeachers | None:
        """The stacked ensemble; None where the ensemble is the mean."""
        if not self.ensemble:
            return None
        return StackedTeachers(self.steps((self.ensemble["step"],))[0], self.ensemble["teachers"])

    @classmethod
    def read(cls, folder: Path, workspace: Workspace | None = None) -> FinishedRun:
        """Read a run.

        Args:
            folder: the run's folder, such as `workspace/runs/demo`.
            workspace: the workspace around it; a new object for the same folder unless given.

        Raises:
            TmkdError: the folder has no manifest, or does not lie in a workspace.
            RecipeError: the manifest's recipe is not valid.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise TmkdError(
                f"{folder} is not a finished run (no manifest.json); give a folder such as workspace/runs/demo"
            )
        root = folder.resolve().parent.parent
        if not (root / "steps").is_dir():
            raise TmkdError(f"{folder} lies in no workspace: its models are in {root / 'steps'}, which is not there")
        content = read_json(path)
        models = tuple(
            RunModel(one["name"], one["kind"], tuple(one["steps"]), one.get("each", 1), one.get("calibration"))
            for one in content["models"]
        )
        recipe = with_precision_of_machine(parse_recorded_recipe(content["recipe"], str(path)))
        stage1 = tuple(content.get("stage1", ()))
        choice = content.get("choice", {})
        given = workspace or Workspace(root)
        ensemble = content.get("ensemble", {})
        development = content.get("development", {})
        return cls(folder, recipe, models, content["take"], choice, stage1, given, ensemble, development)

    def steps(self, names: tuple[str, ...]) -> list[Step]:
        """The finished steps with these folder names.

        Raises:
            TmkdError: a step was removed.
        """
        steps = []
        for name in names:
            kind, _, fingerprint = name.rpartition("-")
            folder = self.workspace.root / "steps" / name
            if not folder.is_dir():
                raise TmkdError(f"{folder} is gone; run the recipe again to make it anew")
            steps.append(Step(kind, fingerprint, folder))
        return steps

    def curves(self) -> dict[str, list[dict[str, float]]]:
        """The learning curve of every model's first seed by the model's name, and that of `stage 1`."""
        found = {}
        for name, names in [*((model.name, model.steps) for model in self.models), ("stage 1", self.stage1)]:
            for step in self.steps(names[:1]):
                path = step.folder / "curve.json"
                if path.is_file():
                    found[name] = read_json(path)
        return found
