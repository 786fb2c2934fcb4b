"""Students that read passages once: every method, both kinds side by side, resumption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Tmkd

from tmkd.models.checkpoint import load_student
from tmkd.models.encoders.interaction import InteractionEncoder

SHORT = "{learning_rate: 1.0e-3, epochs: 1, batch_size: 8}"
SMALL = (
    "cached={layers: 1, heads: 4, ffn: 32, state_size: 16, "
    f"stage1: {SHORT}, stage2: {SHORT}, without_stage1: {SHORT}}}"
)


def models(tmp_path: Path) -> dict[str, list[Path]]:
    """The steps' folders of every model of the run."""
    manifest = json.loads((tmp_path / "workspace" / "runs" / "tiny" / "manifest.json").read_text())
    steps = tmp_path / "workspace" / "steps"
    return {model["name"]: [steps / name for name in model["steps"]] for model in manifest["models"]}


def test_both_kinds_are_trained_from_the_same_labels_and_compared(
    tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path
) -> None:
    methods = "methods=[teacher,teacher-ensemble,cosine,finetune,finetune@cached,tmkd,tmkd@cached]"
    tmkd("distill", tiny_recipe, methods, SMALL)
    found = models(tmp_path)
    assert list(found) == ["teacher:a", "teacher:b", "finetune", "finetune@cached", "tmkd", "tmkd@cached"]
    student = load_student(found["tmkd@cached"][0])
    assert isinstance(student.encoder, InteractionEncoder)
    assert student.soft_heads == 2
