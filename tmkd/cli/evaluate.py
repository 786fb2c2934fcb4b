"""Commands that measure and compare models: evaluate, overall, study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tmkd import api
from tmkd.cli.options import (
    PAIRS_HELP,
    WORKSPACE,
    Jobs,
    JsonFile,
    Quiet,
    SharedAddress,
    WorkspaceFolder,
    give,
    require_no_results,
)
from tmkd.core.console import say
from tmkd.core.files import Quoting

_UNLESS = "the recipe's unless given"


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, such as workspace/runs/demo")],
    pairs: Annotated[Path, typer.Option("--pairs", help=f"labelled pairs: {PAIRS_HELP}")],
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="another run, whose students are compared with this run's; can be repeated"),
    ] = None,
    json_file: JsonFile = None,
    question: Annotated[str | None, typer.Option(help=f"column of the question; {_UNLESS}")] = None,
    passage: Annotated[str | None, typer.Option(help=f"column of the passage; {_UNLESS}")] = None,
    label: Annotated[str | None, typer.Option(help=f"column of the label; {_UNLESS}")] = None,
    qid: Annotated[str | None, typer.Option(help=f"column that groups pairs by question; {_UNLESS}")] = None,
    quoting: Annotated[Quoting | None, typer.Option(help=f"what a quote in CSV and TSV means; {_UNLESS}")] = None,
    name: Annotated[
        str | None,
        typer.Option(help="what the results call the pairs (`tmkd overall`); the file's name unless given"),
    ] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="measure pairs per second too")] = True,
    quiet: Quiet = False,
) -> None:
    """Measure every model of a run on any labelled pairs.

    With --beside it also says which differences to the students of other runs are significant.

    Example: tmkd evaluate workspace/runs/demo --pairs my-pairs.jsonl --json numbers.json
    """
    given = {"question": question, "passage": passage, "label": label, "qid": qid}
    columns = {name: column for name, column in given.items() if column is not None}
    opened = api.Run.open(run)
    results = opened.evaluate(pairs, columns=columns, quoting=quoting, speed=speed, beside=beside or (), name=name)
    give(json_file, results.to_json(), results.tables(), [*results.standing(), *results.verdicts()])


def overall(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN[=METRIC]", help="finished runs' folders, or their results.json")
    ],
    method: Annotated[str, typer.Option(help="the method that is compared with the others")] = "tmkd",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Compare a method with the others over several tasks.

    Shows how much of the ensemble's figure the method keeps, and whether it is significantly better than each other
    method on the mean of the tasks. The metric of a task is ROC-AUC, or else accuracy, unless you name another. It also
    says whether the teachers' ensembles are better than the best single teachers.

    Example: tmkd overall workspace/runs/webqa workspace/runs/wikiqa=map
    """
    require_no_results(json_file)
    found = api.compare_tasks(runs, method)
    lead = found.lead_sentence()
    give(json_file, found.to_json(), [found.table()], [found.sentence(), *([lead] if lead else [])])


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="a YAML file, such as recipes/studies/options.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="replace keys of the study, such as seeds=[0]")
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
    labels: SharedAddress = None,
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
    if only_list:
        listing = api.list_study(file, overrides, workspace)
        _show_study(json_file, listing)
    else:
        outcome = api.run_study(file, overrides, workspace, jobs, labels)
        _show_study(json_file, outcome)
        say(f"report: {workspace / 'studies' / outcome.study.name / 'report.html'}")


def _show_study(json_file: Path | None, found: Any) -> None:
    give(json_file, found.to_json(), [found.table()], found.sentences())
