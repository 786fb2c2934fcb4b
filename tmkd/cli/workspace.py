"""Commands about recipes and the workspace: recipe, clean."""

from __future__ import annotations

from typing import Annotated

import typer

from tmkd.cli.options import WORKSPACE, Quiet, WorkspaceFolder
from tmkd.core.console import say


def recipe() -> None:
    """Print every key of a recipe: its type, its default and its meaning.

    Example: tmkd recipe
    """
    from tmkd.config.load import describe

    print(describe())


def clean(
    workspace: WorkspaceFolder = WORKSPACE,
    yes: Annotated[bool, typer.Option("--yes", help="remove them; otherwise they are only listed")] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="also the stored token ids, which can be made again")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """List the steps that no run and no study needs, or remove them.

    Example: tmkd clean --yes
    """
    import shutil

    from tmkd.pipeline.store.workspace import Workspace

    place = Workspace(workspace)
    unused = place.unused()
    with place.locked(alone=True):
        unused += [place.tokens] if tokens and place.tokens.is_dir() else []
        if not unused:
            say("every step is needed by a run, finished or begun, or by a study")
        for folder in unused:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
            print(f"{'removed' if yes else 'unused'} {folder} ({size:,.1f} MiB)")
            if yes:
                shutil.rmtree(folder)
