"""The rows of a run: train, dev, test, the pool of stage 1, and what its students see of them."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.config.recipe import Recipe
from tmkd.core.files import digest_of
from tmkd.core.hardware import describe, prepare
from tmkd.data.mining import Material
from tmkd.data.pairs import Pairs
from tmkd.data.split import STAGE1, subsample
from tmkd.data.tasks import TaskData, load_task
from tmkd.pipeline.steps.pool import pool_of
from tmkd.pipeline.store.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass
class Shared:
    """What the pipelines of one process have in common: rows, labels in memory, and what the log said already."""

    tasks: dict[str, TaskData] = field(default_factory=dict)
    materials: dict[str, list[Material]] = field(default_factory=dict)
    pools: dict[str, tuple[Pairs, list[dict[str, Any]]]] = field(default_factory=dict)
    logits: dict[tuple[str, str, str], NDArray[np.float32]] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def say(self, text: str) -> None:
        """A line of the log, once."""
        if text not in self.said:
            logger.info(text)
            self.said.add(text)


class Rows:
    """One recipe in one workspace, and its rows. Every part is computed when it is first asked for."""

    def __init__(self, recipe: Recipe, workspace: Workspace, shared: Shared | None = None) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.shared = shared or Shared()
        self.run = workspace.root / "runs" / recipe.name
        prepare(attention=recipe.attention)
        self.shared.say(f"running on {describe(recipe.precision)}")

    @functools.cached_property
    def _rows_key(self) -> str:
        """What the rows depend on in the recipe."""
        return digest_of([self.recipe.data.model_dump(exclude={"train_share"}), self.recipe.classes])

    @functools.cached_property
    def data(self) -> TaskData:
        """Train, dev, test and pool."""
        key = self._rows_key
        if key in self.shared.tasks:
            return self.shared.tasks[key]
        task = self.shared.tasks[key] = load_task(self.recipe.data, self.recipe.classes)
        pool = f", pool {len(task.pool):,}" if task.pool is not None else ""
        self.shared.say(f"data: train {len(task.train):,}, dev {len(task.dev):,}, test {len(task.test):,}{pool} pairs")
        return task

    @functools.cached_property
    def _mined(self) -> tuple[Pairs, list[dict[str, Any]]]:
        key = digest_of([self.recipe.model_dump(include={"pool"}), self._rows_key])
        if key not in self.shared.pools:
            self.shared.pools[key] = pool_of(self.workspace, self.recipe, self.data, self.shared.materials)
        return self.shared.pools[key]

    @property
    def pool(self) -> Pairs:
        """The pairs of stage 1: the pool, or the training pairs where there is none."""
        return self._mined[0]

    @functools.cached_property
    def stage1_rows(self) -> NDArray[np.int64]:
        """The pairs of the pool that students see (`stage1.share`), [n].

        Raises:
            DataError: the share leaves no pair.
        """
        share = self.recipe.stage1.share
        return subsample(
            self.pool,
            share,
            STAGE1,
            none=f"stage1.share: {share} leaves none of the {len(self.pool):,} pairs of the pool",
        )

    @functools.cached_property
    def student_rows(self) -> NDArray[np.int64]:
        """The training rows that students see (`data.train_share`), [n].

        Raises:
            DataError: the share leaves no row.
        """
        share, train = self.recipe.data.train_share, self.data.train
        none = f"data.train_share: {share} leaves none of {len(set(train.qids)):,} training questions"
        return subsample(train, share, none=none)

    @functools.cached_property
    def student_pairs(self) -> Pairs:
        """The training pairs that students see."""
        train = self.data.train
        return train if self.recipe.data.train_share == 1 else train.take(self.student_rows)

    @property
    def foreign_pool(self) -> bool:
        """Whether the pool is of another task, with teachers of its own (`pool.teachers`)."""
        return self.recipe.pool is not None and bool(self.recipe.pool.teachers)
