"""Recipes of small runs with teachers of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import pair_rows, write_jsonl
from encoder_fixtures import tiny

NUMBERS = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16}
TKD = {"methods": ["teacher", "tkd"], "take": "tkd"}
COSINE = {"name": "cosine", "kind": "bi_encoder", "model": "builtin:minilm-l6"}


def content(folder: Path, **keys: Any) -> dict[str, Any]:
    """A recipe of one-layer students; its training pairs and its encoder are written where they are not there."""
    if not (folder / "train.jsonl").is_file():
        write_jsonl(folder / "train.jsonl", pair_rows(4))
    if not (folder / "encoder").is_dir():
        tiny("bert", folder / "encoder", max_position_embeddings=128)
    return {
        "name": "kinds",
        "encoder": str(folder / "encoder"),
        "max_length": 64,
        "precision": "fp32",
        "data": {"train": str(folder / "train.jsonl"), "hold_out": {"dev": 0.2, "test": 0.2}},
        "student": {"layers": 1},
        **dict.fromkeys(("stage1", "stage2", "without_stage1"), NUMBERS),
        "methods": ["teacher", "teacher-ensemble", "tmkd"],
        "export": {"backends": ["onnx-fp32"]},
        "teachers": [COSINE, {"name": "mine", "seed": 1, **NUMBERS}],
        **keys,
    }
