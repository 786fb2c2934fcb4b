"""Which layers of an encoder a student takes: the bottom ones, evenly spaced ones, or new random ones."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

_LAYER = re.compile(r"(.*\blayers?\.)(\d+)(\..+)")  # every family names its layers in this way


def choose_layers(there: int, count: int, start: str) -> list[int]:
    """Return the indices of the layers that a student of `count` layers takes, in ascending order.

    Args:
        there: layers of the encoder.
        count: layers of the student.
        start: `bottom`, `spaced`, or `random` (whose layers take the places of the bottom ones).

    Returns:
        Indices from 0.

    Raises:
        ValueError: the encoder has fewer layers, or `count` is less than 1.

    Example:
        >>> choose_layers(6, 3, "spaced")
        [0, 2, 4]
    """
    if not 1 <= count <= there:
        raise ValueError(f"an encoder of {there} layers has no {count} layers for a student")
    return spaced_layers(there, count) if start == "spaced" else list(range(count))


def spaced_layers(there: int, count: int) -> list[int]:
    """Return the indices of `count` of `there` layers, evenly spaced, from the first layer on.

    Args:
        there: layers of the encoder.
        count: how many to take.

    Returns:
        Indices from 0, in ascending order.
    """
    return [layer * there // count for layer in range(count)]


def cut_config(config: Any, chosen: list[int]) -> None:
    """Change a transformers configuration in place so that it has only the chosen layers.

    Args:
        config: of the encoder.
        chosen: indices of the layers that stay.
    """
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):  # ModernBERT lists the kind of attention of each layer
        config.layer_types = [config.layer_types[layer] for layer in chosen]


def keep_layers(weights: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    """Return the weights with only the chosen layers, renumbered from 0.

    Args:
        weights: by name.
        chosen: indices of the layers that stay, in their new order.

    Returns:
        The weights that stay, by their new names.
    """
    kept = {}
    for name, value in weights.items():
        match = _LAYER.match(name)
        if match is None:
            kept[name] = value
        elif int(match[2]) in chosen:
            kept[f"{match[1]}{chosen.index(int(match[2]))}{match[3]}"] = value
    return kept


def replace_layers(weights: dict[str, Tensor], model: Any, prefix: str) -> dict[str, Tensor]:
    """Return the weights with all layers replaced by those of a newly initialised model.

    Args:
        weights: by name, with or without the base model's prefix.
        model: the transformers module with new weights.
        prefix: of the base model's weights in `model`, such as "bert.".

    Returns:
        The weights by name.
    """
    fresh = {name: value for name, value in model.state_dict().items() if _LAYER.match(name)}
    others = {name: value for name, value in weights.items() if not _LAYER.match(name)}
    return others | {name.removeprefix(prefix): value for name, value in fresh.items()}
