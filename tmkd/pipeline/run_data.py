"""The pairs of a run: train, dev, test, the pool of stage 1, and the share of them that its students see."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.config.recipe import Recipe
from tmkd.config.teacher_sections import Teacher
from tmkd.core.files import digest_of
from tmkd.data.mining import Material
from tmkd.data.pairs import Pairs
from tmkd.data.split import BAGS, STAGE1, subsample
from tmkd.data.tasks import TaskData, load_task
from tmkd.pipeline.steps.other_tasks import LoadedTask, labelled_pairs, load_others, unseen_by_folds
from tmkd.pipeline.steps.pool import pool_of
from tmkd.pipeline.store.fingerprint import with_precision_of_machine
from tmkd.pipeline.store.workspace import Workspace
from tmkd.teachers.interface import StoredTeacher

logger = logging.getLogger(__name__)
_KEPT = 1 << 26  # bytes of logits in the cache at most; larger ones are joined again in seconds


@dataclass
class RunCache:
    """What the runs of one process keep in memory, so that none reads, mines or loads twice.

    Attributes:
        tasks: the pairs of a recipe, by what they depend on.
        materials: what the sources of a pool hold, by what they depend on.
        pools: the pairs of stage 1 and what came of each source, by what they depend on.
        logits: a model's logits [N, C] float32, by its fingerprint, the digest of the pairs and the precision.
        stored_teachers: teachers that label pairs themselves, with what they keep in memory.
        said: lines that were logged.
    """

    tasks: dict[str, TaskData] = field(default_factory=dict)
    materials: dict[str, list[Material]] = field(default_factory=dict)
    pools: dict[str, tuple[Pairs, list[dict[str, Any]]]] = field(default_factory=dict)
    logits: dict[tuple[str, str, str], NDArray[np.float32]] = field(default_factory=dict)
    stored_teachers: dict[str, StoredTeacher] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def logits_by(self, key: tuple[str, str, str], read: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The logits that are kept by a key; they are read where they are not, and kept unless they are large."""
        found = self.logits.get(key)
        if found is None:
            found = read()
            if found.nbytes <= _KEPT:
                self.logits[key] = found
        return found

    def say_once(self, text: str, level: int = logging.INFO) -> None:
        """Log a line unless it was logged before."""
        if text not in self.said:
            logger.log(level, text)
            self.said.add(text)


class RunData:
    """The pairs of one recipe. They are read, and the pool is mined, when they are first asked for.

    Args:
        recipe: names the files.
        workspace: holds the mined pool.
        cache: shared with the other runs of this process.

    Attributes:
        recipe: the recipe, with the precision of this machine where it says `auto`.
    """

    def __init__(self, recipe: Recipe, workspace: Workspace, cache: RunCache) -> None:
        self.recipe = with_precision_of_machine(recipe)
        self.workspace = workspace
        self.cache = cache

    def on(self, workspace: Workspace) -> RunData:
        """The same data in another view of the workspace."""
        return RunData(self.recipe, workspace, self.cache)

    @functools.cached_property
    def _task_key(self) -> str:
        """What the task's pairs depend on in the recipe."""
        return digest_of([self.recipe.data.model_dump(exclude={"train_share"}), self.recipe.classes])

    @property
    def task(self) -> TaskData:
        """Train, dev, test and the pool as the recipe's `data` gives them.

        Raises:
            DataError: a file that cannot be used, named with the reason.
        """
        key = self._task_key
        if key not in self.cache.tasks:
            task = self.cache.tasks[key] = load_task(self.recipe.data, self.recipe.classes, self.workspace.tokens)
            pool = f", pool {len(task.pool):,}" if task.pool is not None else ""
            sizes = f"train {len(task.train):,}, dev {len(task.dev):,}, test {len(task.test):,}{pool} pairs"
            self.cache.say_once(f"data: {sizes}")
        return self.cache.tasks[key]

    @property
    def train(self) -> Pairs:
        """The training pairs."""
        return self.task.train

    @property
    def dev(self) -> Pairs:
        """The development set: every choice is made on it."""
        return self.task.dev

    @property
    def test(self) -> Pairs:
        """The test pairs: only the report reads them."""
        return self.task.test

    @property
    def _pool_key(self) -> str:
        return digest_of([self.recipe.model_dump(include={"pool"}), self._task_key])

    @property
    def pool(self) -> Pairs:
        """The pairs of stage 1: the pool, or the training pairs where there is none."""
        key = self._pool_key
        if key not in self.cache.pools:
            self.cache.pools[key] = pool_of(self.workspace, self.recipe, self.task, self.cache.materials, self.others)
        return self.cache.pools[key][0]

    @property
    def mined(self) -> list[dict[str, Any]]:
        """The number of pairs from each source of the pool; empty where no pool was mined for this run."""
        _, counts = self.cache.pools.get(self._pool_key, (None, []))
        return counts

    @functools.cached_property
    def others(self) -> dict[int, LoadedTask]:
        """The other recipes that the pool is mined from (`pool.sources.N.task`), by the number N of the source."""
        return load_others(self.recipe, self.cache.tasks)

    @functools.cached_property
    def labelled_others(self) -> list[Pairs]:
        """The training pairs of these recipes, one after another, for teachers that learn them (`other_tasks`).

        Raises:
            DataError: not a single pair of one is left beside the development and test sets.
        """
        found, names = labelled_pairs(self.recipe, self.task, self.others), [one.name for one in self.others.values()]
        sizes = ", ".join(f"{len(one):,} of {name}" for one, name in zip(found, names, strict=True))
        self.cache.say_once(f"teachers learn training pairs of other tasks, too: {sizes}")
        return found

    def others_beside(self, learned: Pairs) -> list[Pairs]:
        """`labelled_others` for a teacher of these training pairs: without the questions that a fold holds out."""
        return unseen_by_folds(self.labelled_others, self.train, learned)

    @property
    def learned(self) -> list[Pairs]:
        """All pairs whose labels a model of the run has learned: the training pairs, and those of `labelled_others`."""
        several = any(teacher.other_tasks for teacher in self.recipe.used_teachers)
        return [self.train, *(self.labelled_others if several else [])]

    @property
    def labelled_by_teachers(self) -> dict[str, Pairs]:
        """The pairs that the teachers label: train, dev and test, and the pool where a stage 1 is trained on it."""
        pooled = any(map(self.recipe.trains_stage1, self.recipe.chosen_methods)) and not self.recipe.foreign_pool
        return {**self.task.labelled, **({"pool": self.pool} if pooled else {})}

    def stage1_share(self, pool: Pairs) -> Pairs:
        """The pairs of a pool that are labelled for students, and that they see (`stage1.share`).

        Raises:
            DataError: the share leaves no pair.
        """
        return _share_of_pool(pool, self.recipe.stage1.share, "stage1.share")

    @property
    def warm_up_pairs(self) -> Pairs:
        """The pairs of the pool that the warm start sees (`warm_up.share`).

        Raises:
            DataError: the share leaves no pair.
        """
        share = self.recipe.warm_up.share if self.recipe.warm_up is not None else 1
        return _share_of_pool(self.pool, share, "warm_up.share")

    @functools.cached_property
    def student_rows(self) -> NDArray[np.int64]:
        """The rows of the training pairs that students see (`data.train_share`), [n].

        Raises:
            DataError: the share leaves no pair.
        """
        share = self.recipe.data.train_share
        none = f"data.train_share: {share} leaves none of {len(set(self.train.qids)):,} training questions"
        return subsample(self.train, share, none=none)

    @functools.cached_property
    def student_pairs(self) -> Pairs:
        """The training pairs that students see."""
        return self.train if self.recipe.data.train_share == 1 else self.train.take(self.student_rows)


def _share_of_pool(pool: Pairs, share: float, key: str) -> Pairs:
    """The pairs of a share of the questions; those of a smaller share are among them, whatever the key."""
    none = f"{key}: {share} leaves none of the {len(pool):,} pairs of the pool"
    return pool if share == 1 else pool.take(subsample(pool, share, STAGE1, none=none))


def share_of_pairs(teacher: Teacher, pairs: Pairs) -> Pairs:
    """The pairs of the questions that a teacher sees (`share`).

    Raises:
        DataError: the share leaves no pair.
    """
    none = f"teacher {teacher.name}: share {teacher.share} leaves it no training question"
    return pairs.take(subsample(pairs, teacher.share, BAGS + teacher.seed, none=none)) if teacher.share < 1 else pairs
