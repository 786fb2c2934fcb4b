"""The pairs of stage 1 as a step, mined once (tmkd/data/mining.py), and the teachers that label them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmkd.config.recipe import Recipe
from tmkd.core.files import digest_of, read_json, write_json
from tmkd.data.decontamination import LEAST_QUOTED, HeldOut
from tmkd.data.mining import Material, choose_pairs, decontaminate, mine, read_sources
from tmkd.data.pairs import Pairs
from tmkd.data.tasks import TaskData, built_in
from tmkd.models.card import has_card
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.label_map import order_of_two, require_counted
from tmkd.models.own_length import own_length
from tmkd.models.ready import head_classes
from tmkd.pipeline.steps.other_tasks import LoadedTask, held_out
from tmkd.pipeline.steps.teach import copy_checkpoint
from tmkd.pipeline.store.fingerprint import depends_on, non_defaults
from tmkd.pipeline.store.pair_cache import load_pairs
from tmkd.pipeline.store.workspace import Step, Workspace

_TEXTS = {"questions", "passages", "pairs", "task"}  # of a source: their content is an input


def pool_of(
    workspace: Workspace,
    recipe: Recipe,
    data: TaskData,
    read: dict[str, list[Material]] | None = None,
    others: Mapping[int, LoadedTask] | None = None,
) -> tuple[Pairs, list[dict[str, Any]]]:
    """The pairs of stage 1.

    Args:
        workspace: keeps the mined pool.
        recipe: its `pool` says what to mine; without one, the pool is `data.pool` or the training pairs.
        data: the task's pairs. Pairs that share a question or passage with dev or test are removed.
        read: texts of sources that were read before, by a key of their own; sources that are read now are added.
        others: the other recipes that sources name, by the number of the source.

    Returns:
        The pairs, and for each source how many it gave and how many were dropped (empty if nothing was mined).

    Raises:
        DataError: a source cannot be read or gives no pair.
    """
    wanted = recipe.pool
    if wanted is None or not wanted.sources:
        size = wanted and wanted.size
        pool = data.train if data.pool is None else _decontaminated(workspace, recipe, data, data.pool)
        return (choose_pairs(pool, size, wanted.seed) if wanted and size else pool), []
    others = others or {}
    held = held_out(data, others)
    materials = _materials(recipe, data, {} if read is None else read, others)
    asks_passages = any(one.source.ask == "passages" for one in materials)
    content = depends_on(
        settings={
            "pool": non_defaults(
                wanted, without={"sources", "teachers", "sampling"}
            ),  # the sources' content is an input
            "sources": [non_defaults(one.source, without=_TEXTS) for one in materials],
            "quoted": LEAST_QUOTED,  # shorter questions may be in their passages
            "classes": recipe.classes,
            "positive": recipe.positive_class if recipe.positive_class != 1 else None,
        },
        inputs={
            "sources": [one.digest() for one in materials],
            "held_out": held,
            "train": data.train if asks_passages else None,  # to tell a passage's own question
        },
    )

    def build(folder: Path) -> None:
        removed = HeldOut(held, recipe.classes, recipe.positive_class)
        counts = mine(wanted, materials, data.train, removed, folder / "pool.parquet")
        write_json(folder / "counts.json", counts)

    step = workspace.step("pool", content, build, label="mine the pool")
    return load_pairs(workspace, step.folder / "pool.parquet"), read_json(step.folder / "counts.json")


def _materials(
    recipe: Recipe, data: TaskData, read: dict[str, list[Material]], others: Mapping[int, LoadedTask]
) -> list[Material]:
    """The texts that the pool's sources hold, read once a process."""
    wanted = recipe.pool
    assert wanted is not None
    sources = wanted.model_dump(mode="json", include={"sources"})
    theirs = [part.digest() for one in others.values() for part in one.data.parts.values()]
    key = digest_of([sources, data.train.digest(), recipe.data.debian_docs.model_dump(mode="json"), theirs])
    if key not in read:
        texts = {number: (one.name, one.texts()) for number, one in others.items()}
        read[key] = read_sources(
            wanted, data.train, lambda: [one.text for one in built_in(recipe.data).passages], texts
        )
    return read[key]


def _decontaminated(workspace: Workspace, recipe: Recipe, data: TaskData, pool: Pairs) -> Pairs:
    """The user's own pool without what occurs in dev or test; the built-in pool is made without it already."""
    if recipe.data.builtin is not None:
        return pool
    content = depends_on(
        settings={
            "classes": recipe.classes,
            "positive": recipe.positive_class if recipe.positive_class != 1 else None,
        },
        inputs={"pool": pool, "held_out": [data.dev, data.test]},
    )

    def build(folder: Path) -> None:
        held = HeldOut([data.dev, data.test], recipe.classes, recipe.positive_class)
        decontaminate(pool, held).save(folder / "pool.parquet")

    step = workspace.step("pool", content, build, label="remove development and test pairs from the pool")
    kept = load_pairs(workspace, step.folder / "pool.parquet")
    counts, reason = data.counts.get("pool"), "they hold a question, passage or pair of the development or test set"
    if counts is not None and reason not in counts.left_out:
        counts.leave_out(reason, len(pool) - len(kept), level=logging.INFO)
    return kept


def pool_teachers(workspace: Workspace, recipe: Recipe) -> list[Step]:
    """The finished teachers that `pool.teachers` names: checkpoints, and every trained teacher of a run.

    `tmkd.pipeline.preflight` has refused folders that are neither, and teachers whose numbers of classes differ.
    """
    assert recipe.pool is not None
    return [step for place in recipe.pool.teachers for step in _finished(workspace, Path(place))]


def is_run(folder: Path) -> bool:
    """Whether a folder of `pool.teachers` is that of a run, and no checkpoint."""
    return (folder / "manifest.json").is_file()


def teachers_of_run(run: Path) -> list[Step]:
    """Every cross-encoder that a finished run trained: those of its teachers that can label another task's pool."""
    steps = run.resolve().parent.parent / "steps"
    names = [name for _, name in _models_of_run(run) if name.startswith("teacher-")]
    return [Step("teacher", name.rpartition("-")[2], steps / name) for name in names]


def other_teachers_of_run(run: Path) -> list[str]:
    """The names of a finished run's other teachers: embedding models, endpoints and scores."""
    return [model.removeprefix("teacher:") for model, name in _models_of_run(run) if not name.startswith("teacher-")]


def _models_of_run(run: Path) -> list[tuple[str, str]]:
    """Each teacher in a run's manifest, with the name of its step; empty where it has none."""
    models = read_json(run / "manifest.json")["models"]
    return [(one["name"], (one["steps"] or [""])[0]) for one in models if one["kind"] == "teacher"]


def _finished(workspace: Workspace, folder: Path) -> list[Step]:
    """The teachers in one folder of `pool.teachers`."""
    if is_run(folder):
        return teachers_of_run(folder)
    if has_card(folder):
        return [Step("teacher", encoder_fingerprint(folder), folder)]
    source = find_encoder(str(folder))
    require_counted(source, "of the pool", mappable=False)
    order = order_of_two(source, "of the pool") or list(range(head_classes(source)))
    return [copy_checkpoint(workspace, source, order, own_length(source), name="of the pool")]
