"""What a ready checkpoint says about its head: how many classes, what they are called, and on which scale it scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tmkd.core.errors import EncoderError
from tmkd.models.card import has_card, read_card
from tmkd.models.encoders.families import family_of
from tmkd.models.weights import shape_of

ACTIVATIONS = ("sentence_transformers", "sbert_ce_default_activation_function", "default_activation_function")
"""Keys of config.json where sentence-transformers writes the function that it puts on the logits."""
_HARMLESS = {"one": ("identity", "sigmoid"), "several": ("identity", "softmax")}
"""Functions after which the logits are still log-odds: their sigmoid, or softmax, is the probability."""


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a checkpoint, such as config.json.

    Raises:
        EncoderError: there is none, or it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read: {str(error).splitlines()[0]}", source=path.parent) from error
    if not isinstance(content, dict):
        raise EncoderError(f"{path} cannot be read: it holds no JSON object", source=path.parent)
    return content


def head_rows(folder: Path) -> int:
    """How many logits the classification head in a checkpoint's weights gives; 0 if there is no head.

    Raises:
        EncoderError: the architecture is not supported, or a file cannot be read.
    """
    last = family_of(str(read_json(folder / "config.json").get("model_type")), str(folder)).last
    return next(iter(shape_of(folder, f"{last}.weight")), 0)


def head_classes(folder: Path) -> int:
    """How many classes the classification head of a checkpoint has; 0 if it has no head.

    A head of one logit has two classes: its logit is the log-odds of class 1 (METHOD.md, "Teachers").

    Raises:
        EncoderError: the architecture is not supported, or a file cannot be read.
    """
    if has_card(folder):
        return read_card(folder).classes
    rows = head_rows(folder)
    return 2 if rows == 1 else rows


def require_head(folder: Path, classes: int) -> None:
    """Check that a checkpoint has a classification head of so many classes, which gives log-odds.

    Args:
        folder: the checkpoint.
        classes: C that it must have.

    Raises:
        EncoderError: it has no head, one of another number of classes, or its scores are on another scale.
    """
    found = head_classes(folder)
    if found != classes:
        raise EncoderError(
            f"{folder}: a finished teacher needs a head of {classes} classes, this one has {found or 'no head'}",
            source=folder,
        )
    require_log_odds(folder)


def require_log_odds(folder: Path) -> None:
    """Check that a checkpoint's logits are log-odds: that a softmax, or of one logit a sigmoid, gives probabilities.

    A recorded sigmoid on one logit is no obstacle: what it gives is the probability, so its log-odds are the logit
    itself. A checkpoint that tmkd wrote gives log-odds.

    Raises:
        EncoderError: its config.json says that it was trained by regression, that each of several classes has a
            probability of its own, or that another function is put on the logits.
    """
    if has_card(folder):
        return
    config, one = read_json(folder / "config.json"), head_classes(folder) == 2 and head_rows(folder) == 1
    recorded = _activation(folder, config)
    name = recorded.rpartition(".")[2].lower()
    problem = config.get("problem_type")
    if recorded and name not in _HARMLESS["one" if one else "several"]:
        why = f"its configuration puts {recorded} on the logits"
    elif problem == "regression" and name not in ("sigmoid", "softmax"):
        why = "it was trained by regression (problem_type in its config.json)"
    elif problem == "multi_label_classification" and not one:
        why = "each of its classes has a probability of its own (problem_type in its config.json)"
    else:
        return
    raise EncoderError(
        f"{folder}: its scores are no log-odds: {why}. Score the pairs "
        "with it yourself and give the scores as a column (`scores`, declared "
        "in data.scores, with `calibrate`: platt or isotonic)",
        source=folder,
    )


def _activation(folder: Path, config: dict[str, Any]) -> str:
    """The function that sentence-transformers puts on the logits, as its files name it; empty if they name none."""
    path = folder / "config_sentence_transformers.json"  # where sentence-transformers writes it since version 6
    newest = read_json(path).get("activation_fn") if path.is_file() else None
    found = (newest, *(config.get(key) for key in ACTIVATIONS))
    named = (one.get("activation_fn") if isinstance(one, dict) else one for one in found)
    return next((str(one) for one in named if one), "")
