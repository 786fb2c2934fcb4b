"""What the steps of a run give back: where the results lie, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmkd.evaluation.results import Results


@dataclass(frozen=True)
class TeachResult:
    """The teachers of a run.

    Attributes:
        teachers: the model folder of each teacher by name; None for one that is no model of the workspace: scores, an
            endpoint, or a finished model that another library runs.
    """

    teachers: Mapping[str, Path | None]


@dataclass(frozen=True)
class LabelResult:
    """The soft labels that the students of a run learn.

    Attributes:
        train: pairs that are labelled by every teacher for stage 2; 0 where no method learns soft labels.
        pool: pairs that are labelled for stage 1; 0 where no method needs them.
        stores: the folder of each label store that was read or written (`LabelStore`).
    """

    train: int
    pool: int
    stores: tuple[Path, ...]


@dataclass(frozen=True)
class PretrainResult:
    """The students of stage 1.

    Attributes:
        students: the model folders by method, seed after seed.
    """

    students: Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True)
class DistillResult:
    """The finished students.

    Attributes:
        students: the model folders by method, seed after seed (K of them for each seed of `m-o-m`).
        student: a copy of the first student of the method that the recipe takes, in the run's folder.
    """

    students: Mapping[str, tuple[Path, ...]]
    student: Path


@dataclass(frozen=True)
class ExportResult:
    """An export, ready for `Scorer`.

    Attributes:
        folder: the export.
        parity: for every backend what was compared with the student, the limits, whether it passed, and why not.
    """

    folder: Path
    parity: tuple[Mapping[str, Any], ...]

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that passed and are in the folder."""
        return tuple(entry["backend"] for entry in self.parity if entry["passed"])


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run's folder.
        student: the student, an ordinary transformers checkpoint.
        export: the export of the student.
        report: the report's page.
        results: every model of the run compared on the test pairs.
        others: the same on the development sets of the other tasks that the pool was mined from, by the task's name.
    """

    folder: Path
    student: Path
    export: Path
    report: Path
    results: Results
    others: Mapping[str, Results] = field(default_factory=dict)
