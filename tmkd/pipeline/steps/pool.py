"""The pairs of stage 1 as a step of the workspace: mined once (tmkd/data/mining.py), and who labels them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tmkd.config.recipe import Recipe
from tmkd.config.sections import Teacher
from tmkd.core.errors import RecipeError
from tmkd.core.files import write_json
from tmkd.data.decontamination import HeldOut
from tmkd.data.mining import Material, hold_out, mine, read_sources, subsample
from tmkd.data.pairs import Pairs
from tmkd.data.tasks import TaskData, built_in
from tmkd.models.checkpoint import read_card
from tmkd.models.encoders.find import encoder_fingerprint
from tmkd.pipeline.steps.teach import teach
from tmkd.pipeline.store.workspace import Step, Workspace, fingerprint

FORMAT = 1  # raise it when mining gives other pairs for the same recipe


def pool_of(
    workspace: Workspace, recipe: Recipe, data: TaskData, read: dict[str, list[Material]] | None = None
) -> tuple[Pairs, list[dict[str, Any]]]:
    """The pairs of stage 1, and what came of each source (empty where nothing was mined).

    Args:
        read: what sources hold that were read before, by their fingerprint; what is read now is added.

    Raises:
        DataError: a source that cannot be read or gives no pair.
        RecipeError: a size without a pool.
    """
    wanted = recipe.pool
    if wanted is None or not wanted.sources:
        size = wanted and wanted.size
        if data.pool is None and size:
            raise RecipeError("pool.size: there is no pool to take from; give pool.sources or data.pool")
        pool = data.train if data.pool is None else _held_out(workspace, recipe, data, data.pool)
        return (subsample(pool, size, wanted.seed) if wanted and size else pool), []
    if recipe.data.pool is not None:
        raise RecipeError("give pool.sources or data.pool, not both; a file is a source too: {pairs: FILE}")
    read = {} if read is None else read
    mark = fingerprint(
        [wanted.model_dump(include={"sources"}), data.train.digest(), recipe.data.debian_docs.model_dump()]
    )
    if mark not in read:
        read[mark] = read_sources(wanted, data.train, lambda: [one.text for one in built_in(recipe.data).passages])
    materials = read[mark]
    depends = {
        "format": FORMAT,
        "size": wanted.size,
        "passages_per_question": wanted.passages_per_question,
        "seed": wanted.seed,
        "classes": recipe.classes,
        "sources": [[one.source.share, one.source.ask, one.digest()] for one in materials],
        "held_out": [data.dev.digest(), data.test.digest()],
        "train": data.train.digest() if any(one.source.ask == "passages" for one in materials) else None,
    }

    def build(folder: Path) -> None:
        pairs, counts = mine(wanted, materials, data.train, HeldOut([data.dev, data.test], recipe.classes))
        pairs.save(folder / "pool.parquet")
        write_json(folder / "counts.json", counts)

    step = workspace.step("pool", depends, build, label="mine the pool")
    return Pairs.load(step.folder / "pool.parquet"), json.loads((step.folder / "counts.json").read_text())


def _held_out(workspace: Workspace, recipe: Recipe, data: TaskData, pool: Pairs) -> Pairs:
    """A pool of one's own less what development and test rows forbid; the built-in one was made without that."""
    if recipe.data.builtin is not None:
        return pool
    parts = [data.dev, data.test]
    depends = {
        "format": FORMAT,
        "classes": recipe.classes,
        "pool": pool.digest(),
        "held_out": [part.digest() for part in parts],
    }

    def build(folder: Path) -> None:
        hold_out(pool, HeldOut(parts, recipe.classes)).save(folder / "pool.parquet")

    step = workspace.step("pool", depends, build, label="hold out development and test rows from the pool")
    return Pairs.load(step.folder / "pool.parquet")


def pool_teachers(workspace: Workspace, recipe: Recipe) -> list[Step]:
    """The finished teachers that `pool.teachers` names: checkpoints, and every trained teacher of a run.

    Raises:
        RecipeError: neither a checkpoint nor a finished run, or teachers whose numbers of classes differ.
        EncoderError: a checkpoint without a classification head.
    """
    assert recipe.pool is not None
    steps = [step for place in recipe.pool.teachers for step in _finished(workspace, recipe, Path(place))]
    classes = {int(read_card(step.folder)["classes"]): step.folder for step in steps}
    if len(classes) > 1:
        told = ", ".join(f"{folder} has {count}" for count, folder in classes.items())
        raise RecipeError(f"pool.teachers: their numbers of classes differ: {told}")
    return steps


def _finished(workspace: Workspace, recipe: Recipe, folder: Path) -> list[Step]:
    if (folder / "manifest.json").is_file():
        models = json.loads((folder / "manifest.json").read_text())["models"]
        names = [model["steps"][0] for model in models if model["kind"] == "teacher" and model["steps"]]
        steps = folder.resolve().parent.parent / "steps"
        return [Step("teacher", name.rpartition("-")[2], steps / name) for name in names]
    if (folder / "tmkd.json").is_file():
        return [Step("teacher", encoder_fingerprint(folder), folder)]
    if not (folder / "config.json").is_file():
        raise RecipeError(f"pool.teachers: {folder} is neither a checkpoint (config.json) nor a run (manifest.json)")
    classes = len(json.loads((folder / "config.json").read_text()).get("id2label") or "??")
    other = {"classes": classes, "data": recipe.data.model_copy(update={"labels": {}})}
    teacher = Teacher(name="pool", checkpoint=str(folder))
    return [teach(workspace, recipe.model_copy(update=other), teacher, Pairs.build([], []))]
