"""The stored labels of a workspace: what there is, whether it is whole, and how far teachers agree."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tmkd.core.console import progress
from tmkd.core.errors import TmkdError
from tmkd.core.files import read_json
from tmkd.core.logits import log_odds
from tmkd.evaluation.ranking import kendall_within
from tmkd.pipeline.run_labels import RunLabels
from tmkd.pipeline.store.label_check import (
    Repaired,
    StoreCheck,
    check_store,
    repair_store,
    store_folders,
)
from tmkd.pipeline.store.workspace import UNFINISHED, Workspace, bytes_in


@dataclass(frozen=True)
class StoredLabels:
    """One label store of a workspace.

    Attributes:
        check: what its files hold, and what is wrong with them.
        sets: the names of its set of pairs in the run that was asked for, such as `pool`.
        runs: the names of the runs that use it.
        size: bytes on disk.
    """

    check: StoreCheck
    sets: tuple[str, ...]
    runs: tuple[str, ...]
    size: int

    def to_json(self) -> dict[str, Any]:
        """The numbers by name."""
        found = self.check
        return {
            "folder": str(found.folder),
            "model": found.model or None,
            "sets": list(self.sets),
            "pairs": found.count,
            "labelled": found.labelled,
            "not_finite": found.not_finite,
            "parts": found.parts,
            "bytes": self.size,
            "finished": found.finished,
            "faults": len(found.faults),
            "runs": list(self.runs),
        }


@dataclass(frozen=True)
class Agreement:
    """How alike two teachers order the passages of a question.

    Attributes:
        part: the set of pairs.
        first: a teacher.
        second: another one.
        tau: Kendall's tau within a question, mean over the questions; None where no question has an order.
        questions: how many questions it is of: those with two passages or more that both teachers tell apart.
    """

    part: str
    first: str
    second: str
    tau: float | None
    questions: int


@dataclass(frozen=True)
class LabelOverview:
    """What `WorkspaceLabels.show` found.

    Attributes:
        stores: the label stores.
        agreement: of the teachers of a run, where one was asked for.
        coverage: by set of pairs and teacher of that run: how many pairs have a label of it.
        sizes: how many pairs each set of that run has.
        unknown: why the run's sets of pairs cannot be read; empty if they can.
    """

    stores: tuple[StoredLabels, ...]
    agreement: tuple[Agreement, ...] = ()
    coverage: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    unknown: str = ""

    def to_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return {
            "stores": [one.to_json() for one in self.stores],
            "coverage": {
                part: {"pairs": self.sizes[part], "teachers": teachers} for part, teachers in self.coverage.items()
            },
            "agreement": [vars(one) for one in self.agreement],
            "unknown": self.unknown,
        }


class WorkspaceLabels:
    """The label stores of a workspace.

    Args:
        workspace: the workspace.

    Raises:
        TmkdError: the folder is no workspace.
    """

    def __init__(self, workspace: str | Path = "workspace") -> None:
        self.workspace = Workspace(Path(workspace))
        self.workspace.require_steps()

    def show(self, run: str | Path | None = None) -> LabelOverview:
        """What is stored, of the whole workspace or of one run; of a run also how far its teachers agree.

        Args:
            run: the run's folder.

        Raises:
            TmkdError: the folder is that of no run of this workspace.
            Busy: another process removes or repairs steps.
        """
        with self.workspace.locked():
            asked = None if run is None else self._run(run)
            users = self._users()
            if asked is None:
                return LabelOverview(tuple(self._stores(users, {})))
            try:
                sets, coverage, agreement = asked.sets, *_compared(asked)
            except TmkdError as error:
                return LabelOverview(tuple(self._stores(users, {}, asked.steps)), unknown=str(error))
            sizes = {part: len(pairs) for part, pairs in asked.pairs.items()}
            return LabelOverview(tuple(self._stores(users, sets, asked.steps)), agreement, coverage, sizes)

    def verify(self) -> list[StoreCheck]:
        """Read every part of every label store; nothing is changed."""
        folders, found = store_folders(self.workspace.root), []
        with progress("check labels", len(folders), "stores") as bar:
            for folder in folders:
                if folder.is_dir():  # else it was finished meanwhile, and has another name
                    found.append(check_store(folder))
                bar.advance(1)
        return found

    def repair(self) -> list[Repaired]:
        """Drop what `verify` finds, so that the next run labels those pairs again, and nothing else.

        Raises:
            Busy: another process works in the workspace, or on one of the steps; nothing is changed.
            NoRoomError: the disk is full; what was repaired before stays so.
        """
        with self.workspace.locked(alone=True), ExitStack() as held:
            for folder in store_folders(self.workspace.root):
                name = folder.name.removesuffix(".partial")
                held.enter_context(self.workspace.holding(name, "labels that are to be repaired", wait=False))
            return [repair_store(check) for check in self.verify() if check.faults]

    def _run(self, folder: str | Path) -> RunLabels:
        found = RunLabels(folder)
        if found.workspace.root != self.workspace.root.resolve():
            raise TmkdError(f"{folder} is a run of the workspace {found.workspace.root}, not of {self.workspace.root}")
        return found

    def _users(self) -> dict[str, set[str]]:
        """The runs that use each step, by the step's name."""
        found: dict[str, set[str]] = {}
        for name in ("manifest.json", UNFINISHED):
            for path in self.workspace.root.glob(f"runs/*/{name}"):
                for step in read_json(path)["steps"]:
                    found.setdefault(step, set()).add(path.parent.name)
        return found

    def _stores(
        self, users: dict[str, set[str]], sets: dict[str, tuple[str, ...]], steps: set[str] | None = None
    ) -> list[StoredLabels]:
        found = []
        for folder in store_folders(self.workspace.root):
            name = folder.name.removesuffix(".partial")
            if steps is None or name in steps:
                check = check_store(folder)
                size, runs = bytes_in(folder), tuple(sorted(users.get(name, ())))
                found.append(StoredLabels(check, sets.get(check.digest, ()), runs, size))
        return found


def _compared(run: RunLabels) -> tuple[dict[str, dict[str, int]], tuple[Agreement, ...]]:
    """How many pairs of each set each teacher of a run labels, and how far the teachers agree there."""
    coverage, agreement = {}, []
    with progress("compare teachers", len(run.pairs), "sets") as bar:
        for part, pairs in run.pairs.items():
            logits = run.logits(part)
            known = {name: np.isfinite(one).all(axis=1) for name, one in logits.items()}
            coverage[part] = {name: int(known[name].sum()) if name in known else 0 for name in run.teachers}
            questions = pairs.groups()[1]
            for first, second in combinations(logits, 2) if run.classes == 2 else ():
                rows = np.flatnonzero(known[first] & known[second])
                one, other = (log_odds(logits[name][rows]) for name in (first, second))
                agreement.append(Agreement(part, first, second, *kendall_within(questions[rows], one, other)))
            bar.advance(1)
    return coverage, tuple(agreement)
