"""Measure the layout of the package against its limits, and fail where one is broken.

Run it as `python tools/house.py` (part of `make lint`). `--root` measures another checkout, such as an earlier version.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_FOLDERS, MOST_FILES = 13, 5  # at the root of the package
MOST_ARROWS = 70  # imports between rooms: pairs (importer, imported)
MOST_LINES, FEWEST_LINES = 400, 40  # of a module; a shorter one needs more than one caller
MOST_FUNCTION_LINES, MOST_PARAMETERS = 60, 7
# Commands of the command line take one parameter an option. Workers are scripts that run in other tools' environments.
COMMANDS, SCRIPTS = "tmkd/cli/", "tmkd/bench/workers/"


@dataclass(frozen=True)
class House:
    """The figures of one version.

    Attributes:
        folders: folders at the root of the package.
        files: files at the root of the package.
        modules: Python modules, without scripts that run elsewhere.
        arrows: pairs of rooms of which the first imports the second.
        module_arrows: pairs of modules of which the first imports the second.
        longest_module: lines of the longest module.
        longest_function: lines of the longest function, commands aside.
        most_parameters: parameters of the function with most, commands aside.
        problems: one sentence for each limit that is broken.
    """

    folders: int
    files: int
    modules: int
    arrows: int
    module_arrows: int
    longest_module: int
    longest_function: int
    most_parameters: int
    problems: list[str]


def measure(root: Path) -> House:
    """Read the sources below `root`/tmkd; nothing is imported."""
    package = root / "tmkd"
    sources = {
        _module(path.relative_to(root)): path
        for path in sorted(package.rglob("*.py"))
        if not path.relative_to(root).as_posix().startswith(SCRIPTS)
    }
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in sources.items()}
    arrows = {(name, target) for name, tree in trees.items() for target in _imports(tree, set(sources)) - {name}}
    rooms = {(_room(a), _room(b)) for a, b in arrows if _room(a) != _room(b) and _room(a) and _room(b)}
    callers = Counter(target for _, target in arrows)
    visible = [path for path in package.iterdir() if path.name != "__pycache__"]
    folders = sum(path.is_dir() for path in visible)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in sources.items()}
    functions = [
        (f"{path.relative_to(root)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1, _parameters(node))
        for name, path in sources.items()
        if not path.relative_to(root).as_posix().startswith(COMMANDS)
        for node in ast.walk(trees[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    problems = [f"tmkd/ has {folders} folders; the limit is {MOST_FOLDERS}"] * (folders > MOST_FOLDERS)
    files = len(visible) - folders
    problems += [f"tmkd/ has {files} files; the limit is {MOST_FILES}"] * (files > MOST_FILES)
    problems += [f"rooms import each other {len(rooms)} times; the limit is {MOST_ARROWS}"] * (len(rooms) > MOST_ARROWS)
    for name, count in lines.items():
        if count > MOST_LINES:
            problems.append(f"{name} has {count} lines; the limit is {MOST_LINES}")
        small = count < FEWEST_LINES and sources[name].name not in ("__init__.py", "__main__.py")
        if small and callers[name] == 1:
            problems.append(f"{name} has {count} lines and a single caller: merge it")
    for where, length, parameters in functions:
        if length > MOST_FUNCTION_LINES:
            problems.append(f"{where} has {length} lines; the limit is {MOST_FUNCTION_LINES}")
        if parameters > MOST_PARAMETERS:
            problems.append(f"{where} has {parameters} parameters; the limit is {MOST_PARAMETERS}")
    return House(
        folders=folders,
        files=files,
        modules=len(sources),
        arrows=len(rooms),
        module_arrows=len(arrows),
        longest_module=max(lines.values()),
        longest_function=max(length for _, length, _ in functions),
        most_parameters=max(parameters for _, _, parameters in functions),
        problems=problems,
    )


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    """The folder of a module; empty for a file at the root of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and (ROOT / "tmkd" / parts[1]).is_dir()) else ""


def _imports(tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules of the package that a source imports, inside functions too."""
    return set(_imported(tree, modules)) & modules


def _imported(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
    own = names[:1] in (["self"], ["cls"])
    return len(names) - own + len(node.args.kwonlyargs)


def main() -> int:
    """Print the figures and what is broken; the exit status is 1 where anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout, for example one of an earlier version")
    options = parser.parse_args()
    house = measure(options.root)
    figures = asdict(house)
    problems = figures.pop("problems")
    print(json.dumps(figures) if options.json else "\n".join(f"{name:18} {value}" for name, value in figures.items()))
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
