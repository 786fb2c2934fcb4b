"""A workspace holds every step's result once, as steps/<kind>-<fingerprint>/; a run names the steps it used.

A step is built in a folder beside its target and renamed, so a folder that exists is whole. An interrupted step's
partial folder stays: whoever builds it again finds what was saved there and continues. Processes share a workspace:
each step is built by one of them, and the others wait for it, or do something else first (`Workspace.in_turn`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tmkd.core.errors import TmkdError
from tmkd.core.files import disk_errors, write_json
from tmkd.pipeline.store.fingerprint import STEP_VERSIONS, fingerprint

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished.json"  # beside the manifest of a run or study: what it used since that was written
T = TypeVar("T")


class Busy(TmkdError):
    """Another process is at the step."""


@contextmanager
def held(path: Path, busy: str, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold a lock file until the block ends, or the process does.

    Args:
        busy: what is said where another process holds it. wait: for that one to end. shared: with others who share it.

    Raises:
        Busy: another process holds it, and it is not waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("w") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise Busy(busy) from None
            logger.info(busy)
            fcntl.flock(file, kind)
        yield


@dataclass(frozen=True)
class Step:
    """A finished step: its kind, fingerprint and folder."""

    kind: str
    fingerprint: str
    folder: Path


class Workspace:
    """The folder with `steps/` and `runs/`.

    Attributes:
        used: the steps that were asked for.
        record: a file that names them as they come (`UNFINISHED`); None: no record.
        built: how many steps this process built.
        patient: whether a step that another process is at is waited for; else it is `Busy`.
    """

    built = 0
    patient = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tokens = root / "tokens"  # a cache: see tmkd/pipeline/store/token_cache.py
        self.used: list[Step] = []
        self.record: Path | None = None

    @contextmanager
    def locked(self, *, alone: bool = False) -> Iterator[None]:
        """Work in the workspace, with others unless `alone`.

        Raises:
            Busy: another process works there (`alone`), or removes steps.
        """
        message = f"workspace {self.root} is in use by another tmkd process; wait for it, or use --workspace"
        with held(self.root / "lock", message, shared=not alone):
            yield

    def step(self, kind: str, depends_on: Any, build: Callable[[Path], None], *, label: str) -> Step:
        """The step's folder, built now unless it is there.

        Args:
            kind: first part of the folder's name.
            depends_on: everything that the result depends on (`tmkd.pipeline.store.fingerprint.depends_on`).
            build: fills the folder it is given; may find what an interrupted call left there.
            label: what the log calls it.

        Raises:
            Busy: another process is at it, and the workspace is not `patient`.
        """
        step = Step(kind, mark := fingerprint(kind, depends_on), self.root / "steps" / f"{kind}-{mark}")
        self._note(step)
        if step.folder.is_dir():
            if step not in self.used:
                logger.info(f"{label}: done before ({step.folder.name})")
        else:
            lock = self.root / "locks" / step.folder.name
            with held(lock, f"{label}: another process is at it ({step.folder.name})", wait=self.patient):
                if not step.folder.is_dir():
                    self._build(step, depends_on, build, label)
                lock.unlink(missing_ok=True)  # who waits for it still finds the step
        if step not in self.used:
            self.used.append(step)
        return step

    def _build(self, step: Step, depends_on: Any, build: Callable[[Path], None], label: str) -> None:
        logger.info(f"{label}: {step.folder.name}")
        partial = step.folder.with_name(step.folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with disk_errors(partial):
            build(partial)
            content = {"kind": step.kind, "version": STEP_VERSIONS[step.kind], "label": label, "depends_on": depends_on}
            write_json(partial / "step.json", content)
            shutil.rmtree(partial / "state", ignore_errors=True)
            partial.rename(step.folder)
        self.built += 1
        logger.info(f"{label}: done in {time.monotonic() - began:,.0f} s")

    def in_turn(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What each of these gives, in their order; done first are those whose steps no other process is at, then,
        patiently, the others.

        Raises:
            Busy: as `step` does, where the workspace is not `patient` (inside a work of another `in_turn`).
        """
        if not self.patient:
            return [work() for work in works]
        found: dict[int, T] = {}
        while left := [number for number in range(len(works)) if number not in found]:
            before = len(found)
            for number in left:
                self.patient = False
                try:
                    found[number] = works[number]()
                except Busy:
                    continue
                finally:
                    self.patient = True
            if len(found) == before:
                found[left[0]] = works[left[0]]()
        return [found[number] for number in range(len(works))]

    def _note(self, step: Step) -> None:
        """Let `clean` know, before hours of work, that an unfinished run needs the step."""
        if self.record is None or step in self.used:
            return
        names = json.loads(self.record.read_text())["steps"] if self.record.is_file() else []
        if step.folder.name not in names:
            with disk_errors(self.root):
                write_json(self.record, {"steps": [*names, step.folder.name]})

    def finished(self, kind: str) -> list[tuple[Path, Any]]:
        """The finished steps of a kind in its current version: the folder of each, and what it depends on."""
        found = []
        for path in sorted(self.root.glob(f"steps/{kind}-*/step.json")):
            content = json.loads(path.read_text())
            if path.parent.suffix != ".partial" and content.get("version") == STEP_VERSIONS[kind]:
                found.append((path.parent, content["depends_on"]))
        return found

    def unused(self) -> list[Path]:
        """Steps, partial ones too, that no run, finished or begun, and no study names.

        Raises:
            TmkdError: the folder is no workspace.
        """
        if not (self.root / "steps").is_dir():
            raise TmkdError(f"{self.root} is not a workspace (no steps/); name one with --workspace")
        named: set[str] = set()
        for name in ("manifest.json", UNFINISHED):
            for file in [*self.root.glob(f"runs/*/{name}"), *self.root.glob(f"studies/*/{name}")]:
                named.update(json.loads(file.read_text())["steps"])
        folders = [path for path in (self.root / "steps").iterdir() if path.is_dir()]
        return sorted(path for path in folders if path.name.removesuffix(".partial") not in named)
