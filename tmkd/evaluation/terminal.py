"""Tables for a terminal of what a report has of the teachers: reliability, and how closely the student follows them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

SETS = {"stage1": "pairs of stage 1", "train": "training pairs", "test": "test pairs"}
"""What reports call the sets of pairs on which a student is compared with its teachers."""


def reliability_table(reliability: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """How well each teacher's probabilities agree with the labels, before and after calibration.

    Args:
        reliability: as in `tmkd.evaluation.results.Results`.
    """
    shown = Table(title="reliability of the teachers' probabilities", title_justify="left")
    for column in ("teacher", "calibration error", "calibrated", "log loss", "calibrated"):
        shown.add_column(column, justify="left" if column == "teacher" else "right")
    for name, found in reliability.items():
        cells = [f"{found[state][key]:.3f}" if state in found else "" for key in ("error", "log_loss")
                 for state in ("given", "calibrated")]  # fmt: skip
        shown.add_row(name.removeprefix("teacher:"), *cells)
    return shown


def followed_table(student: str, followed: Mapping[str, Mapping[str, float]]) -> Table:
    """How closely a student follows its teachers.

    Args:
        student: its method.
        followed: as in `tmkd.evaluation.results.Results`.
    """
    shown = Table(title=f"correlation of {student} with its teachers", title_justify="left")
    shown.add_column("teacher")
    for title in SETS.values():
        shown.add_column(title, justify="right")
    for name, by_set in followed.items():
        shown.add_row(name, *(f"{by_set[where]:.3f}" if where in by_set else "" for where in SETS))
    return shown
