"""The public list: what it names is there, is documented, and is imported no sooner than it is used."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import tmkd
from tmkd import api
from tmkd.core import errors


def names_for_type_checkers() -> dict[str, str]:
    """The names that a type checker sees in `tmkd.api`, by the module that they come from."""
    tree = ast.parse(Path(str(api.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def test_the_public_list_is_sorted_and_whole() -> None:
    assert list(tmkd.__all__) == sorted(tmkd.__all__)
    functions = {
        name
        for name, value in vars(api).items()
        if inspect.isfunction(value) and value.__module__ == api.__name__ and not name.startswith("_")
    }
    assert set(tmkd.__all__) == names_for_type_checkers().keys() | functions | {"__version__"}


def test_every_name_is_what_type_checkers_take_it_for() -> None:
    for name, module in names_for_type_checkers().items():
        assert getattr(tmkd, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", [name for name in tmkd.__all__ if name != "__version__"])
def test_every_name_is_documented(name: str) -> None:
    assert (getattr(tmkd, name).__doc__ or "").strip()
    assert name in dir(tmkd)


def test_every_error_is_public() -> None:
    own = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert own <= set(tmkd.__all__)


def test_the_version_is_that_of_the_package() -> None:
    assert tmkd.__version__ == version("tmkd")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tmkd' has no attribute 'Pipeline'"):
        _ = tmkd.Pipeline


def test_what_scores_needs_no_torch() -> None:
    code = (
        "import sys, tmkd\n"
        "loaded = sorted(name for name in sys.modules if name.startswith('tmkd.'))\n"
        "tmkd.Scorer, tmkd.QuestionAnswerer, tmkd.DocumentIndex, tmkd.score_file, tmkd.Pairs, tmkd.load_recipe\n"
        "print(loaded, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['tmkd.api', 'tmkd.core', 'tmkd.core.errors'] False\n"
