"""Commands that carry out a recipe: run, teach, label, pretrain, distill, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tmkd import api
from tmkd.cli.options import (
    WORKSPACE,
    Jobs,
    JsonFile,
    Overrides,
    Quiet,
    RayAddress,
    RayCores,
    RecipeFile,
    SharedAddress,
    WorkspaceFolder,
    give,
    ray_cluster,
)
from tmkd.core.console import say


def _join() -> bool:
    """Join the processes that torchrun started; whether this is the first, which alone labels."""
    from tmkd.core import processes

    processes.join()
    return processes.first()


def _run(
    recipe: Path,
    overrides: list[str] | None,
    workspace: Path,
    labels: str | None,
    cluster: api.Cluster | None = None,
) -> api.Run:
    _join()
    return api.Run(api.load_recipe(recipe, overrides), workspace, cluster=cluster, labels=labels)


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    labels: SharedAddress = None,
    jobs: Jobs = 1,
    ray: RayAddress = None,
    ray_cores: RayCores = 1,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Carry out every step of a recipe, then write the report.

    Steps that are finished are not repeated; an interrupted step continues where it stopped.

    Several processes train each model together, on one machine or more: torchrun --nproc-per-node 2 -m tmkd run RECIPE

    With --ray the workers of a Ray cluster label large sets of pairs: tmkd run RECIPE --ray 10.0.0.1:6379

    Example: tmkd run recipes/demo.yaml seeds=[0,1,2] --jobs 2
    """
    with ray_cluster(ray if _join() else None, ray_cores) as cluster:
        done = _run(recipe, overrides, workspace, labels, cluster).run(jobs)
    verdicts = [*done.results.standing(), *done.results.verdicts()]
    verdicts += [f"{name}: {sentence}" for name, results in done.others.items() for sentence in results.standing()]
    shown = [*done.results.run_tables(), *(one.table() for one in done.others.values())]
    give(json_file, done.results.to_json(), shown, verdicts)
    say(f"report:    {done.report}")
    for name in done.others:
        say(f"           {done.report.parent / name / done.report.name}")
    opens = "opens with transformers; " if (done.export / "model.safetensors").is_file() else ""  # not of a cached one
    say(f"student:   {done.export}  ({opens}tmkd score {done.export} --pairs FILE)")
    for folder in sorted((done.folder / "methods").glob("*/export")):
        say(f"           {folder}")
    say(f"test set:  {done.folder / 'test.jsonl'}")


def teach(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    labels: SharedAddress = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the teachers on the labelled examples.

    Example: tmkd teach recipes/demo.yaml
    """
    for name, folder in _run(recipe, overrides, workspace, labels).teach().teachers.items():
        say(f"{name}: {folder or 'nothing to train'}")


def label(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    labels: SharedAddress = None,
    ray: RayAddress = None,
    ray_cores: RayCores = 1,
    quiet: Quiet = False,
) -> None:
    """Label the pool and the training examples with every teacher.

    With --ray the workers of a Ray cluster label large sets of pairs. With --labels the labels also lie at an address,
    such as a bucket: another machine fetches what is there, and continues where this one stopped.

    Example: tmkd label recipes/demo.yaml --ray
    """
    with ray_cluster(ray if _join() else None, ray_cores) as cluster:
        _run(recipe, overrides, workspace, labels, cluster).label()


def pretrain(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    labels: SharedAddress = None,
    quiet: Quiet = False,
) -> None:
    """Stage 1: train the students on the labelled pool.

    Example: tmkd pretrain recipes/demo.yaml stage1.epochs=4
    """
    started = _run(recipe, overrides, workspace, labels)
    for name, folders in started.pretrain().students.items():
        for seed, folder in zip(started.recipe.seeds, folders, strict=True):
            say(f"{name}, seed {seed}: {folder}")


def distill(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    labels: SharedAddress = None,
    quiet: Quiet = False,
) -> None:
    """Stage 2: train the students of every method of the recipe.

    Example: tmkd distill recipes/demo.yaml stage2.epochs=4
    """
    for name, folders in _run(recipe, overrides, workspace, labels).distill().students.items():
        say(f"{name}: {', '.join(map(str, folders))}")


def export(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = WORKSPACE,
    labels: SharedAddress = None,
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
    rows = _run(recipe, overrides, workspace, labels).export(must_pass=bool(backend)).parity
    give(json_file, rows, [f"{row['backend']}: {'passed' if row['passed'] else row['reason']}" for row in rows])
