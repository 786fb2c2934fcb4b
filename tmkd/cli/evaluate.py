"""Commands that measure and compare models: evaluate, overall, study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmkd.cli.options import PAIRS_HELP, WORKSPACE, Jobs, JsonFile, Quiet, WorkspaceFolder, give
from tmkd.core.console import say
from tmkd.core.errors import needs_extra

_UNLESS = "the recipe's unless given"


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, such as workspace/runs/demo")],
    pairs: Annotated[Path, typer.Option("--pairs", help=f"labelled pairs: {PAIRS_HELP}")],
    json_file: JsonFile = None,
    question: Annotated[str | None, typer.Option(help=f"column of the question; {_UNLESS}")] = None,
    passage: Annotated[str | None, typer.Option(help=f"column of the passage; {_UNLESS}")] = None,
    label: Annotated[str | None, typer.Option(help=f"column of the label; {_UNLESS}")] = None,
    qid: Annotated[str | None, typer.Option(help=f"column that groups pairs by question; {_UNLESS}")] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="measure pairs per second too")] = True,
    quiet: Quiet = False,
) -> None:
    """Measure every model of a run on any labelled pairs.

    Example: tmkd evaluate workspace/runs/demo --pairs my-pairs.jsonl --json numbers.json
    """
    from tmkd.data.tasks import read_measured
    from tmkd.pipeline.steps.evaluate import evaluate as measure_run
    from tmkd.pipeline.steps.finished_run import FinishedRun

    models = FinishedRun.read(run)
    given = {"question": question, "passage": passage, "label": label, "qid": qid}
    rows = read_measured(models.recipe.data, models.recipe.classes, pairs, given)
    with models.workspace.locked():
        results = measure_run(models, rows, timed=speed, task=pairs.name)
    give(json_file, results.to_json(), results.tables())


def overall(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN[=METRIC]...", help="finished runs' folders, or their results.json")
    ],
    method: Annotated[str, typer.Option(help="the method that is compared with the others")] = "tmkd",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Compare a method with the others over several tasks.

    Shows how much of the ensemble's figure the method keeps, and whether it is significantly better than each other
    method on the mean of the tasks. The metric of a task is ROC-AUC, or else accuracy, unless you name another.

    Example: tmkd overall workspace/runs/webqa workspace/runs/wikiqa=map
    """
    from tmkd.evaluation.multi_task import MultiTaskResults, TaskResult

    found = MultiTaskResults.of([TaskResult.read(run) for run in runs], method)
    give(json_file, found.to_json(), [found.table()])
    say(found.sentence())


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="a YAML file, such as recipes/studies/options.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="replace keys of the study, such as seeds=[0]")
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
    jobs: Jobs = 1,
    only_list: Annotated[
        bool, typer.Option("--list", help="show what is done and what is missing; run nothing")
    ] = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Compare variants of recipes on the development set.

    Trains every variant with several seeds and writes a report that says which differences are significant. Students
    that exist are not trained again; an interrupted study continues.

    Example: tmkd study recipes/studies/options.yaml seeds=[0,1,2] --list
    """
    with needs_extra("train"):
        from tmkd.pipeline.study.run import list_study, run_study

    found = list_study(file, overrides, workspace) if only_list else run_study(file, overrides, workspace, jobs)
    give(json_file, found.to_json(), [found.table()])
    for sentence in found.sentences():
        say(sentence)
    if not only_list:
        say(f"report: {workspace / 'studies' / found.to_json()['study'] / 'report.html'}")
