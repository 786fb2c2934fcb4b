"""Commands that carry out a recipe: run, teach, label, pretrain, distill, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tmkd.cli.options import WORKSPACE, Jobs, JsonFile, Overrides, Quiet, RecipeFile, WorkspaceFolder, give
from tmkd.core.console import say
from tmkd.core.errors import needs_extra


def _pipeline(recipe: Path, overrides: list[str] | None, workspace: Path) -> Any:
    from tmkd.config.load import load_recipe
    from tmkd.pipeline.store.workspace import Workspace

    parsed = load_recipe(recipe, overrides)
    with needs_extra("train"):
        from tmkd.pipeline.run import Pipeline
    return Pipeline(parsed, Workspace(workspace))


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    jobs: Jobs = 1,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Carry out every step of a recipe, then write the report.

    Steps that are finished are not repeated; an interrupted step continues where it stopped.

    Example: tmkd run recipes/demo.yaml seeds=[0,1,2] --jobs 2
    """
    pipeline = _pipeline(recipe, overrides, workspace)
    from tmkd.pipeline.report import report

    with pipeline.working():
        results = report(pipeline, jobs)
    give(json_file, results.to_json(), [results.table()])
    for sentence in results.verdicts():
        say(sentence)
    folder = pipeline.run
    say(f"report:    {folder / 'report' / 'report.html'}")
    say(f"student:   {folder / 'export'}  (opens with transformers; tmkd score {folder / 'export'} --pairs FILE)")
    say(f"test set:  {folder / 'test.jsonl'}")


def teach(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the teachers on the labelled examples.

    Example: tmkd teach recipes/demo.yaml
    """
    pipeline = _pipeline(recipe, overrides, workspace)
    with pipeline.working():
        for teacher, step in pipeline.teachers:
            say(f"{teacher.name}: {step.folder if step else 'a column of scores'}")


def label(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    quiet: Quiet = False,
) -> None:
    """Label the pool and the training examples with every teacher.

    Example: tmkd label recipes/demo.yaml
    """
    pipeline = _pipeline(recipe, overrides, workspace)
    with pipeline.working():
        pipeline.label_all()


def pretrain(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    quiet: Quiet = False,
) -> None:
    """Stage 1: train the students on the labelled pool.

    Example: tmkd pretrain recipes/demo.yaml stage1.epochs=4
    """
    pipeline = _pipeline(recipe, overrides, workspace)
    from tmkd.config.methods import METHODS

    with pipeline.working():
        for name in pipeline.recipe.methods:
            if METHODS[name].stage1:
                for seed in pipeline.recipe.seeds:
                    step = pipeline.pretrain(METHODS[name], seed)
                    say(f"{name}, seed {seed}: {getattr(step, 'folder', step)}")


def distill(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    quiet: Quiet = False,
) -> None:
    """Stage 2: train the students of every method of the recipe.

    Example: tmkd distill recipes/demo.yaml stage1_from=workspace/runs/demo/stage1
    """
    pipeline = _pipeline(recipe, overrides, workspace)
    pipeline.require_exportable()
    with pipeline.working():
        for student in pipeline.students:
            say(f"{student.method.name}: {', '.join(str(step.folder) for step in student.steps)}")
        pipeline.write_manifest()
        pipeline.take_away()


def export(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    backend: Annotated[
        list[str] | None, typer.Option(help="a backend that must pass, such as openvino-int8; may be repeated")
    ] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Write the student for serving, and check it against PyTorch.

    A backend that you name and that does not pass the checks is an error; any other is left out of the export.

    Example: tmkd export recipes/demo.yaml --backend onnx-fp32 --backend openvino-int8
    """
    if backend:
        overrides = [*(overrides or []), f"export.backends={json.dumps(backend)}"]
    pipeline = _pipeline(recipe, overrides, workspace)
    pipeline.require_exportable()
    with pipeline.working():
        rows = pipeline.export(named=bool(backend))
        pipeline.write_manifest()
    give(json_file, rows, [f"{row['backend']}: {'passed' if row['passed'] else row['reason']}" for row in rows])
