"""torchrun: several processes that train each model together give what one process gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import pair_rows, pool_rows, write_jsonl
from encoder_fixtures import tiny

from tmkd.config.load import load_recipe
from tmkd.pipeline.run import Run

KEYS = ("methods=[finetune,tmkd,tmkd@cached]", "take=tmkd")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that is warmed up and fine-tuned, and students of both kinds, in fp32 without dropout."""
    folder = tmp_path_factory.mktemp("processes")
    dev = [{**row, "question": f"Tell me: {row['question']}"} for row in pair_rows(1)]
    parts = {"train": pair_rows(2), "pool": pool_rows(), "dev": dev}
    files = {part: str(write_jsonl(folder / f"{part}.jsonl", rows)) for part, rows in parts.items()}
    short = "{learning_rate: 1.0e-3, epochs: 2, batch_size: 8}"
    path = folder / "recipe.yaml"
    path.write_text(f"""
name: together
encoder: {tiny("bert", folder / "tiny")}
max_length: 64
precision: fp32
data: {{{", ".join(f"{part}: {file}" for part, file in files.items())}}}
warm_up: {{learning_rate: 1.0e-3, epochs: 1, batch_size: 8}}
teachers:
  - {{name: t1, learning_rate: 1.0e-3, epochs: 2, batch_size: 8}}
  - {{name: t2, learning_rate: 5.0e-4, epochs: 1, batch_size: 8, seed: 2}}
student: {{layers: 2, start: teacher}}
stage1: {{learning_rate: 1.0e-3, epochs: 2, batch_size: 8, states: 10, cosine: 1}}
stage2: {short}
without_stage1: {short}
cached: {{layers: 1, heads: 4, ffn: 32, state_size: 16, stage1: {short}, stage2: {short}}}
""")
    return path


def started(processes: int, *tmkd: str) -> subprocess.CompletedProcess[str]:
    """Carry out `python ARGUMENTS`, such as `-m tmkd run RECIPE`, as so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), *tmkd]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def distill(recipe: Path, workspace: str) -> list[str]:
    return ["distill", str(recipe), *KEYS, "--workspace", str(recipe.parent / workspace)]


def trained(recipe: Path, processes: int, workspace: str) -> Run:
    done = started(processes, "-m", "tmkd", *distill(recipe, workspace))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("running on ") == 1  # the first process alone logs
    assert not list((recipe.parent / workspace / "steps").glob("*.partial"))
    return Run(load_recipe(recipe, list(KEYS)), recipe.parent / workspace)


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Run:
    return trained(recipe, 1, "alone")


def curves(run: Run) -> dict[str, list[float]]:
    """The losses of the first 20 optimiser steps of everything that is trained, by the step's folder."""
    found = {}
    for path in sorted(run.workspace.root.glob("steps/*/curve.json")):
        points = json.loads(path.read_text())
        assert [point["step"] for point in points] == list(range(1, len(points) + 1))  # a point for each step
        found[path.parent.name] = [point["loss"] for point in points[:20]]
    return found


def require_like(run: Run, alone: Run) -> None:
    """The same losses to 1e-5, and the same final scores to 1e-3."""
    found, wanted = curves(run), curves(alone)
    assert {name.split("-")[0] for name in wanted} == {"warmup", "teacher", "stage1", "student"}
    assert list(found) == list(wanted)
    for name, losses in wanted.items():
        np.testing.assert_allclose(found[name], losses, atol=1e-5, err_msg=name)
    dev = alone.data.dev
    for ours, theirs in zip(run.students.train_all(), alone.students.train_all(), strict=True):
        scores, same = run.students.logits(ours, dev)[0], alone.students.logits(theirs, dev)[0]
        np.testing.assert_allclose(scores, same, atol=1e-3, err_msg=ours.method.name)


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_scores_are_those_of_one_process(recipe: Path, alone: Run, processes: int) -> None:
    require_like(trained(recipe, processes, f"with-{processes}"), alone)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_continues_a_killed_training(
    recipe: Path, alone: Run, before: int, after: int
) -> None:
    workspace = f"killed-{before}-{after}"
    script = recipe.parent / f"{workspace}.py"
    script.write_text("""
import os, signal, sys
from tmkd.training import state, trainer
state.SAVE_SECONDS, step = 0.0, trainer.Loop._step
def dies(self, rows, number):
    if self.name == "stage 1 (tmkd, seed 0)" and number == 3 and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, rows, number)
trainer.Loop._step = dies
from tmkd.cli.main import main
main()
""")
    done = started(before, str(script), *distill(recipe, workspace))
    assert done.returncode != 0
    assert list((recipe.parent / workspace / "steps").glob("*.partial/state/state.safetensors"))
    require_like(trained(recipe, after, workspace), alone)


def test_what_processes_cannot_do_together_is_refused(recipe: Path) -> None:
    done = started(2, "-m", "tmkd", "study", "recipes/studies/loss.yaml")
    assert "torchrun with several processes is for distill, export, label, pretrain, run, teach" in done.stderr
    done = started(2, "-m", "tmkd", "run", str(recipe), *KEYS, "--jobs", "2", "-w", str(recipe.parent / "alone"))
    assert "--jobs 2: 2 processes train each model together; leave out --jobs" in done.stderr


def test_the_first_process_alone_connects_to_a_ray_cluster(recipe: Path) -> None:
    workspace = str(recipe.parent / "on-ray")
    done = started(2, "-m", "tmkd", "label", str(recipe), *KEYS, "--ray", "127.0.0.1:1", "-w", workspace)
    assert done.returncode != 0
    assert done.stderr.count("127.0.0.1:1") == 1, done.stderr


def test_a_process_with_another_recipe_is_refused(recipe: Path) -> None:
    script = recipe.parent / "other.py"
    script.write_text("""
import os, sys
if os.environ["RANK"] == "1":
    sys.argv.append("warm_up.learning_rate=2.0e-3")
from tmkd.cli.main import main
main()
""")
    done = started(2, str(script), *distill(recipe, "other"))
    assert done.returncode != 0
    assert re.search(r"process 1 asks for step warmup-\w+, process 0 for warmup-\w+; all need the same", done.stderr)
