"""A workspace holds every step's result once, as steps/<kind>-<fingerprint>/; a run names the steps it used.

A step is built in a folder beside its target and renamed, so a folder that exists is whole. An interrupted step's
partial folder stays: whoever builds it again finds what was saved there and continues. Processes share a workspace:
one process builds a step while the others wait for it or build something else first (`Workspace.in_turn`).
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from tmkd.core import processes
from tmkd.core.cluster import Cluster
from tmkd.core.errors import TmkdError
from tmkd.core.files import disk_errors, read_json, remove_temporary, write_json
from tmkd.core.locks import locked
from tmkd.core.malloc import give_back_freed_memory
from tmkd.core.places import Place
from tmkd.pipeline.store.fingerprint import STEP_VERSIONS, fingerprint

logger = logging.getLogger(__name__)

TRAINED = frozenset(["warmup", "teacher", "stage1", "student"])  # kinds of steps that all processes build together
UNFINISHED = "unfinished.json"  # beside the manifest of a run or study: the steps it used since that was written
T = TypeVar("T")


class Busy(TmkdError):
    """Another process is building the step, or holds the lock."""


class StepMissing(Exception):
    """A workspace that is only read (`Workspace.read_only`) does not hold the step; the message is the step's label."""


@contextmanager
def held(path: Path, busy: str, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold a lock file until the block ends or the process does.

    Args:
        path: the lock file; its folder is made.
        busy: the message where another process holds the lock.
        wait: wait for that process instead of raising `Busy`.
        shared: share the lock with others that ask for a shared one.

    Raises:
        Busy: another process holds it, and `wait` is false.
    """
    with locked(path, Busy(busy), wait=wait, shared=shared):
        yield


@dataclass(frozen=True)
class Step:
    """A finished step: its kind, fingerprint and folder."""

    kind: str
    fingerprint: str
    folder: Path


@dataclass(frozen=True)
class UnusedFolder:
    """A folder of a workspace that no run and no study needs.

    Attributes:
        folder: the folder.
        size: bytes of the files in it.
    """

    folder: Path
    size: int


@dataclass(eq=False)
class Ledger:
    """What one process did in a workspace; all views of a `Workspace` share one.

    Attributes:
        used: the steps that were asked for, each once, in that order.
        built: how many steps this process built.
        record: a file that names the steps as they are asked for (`UNFINISHED`), or None.
        about: what else the record says, as JSON-like content.
    """

    used: list[Step] = field(default_factory=list)
    built: int = 0
    record: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def note(self, step: Step) -> None:
        """Name the step in the record before it is built: `tmkd clean` must know that an unfinished run needs it."""
        if self.record is None or step in self.used:
            return
        there = read_json(self.record) if self.record.is_file() else {"steps": []}
        content = {**self.about, "steps": list(dict.fromkeys([*there["steps"], step.folder.name]))}
        if content != there:
            with disk_errors(self.record.parent):
                write_json(self.record, content)


@dataclass(frozen=True)
class Workspace:
    """The folder with `steps/` and `runs/`. Nothing is written until a step is built.

    Attributes:
        root: the folder.
        ledger: the steps that were used; shared with the views of this workspace.
        cluster: the Ray cluster whose workers label large sets of pairs; this process unless given.
        labels: a shared address that has the label stores, too (`tmkd.pipeline.store.shared_labels`), or None.
        mode: what `step` does about a step that is not there. `wait`: build it, or wait for the process that builds
            it; `skip`: build it, or raise `Busy` where another process builds it; `read`: raise `StepMissing`.

    Raises:
        TmkdError: the folder is a file, or a symbolic link to nothing.
    """

    root: Path
    ledger: Ledger = field(default_factory=Ledger)
    mode: Literal["wait", "skip", "read"] = "wait"
    cluster: Cluster | None = None
    labels: Place | None = None

    def __post_init__(self) -> None:
        steps = self.root.resolve() / "steps"
        if self.labels and self.labels.folder and self.labels.folder.resolve().is_relative_to(steps):
            raise TmkdError(f"--labels {self.labels} lies in the workspace's steps; name another folder or address")
        if self.root.is_symlink() and not self.root.exists():
            raise TmkdError(
                f"workspace {self.root} is a symbolic link to {self.root.readlink()}, which is not there (a disk "
                "that is not mounted); make that folder, or name another with --workspace"
            )
        if self.root.exists() and not self.root.is_dir():
            raise TmkdError(f"workspace {self.root} is a file, not a folder; name another with --workspace")

    @property
    def tokens(self) -> Path:
        """The cache of token ids (tmkd/pipeline/store/token_cache.py)."""
        return self.root / "tokens"

    @property
    def used(self) -> list[Step]:
        """The steps that were asked for."""
        return self.ledger.used

    @property
    def built(self) -> int:
        """How many steps this process built."""
        return self.ledger.built

    def without_waiting(self) -> Workspace:
        """A view that raises `Busy` where another process builds the step that is asked for."""
        return replace(self, mode="skip")

    def read_only(self) -> Workspace:
        """A view with a ledger of its own that builds nothing and raises `StepMissing` instead."""
        return Workspace(self.root, mode="read")

    @contextmanager
    def locked(self, *, alone: bool = False) -> Iterator[None]:
        """Work in the workspace, with other processes unless `alone`.

        Raises:
            Busy: another process works there (`alone`), or removes steps.
        """
        message = f"workspace {self.root} is in use by another tmkd process; wait for it, or use --workspace"
        with held(self.root / "lock", message, shared=not alone):
            yield

    @contextmanager
    def recording(self, record: Path, about: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Name the steps that the block asks for in a file, as they come (`Ledger.record`, `Ledger.about`)."""
        self.ledger.record, self.ledger.about = record, about or {}
        try:
            yield
        finally:
            self.ledger.record = None

    def step(self, kind: str, depends_on: Any, build: Callable[[Path], None], *, label: str) -> Step:
        """The finished step, which is built first where it is not there.

        Args:
            kind: first part of the folder's name.
            depends_on: everything that the result depends on (`tmkd.pipeline.store.fingerprint.depends_on`).
            build: fills the folder it is given; the folder may hold what an interrupted call left there.
            label: the step's name in the log.

        Raises:
            Busy: another process is building it, and the mode is `skip`.
            StepMissing: it is not there, and the mode is `read`.
        """
        mark = fingerprint(kind, depends_on)
        step = Step(kind, mark, self.root / "steps" / f"{kind}-{mark}")
        if self.mode == "read":
            if not step.folder.is_dir():
                raise StepMissing(label)
        elif processes.first():
            self.ledger.note(step)
            self._ensure(step, depends_on, build, label)
            processes.broadcast(("there", step.folder.name))
        else:
            self._follow(step, build)
        if step not in self.used:
            self.used.append(step)
        return step

    def _ensure(self, step: Step, depends_on: Any, build: Callable[[Path], None], label: str) -> None:
        """Return when the step is there: build it, or wait for the process that does."""
        if step.folder.is_dir():
            if step not in self.used:
                logger.info(f"{label}: done before ({step.folder.name})")
            return
        with self.holding(step.folder.name, label, wait=self.mode == "wait"):
            if not step.folder.is_dir():
                self._build(step, depends_on, build, label)

    @contextmanager
    def holding(self, name: str, label: str, *, wait: bool) -> Iterator[None]:
        """Hold the lock of a step, as the process that builds it does.

        Args:
            name: the name of the step's folder.
            label: the step's name in the log.
            wait: wait for the process that holds it.

        Raises:
            Busy: another process holds it, and `wait` is false.
        """
        lock = self.root / "locks" / name
        with held(lock, f"{label}: another process is at it ({name})", wait=wait):
            yield
            lock.unlink(missing_ok=True)  # a process that waits for the lock still finds what was done

    def _build(self, step: Step, depends_on: Any, build: Callable[[Path], None], label: str) -> None:
        logger.info(f"{label}: {step.folder.name}")
        partial = step.folder.with_name(step.folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        for left in partial.parent.glob(f"{step.folder.name}-process-*.partial"):  # by processes that were killed
            shutil.rmtree(left)
        remove_temporary(partial)
        if step.kind in TRAINED:
            processes.broadcast(("build", step.folder.name))
        began = time.monotonic()
        with disk_errors(partial):
            build(partial)
            write_json(partial / "step.json", step_content(step.kind, depends_on, label))
            shutil.rmtree(partial / "state", ignore_errors=True)
            partial.rename(step.folder)
        give_back_freed_memory()  # it fits the blocks of the next step badly: a run would grow with every step
        self.ledger.built += 1
        logger.info(f"{label}: done in {time.monotonic() - began:,.0f} s")

    def _follow(self, step: Step, build: Callable[[Path], None]) -> None:
        """Wait until the first process has built the step; take part where it trains a model.

        Raises:
            TmkdError: this process asks for another step than the first one, or does not see its workspace.
        """
        name = step.folder.name
        word, asked = processes.broadcast(("", ""))
        if asked == name and word == "build":
            own = step.folder.with_name(f"{name}-process-{processes.rank()}.partial")
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir(parents=True)
            with disk_errors(own):
                build(own)
            shutil.rmtree(own)
            word, asked = processes.broadcast(("", ""))
        if asked != name or not step.folder.is_dir():
            what = f"asks for step {name}, process 0 for {asked}" if asked != name else f"does not see {step.folder}"
            raise TmkdError(f"process {processes.rank()} {what}; all need the same tmkd, recipe, files and workspace")

    def in_turn(self, works: Sequence[Callable[[Workspace], T]]) -> list[T]:
        """Do every work, and give the results in the order of `works`.

        A work whose step another process is building is put off: the others are done first, and it is waited for only
        when nothing else is left to do.

        Args:
            works: functions of the workspace to work in, which is this one or a view of it that does not wait. Each
                may be called more than once, until it raises no `Busy`.

        Raises:
            Busy: another process is building a step, and this workspace itself does not wait.
        """
        if self.mode != "wait" or processes.count() > 1:
            return [work(self) for work in works]
        results: dict[int, T] = {}
        while left := [number for number in range(len(works)) if number not in results]:
            before = len(results)
            for number in left:
                try:
                    results[number] = works[number](self.without_waiting())
                except Busy:
                    continue
            if len(results) == before:
                results[left[0]] = works[left[0]](self)
        return [results[number] for number in range(len(works))]

    def finished(self, kind: str) -> list[tuple[Path, Any]]:
        """The finished steps of a kind in its current version: the folder of each, and what it depends on."""
        found = []
        for path in sorted(self.root.glob(f"steps/{kind}-*/step.json")):
            content = read_json(path)
            if path.parent.suffix != ".partial" and content.get("version") == STEP_VERSIONS[kind]:
                found.append((path.parent, content["depends_on"]))
        return found

    def require_steps(self) -> None:
        """Refuse a folder that is no workspace.

        Raises:
            TmkdError: it has no `steps/`.
        """
        if not (self.root / "steps").is_dir():
            raise TmkdError(f"{self.root} is not a workspace (no steps/); name one with --workspace")

    def unused(self) -> list[Path]:
        """The folders of steps, partial ones too, that no run and no study names, finished or not.

        Raises:
            TmkdError: the folder is no workspace.
        """
        self.require_steps()
        named: set[str] = set()
        for name in ("manifest.json", UNFINISHED):
            for file in [*self.root.glob(f"runs/*/{name}"), *self.root.glob(f"studies/*/{name}")]:
                named.update(read_json(file)["steps"])
        folders = [path for path in (self.root / "steps").iterdir() if path.is_dir()]
        return sorted(path for path in folders if path.name.removesuffix(".partial") not in named)

    def clean(self, *, remove: bool, tokens: bool = False) -> list[UnusedFolder]:
        """Find the folders that nothing needs (`unused`), and remove them if `remove` says so.

        Args:
            remove: remove them, and lock files that killed processes left; otherwise they are only found.
            tokens: count `tokens/` as unused too. Token ids, mapped pools and embeddings are made again where they are
                needed, and a partial endpoint is asked again about the pairs that it refused.

        Returns:
            The folders, with the sizes that they have or had.

        Raises:
            TmkdError: the folder is no workspace.
            Busy: another process works in the workspace.
        """
        self.require_steps()  # the lock is a file of the workspace
        with self.locked(alone=True):
            folders = self.unused()
            folders += [self.tokens] if tokens and self.tokens.is_dir() else []
            found = [UnusedFolder(folder, bytes_in(folder)) for folder in folders]
            for folder in folders if remove else ():
                shutil.rmtree(folder)
            for lock in (self.root / "locks").glob("*") if remove else ():  # of processes that were killed
                lock.unlink()
        return found


def step_content(kind: str, depends_on: Any, label: str) -> dict[str, Any]:
    """The content of a step's step.json; arguments as of `Workspace.step`."""
    return {"kind": kind, "version": STEP_VERSIONS[kind], "label": label, "depends_on": depends_on}


def bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
