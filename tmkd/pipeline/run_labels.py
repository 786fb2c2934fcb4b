"""The labels of a run, finished or not, as they are stored: nothing is trained and nothing is labelled."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.config.load import parse_recorded_recipe
from tmkd.core.errors import TmkdError
from tmkd.core.files import read_json
from tmkd.data.pairs import Pairs
from tmkd.data.split import folds
from tmkd.pipeline.run_data import RunCache, RunData
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import UNFINISHED, StepMissing, Workspace
from tmkd.pipeline.teacher_labels import TeacherLabels
from tmkd.training.targets import mean_logits

PARTS = ("train", "dev", "test", "pool")
"""The sets of pairs of a run."""


class RunLabels:
    """The stored labels of a run.

    Args:
        folder: the run's folder, `runs/NAME/` of a workspace.

    Attributes:
        folder: the run's folder.
        workspace: the workspace around it, which is only read.
        steps: the names of the steps that the run used.

    Raises:
        TmkdError: the folder is that of no run, or does not lie in a workspace.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        records = [self.folder / name for name in ("manifest.json", UNFINISHED)]
        self._records = [(path, read_json(path)) for path in records if path.is_file()]
        if not self._records:
            raise TmkdError(
                f"{folder} is not a run (no manifest.json, and no {UNFINISHED}); give a folder such as "
                "workspace/runs/demo"
            )
        root = self.folder.resolve().parent.parent
        if not (root / "steps").is_dir():
            raise TmkdError(f"{folder} lies in no workspace: its labels are in {root / 'steps'}, which is not there")
        self.workspace = Workspace(root).read_only()
        self.steps = {name for _, content in self._records for name in content["steps"]}

    @functools.cached_property
    def _labels(self) -> TeacherLabels:
        """The teachers and the pairs as the run's recipe has them.

        Raises:
            TmkdError: the run does not say its recipe (an unfinished one of an earlier version), or what it names
                cannot be read any more.
        """
        for path, content in self._records:
            if "recipe" in content:
                recipe = parse_recorded_recipe(content["recipe"], str(path))
                return TeacherLabels(RunData(recipe, self.workspace, RunCache()))
        raise TmkdError(f"{self.folder}: the run is not finished and does not say its recipe; run the recipe again")

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self._labels.recipe.classes

    @property
    def positive(self) -> int:
        """Of two classes the one of the right passages."""
        return self._labels.recipe.positive_class

    @property
    def teachers(self) -> list[str]:
        """The teachers' names, in the order of the recipe."""
        return [teacher.name for teacher in self._labels.recipe.used_teachers]

    @functools.cached_property
    def pairs(self) -> dict[str, Pairs]:
        """The sets of pairs by name: train, dev, test and, where there is one, the pool.

        Of the training pairs and of the pool they are those that students see (`data.train_share`; `pool.sampling`,
        `stage1.share`).
        """
        data = self._labels.data
        found = {"train": data.student_pairs, "dev": data.dev, "test": data.test}
        try:
            pool = data.pool
        except StepMissing:  # it was not mined yet
            return found
        with suppress(StepMissing):  # the teachers whose scores sample it have not labelled it yet
            pool = self._labels.stage1_pool
        return found if pool is data.train else {**found, "pool": pool}

    @functools.cached_property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """The names of the sets of pairs by their digest, as the steps that label them depend on it."""
        found: dict[str, tuple[str, ...]] = {}
        named, data = dict(self.pairs), self._labels.data
        if len(data.train) > len(named["train"]):
            named["all of train"] = data.train
        if "pool" in named and len(data.pool) > len(named["pool"]):
            named["all of the pool"] = data.pool
        if self._labels.are_out_of_fold("train"):
            fold, count = folds(data.train, data.recipe.folds), data.recipe.folds
            for number in range(count):
                named[f"fold {number + 1} of {count} of train"] = data.train.take(np.flatnonzero(fold == number))
        for name, pairs in named.items():
            for one in (pairs, pairs.distinct()):
                mark = depends_on(settings={}, inputs={"pairs": one})["inputs"]["pairs"]
                found[mark] = tuple(dict.fromkeys([*found.get(mark, ()), name]))
        return found

    def logits(self, part: str) -> dict[str, NDArray[np.float32]]:
        """The logits of the teachers that have labelled a set of pairs, as students learn them.

        They are calibrated and, of the training pairs where the recipe says so, out-of-fold.

        Args:
            part: the set's name (`PARTS`).

        Returns:
            By the teacher's name [N, C] float32 in the order of the pairs; nan where a partial teacher has no label.

        Raises:
            LabelError: labels are missing, as where a part of them is damaged.
        """
        if part == "pool" and self._labels.recipe.foreign_pool:  # it is labelled by other teachers, of another task
            return {}
        found, pairs = {}, self.pairs[part]
        for name in self.teachers:
            labels, number = self._alone(name)
            try:
                if number in labels.labellers(pairs):
                    found[name] = labels.learned(number, pairs, part).logits
            except StepMissing:  # it is not trained yet, or has not labelled them
                continue
        return found

    def _alone(self, name: str) -> tuple[TeacherLabels, int]:
        """The labels of one teacher, with the one that a warm start learns from, and its index in them.

        So the labels of a teacher are found whether the others are trained yet or not.
        """
        recipe = self._labels.recipe
        needed = {name, recipe.warm_up.teacher if recipe.warm_up else None}
        some = tuple(one for one in recipe.teachers if one.name in needed)
        alone = TeacherLabels(
            RunData(
                recipe.model_copy(update={"teachers": some, "use_teachers": None}), self.workspace, self._labels.cache
            )
        )
        return alone, [one.name for one in alone.recipe.used_teachers].index(name)

    def ensemble(self, logits: dict[str, NDArray[np.float32]]) -> NDArray[np.floating[Any]] | None:
        """The ensemble of some teachers as the recipe has it.

        Args:
            logits: the teachers' logits [N, C] by name (`logits`).

        Returns:
            [N, C] float64; nan for a pair that no teacher labels. None for fewer than two teachers, and where the
            weights of a stacked ensemble are not there yet.
        """
        if len(logits) < 2:
            return None
        try:
            stacked = self._labels.stacked
        except StepMissing:
            return None
        found = None if stacked is None else stacked.together(logits)
        return mean_logits(list(logits.values())) if found is None else found
