"""What a reader needs to repeat a measurement: the resolved recipe, the code, the machine, the libraries, the data."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tmkd.config.recipe import Recipe
from tmkd.core.cpu import machine
from tmkd.core.hardware import describe

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "pyarrow", "onnxruntime", "openvino")
_MODULES = {"scikit-learn": "sklearn"}
_PATIENCE = 10  # seconds for git


def provenance(recipe: Recipe, info: Mapping[str, Any]) -> dict[str, Any]:
    """Where figures come from, for results.json.

    Args:
        recipe: with its precision resolved.
        info: where the pairs come from.

    Returns:
        {"recipe", "precision", "code": {"tmkd", "commit", "dirty"}, "machine", "runs_on", "libraries", "data"}. Where
        the package lies in no git checkout, "commit" and "dirty" are absent.
    """
    return {
        "recipe": recipe.model_dump(mode="json"),
        "precision": recipe.precision,
        "code": {"tmkd": version("tmkd"), **_commit(Path(__file__).parents[1])},
        "machine": machine(),
        "runs_on": describe(recipe.precision),
        "libraries": {
            "python": platform.python_version(),
            "system": platform.platform(),
            **{name: version(name) for name in _LIBRARIES if find_spec(_MODULES.get(name, name))},
        },
        "data": {key: value for key, value in info.items() if value is not None},
    }


def as_lines(found: Mapping[str, Any]) -> dict[str, str]:
    """The provenance as the lines of a page's table, without the recipe."""
    code, data = found["code"], found["data"]
    commit = f", commit {code['commit']}{' with changes' if code['dirty'] else ''}" if "commit" in code else ""
    return {
        "tmkd": f"{code['tmkd']}{commit}",
        "machine": found["machine"],
        "runs on": found["runs_on"],
        "precision": found["precision"],
        **found["libraries"],
        **{f"data: {key}": value for key, value in data.items()},
    }


@functools.cache
def _commit(package: Path) -> dict[str, Any]:
    """The commit of the checkout that holds the package, and whether the package's files differ from it."""
    if not (package.parent / ".git").exists():  # an installed package, perhaps inside somebody else's repository
        return {}
    try:
        commit = _git(package, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(package, "status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout that git does not trust
        return {}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=True
    )
    return done.stdout.strip()
