"""What became of a task's rows: read, used, left out and why; rows that cannot be right get a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import write_jsonl

from tmkd.config.sections import Data
from tmkd.data.tasks import TaskData, load_task


def loaded(
    tmp_path: Path, *, classes: int = 2, keys: dict[str, Any] | None = None, **parts: list[dict[str, Any]]
) -> TaskData:
    """A task whose parts hold these rows."""
    files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name, rows in parts.items()}
    return load_task(Data.model_validate({**files, **(keys or {})}), classes)


def asked(name: str, questions: int = 6) -> list[dict[str, Any]]:
    """Two rows for each question, a right and a wrong passage; the texts begin with the name."""
    return [
        {"question": f"{name} question {n}", "passage": f"{name} passage {n} {label}", "label": label}
        for n in range(questions)
        for label in (1, 0)
    ]


def test_every_part_says_how_many_rows_were_read_used_and_left_out(tmp_path: Path) -> None:
    labels = {"yes": 1, "no": 0, "-": None}
    rows = [{**row, "label": ["no", "yes"][row["label"]]} for row in asked("train", 200)]
    rows[3]["label"] = "-"
    pool = [{"question": "a", "passage": "b"}]
    task = loaded(tmp_path, keys={"labels": labels, "hold_out": {"dev": 0.1, "test": 0.2}}, train=rows, pool=pool)
    train, dev, test = (task.counts[name] for name in ("train", "dev", "test"))
    assert (train.read, train.used) == (400, len(task.train))
    assert train.left_out == {
        "their label stands for no class": 1,
        "held out as dev": len(task.dev),
        "held out as test": len(task.test),
    }
    assert (dev.read, dev.used) == (len(task.dev), len(task.dev))
    assert (test.read, test.used) == (len(task.test), len(task.test))
    assert task.counts["pool"].to_json() == {"read": 1, "used": 1, "left_out": {}, "warnings": []}
