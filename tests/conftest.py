"""Shared fixtures: small real text and real weights."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import pytest
import torch

from tmkd.cli import main as cli

P = ParamSpec("P")
T = TypeVar("T")
TOPICS = {
    "copy": ("How do I copy a file?", "The cp command duplicates a file under another name; use -r for folders."),
    "print": ("How do I print a list in Python?", "Call print with the list, or join its items into one string first."),
    "index": (
        "Why is my index not used?",
        "The planner prefers a sequential scan when the table is small or statistics are old.",
    ),
    "merge": (
        "How do I undo a merge?",
        "Reset the branch to the commit before it, or revert the merge commit with -m 1.",
    ),
    "port": (
        "Which port does the server listen on?",
        "The Listen directive names the address and port; 80 is the usual one.",
    ),
    "sort": (
        "How do I sort a hash by value?",
        "Sort the keys with a comparison of the values, then walk the sorted keys.",
    ),
    "mail": ("How do I report a bug?", "Write to the bug tracking system by mail, naming package and version."),
    "lock": (
        "What does database is locked mean?",
        "Another connection holds a write lock; wait, or set a busy timeout.",
    ),
}


def pair_rows(copies: int = 2) -> list[dict[str, object]]:
    """Each question with its own answer (1) and with three answers of others (0)."""
    rows: list[dict[str, object]] = []
    names = list(TOPICS)
    for copy in range(copies):
        for place, name in enumerate(names):
            question = TOPICS[name][0] if copy == 0 else f"{TOPICS[name][0]} ({copy})"
            rows.append({"question": question, "passage": TOPICS[name][1], "label": 1})
            for step in (1, 2, 3):
                rows.append(
                    {"question": question, "passage": TOPICS[names[(place + step) % len(names)]][1], "label": 0}
                )
    return rows


def pool_rows() -> list[dict[str, object]]:
    """Unlabelled pairs that have nothing of the topics: 8 questions with 4 passages each."""
    things = ("river", "violin", "glacier", "lantern", "orchard", "harbour", "meadow", "chimney")
    traits = ("is older than the village", "was painted by nobody", "looks small from here", "sounds deep in winter")
    return [
        {"question": f"Who looks after the {one}?", "passage": f"Every {other} {trait}, says a keeper of the {one}."}
        for one, other in zip(things, (*things[1:], things[0]), strict=True)
        for trait in traits
    ]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def logits(odds: np.ndarray) -> np.ndarray:
    """Logits [..., 2] with the given log-odds."""
    return np.stack([-odds / 2, odds / 2], axis=-1)


def step_folders(kind: str) -> list[Path]:
    """The folders of the workspace's steps of a kind."""
    return sorted(path.parent for path in Path("workspace/steps").glob(f"{kind}-*/step.json"))


def dying_after(calls: int | None, function: Callable[P, T]) -> Callable[P, T]:
    """The function, which is interrupted when it is called once more than so many times; never where it is None."""
    done = 0

    def counted(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal done
        done += 1
        if calls is not None and done > calls:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return counted


@pytest.fixture(autouse=True)
def _one_thread_and_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else 2)  # a worker for each core
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("tmkd")  # as a library has it; a test of the command line attaches its handler
    log.handlers = [one for one in log.handlers if isinstance(one, logging.NullHandler)]
    log.setLevel(logging.INFO)
    caplog.handler.setLevel(logging.NOTSET)
    monkeypatch.setattr(caplog.handler, "setLevel", lambda _: None)  # a library that writes ONNX files raises it


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A whole recipe on a few rows: two teachers and students of one layer."""
    train = write_jsonl(tmp_path / "train.jsonl", pair_rows(2))
    test = write_jsonl(
        tmp_path / "test.jsonl", [{**r, "question": "Please: " + str(r["question"])} for r in pair_rows(1)]
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
name: tiny
encoder: builtin:minilm-l6
max_length: 64
precision: fp32
data: {{train: {train}, test: {test}}}
teachers:
  - {{name: a, learning_rate: 1.0e-4, epochs: 1, seed: 1, batch_size: 8}}
  - {{name: b, learning_rate: 5.0e-5, epochs: 1, seed: 2, batch_size: 8}}
student: {{layers: 1}}
stage1: {{learning_rate: 3.0e-4, epochs: 1, batch_size: 8}}
stage2: {{learning_rate: 3.0e-5, epochs: 1, batch_size: 8}}
without_stage1: {{learning_rate: 2.0e-4, epochs: 1, batch_size: 8}}
""")
    return path


@pytest.fixture
def tiny_recipe(recipe_file: Path, tmp_path: Path) -> Path:
    """The tiny recipe over a tiny random encoder."""
    from encoder_fixtures import tiny

    text = recipe_file.read_text().replace("builtin:minilm-l6", str(tiny("bert", tmp_path / "tiny")))
    recipe_file.write_text(text)
    return recipe_file


@dataclass
class Done:
    """What a call of the command line gave."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def tmkd(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process (a new one imports PyTorch for seconds each time)."""

    def call(*arguments: str | Path, check: bool = True) -> Done:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["tmkd", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        done = Done(code, *capfd.readouterr())
        assert not check or done.returncode == 0, done.stderr
        return done

    return call


Tmkd = Callable[..., Done]
