"""tools/house.py counts what it says: sizes, parameters, arrows, on a package made for the purpose."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "tools" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _package(root: Path, sources: dict[str, str]) -> Path:
    for name, text in sources.items():
        path = root / "tmkd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return root


def test_figures(house: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "ROOT", tmp_path)
    long = "x = 1\n" * 50
    root = _package(
        tmp_path,
        {
            "core/files.py": long,
            "data/pairs.py": long + "def late():\n    from tmkd.core import files\n    return files\n",
            "data/readers.py": long + "import tmkd.core.files\nfrom tmkd.data.pairs import late\n",
        },
    )
    found = house.measure(root)
    assert (found.folders, found.arrows, found.module_arrows) == (2, 1, 3)
    assert found.longest_function == 3
    assert found.problems == []


def test_broken_limits_are_named(house: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "ROOT", tmp_path)
    root = _package(
        tmp_path,
        {
            "core/big.py": "x = 1\n" * 401 + "def many(a, b, c, d, e, f, g, *, h): ...\n",
            "core/small.py": "y = 2\n",
            "core/user.py": "x = 1\n" * 50 + "from tmkd.core import small\n" + "def long():\n" + "    y = 1\n" * 60,
            "cli/commands.py": "x = 1\n" * 50 + "def options(a, b, c, d, e, f, g, h, i): ...\n",
        },
    )
    problems = house.measure(root).problems
    assert sorted(problems) == [
        "tmkd.core.big has 402 lines; the limit is 400",
        "tmkd.core.small has 1 lines and a single caller: merge it",
        "tmkd/core/big.py:402 many has 8 parameters; the limit is 7",
        "tmkd/core/user.py:52 long has 61 lines; the limit is 60",
    ]
