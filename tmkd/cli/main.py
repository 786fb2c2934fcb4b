"""The command line: one verb per step, thin. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tmkd import __version__
from tmkd.cli import qa as cli_qa
from tmkd.cli import serve as cli_serve
from tmkd.core.console import say, set_quiet, tables
from tmkd.core.errors import TmkdError, needs_extra
from tmkd.core.files import write_numbers

app = typer.Typer(
    help="Compress slow question-answering models into a small fast one: two-stage multi-teacher distillation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="a YAML file, such as recipes/demo.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="override keys of the recipe: stage1.epochs=2")
]
WorkspaceFolder = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="TMKD_WORKSPACE", help="where every step's result is kept")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no bars, no notes")]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", min=1, help="students trained side by side, each on its share of the cores: for several seeds"
    ),
]
DEFAULT = Path("workspace")
AS_RECIPE = "as in the recipe unless given"
# Verbs that keep their steps: the same command continues.
STEPWISE = frozenset(["run", "teach", "label", "pretrain", "distill", "export", "evaluate", "study"])


def _version(value: bool) -> None:
    if value:
        print(f"tmkd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Compress slow question-answering models into a small fast one."""


def _pipeline(recipe: Path, overrides: list[str] | None, workspace: Path, quiet: bool) -> Any:
    set_quiet(quiet)
    from tmkd.config.load import load_recipe
    from tmkd.pipeline.store.workspace import Workspace

    parsed = load_recipe(recipe, overrides)
    with _train_extra():
        from tmkd.pipeline.run import Pipeline
    return Pipeline(parsed, Workspace(workspace))


_train_extra = partial(needs_extra, "train")


@app.command()
def run(
    recipe: RecipeFile, overrides: Overrides = None, workspace: WorkspaceFolder = DEFAULT, jobs: Jobs = 1,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="print results.json to standard output")] = False,
) -> None:  # fmt: skip
    """Every step of a recipe: teach, label, pretrain, distill, export, report.

    A finished step is not done again; an interrupted one continues.

    Example: tmkd run recipes/demo.yaml seeds=[0,1,2] --jobs 2
    """
    pipeline = _pipeline(recipe, overrides, workspace, quiet)
    from tmkd.pipeline.report import report

    with pipeline.working():
        results = report(pipeline, jobs)
    if as_json:
        print(json.dumps(results.to_json(), indent=2))
    elif not quiet:
        tables.print(results.table())
        for sentence in results.verdicts():
            say(sentence)
        _tell_where(pipeline.run)


def _tell_where(folder: Path) -> None:
    say(f"report:    {folder / 'report' / 'report.html'}")
    say(f"student:   {folder / 'export'}  (opens with transformers; tmkd score {folder / 'export'} --pairs FILE)")
    say(f"test rows: {folder / 'test.jsonl'}")


@app.command()
def teach(
    recipe: RecipeFile, overrides: Overrides = None, workspace: WorkspaceFolder = DEFAULT, quiet: Quiet = False
) -> None:
    """Fine-tune the teachers on golden labels.

    Example: tmkd teach recipes/demo.yaml
    """
    pipeline = _pipeline(recipe, overrides, workspace, quiet)
    with pipeline.working():
        for teacher, step in pipeline.teachers:
            say(f"{teacher.name}: {step.folder if step else 'a column of scores'}")


@app.command()
def label(
    recipe: RecipeFile, overrides: Overrides = None, workspace: WorkspaceFolder = DEFAULT, quiet: Quiet = False
) -> None:
    """Label pool and training pairs with every teacher.

    Example: tmkd label recipes/demo.yaml
    """
    pipeline = _pipeline(recipe, overrides, workspace, quiet)
    with pipeline.working():
        pipeline.label_all()


@app.command()
def pretrain(
    recipe: RecipeFile, overrides: Overrides = None, workspace: WorkspaceFolder = DEFAULT, quiet: Quiet = False
) -> None:
    """Stage 1: distillation pre-training on the pool.

    Example: tmkd pretrain recipes/demo.yaml stage1.epochs=4
    """
    pipeline = _pipeline(recipe, overrides, workspace, quiet)
    from tmkd.config.methods import METHODS

    with pipeline.working():
        for name in pipeline.recipe.methods:
            if METHODS[name].stage1:
                for seed in pipeline.recipe.seeds:
                    step = pipeline.pretrain(METHODS[name], seed)
                    say(f"{name}, seed {seed}: {getattr(step, 'folder', step)}")


@app.command()
def distill(
    recipe: RecipeFile, overrides: Overrides = None, workspace: WorkspaceFolder = DEFAULT, quiet: Quiet = False
) -> None:
    """Stage 2: the students of every method of the recipe.

    Example: tmkd distill recipes/demo.yaml stage1_from=workspace/runs/demo/stage1
    """
    pipeline = _pipeline(recipe, overrides, workspace, quiet)
    pipeline.require_exportable()
    with pipeline.working():
        for student in pipeline.students:
            say(f"{student.method.name}: {', '.join(str(step.folder) for step in student.steps)}")
        pipeline.write_manifest()
        pipeline.take_away()


@app.command()
def export(
    recipe: RecipeFile, overrides: Overrides = None, workspace: WorkspaceFolder = DEFAULT, quiet: Quiet = False,
    backend: Annotated[list[str] | None, typer.Option(help="a back end that must pass, such as openvino-int8")] = None,
) -> None:  # fmt: skip
    """Fold the student, write it for serving, refuse what does not match.

    Example: tmkd export recipes/demo.yaml --backend onnx-fp32 --backend openvino-int8
    """
    if backend:
        overrides = [*(overrides or []), f"export.backends={json.dumps(backend)}"]
    pipeline = _pipeline(recipe, overrides, workspace, quiet)
    pipeline.require_exportable()
    with pipeline.working():
        rows = pipeline.export(named=bool(backend))
        pipeline.write_manifest()
    print(json.dumps(rows, indent=2))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, such as workspace/runs/demo")],
    pairs: Annotated[Path, typer.Option("--pairs", help="labelled pairs: JSONL, CSV, TSV, Parquet, plain or .gz")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the numbers here (- for standard output)")
    ] = None,
    question: Annotated[str | None, typer.Option(help=f"column of the question; {AS_RECIPE}")] = None,
    passage: Annotated[str | None, typer.Option(help=f"column of the passage; {AS_RECIPE}")] = None,
    label: Annotated[str | None, typer.Option(help=f"column of the label; {AS_RECIPE}")] = None,
    qid: Annotated[str | None, typer.Option(help=f"column that groups rows by question; {AS_RECIPE}")] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="measure pairs per second too")] = True,
    quiet: Quiet = False,
) -> None:
    """Measure every model of a run on anyone's labelled pairs.

    Example: tmkd evaluate workspace/runs/demo --pairs my-pairs.jsonl --json numbers.json
    """
    set_quiet(quiet)
    from tmkd.data.tasks import read_measured
    from tmkd.evaluation.components import AGREEMENT, component_table
    from tmkd.pipeline.steps.evaluate import RunModels
    from tmkd.pipeline.steps.evaluate import evaluate as measure_run

    models = RunModels.read(run)
    given = {"question": question, "passage": passage, "label": label, "qid": qid}
    rows = read_measured(models.recipe.data, models.recipe.classes, pairs, given)
    with models.workspace.locked():
        results = measure_run(models, rows, timed=speed, task=pairs.name)
    if json_file is None or str(json_file) != "-":
        tables.print(results.table())
        for title, components, metrics, lead in (
            ("the ensemble without each teacher", results.leave_one_out, results.headline_metrics, "it adds"),
            (f"{results.taken}: its heads combined", results.combinations, results.headline_metrics, "logit minus it"),
            (
                f"share of pairs decided as {results.relative_to} does", results.agreement, [AGREEMENT],
                f"{results.taken} minus it",
            ),
        ):  # fmt: skip
            if components:
                tables.print(component_table(title, components, metrics, lead))
    write_numbers(json_file, results.to_json())


@app.command()
def overall(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN[=METRIC]...", help="finished runs' folders, or their results.json")
    ],
    method: Annotated[str, typer.Option(help="the one that is compared with the others")] = "tmkd",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the numbers there too (- for standard output)")
    ] = None,
) -> None:
    """What a method keeps of the ensemble over several tasks, and whether it is ahead of the others on their mean.

    A task counts by ROC-AUC, else by accuracy, unless another metric is named.

    Example: tmkd overall workspace/runs/webqa workspace/runs/wikiqa=map workspace/runs/snli
    """
    from tmkd.evaluation.multi_task import MultiTaskResults, TaskResult

    found = MultiTaskResults.of([TaskResult.read(run) for run in runs], method)
    if json_file is None or str(json_file) != "-":
        tables.print(found.table())
        say(found.sentence())
    write_numbers(json_file, found.to_json())


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="a YAML file, such as recipes/studies/options.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="override keys of the study: seeds=[0,1]")
    ] = None,
    workspace: WorkspaceFolder = DEFAULT,
    jobs: Jobs = 1,
    quiet: Quiet = False,
    only_list: Annotated[bool, typer.Option("--list", help="tell what is there, what is missing; run nothing")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the numbers there too (- for standard output)")
    ] = None,
) -> None:  # fmt: skip
    """Variants of recipes over several seeds, on development rows: report, figures and which differences are real.

    Students that are there already are not trained again; an interrupted study continues.

    Example: tmkd study recipes/studies/options.yaml seeds=[0,1,2] --list
    """
    set_quiet(quiet)
    with _train_extra():
        from tmkd.pipeline.study.command import list_study, study_and_report

    if only_list:
        shown, content, notes = list_study(file, overrides, workspace)
    else:
        shown, content, notes = study_and_report(file, overrides, workspace, jobs)
    if json_file is None or str(json_file) != "-":
        tables.print(shown)
    write_numbers(json_file, content)
    for note in notes:
        say(note)


@app.command()
def score(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="an exported student, such as workspace/runs/demo/export")
    ],
    pairs: Annotated[Path, typer.Option("--pairs", help="pairs: JSONL, CSV, TSV, Parquet, plain or .gz")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="file to write; - is JSON lines on standard output")
    ] = "-",
    question: Annotated[str, typer.Option(help="column of the question")] = "question",
    passage: Annotated[str, typer.Option(help="column of the passage")] = "passage",
    backend: Annotated[str, typer.Option(help="auto, or one of the export's back ends")] = "auto",
    threads: Annotated[int | None, typer.Option(help="threads; all cores unless given")] = None,
    quiet: Quiet = False,
) -> None:
    """Score a pairs file with an exported student, without PyTorch.

    Example: tmkd score workspace/runs/demo/export --pairs pairs.jsonl --output scored.jsonl
    """
    set_quiet(quiet)
    from tmkd.core.malloc import keep_freed_memory
    from tmkd.inference.score_file import score_file

    keep_freed_memory()
    score_file(model, pairs, output, question=question, passage=passage, backend=backend, threads=threads)


app.command()(cli_serve.serve)


@app.command(name="recipe")
def describe_recipe() -> None:
    """Every key of a recipe: its type, its default and what it means.

    Example: tmkd recipe
    """
    from tmkd.config.load import describe

    print(describe())


@app.command()
def clean(
    workspace: WorkspaceFolder = DEFAULT,
    yes: Annotated[bool, typer.Option("--yes", help="remove them; without it they are listed")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="kept token ids too; they are made again")] = False,
) -> None:
    """List the steps that no run needs, and remove them on request.

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


app.command()(cli_qa.index)
app.command()(cli_qa.ask)
app.command()(cli_qa.calibrate)


app.command()(cli_serve.bench)


class _Interrupted(BaseException):
    """Ctrl-C or a polite kill; a class of its own, since the command-line library swallows KeyboardInterrupt."""


def _interrupt(number: int, frame: object) -> None:
    raise _Interrupted(number)


def main() -> None:
    """Run the command line: errors as one message and exit status 1, Ctrl-C as 130, a polite kill as 143."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    set_quiet(False)
    try:
        app()
    except TmkdError as error:
        print(f"tmkd: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except _Interrupted as stop:
        kept = "; finished work is kept, the same command continues" if set(sys.argv[1:2]) & STEPWISE else ""
        print(f"\ntmkd: interrupted{kept}", file=sys.stderr)
        raise SystemExit(128 + int(stop.args[0])) from None
    except BrokenPipeError:  # `tmkd score ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        print(f"tmkd: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None
