"""Read the weights of a model folder, and copy them into a transformers module.

What is read is what transformers reads (`tmkd.models.encoders.find.weight_files`), under the names that it gives them.
Whatever would leave a weight as it was by chance (missing, of another shape, not finite) is refused.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tmkd.core.errors import EncoderError
from tmkd.models.encoders.families import Family
from tmkd.models.encoders.find import weight_files
from tmkd.models.encoders.tensors import damage_named, read_tensors, require_finite

logger = logging.getLogger(__name__)

_OLD_NORM = {"gamma": "weight", "beta": "bias"}  # names of LayerNorm's parameters in checkpoints from TensorFlow


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a checkpoint, by name; LayerNorm's `gamma` and `beta` are called `weight` and `bias`.

    Raises:
        EncoderError: a file is missing or damaged, or holds a weight under two names.
    """
    weights: dict[str, Tensor] = {}
    for path, names in weight_files(folder).items():
        for name, value in read_tensors(path, names).items():
            if _modern(name) in weights:
                raise EncoderError(f"{path} holds {_modern(name)} twice, once as {name}; fetch the file again")
            weights[_modern(name)] = value
    return weights


def require_finite_weights(folder: Path) -> None:
    """Check that a checkpoint's weights can be read and are finite; once while its files stay the same.

    Raises:
        EncoderError: a file is missing or damaged, or a weight is not finite.
    """
    _look_once(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(folder)), folder)


@functools.cache
def _look_once(files: tuple[tuple[Path, int, int], ...], folder: Path) -> None:
    require_finite(read_weights(folder), folder)


def shape_of(folder: Path, name: str) -> list[int]:
    """Return the shape of one weight of a checkpoint, without reading it; an empty list where there is no such weight.

    Args:
        folder: the checkpoint.
        name: of the weight.

    Returns:
        The shape.

    Raises:
        EncoderError: a file is missing or damaged.
    """
    for path in weight_files(folder):
        with damage_named(path), safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                return list(file.get_slice(name).get_shape())
    return []


def names_of(folder: Path) -> set[str]:
    """Return the names of the weights of a checkpoint, without reading them.

    Raises:
        EncoderError: a file is missing or damaged.
    """
    found: set[str] = set()
    for path, wanted in weight_files(folder).items():
        with damage_named(path), safe_open(path, framework="pt") as file:
            found.update(file.keys() if wanted is None else wanted)
    return found


def types_of(folder: Path) -> set[str]:
    """Return the floating-point types in a model's folder and the folders in it, as safetensors names them (`BF16`).

    Raises:
        EncoderError: a file is damaged.
    """
    found: set[str] = set()
    for path in (*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")):
        with damage_named(path), safe_open(path, framework="pt") as file:
            found.update(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
    return {one for one in found if one.startswith(("F", "BF"))}


def count_parameters(folder: Path) -> int:
    """Return how many floating-point numbers the weights of a checkpoint are, without reading them."""
    total = 0
    for path, wanted in weight_files(folder).items():
        with damage_named(path), safe_open(path, framework="pt") as file:
            for name in file.keys() if wanted is None else wanted:
                part = file.get_slice(name)
                total += math.prod(part.get_shape()) if part.get_dtype().startswith(("F", "BF")) else 0
    return total


def _modern(name: str) -> str:
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda match: f"LayerNorm.{_OLD_NORM[match[1]]}", name)


def fill(model: Any, weights: dict[str, Tensor], folder: Path, family: Family, *, new_head: bool) -> None:
    """Copy weights into a sequence-classification module, by name.

    Names match with or without the base model's prefix. MPNet and RoBERTa have no pooler in a classification model;
    there `pooler.dense` becomes `classifier.dense`.

    Args:
        model: the transformers module; its weights are replaced, as float32.
        weights: by name.
        folder: where they come from, for messages.
        family: the architecture.
        new_head: whether the model gets a new head: the last linear layer may then be absent or of another shape, and
            layers between it and the encoder may be absent; they keep the random weights of `model`, and a note says
            so. Otherwise every weight is required.

    Raises:
        EncoderError: weights are missing, of another shape, quantized, not finite, or of more layers than config.json
            names.
    """
    found = _without_prefix(weights, family.base + ".", folder)
    if family.dense == "classifier.dense":
        for part in ("weight", "bias"):
            if f"pooler.dense.{part}" in found:
                found.setdefault(f"classifier.dense.{part}", found[f"pooler.dense.{part}"])
    state, prefix, last = model.state_dict(), family.base + ".", family.last + "."
    missing, new, used = [], [], {}
    for name, target in state.items():
        source = found.get(name.removeprefix(prefix))
        if source is not None and source.shape == target.shape:
            used[name] = source
        elif new_head and name.startswith(last):
            pass
        elif source is None and new_head and (not name.startswith(prefix) or "pooler." in name):
            new.append(name)
        else:
            missing.append(name if source is None else f"{name} (shape {list(source.shape)}, not {list(target.shape)})")
    if missing:
        raise EncoderError(
            f"{folder}: {len(missing)} weights are missing or of another shape, first {missing[0]}; "
            "this checkpoint does not hold the model that its config.json names",
            source=folder,
        )
    _require_numbers(used, folder)
    _require_all_layers({name.removeprefix(prefix) for name in state}, found, folder)
    if new:
        logger.info(f"{folder} has no {', '.join(new)}: it starts with random weights")
    model.load_state_dict({**state, **{name: value.to(torch.float32) for name, value in used.items()}})


def _without_prefix(weights: Mapping[str, Tensor], prefix: str, folder: Path) -> dict[str, Tensor]:
    """The weights by their names without the base model's prefix."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        short = name.removeprefix(prefix)
        if short in found and not torch.equal(found[short], value):
            raise EncoderError(
                f"{folder} holds {short} twice, with and without {prefix!r} before it, and the two differ: "
                "a mixture of two models; fetch it again",
                source=folder,
            )
        found[short] = value
    return found


def _require_numbers(used: Mapping[str, Tensor], folder: Path) -> None:
    quantized = [name for name, value in used.items() if not value.is_floating_point()]
    if quantized:
        raise EncoderError(
            f"{folder}: {quantized[0]} is {used[quantized[0]].dtype}, not a floating-point number: quantized weights "
            "mean nothing without their scales; use the checkpoint that was not quantized",
            source=folder,
        )
    require_finite(used, folder)


def _require_all_layers(wanted: set[str], found: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse weights of layers that the model does not have, and note other weights that are not used."""
    unused = sorted(name for name in found if name not in wanted)
    layers = [name for name in unused if re.match(r"(.*\.)?layers?\.\d+\.", name)]
    if layers:
        raise EncoderError(
            f"{folder} holds {len(layers)} weights in layers that its config.json does not have, first {layers[0]}; "
            "config.json and weights are of different models",
            source=folder,
        )
    if unused:
        logger.debug(f"{folder}: not used: {', '.join(unused)}")
