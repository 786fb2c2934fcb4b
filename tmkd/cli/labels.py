"""The commands `tmkd labels ...`: stored labels of teachers, and scores made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmkd import api
from tmkd.cli.options import (
    PAIRS_HELP,
    WORKSPACE,
    Command,
    JsonFile,
    Quiet,
    QuotingOption,
    Sections,
    WorkspaceFolder,
    give,
)
from tmkd.core.console import say

if TYPE_CHECKING:
    from rich.table import Table

labels = typer.Typer(
    cls=Sections,
    help="Look at stored labels of teachers, repair and export them; import scores made elsewhere.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_TEXTS = ("step", "of", "state", "used by", "set", "teachers")  # columns that hold no numbers
_AT = typer.Option(
    "--labels", metavar="ADDRESS", help="of an address, such as s3://bucket/labels, in place of a workspace"
)
_RUN = "a run's folder, such as workspace/runs/demo"


@labels.command(cls=Command, rich_help_panel="Commands")
def show(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help=f"only of this run, with its teachers' agreement: {_RUN}"),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
    address: Annotated[str | None, _AT] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Show which labels are stored, of how many pairs, and whether they are finished.

    Of a run also: how many pairs of each set every teacher has labelled, and Kendall's tau between the teachers within
    a question, mean over the questions. The workspace is then that of the run.

    Example: tmkd labels show workspace/runs/demo
    """
    if address is None:
        root = workspace if run is None else run.resolve().parent.parent
        found = api.WorkspaceLabels(root).show(run)
    elif run is None:
        found = api.SharedLabels(address).show()
    else:
        raise typer.BadParameter("give a run or --labels", param_hint="--labels")
    tables = [_stores(found)] + ([_coverage(found)] if found.coverage else [])
    give(json_file, found.to_json(), [*tables, *([_agreement(found)] if found.agreement else [])])
    if found.unknown:
        say(f"the run's sets of pairs are not known: {found.unknown}")
    if faults := sum(len(one.check.faults) for one in found.stores):
        say(f"{faults} files cannot be used as they are: `tmkd labels verify` names them")


def _stored(workspace: Path, address: str | None) -> api.WorkspaceLabels | api.SharedLabels:
    return api.WorkspaceLabels(workspace) if address is None else api.SharedLabels(address)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    found = Table(title=title)
    for column in columns:
        found.add_column(column, justify="left" if column in _TEXTS else "right", overflow="fold")
    return found


def _stores(found: Any) -> Table:
    table = _table("stored labels", "step", "of", "pairs", "labelled", "not finite", "MiB", "state", "used by")
    for one in found.stores:
        row = one.to_json()
        pairs = "?" if row["pairs"] is None else f"{row['pairs']:,}"
        table.add_row(
            Path(row["folder"]).name.removesuffix(".partial"),
            row["model"] or "",
            f"{pairs} {' '.join(row['sets'])}".strip(),
            f"{row['labelled']:,}",
            f"{row['not_finite']:,}" if row["not_finite"] else "",
            f"{row['bytes'] / 2**20:,.1f}",
            "faulty" if row["faults"] else "finished" if row["finished"] else "unfinished",
            " ".join(row["runs"]),
        )
    return table


def _coverage(found: Any) -> Table:
    names = list(dict.fromkeys(name for teachers in found.coverage.values() for name in teachers))
    table = _table("labelled pairs", "set", "pairs", *names)
    for part, teachers in found.coverage.items():
        table.add_row(part, f"{found.sizes[part]:,}", *(f"{teachers[name]:,}" for name in names))
    return table


def _agreement(found: Any) -> Table:
    table = _table("agreement of teachers", "set", "teachers", "Kendall's tau", "questions")
    for one in found.agreement:
        tau = "" if one.tau is None else f"{one.tau:.3f}"
        table.add_row(one.part, f"{one.first}, {one.second}", tau, f"{one.questions:,}")
    return table


@labels.command(cls=Command, rich_help_panel="Commands")
def verify(
    workspace: WorkspaceFolder = WORKSPACE,
    address: Annotated[str | None, _AT] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Read every stored label and name each file that cannot be used. Nothing is changed.

    Compares checksums, columns and row counts, finds pairs that are there twice, logits that are not finite, and parts
    of another teacher or of other pairs. Exit status 1 if anything is wrong.

    Example: tmkd labels verify
    """
    found = _stored(workspace, address).verify()
    faults = [fault for check in found for fault in check.faults]
    content = [{"path": str(fault.path), "fault": fault.what} for fault in faults]
    parts, rows = sum(check.parts for check in found), sum(check.rows for check in found)
    give(json_file, {"stores": len(found), "parts": parts, "labels": rows, "faults": content}, map(str, faults))
    say(f"{rows:,} labels in {parts:,} parts of {len(found):,} stores: {len(faults):,} faults")
    if faults:
        say("`tmkd labels repair` drops what is named, so that the next run labels it again")
        raise SystemExit(1)


@labels.command(cls=Command, rich_help_panel="Commands")
def repair(
    workspace: WorkspaceFolder = WORKSPACE,
    address: Annotated[str | None, _AT] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Drop what `verify` finds. The next `tmkd run` or `tmkd label` labels those pairs again, and no others.

    Refused while another process works in the workspace, or writes one of the stores at the address.

    Example: tmkd labels repair
    """
    found = _stored(workspace, address).repair()
    content = [
        {
            "folder": str(one.folder),
            "faults": [{"path": str(fault.path), "fault": fault.what} for fault in one.faults],
            "dropped": one.dropped,
            "missing": one.missing,
        }
        for one in found
    ]
    lines: list[str] = []
    for one in found:
        lines += map(str, one.faults)
        again = "" if one.missing is None else f"; the next run labels {one.missing:,} pairs"
        lines.append(f"dropped {one.dropped:,} labels of {one.folder}{again}")
    give(json_file, content, lines)
    if not found:
        say("nothing to repair")


@labels.command("import", cls=Command, rich_help_panel="Commands")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=f"scores made elsewhere: {PAIRS_HELP}")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write, in the format of its extension")],
    quoting: QuotingOption = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Make scores of other tools a file for a teacher of the kind `scores`: one row a pair.

    Reads scored triples (query, pos, neg, pos_score, neg_score) and rows with lists (query, pos, neg, pos_scores,
    neg_scores). Pairs with the same score twice are merged; with two different ones they are refused.

    Example: tmkd labels import scored.jsonl --output judge.jsonl
    """
    found = api.import_scores(files, output, quoting=quoting)
    give(json_file, {**vars(found), "path": str(found.path), "unread": list(found.unread)})
    say(
        f"{found.path}: {found.pairs:,} pairs of {found.rows:,} rows; {found.merged:,} were there again, and are merged"
    )
    if found.unread:
        say(f"columns that were not read: {', '.join(found.unread)}")
    holds = "logit" if found.lowest < 0 or found.highest > 1 else "probability"
    say(f"scores from {found.lowest:g} to {found.highest:g}; in a recipe's teachers:")
    say(f"  {{name: NAME, file: {found.path}, holds: {holds}}}")
    if holds == "probability":
        say("  (holds: logit, if they are log-odds)")


@labels.command(cls=Command, rich_help_panel="Commands")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=_RUN)],
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write, in the format of its extension")],
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Write the labels of a run as one file, to train with other tools.

    One row a pair of the training set, the development set and the pool: the texts, the label, the log-odds of each
    teacher in a column of its name (a list of logits for more than two classes), and those of their ensemble.

    Example: tmkd labels export workspace/runs/demo --output labels.parquet
    """
    found = api.export_labels(run, output)
    give(json_file, found.to_json())
    say(f"{found.path}: {', '.join(f'{count:,} {part} pairs' for part, count in found.rows.items())}")
    for part, counts in found.missing.items():
        say(f"{part}: {', '.join(f'{count:,} pairs without a label of {name}' for name, count in counts.items())}")
