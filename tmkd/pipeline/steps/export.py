"""The export of a student as a step of the workspace (tmkd/export/export.py makes it)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tmkd.core.files import copy_folder, disk_errors, put_back
from tmkd.data.tasks import TaskData
from tmkd.export.export import Classes, export_student
from tmkd.export.gate import writable
from tmkd.export.int8 import choose_calibration
from tmkd.inference.qa.calibration import FILE as CALIBRATION
from tmkd.inference.qa.calibration import of_the_same_student
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Step, Workspace


def export_step(
    workspace: Workspace,
    student: Step,
    task: TaskData,
    backends: Sequence[str] | None,
    labels: Sequence[str] | None,
    positive: int,
) -> Step:
    """Export a student into folder `export/` of a step.

    Args:
        workspace: keeps the step.
        student: a finished student.
        task: its training pairs calibrate int8, its development set is what the parity gate scores.
        backends: what to write; every backend whose tools are installed unless given.
        labels: names of the classes, where the recipe has some.
        positive: of two classes the one of the right passages.
    """
    names = list(backends or writable())
    calibration = choose_calibration(task.train)
    content = depends_on(
        settings={"backends": names, "labels": labels, "positive": None if positive == 1 else positive},
        inputs={"student": student, "dev": task.dev, "calibration": calibration},
    )

    def build(folder: Path) -> None:
        export_student(
            student.folder, task.dev, folder / "export", calibration=calibration, backends=names,
            classes=Classes(labels, positive),
        )  # fmt: skip

    return workspace.step("export", content, build, label="export")


def copy_export(step: Step, target: Path) -> None:
    """Copy an export out of its step. A calibration of the same student in the target's place is kept.

    Args:
        step: the export's step.
        target: the folder to write; an earlier export there is replaced.
    """
    with disk_errors(target.parent):
        put_back(target)
        calibration = of_the_same_student(target, step.folder / "export")
        # `tmkd calibrate` wrote it into the earlier export; no step holds it, so it is there before that export goes
        copy_folder(step.folder / "export", target, None if calibration is None else {CALIBRATION: calibration})
