"""Whole runs with `precision: bf16`, which a CPU with BF16 takes by itself; the other tests compute in fp32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cached_run_fixtures import SMALL
from conftest import Tmkd

WARM = "warm_up={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}"
LAYERED = ["tkd", "tmkd", "self-taught", "finetune-warm", "mkd", "tmkd-paper"]
CACHED = [f"{name}@cached" for name in ("1avg-tkd", "tmkd", "mkd")]


@pytest.mark.parametrize(("loss", "trained"), [("kl", 0.0), ("list_kl", 1.0e-4)])
def test_every_kind_of_training(tmkd: Tmkd, tiny_recipe: Path, loss: str, trained: float) -> None:
    """Warm start, teachers, tuned bi-encoder, hidden states of several passes, token cosine, both kinds of students."""
    methods = ["teacher", "teacher-ensemble", "cosine", *LAYERED, *CACHED]
    encoder = next(line for line in tiny_recipe.read_text().splitlines() if line.startswith("encoder: ")).split()[1]
    more = (
        "[{name: a, learning_rate: 1.0e-4, epochs: 1, batch_size: 8}, {name: b, learning_rate: 5.0e-5, epochs: 1, "
        f"seed: 2}}, {{name: m, kind: bi_encoder, model: {encoder}, pooling: mean, calibrate: none, "
        "tune: {learning_rate: 1.0e-4, epochs: 1, batch_size: 4}}]"
    )
    keys = [
        "precision=bf16", WARM, f"teachers={more}", f"methods=[{','.join(methods)}]", "take=tmkd", f"loss.kind={loss}",
        "student={layers: 2, start: teacher}",
        "stage1={learning_rate: 1.0e-3, epochs: 2, batch_size: 8, states: 10.0, cosine: 1.0}",
        f"cached={{{SMALL}, encoder_learning_rate: {trained}}}", "export.backends=[onnx-fp32]",
    ]  # fmt: skip
    results = json.loads(tmkd("run", tiny_recipe, *keys, "--json").stdout)
    assert {row["name"] for row in results["methods"]} >= set(methods[2:])
