"""Options and arguments that several commands share, and what a command shows for its result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from typer.core import TyperCommand, TyperGroup

from tmkd.core.console import say, set_quiet, tables, write_json_line
from tmkd.core.files import Quoting, disk_errors, read_json, same_file, write_json, write_text

WORKSPACE = Path("workspace")
EXPORT, INDEX = WORKSPACE / "runs" / "demo" / "export", WORKSPACE / "index"
PAIRS_HELP = "JSON, JSONL, CSV, TSV or Parquet, plain or .gz"

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="a YAML file, such as recipes/demo.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="replace keys of the recipe, such as stage1.epochs=2"),
]
WorkspaceFolder = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="TMKD_WORKSPACE", help="the folder that keeps every step's result")
]
SharedAddress = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="ADDRESS",
        envvar="TMKD_LABELS",
        help="share labels between machines at this address, such as s3://bucket/labels or a shared folder",
    ),
]
Jobs = Annotated[
    int,
    typer.Option("--jobs", "-j", min=1, help="students to train at the same time; they share the cores"),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[HOST:PORT]",
        envvar="TMKD_RAY",
        help="use the workers of this Ray cluster; alone: of a new one on this machine",
    ),
]
RayCores = Annotated[int, typer.Option(min=1, help="cores of one Ray worker; on GPUs a worker has a GPU")]
ModelFolder = Annotated[Path, typer.Option("--model", "-m", help="an exported student")]
IndexFolder = Annotated[Path, typer.Option("--index", "-i", help="an index, as `tmkd index` writes it")]
Candidates = Annotated[int, typer.Option(min=1, help="passages to retrieve and rank for each question")]
Backend = Annotated[str, typer.Option(help="auto (the fastest), or one of the export's backends")]
QuotingOption = Annotated[
    Quoting,
    typer.Option(help="what a quote in CSV and TSV means: none: text; csv: cells in quotes; auto: what the file shows"),
]
Threads = Annotated[int | None, typer.Option(min=1, help="threads; all usable cores unless given")]


def _quiet(value: bool) -> bool:
    set_quiet(value)
    return value


# The callback acts, so commands declare `quiet` and never read it.
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_quiet, help="no progress bars and no notes; results still print")
]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="[FILE.json]", help="print the result as JSON, or write it to a file whose name ends in .json"
    ),
]


class Command(TyperCommand):
    """A command whose `--json` and `--ray` need no value: standard output, and a Ray cluster of this machine.

    The example in its help stays on one line, so that it can be copied.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.help = (self.help or "").replace("\nExample: ", "\n\b\nExample: ")  # \b: do not wrap this paragraph

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare `--json` the value `-`, and a bare `--ray` the value `local`."""
        return super().parse_args(ctx, with_ray_value(with_json_value(args)))

    def invoke(self, ctx: Any) -> Any:
        """Check that no file to write is also another file of the command; then carry the command out."""
        require_own_files(ctx.params)
        return super().invoke(ctx)


_WRITTEN = {"json_file": "--json", "report": "--report", "wrong": "--wrong"}
"""Options that name a file to write. What else a command writes is checked where that is read."""


def require_own_files(given: Mapping[str, Any]) -> None:
    """Refuse a file to write that is also another file of the command, or the results of a run that it reads.

    Args:
        given: the command's options and arguments, by their names in Python. A text, or a side of KEY=VALUE, is taken
            for a file where there is one of that name.

    Raises:
        typer.BadParameter: two are one file, by links too.
    """
    named: list[tuple[str, str]] = []
    for name, value in given.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Path) or name == "output":
                named.append((name, str(one)))
            elif isinstance(one, str) and name != "name" and not one.startswith("name="):
                named += [(name, part) for part in (one, *one.rpartition("=")[::2]) if part and os.path.exists(part)]
    for name, option in _WRITTEN.items():
        target = given.get(name)
        if target is None or str(target) == "-" or (Path(target).exists() and not Path(target).is_file()):
            continue
        for other, path in named:
            if other != name and any(same_file(target, one) for one in (path, Path(path) / "report" / "results.json")):
                raise typer.BadParameter(
                    f"{target} is another file of this command, which would be lost; name another file",
                    param_hint=option,
                )


def require_no_results(json_file: Path | None) -> None:
    """Refuse to write over the results of a run: `--json a.json b.json` means two results, not one and an output.

    Raises:
        typer.BadParameter: the file is a results.json, or what `tmkd evaluate --json` wrote.
    """
    if json_file is None or not json_file.is_file():
        return
    try:
        content = read_json(json_file)
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(content, dict) and {"methods", "task"} <= content.keys():
        raise typer.BadParameter(
            f"{json_file} holds the results of a run, which would be lost. To print JSON write --json=-, or --json as "
            "the last word; to write a file, --json=FILE with another name",
            param_hint="--json",
        )


def with_json_value(arguments: list[str]) -> list[str]:
    """The arguments, with `-` after each `--json` that no file name follows.

    A file name ends in .json or .jsonl, so that `tmkd run RECIPE --json seeds=[0]` does not write a file `seeds=[0]`.
    """
    return _with_value(arguments, "--json", "-", r"-|.*\.jsonl?")


def with_ray_value(arguments: list[str]) -> list[str]:
    """The arguments, with `local` after each `--ray` that no address follows: HOST:PORT, `auto` or `local`."""
    return _with_value(arguments, "--ray", "local", r"auto|local|[^=]+:\d+")


def _with_value(arguments: list[str], option: str, value: str, pattern: str) -> list[str]:
    """The arguments, with a value after each such option that no word of the pattern follows."""
    found: list[str] = []
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        found.append(word)
        if word == option and not re.fullmatch(pattern, following, re.DOTALL):
            found.append(value)
    return found


class Sections(TyperGroup):
    """A group of commands whose help lists them under the titles that they were registered with."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each title, in the order of registration."""
        commands = [self.commands[name] for name in self.list_commands(ctx)]
        titles = dict.fromkeys(str(getattr(one, "rich_help_panel", "Commands")) for one in commands)
        width = max(len(str(one.name)) for one in commands)
        for title in titles:
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (str(one.name).ljust(width), one.get_short_help_str(200))
                        for one in commands
                        if getattr(one, "rich_help_panel", "Commands") == title
                    ]
                )


def give(
    json_file: Path | None, content: Any, shown: Iterable[RenderableType] = (), verdicts: Iterable[str] = ()
) -> None:
    """Show a command's result.

    Args:
        json_file: Where the JSON goes: None for nowhere, `-` for standard output in place of `shown`, else a file.
        content: The result as JSON-like values.
        shown: What a person reads: tables or lines, printed to standard output.
        verdicts: Sentences that follow; logged where standard output has JSON.
    """
    if str(json_file) == "-":
        print(json.dumps(content, indent=2))
        for sentence in verdicts:
            say(sentence)
        return
    for one in [*shown, *verdicts]:
        if isinstance(one, str):
            tables.print(one, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            tables.print(one)
    if json_file is not None:
        with disk_errors(json_file.parent):
            write_json(json_file, content)


@contextmanager
def ray_cluster(address: str | None, cores: int) -> Iterator[Any]:
    """The cluster that `--ray` names, while the block runs; None where it names none."""
    if address is None:
        yield None
        return
    from tmkd.core.cluster import Cluster

    with Cluster(address, cores) as cluster:
        yield cluster


@contextmanager
def give_lines(json_file: Path | None) -> Iterator[Callable[[str], None]]:
    """Collect lines of JSON: `-` prints each at once, a file gets all of them at the end, None drops them."""
    lines: list[str] = []
    yield (lambda line: write_json_line(line, flush=True)) if str(json_file) == "-" else lines.append
    if json_file is not None and str(json_file) != "-":
        with disk_errors(json_file.parent):
            write_text(json_file, "".join(f"{line}\n" for line in lines))
