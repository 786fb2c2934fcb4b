"""A small student that reads passages once, over the bottom of the real MiniLM, and its exports."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from export_fixtures import dev_pairs
from safetensors.torch import load_file, save_file

from tmkd.export.export import export_student
from tmkd.models.checkpoint import save_student
from tmkd.models.encoders.find import find_encoder
from tmkd.models.encoders.interaction import InteractionEncoder, InteractionShape
from tmkd.models.student import Student

SHAPE = InteractionShape(encoder_width=384, state_size=64, width=96, layers=2, heads=4, ffn=128)


def bottom_of_minilm(folder: Path, layers: int) -> Path:
    """The installed MiniLM with fewer layers, as an encoder."""
    source = find_encoder("builtin:minilm-l6")
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    weights = load_file(source / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "layer." not in name or int(name.split("layer.")[1][0]) < layers}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def cached_student(
    folder: Path,
    *,
    shape: InteractionShape = SHAPE,
    classes: int = 2,
    layers: int = 1,
    max_length: int = 48,
    asking: Path | None = None,
    heads: float = 0.1,
) -> Path:
    """A cached student whose heads read the cosine and, with random weights of some size, the interaction."""
    encoder = bottom_of_minilm(folder / "source", layers)
    torch.manual_seed(5)
    student = Student(InteractionEncoder(shape, encoder, question_source=asking), classes, soft_heads=2)
    student.start_at_cosine()
    with torch.no_grad():
        student.golden.weight.add_(torch.randn_like(student.golden.weight) * heads)
        student.soft_weight.add_(torch.randn_like(student.soft_weight) * heads)
    save_student(student, folder / "student", encoder, max_length, {"step": "tmkd", "teachers": ["a", "b"]})
    return folder / "student"


@functools.cache
def cached_export(classes: int = 2) -> Path:
    """A folder with student/ and its export out/ with fp32 alone; tests only read it or copy it."""
    folder = Path(tempfile.mkdtemp(prefix="tmkd-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    cached_student(folder, classes=classes)
    export_student(folder / "student", dev_pairs(classes=classes), folder / "out", backends=["onnx-fp32"])
    return folder


@functools.cache
def cached_with_every_backend() -> Path:
    """An export with all backends that pass."""
    folder = Path(tempfile.mkdtemp(prefix="tmkd-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    dev = dev_pairs()
    export_student(cached_export() / "student", dev, folder / "every", calibration=dev)
    return folder / "every"
