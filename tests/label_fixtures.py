"""Label stores of a workspace that no model made: the logits of a pair are its number and minus that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.pipeline.store.workspace import Workspace


def header_of(teacher: str) -> dict[str, Any]:
    return {"teacher": teacher, "max_length": 64, "classes": 2, "dtype": "float32"}


def about(pairs: str, ids: Sequence[int]) -> dict[str, Any]:
    return {"digest": pairs, "count": len(ids), "model": "judge"}


def append(store: LabelStore, ids: Sequence[int], value: float | None = None) -> None:
    logits = np.array([[number, -number] for number in ids], dtype=np.float32)
    store.append([str(number) for number in ids], logits if value is None else np.full_like(logits, value))


def label_step(
    root: Path, teacher: str = "teacher 1", pairs: str = "pool 1", ids: Sequence[int] = range(12), size: int = 4
) -> Path:
    """The folder of a step of labels in parts of some pairs. Pairs that are labelled already are not labelled again."""

    def build(folder: Path) -> None:
        store = LabelStore.open(folder, header=header_of(teacher), pairs=about(pairs, ids))
        done = store.done_ids()
        left = [number for number in ids if str(number) not in done]
        for start in range(0, len(left), size):
            append(store, left[start : start + size])

    content = depends_on(settings={}, inputs={"model": teacher, "pairs": pairs})
    label = f"label {len(ids):,} pairs with judge"
    return Workspace(root).step("labels", content, build, label=label).folder


def read(folder: Path, teacher: str = "teacher 1") -> LabelStore:
    return LabelStore.read(folder, header=header_of(teacher))


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def change_manifest(folder: Path, **keys: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps({**manifest_of(folder), **keys}))


def put_in_place(part: Path, folder: Path, *, trusted: bool) -> None:
    """Put a part of another store in the place of the one of its name; `trusted`: with its checksum in the manifest."""
    content = part.read_bytes()
    (folder / part.name).write_bytes(content)
    if trusted:
        parts = manifest_of(folder)["parts"]
        for one in parts:
            if one["file"] == part.name:
                one["sha256"] = hashlib.sha256(content).hexdigest()
        change_manifest(folder, parts=parts)
