"""Where a recipe's files and folders are: as the path is given, from where tmkd was called, or beside the recipe."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tmkd.core.errors import RecipeError

logger = logging.getLogger(__name__)

# a name on the model hub will do, too
_MODELS = ("encoder", "cached.encoder", "cached.question_encoder", "teachers.*.encoder", "teachers.*.checkpoint",
           "teachers.*.model")  # fmt: skip
_FOLDERS = ("stage1_from", "cached.stage1_from", "pool.teachers.*")
_FILES = ("teachers.*.file", "teachers.*.endpoint.prompt", "data.train", "data.dev", "data.test", "data.pool",
          "pool.sources.*.questions", "pool.sources.*.passages",
          "pool.sources.*.pairs", "pool.sources.*.questions.file", "pool.sources.*.passages.file",
          "pool.sources.*.pairs.file", "pool.sources.*.task", "pool.sources.*.task.recipe")  # fmt: skip


def find_beside(content: dict[str, Any], recipe: Path) -> None:
    """Replace relative paths that are not there by those beside the recipe that are.

    A model that is in neither place and may be a name on the hub is logged, with both places, before the hub is asked.

    Args:
        content: the recipe's keys and values, changed in place; not validated yet.
        recipe: the recipe's file.

    Raises:
        RecipeError: the folder of a model is in neither place, and its name is none of the hub; names both places.
    """
    for pattern in (*_MODELS, *_FOLDERS, *_FILES):
        for holder, key, value in _values(content, pattern.split(".")):
            if Path(value).is_absolute() or value.startswith(("builtin:", "~")) or Path(value).exists():
                continue
            beside = recipe.parent / value
            if beside.is_dir() if pattern not in _FILES else beside.is_file():
                logger.info(f"{recipe}: {value} is not in {Path.cwd()}; {beside} is taken, beside the recipe")
                holder[key] = str(beside)
            elif pattern in _MODELS:
                _ask_hub(value, beside, recipe, pattern)


def _ask_hub(value: str, beside: Path, recipe: Path, key: str) -> None:
    places = f"neither here ({Path.cwd() / value}) nor beside the recipe ({beside.absolute()})"
    if value.startswith(".") or value.count("/") > 1:
        raise RecipeError(
            f"{recipe}: {key}: there is no folder {value!r}, {places}", where=str(recipe), key=key, value=value
        )
    logger.info(f"{recipe}: there is no folder {value!r}, {places}; it is taken for a name on the model hub")


def _values(content: Any, keys: list[str]) -> Iterator[tuple[Any, Any, str]]:
    """The texts that a key with dots leads to, each with what holds it: a mapping and a key, or a list and an index."""
    key, *rest = keys
    found: list[Any] = []
    if key == "*" and isinstance(content, list):
        found = list(range(len(content)))
    elif key != "*" and isinstance(content, dict) and key in content:
        found = [key]
    for one in found:
        if rest:
            yield from _values(content[one], rest)
        elif isinstance(content[one], str):
            yield content, one, content[one]
