"""Several processes in one workspace: each step is built once, and `--jobs` trains students side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import Tmkd

import tmkd.pipeline.parallel as jobs
from tmkd.config.load import load_recipe
from tmkd.core.hardware import share_cores
from tmkd.pipeline.store.workspace import Busy, Workspace, held
from tmkd.teachers.budget import count_together

SEEDS = ("methods=[finetune,mkd]", "take=mkd", "seeds=[0,1,2]")


def test_a_step_that_another_is_at_is_waited_for_and_built_once(tmp_path: Path) -> None:
    began, go_on, built = threading.Event(), threading.Event(), []

    def slowly(folder: Path) -> None:
        built.append(folder)
        began.set()
        assert go_on.wait(30)

    first, second = Workspace(tmp_path), Workspace(tmp_path)
    builder = threading.Thread(target=first.step, args=("pool", "x", slowly), kwargs={"label": "slow"})
    builder.start()
    assert began.wait(30)
    order: list[str] = []

    def slow(workspace: Workspace) -> None:
        order.append(workspace.step("pool", "x", slowly, label="slow").folder.name)

    def other(workspace: Workspace) -> None:
        order.append("other")
        go_on.set()

    second.in_turn([slow, other])
    builder.join()
    assert order[0] == "other"  # what nobody is at comes first
    assert order[1:] == [step.folder.name for step in second.used]
    assert len(built) == 1
    assert (first.built, second.built) == (1, 0)
    assert not list((tmp_path / "locks").iterdir())


def test_a_step_that_another_process_builds_is_busy_without_waiting(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.step("pool", "x", lambda folder: None, label="done")
    name = next((tmp_path / "steps").iterdir()).name
    (tmp_path / "steps" / name).rename(tmp_path / "steps" / f"{name}.partial")
    with held(tmp_path / "locks" / name, "busy"), pytest.raises(Busy, match="another process is at it"):
        workspace.without_waiting().step("pool", "x", lambda folder: None, label="again")


def test_runs_share_a_workspace_but_not_a_name(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "workspace"
    with Workspace(place).locked(), held(place / "runs" / ".tiny.lock", "busy"):
        refused = tmkd("teach", tiny_recipe, check=False)
        assert refused.returncode == 1
        assert "run tiny is in use by another tmkd process" in refused.stderr
        assert "name=tiny-2" in refused.stderr
        assert tmkd("teach", tiny_recipe, "name=tiny-2").returncode == 0
        removing = tmkd("clean", "--yes", check=False)
        assert removing.returncode == 1
        assert "in use by another" in removing.stderr


def test_students_are_trained_side_by_side(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    done = tmkd("run", tiny_recipe, *SEEDS, "--jobs", "2", "--json")
    results = {row["name"]: row for row in json.loads(done.stdout)["methods"]}
    assert results["mkd"]["seeds"] == results["finetune"]["seeds"] == 3
    place = tmp_path / "workspace"
    assert "ended early" not in done.stderr
    assert not list((place / "jobs").iterdir())  # neither the task nor the log of a job that ended well
    assert not list((place / "locks").iterdir())
    assert len(list((place / "steps").glob("student-*"))) == 6
    again = tmkd("run", tiny_recipe, *SEEDS)
    assert "pairs/s, 0 s left, loss" not in again.stderr  # nothing is trained again


def test_a_job_trains_every_student_that_nobody_is_at(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    place, recipe = tmp_path / "workspace", load_recipe(tiny_recipe, list(SEEDS))
    task = tmp_path / "task.json"
    recipes = [recipe.model_dump(mode="json")]
    task.write_text(json.dumps({"workspace": str(place), "labels": None, "jobs": 2, "recipes": recipes}))
    jobs.run_worker(task)
    share_cores(1)
    count_together(None)
    assert len(list((place / "steps").glob("student-*"))) == 6
    done = tmkd("run", tiny_recipe, *SEEDS)
    assert "pairs/s, 0 s left, loss" not in done.stderr  # they are the run's own


def test_a_study_has_jobs_too(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"name: both\ntasks: [{{recipe: {tiny_recipe}, keys: {{take: finetune}}}}]\n"
        "grid: {without_stage1.learning_rate: [1.0e-4, 2.0e-4]}\nseeds: [0, 1, 2]\n"
    )
    done = tmkd("study", study, "--jobs", "2", "--json", "-")
    assert {row["variant"] for row in json.loads(done.stdout)["rows"]} == {
        "learning_rate=0.0001",
        "learning_rate=0.0002",
    }
    assert "6 of 6 students are there" in done.stderr
    assert "ended early" not in done.stderr


def test_a_job_that_fails_is_told_and_its_work_is_done_here(
    tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(task: Path, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            script = "import sys; sys.exit('no memory is left')"
            return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=output)

    monkeypatch.setattr(jobs, "_start", start)
    done = tmkd("run", tiny_recipe, *SEEDS, "--jobs", "2")
    assert "job-2.log: this job ended early; its last line: no memory is left" in done.stderr
    assert len(list((tmp_path / "workspace" / "steps").glob("student-*"))) == 6


def test_jobs_go_when_the_one_that_started_them_is_killed(tiny_recipe: Path, tmp_path: Path) -> None:
    long = ("without_stage1.epochs=4000", "methods=[finetune]", "take=finetune", "seeds=[0,1]")
    command = [sys.executable, "-m", "tmkd", "run", str(tiny_recipe), *long, "--jobs", "2"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "workspace" / "jobs" / f"{run.pid}-job-2.log"
    _until(lambda: log.is_file() and "finetune, seed" in log.read_text())
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert workers
    for worker in workers:
        _until(lambda pid=worker: not _runs(int(pid)))
    folder, task = log.parent, log.with_name(f"{run.pid}.json")
    assert {log, task, task.with_name(f"{run.pid}-requests")} == set(folder.iterdir())
    about = json.loads(task.read_text())
    about["machine"]["host"] = "another"
    elsewhere = folder / "1234567.json"
    elsewhere.write_text(json.dumps(about))
    with jobs.workers([load_recipe(tiny_recipe, [])], Workspace(tmp_path / "workspace"), 2):
        assert {path.stem.split("-")[0] for path in folder.iterdir()} == {elsewhere.stem, str(os.getpid())}


def _until(true: object, seconds: float = 90.0) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
