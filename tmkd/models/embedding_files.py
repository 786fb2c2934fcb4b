"""What the files of an embedding model say about the similarity of two texts, as sentence-transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmkd.core.errors import EncoderError
from tmkd.models.module_files import read_modules
from tmkd.models.ready import SETTINGS_FILE, checkpoint_json, library_settings

_MEAN_COSINE = ("Transformer", "Pooling", "Normalize")  # the modules of a cosine of means
_SIDES = ("query", "document", "passage", "corpus")  # the prompts that are read


def similarity_of(folder: Path) -> str:
    """The similarity of two embeddings, such as `cosine` or `dot`; cosine where the files do not say.

    Raises:
        EncoderError: the file is damaged.
    """
    return str(library_settings(folder).get("similarity_fn_name") or "cosine")


def beyond_mean(folder: Path) -> list[str]:
    """What makes a model's own similarity another one than the cosine of the means of the tokens' vectors.

    Args:
        folder: the model's folder.

    Returns:
        Such as `pooling: cls` and `a prompt for query`; empty where nothing does, or the folder has no modules.json.

    Raises:
        EncoderError: a file is damaged, or modules.json names code of its own.
    """
    modules = read_modules(folder)
    if not modules:
        return []
    found = [f"module: {one.kind}" for one in modules if one.kind not in _MEAN_COSINE]
    for place in (one.place for one in modules if one.kind == "Pooling"):
        if (modes := _pooling(checkpoint_json(place / "config.json"))) != ["mean"]:
            found.append(f"pooling: {' and '.join(modes)}")
    prompts = library_settings(folder).get("prompts") or {}
    if not isinstance(prompts, dict):
        raise EncoderError(f"{folder / SETTINGS_FILE}: prompts is {prompts!r}, not an object", source=folder)
    found += [f"a prompt for {side}" for side in _SIDES if prompts.get(side)]
    similarity = similarity_of(folder)
    return found if similarity == "cosine" else [*found, f"similarity: {similarity}"]


def _pooling(config: dict[str, Any]) -> list[str]:
    """The kinds of pooling that a pooling module's configuration names, the mean if none; older files have flags."""
    named = config.get("pooling_mode")
    if named is not None:
        return [named] if isinstance(named, str) else [str(one) for one in named]
    flags = [name.removeprefix("pooling_mode_") for name in config if name.startswith("pooling_mode_") and config[name]]
    return [flag.removesuffix("_tokens").removesuffix("_token") for flag in flags] or ["mean"]
