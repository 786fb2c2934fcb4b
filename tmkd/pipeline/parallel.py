"""Students side by side: more processes that train what is missing in the same workspace (`--jobs`).

Every student is a step, and the process that holds a step's lock builds it (tmkd/pipeline/store/workspace.py). So
nothing is dealt out: all processes go through the same students, and each trains the next one that no other process is
training. Small batches keep one core busier than two, so students side by side, each on its share of the cores, are
done earlier.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tmkd.config.recipe import Recipe
from tmkd.core import processes
from tmkd.core.console import set_quiet
from tmkd.core.errors import TmkdError
from tmkd.core.files import read_json, write_json
from tmkd.core.hardware import prepare, share_cores
from tmkd.core.machine import has_ended, this_machine
from tmkd.core.places import Place
from tmkd.pipeline.run_data import RunCache
from tmkd.pipeline.store.workspace import Workspace
from tmkd.pipeline.students import Students
from tmkd.teachers.budget import count_together

logger = logging.getLogger("tmkd.pipeline.parallel")  # __name__ is "__main__" in a job

STOPPED = 3  # exit status of a worker whose work was no longer needed
PATIENCE = 60.0  # seconds that a worker has to notice that its work is no longer needed


@contextmanager
def workers(recipes: Sequence[Recipe], workspace: Workspace, jobs: int) -> Iterator[None]:
    """Run `jobs` - 1 more processes that train the recipes' students until the block ends.

    All processes have an equal share of the cores. A worker that fails ends; this process then trains what the worker
    was training, and raises the error if it fails too.

    Args:
        recipes: whose students are trained.
        workspace: where they are kept.
        jobs: processes in all; 1 starts none.

    Raises:
        TmkdError: more than one job, where several processes train each model together (`tmkd.core.processes`).
    """
    if jobs == 1 or not recipes:
        yield
        return
    if processes.count() > 1:
        raise TmkdError(f"--jobs {jobs}: {processes.count()} processes train each model together; leave out --jobs")
    folder = workspace.root / "jobs"
    _remove_left(folder)
    task = folder / f"{os.getpid()}.json"
    about = {
        "workspace": str(workspace.root),
        "labels": None if workspace.labels is None else workspace.labels.address,
        "jobs": jobs,
        "recipes": [one.model_dump(mode="json") for one in recipes],
        "machine": this_machine(),
    }
    write_json(task, about)
    requests = _requests_of(task)
    requests.mkdir()
    count_together(requests)
    share_cores(jobs)
    logger.info(
        f"{jobs} jobs train students side by side; logs of the other{'s' * (jobs > 2)}: {task.with_suffix('')}-*.log"
    )
    logs = [folder / f"{task.stem}-job-{number}.log" for number in range(2, jobs + 1)]
    started = [_start(task, log) for log in logs]
    try:
        yield
    finally:
        for worker, log in zip(started, logs, strict=True):
            _stop(worker, log)
        count_together(None)
        shutil.rmtree(requests, ignore_errors=True)
        task.unlink(missing_ok=True)
        share_cores(1)


def _requests_of(task: Path) -> Path:
    """The folder where the processes of a task count the requests that they send to endpoints."""
    return task.with_name(f"{task.stem}-requests")


def _remove_left(folder: Path) -> None:
    """Remove the task and all logs of a process of this machine that was killed.

    A task of an earlier version does not say whose machine it is of, and stays.
    """
    for task in folder.glob("*.json"):
        with suppress(OSError, ValueError):
            if read_json(task).get("machine") == this_machine() and has_ended(int(task.stem)):
                shutil.rmtree(_requests_of(task), ignore_errors=True)
                for path in (*folder.glob(f"{task.stem}-job-*.log"), task):
                    path.unlink(missing_ok=True)


def _stop(worker: subprocess.Popen[bytes], log: Path) -> None:
    """End a worker and remove its log, unless the worker failed."""
    assert worker.stdin is not None
    worker.stdin.close()  # the worker ends when this is closed, by us or by our own end
    try:
        status = worker.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        worker.kill()
        status = worker.wait()
    if status in (0, STOPPED):
        log.unlink(missing_ok=True)
    else:
        logger.warning(f"{log}: this job ended early; its last line: {_last_line(log)}")


def _start(task: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tmkd.pipeline.parallel", str(task)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "none"


def _stop_with_parent() -> None:
    """End this process when its standard input ends: the process that started it no longer needs it, or has ended."""
    while os.read(0, 1024):  # not `sys.stdin`, whose lock this thread would hold when the interpreter ends
        pass
    os._exit(STOPPED)  # the step that is being built continues later, as after a kill


def run_worker(task: Path) -> None:
    """Train those students of a task's recipes that no other process is training, until all are there."""
    about = read_json(task)
    count_together(_requests_of(task))
    share_cores(about["jobs"])
    recipes = [Recipe.model_validate(one) for one in about["recipes"]]
    labels = None if about["labels"] is None else Place.at(about["labels"])
    workspace, cache = Workspace(Path(about["workspace"]), labels=labels), RunCache()
    students = [Students.of(recipe, workspace, cache) for recipe in recipes]
    prepare(attention=recipes[-1].attention)
    with workspace.locked():
        workspace.in_turn([training for one in students for training in one.trainings()])


if __name__ == "__main__":
    set_quiet(False)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        run_worker(Path(sys.argv[1]))
    except TmkdError as error:
        print(f"tmkd: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None
