"""Commands about recipes and the workspace: recipe, clean."""

from __future__ import annotations

from typing import Annotated

import typer

from tmkd import api
from tmkd.cli.options import WORKSPACE, JsonFile, Quiet, WorkspaceFolder, give
from tmkd.core.console import say


def recipe() -> None:
    """Print every key of a recipe: its type, its default and its meaning.

    Example: tmkd recipe
    """
    print(api.describe_recipe())


def clean(
    workspace: WorkspaceFolder = WORKSPACE,
    yes: Annotated[bool, typer.Option("--yes", help="remove them; otherwise they are only listed")] = False,
    tokens: Annotated[
        bool,
        typer.Option(
            "--tokens",
            help="also tokens/: token ids, mapped pools and embeddings, which are made again, and the pairs that a "
            "partial endpoint refused (refused.jsonl), which it is asked about again",
        ),
    ] = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """List the steps that no run and no study needs, or remove them.

    Example: tmkd clean --yes
    """
    found = api.clean_workspace(workspace, remove=yes, tokens=tokens)
    content = [{"folder": str(one.folder), "bytes": one.size, "removed": yes} for one in found]
    state = "removed" if yes else "unused"
    give(json_file, content, [f"{state} {one.folder} ({one.size / 2**20:,.1f} MiB)" for one in found])
    if not found:
        say("every step is needed by a run, finished or begun, or by a study")
