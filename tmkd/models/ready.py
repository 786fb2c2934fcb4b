"""What a ready checkpoint says about its head: how many classes, what they are called, and on which scale it scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmkd.core.errors import EncoderError, first_line
from tmkd.core.files import read_json
from tmkd.models.card import has_card, read_card
from tmkd.models.encoders.families import FAMILIES, family_of
from tmkd.models.module_files import read_modules
from tmkd.models.weights import shape_of

ACTIVATIONS = ("sentence_transformers", "sbert_ce_default_activation_function", "default_activation_function")
"""Keys of config.json where sentence-transformers writes the function that it puts on the logits."""
SETTINGS_FILE = "config_sentence_transformers.json"
"""Where sentence-transformers writes prompts and, since version 6, that function."""
_HARMLESS = {"one": ("identity", "sigmoid"), "several": ("identity", "softmax")}
"""Functions after which the logits are still log-odds: their sigmoid, or softmax, is the probability."""


def checkpoint_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a checkpoint, such as config.json.

    Raises:
        EncoderError: there is none, or it holds no JSON object.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read: {first_line(error)}", source=path.parent) from error
    if not isinstance(content, dict):
        raise EncoderError(f"{path} cannot be read: it holds no JSON object", source=path.parent)
    return content


def library_settings(folder: Path) -> dict[str, Any]:
    """What sentence-transformers wrote about a model as a whole, such as its prompts; empty where it wrote nothing.

    Raises:
        EncoderError: the file is damaged.
    """
    path = folder / SETTINGS_FILE
    return checkpoint_json(path) if path.is_file() else {}


def head_rows(folder: Path) -> int:
    """How many logits the classification head in a checkpoint's weights gives; 0 if there is no head.

    Raises:
        EncoderError: the architecture is not supported, or a file cannot be read.
    """
    last = family_of(str(checkpoint_json(folder / "config.json").get("model_type")), str(folder)).last
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
    kind = str((checkpoint_json(folder / "config.json").get("architectures") or [""])[0])
    if "For" in kind and not kind.endswith("ForSequenceClassification") and not has_card(folder):
        raise EncoderError(
            f"{folder}: its head is not understood: it is a {kind}, and a teacher is a model for sequence "
            "classification",
            source=folder,
        )
    require_log_odds(folder)


def require_log_odds(folder: Path) -> None:
    """Check that a checkpoint's logits are log-odds (`scale_problem`).

    Raises:
        EncoderError: they are not, and why.
    """
    if has_card(folder):
        return
    if problem := scale_problem(folder, one=head_classes(folder) == 2 and head_rows(folder) == 1):
        raise no_log_odds(folder, problem)


def no_log_odds(folder: Path, problem: str) -> EncoderError:
    """The error for a checkpoint whose scores are no log-odds.

    Args:
        folder: the checkpoint.
        problem: as `scale_problem` gives it.
    """
    return EncoderError(
        f"{folder}: its scores are no log-odds: {problem}. As a teacher of a recipe it needs `calibrate`: platt or "
        "isotonic",
        source=folder,
    )


def scale_problem(folder: Path, *, one: bool) -> str:
    """Say why a checkpoint's logits are no log-odds: why a softmax, or of one logit a sigmoid, gives no probabilities.

    A recorded sigmoid on one logit is no obstacle: what it gives is the probability, so its log-odds are the logit
    itself.

    Args:
        folder: a checkpoint that tmkd did not write.
        one: whether it gives one logit.

    Returns:
        That it was trained by regression, that each of several classes has a probability of its own, or that another
        function is put on the logits; empty where they are log-odds.
    """
    recorded, problem = activation_of(folder), checkpoint_json(folder / "config.json").get("problem_type")
    name = recorded.rpartition(".")[2].lower()
    if recorded and not keeps_log_odds(recorded, one=one):
        return f"its configuration puts {recorded} on the logits"
    if problem == "regression" and name not in ("sigmoid", "softmax"):
        return "it was trained by regression (problem_type in its config.json)"
    if problem == "multi_label_classification" and not one:
        return "each of its classes has a probability of its own (problem_type in its config.json)"
    return ""


def keeps_log_odds(activation: str, *, one: bool) -> bool:
    """Whether logits are log-odds although this function is put on them."""
    return activation.rpartition(".")[2].lower() in _HARMLESS["one" if one else "several"]


def needs_library(folder: Path) -> str:
    """Say why a finished cross-encoder is read by sentence-transformers and not by tmkd itself.

    Args:
        folder: the checkpoint.

    Returns:
        The reason; empty where tmkd reads it itself, or says what is wrong with it.
    """
    if not (folder / "config.json").is_file() or has_card(folder):
        return ""
    config = checkpoint_json(folder / "config.json")
    if (family := str(config.get("model_type"))) not in FAMILIES:
        return f"its architecture, {family}"
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file():
        return "its tokenizer, which is not a tokenizer.json"
    if len(modules := read_modules(folder)) > 1:
        return f"its modules, {', '.join(one.kind for one in modules)}"
    settings = library_settings(folder)
    if (settings.get("prompts") or {}).get(settings.get("default_prompt_name")):
        return "its prompt"
    rows = head_rows(folder)
    return "the scale of its scores" if rows and scale_problem(folder, one=rows == 1) else ""


def activation_of(folder: Path) -> str:
    """The function that sentence-transformers puts on the logits, as its files name it; empty if they name none."""
    config = checkpoint_json(folder / "config.json")
    found = (library_settings(folder).get("activation_fn"), *(config.get(key) for key in ACTIVATIONS))
    named = (one.get("activation_fn") if isinstance(one, dict) else one for one in found)
    return next((str(one) for one in named if one), "")
