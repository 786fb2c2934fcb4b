"""Read safetensors weights of a model folder, and copy them into a transformers module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tmkd.core.errors import EncoderError
from tmkd.models.encoders.families import Family

logger = logging.getLogger(__name__)

HEADS_FILE = "headers.safetensors"
"""The heads of a student, one by one; the checkpoint's own weights hold the folded head."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a checkpoint, by name.

    Raises:
        EncoderError: a file is damaged.
    """
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        with _damage_named(path):
            weights.update(load_file(path))
    return weights


def shape_of(folder: Path, name: str) -> list[int]:
    """Return the shape of one weight of a checkpoint, without reading it; an empty list where there is no such weight.

    Args:
        folder: the checkpoint.
        name: of the weight.

    Returns:
        The shape.

    Raises:
        EncoderError: a file is damaged.
    """
    for path in _weight_files(folder):
        with _damage_named(path), safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                return list(file.get_slice(name).get_shape())
    return []


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.name != HEADS_FILE)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # safetensors raises its own class for a damaged file
        raise EncoderError(f"{path} cannot be read ({error}); the file is damaged, fetch it again") from error


def fill(model: Any, weights: dict[str, Tensor], folder: Path, family: Family, *, new_head: bool) -> None:
    """Copy weights into a sequence-classification module, by name.

    Names match with or without the base model's prefix. The last linear layer may be absent or of another shape. MPNet
    and RoBERTa have no pooler in a classification model; there `pooler.dense` becomes `classifier.dense`.

    Args:
        model: the transformers module; its weights are replaced, as float32.
        weights: by name.
        folder: where they come from, for messages.
        family: the architecture.
        new_head: whether layers between the encoder and the last linear layer may be absent; they then keep the random
            weights of `model`, and a note says so.

    Raises:
        EncoderError: weights are missing or of another shape.
    """
    prefix = family.base + "."
    found = {name.removeprefix(prefix): value for name, value in weights.items()}
    if family.dense == "classifier.dense":
        for part in ("weight", "bias"):
            if f"pooler.dense.{part}" in found:
                found.setdefault(f"classifier.dense.{part}", found[f"pooler.dense.{part}"])
    state = model.state_dict()
    missing, new = [], []
    for name, target in state.items():
        source = found.get(name.removeprefix(prefix))
        if source is not None and source.shape == target.shape:
            state[name] = source.to(torch.float32)
        elif source is None and new_head and (not name.startswith(prefix) or "pooler." in name):
            new.append(name)
        elif not name.startswith(family.last + "."):
            missing.append(name if source is None else f"{name} (shape {list(source.shape)})")
    if missing:
        raise EncoderError(
            f"{folder}: {len(missing)} weights are missing or of another shape, first {missing[0]}; "
            "this checkpoint does not hold the model that its config.json names"
        )
    new = [name for name in new if not name.startswith(family.last + ".")]
    if new:
        logger.info(f"{folder} has no {', '.join(new)}: it starts with random weights")
    model.load_state_dict(state)
