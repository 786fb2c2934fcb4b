"""Students side by side: more processes that build what is missing in the same workspace (`--jobs`).

Every student is a step, and a step belongs to the process that holds its lock (tmkd/pipeline/store/workspace.py), so
there is nothing
to deal out: all processes go through the same students, and each takes the next one that nobody is at. Small batches
keep one core busier than two, so students side by side, each on its share of the cores, are done earlier.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tmkd.config.recipe import Recipe
from tmkd.core.console import set_quiet
from tmkd.core.errors import TmkdError
from tmkd.core.files import write_json
from tmkd.core.hardware import share_cores
from tmkd.pipeline.run import Pipeline
from tmkd.pipeline.run_data import Shared
from tmkd.pipeline.store.workspace import Workspace

logger = logging.getLogger("tmkd.pipeline.parallel")  # __name__ is "__main__" in a job

STOPPED = 3  # exit status of a helper whose work was not needed any more
PATIENCE = 60.0  # seconds that a helper has to notice that it is not needed any more


@contextmanager
def helpers(recipes: Sequence[Recipe], workspace: Workspace, jobs: int) -> Iterator[None]:
    """`jobs` - 1 processes that build the recipes' students until the block ends; all have a like share of the cores.

    One that fails ends; what it was at is then built here, or fails here.
    """
    if jobs == 1 or not recipes:
        yield
        return
    folder = workspace.root / "jobs"
    task = folder / f"{os.getpid()}.json"
    about = {
        "workspace": str(workspace.root),
        "jobs": jobs,
        "recipes": [one.model_dump(mode="json") for one in recipes],
    }
    write_json(task, about)
    share_cores(jobs)
    logger.info(
        f"{jobs} jobs train students side by side; logs of the other{'s' * (jobs > 2)}: {task.with_suffix('')}-*.log"
    )
    logs = [folder / f"{task.stem}-job-{number}.log" for number in range(2, jobs + 1)]
    others = [_start(task, log) for log in logs]
    try:
        yield
    finally:
        for other, log in zip(others, logs, strict=True):
            assert other.stdin is not None
            other.stdin.close()  # it goes when this is closed, by us or by our end
            try:
                status = other.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                other.kill()
                status = other.wait()
            if status in (0, STOPPED):
                log.unlink()
            else:
                logger.warning(f"{log}: this job ended early; its last line: {_last_line(log)}")
        task.unlink()
        share_cores(1)


def _start(task: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tmkd.pipeline.parallel", str(task)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "none"


def _stop_with_parent() -> None:
    """End this process when its standard input ends: then the one that started it needs it no more, or is gone."""
    while os.read(0, 1024):  # not `sys.stdin`, whose lock this thread would hold when the interpreter ends
        pass
    os._exit(STOPPED)  # a step in hand is resumable, as after a kill


def help_out(task: Path) -> None:
    """What a helper does: build students of the task's recipes that no other process is at, until there is none."""
    about = json.loads(task.read_text(encoding="utf-8"))
    share_cores(about["jobs"])
    workspace, shared = Workspace(Path(about["workspace"])), Shared()
    pipelines = [Pipeline(Recipe.model_validate(one), workspace, shared) for one in about["recipes"]]
    with workspace.locked():
        workspace.in_turn([training for pipeline in pipelines for training in pipeline.trainings()])


if __name__ == "__main__":
    set_quiet(False)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        help_out(Path(sys.argv[1]))
    except TmkdError as error:
        print(f"tmkd: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None
