"""How large the modules and functions of packages are, and how much of them is documented: a table in Markdown.

Example: python tools/sizes.py tmkd .venv/lib/python3.11/site-packages/httpx
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def row(folder: Path) -> list[str]:
    """The numbers of one package, tests and workers that run elsewhere aside."""
    modules, functions, public = [], [], []
    for path in sorted(folder.rglob("*.py")):
        if {"tests", "workers"} & set(path.relative_to(folder).parts):
            continue
        text = path.read_text(encoding="utf-8")
        modules.append(len(text.splitlines()))
        nodes = list(ast.walk(ast.parse(text)))
        functions += [node for node in nodes if isinstance(node, Function)]
        public += [n for n in nodes if isinstance(n, Function | ast.ClassDef) and not n.name.startswith("_")]
    modules.sort()
    long = sum(1 for node in functions if (node.end_lineno or 0) - node.lineno >= 60)
    documented = sum(1 for node in public if ast.get_docstring(node))
    large = sum(1 for lines in modules if lines > 400)
    return [
        folder.name,
        f"{len(modules)}",
        f"{modules[len(modules) // 2]}",
        f"{modules[-1]:,}",
        f"{large}",
        f"{long} of {len(functions):,}",
        f"{documented / len(public):.0%}",
    ]


def main() -> None:
    """Print the table for the folders that are given."""
    head = ["package", "modules", "lines, median", "lines, largest", "above 400", "functions above 60 lines"]
    print("| " + " | ".join([*head, "public functions and classes with a docstring"]) + " |")
    print("|" + "---|" * (len(head) + 1))
    for name in sys.argv[1:]:
        print("| " + " | ".join(row(Path(name))) + " |")


if __name__ == "__main__":
    main()
