"""A short recipe of cached students, runs of it, and a process that kills itself in one."""

from __future__ import annotations

import atexit
import functools
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import pair_rows, pool_rows, write_jsonl
from encoder_fixtures import byte_tokenizer, tiny
from safetensors.numpy import load_file

from tmkd.config.load import load_recipe
from tmkd.export.export import export_student
from tmkd.pipeline.run import Run

SHORT = "{learning_rate: 1.0e-3, epochs: 1, batch_size: 8}"
SMALL = f"layers: 1, heads: 4, ffn: 32, state_size: 16, stage1: {SHORT}, stage2: {SHORT}, without_stage1: {SHORT}"


def write_recipe(tmp_path: Path) -> Path:
    """Two columns of scores as teachers, a pool, and a tiny random encoder: no teacher has to be trained."""

    def scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        drawn = np.random.default_rng(0).uniform(0.1, 0.9, (len(rows), 2)).round(3).tolist()
        return [{**row, "judge": judge, "web": web} for row, (judge, web) in zip(rows, drawn, strict=True)]

    parts = {"train": pair_rows(2), "pool": pool_rows(),
             "dev": [{**row, "question": f"Tell me: {row['question']}"} for row in pair_rows(1)],
             "test": [{**row, "question": f"Please: {row['question']}"} for row in pair_rows(1)]}  # fmt: skip
    files = {part: str(write_jsonl(tmp_path / f"{part}.jsonl", scored(rows))) for part, rows in parts.items()}
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
name: tiny
encoder: {tiny("bert", tmp_path / "tiny")}
max_length: 64
precision: fp32
data: {{{", ".join(f"{part}: {file}" for part, file in files.items())}, scores: {{judge: probability, web: logit}}}}
student: {{kind: cached}}
cached: {{{SMALL}}}
""")
    return path


def run_of(recipe: Path, *keys: str, workspace: str = "workspace") -> Run:
    return Run(load_recipe(recipe, list(keys)), recipe.parent / workspace)


def weights(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """The weights of every student, by method and file."""
    return {
        f"{one.method.name} {name}": load_file(one.steps[0].folder / name)
        for one in run.students.train_all()
        for name in ("model.safetensors", "headers.safetensors")
        if (one.steps[0].folder / name).is_file()
    }


def killed(recipe: Path, patch: str) -> None:
    """Train in a process of its own that kills itself at a chosen moment."""
    script = (
        "import os, signal, sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{patch}\n"
        "from tmkd.config.load import load_recipe\n"
        "from tmkd.pipeline.run import Run\n"
        f"Run(load_recipe({str(recipe)!r}, ['methods=[tmkd]']), {str(recipe.parent / 'workspace')!r}).distill()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


class Trained(NamedTuple):
    """A finished run of a cached student, and its export with fp32."""

    run: Path
    student: Path
    export: Path


@functools.cache
def trained(kind: str) -> Trained:
    """A student whose questions have an encoder of their own, or one whose encoder was trained along.

    Tests only read it.
    """
    folder = Path(tempfile.mkdtemp(prefix="tmkd-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    keys = ["methods=[tmkd]", "take=tmkd"]
    if kind == "question encoder":
        asking = tiny("roberta", folder / "asking", num_hidden_layers=1, pad_token_id=1)
        keys.append(f"cached.question_encoder={byte_tokenizer(asking)}")
    else:
        keys.append("cached.encoder_learning_rate=1.0e-3")
    run = run_of(write_recipe(folder), *keys)
    run.distill()
    student = run.students.taken().steps[0].folder
    (row,) = export_student(student, run.data.dev, folder / "export", backends=["onnx-fp32"])
    assert row["passed"], row["reason"]
    return Trained(run.folder, student, folder / "export")
