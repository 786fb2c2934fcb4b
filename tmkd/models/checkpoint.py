"""Models on disk: cut an encoder to n layers, write and read checkpoints that every tool of the ecosystem opens.

A folder is an ordinary sequence-classification checkpoint (config.json, model.safetensors, tokenizer.json) with
tmkd.json beside it. A student adds headers.safetensors; its model.safetensors holds the folded head.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tmkd.core.errors import EncoderError
from tmkd.models.encoders.families import Family, family_of, last_linear
from tmkd.models.encoders.forward import PairEncoder, encoder_of
from tmkd.models.encoders.lstm import LstmEncoder, is_lstm, load_lstm, save_lstm
from tmkd.models.student import Student

logger = logging.getLogger(__name__)

FORMAT = 1
_LAYER = re.compile(r"(.*\blayers?\.)(\d+)(\..+)")  # every family numbers its layers so


def load_encoder(
    folder: Path,
    classes: int,
    *,
    layers: int | None = None,
    start: str = "bottom",
    dropout: float = 0.0,
    freeze_embeddings: bool = True,
    pooler: str = "keep",
    new_head: bool = True,
) -> PairEncoder:
    """Embeddings, `layers` layers and the pooler of a checkpoint, float32.

    MPNet and RoBERTa have no pooler of their own in a classification model: `pooler.dense` becomes `classifier.dense`.

    Args:
        layers: how many; all unless given.
        start: which: the `bottom` ones, evenly `spaced` ones from the first on, or `random` new ones.
        pooler: `keep` it as the checkpoint has it; begin with the `identity`; `auto`: the identity where it was never
            trained. Small random weights give nearly the same h for all texts, and few labels are spent on growing
            them; with the identity h is the first token's last state.
        new_head: layers between the encoder and the last linear one that the checkpoint lacks (a pre-trained encoder
            of most families does) begin anew, by torch's random state; False: they are required.

    Raises:
        EncoderError: unsupported architecture, too few layers, or weights that are missing or of another shape.
    """
    from transformers import AutoModelForSequenceClassification

    config = _read_config(folder)
    family = family_of(config.model_type, str(folder))
    chosen = None
    if layers is not None:
        chosen = _chosen_layers(config.num_hidden_layers, layers, start, folder)
        _cut(config, chosen)
    config.num_labels = classes
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    weights = _read_weights(folder)
    if chosen is not None:
        weights = _layers_only(weights, chosen, model, family, random=start == "random")
    _fill(model, weights, folder, family, new_head=new_head)
    encoder = encoder_of(model, dropout=dropout, freeze_embeddings=freeze_embeddings)
    if encoder.dense is not None and _starts_as_identity(encoder, pooler):
        logger.info(
            f"{folder}: the pooler begins as the identity" + (", it was never trained" if pooler == "auto" else "")
        )
        torch.nn.init.eye_(encoder.dense.weight)
        torch.nn.init.zeros_(encoder.dense.bias)
    return encoder


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{folder}/config.json cannot be read: {str(error).splitlines()[0]}") from error


def require_fit(folder: Path, *, length: int, layers: int = 1) -> None:
    """Whether an encoder has so many layers, and a position for every token of a pair, read from its configuration.

    Raises:
        EncoderError: it has not, or its architecture is not supported.
    """
    if is_lstm(folder):
        return
    config = _read_config(folder)
    family = family_of(config.model_type, str(folder))
    _chosen_layers(config.num_hidden_layers, layers, "bottom", folder)
    if family.position_offset:
        length += int(config.pad_token_id) + 1
    if not family.unbounded and length > (positions := int(config.max_position_embeddings)):
        raise EncoderError(
            f"max_length: {folder} has positions for {positions} tokens, and {length} are asked for"
            + (" (the padding's among them)" if family.position_offset else "")
        )


def _chosen_layers(there: int, layers: int, start: str, folder: Path) -> list[int]:
    """Which of an encoder's layers a student of `layers` layers takes, bottom first."""
    if not 1 <= layers <= there:
        raise EncoderError(f"{folder} has {there} layers; a student cannot take {layers} of them")
    return spaced(there, layers) if start == "spaced" else list(range(layers))


def spaced(there: int, layers: int) -> list[int]:
    """Evenly spaced ones of an encoder's layers (indices), from the first on."""
    return [layer * there // layers for layer in range(layers)]


def depth(folder: Path) -> int:
    """How many layers an encoder has, read from its configuration."""
    return int(_read_config(folder).num_hidden_layers)


def _cut(config: Any, chosen: list[int]) -> None:
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):  # ModernBERT names each layer's kind of attention
        config.layer_types = [config.layer_types[layer] for layer in chosen]


def _layers_only(
    weights: dict[str, Tensor], chosen: list[int], model: Any, family: Family, *, random: bool
) -> dict[str, Tensor]:
    """The weights with only the chosen layers, renumbered from 0; `random`: as the new model has them."""
    kept = {}
    for name, value in weights.items():
        match = _LAYER.match(name)
        if match is None:
            kept[name] = value
        elif int(match[2]) in chosen:
            kept[f"{match[1]}{chosen.index(int(match[2]))}{match[3]}"] = value
    if random:
        fresh = {name: value for name, value in model.state_dict().items() if _LAYER.match(name)}
        kept = {name: value for name, value in kept.items() if not _LAYER.match(name)} | {
            name.removeprefix(family.base + "."): value for name, value in fresh.items()
        }
    return kept


def _starts_as_identity(encoder: PairEncoder, pooler: str) -> bool:
    return pooler == "identity" or (pooler == "auto" and not bool(encoder.dense.bias.any()))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        with _readable(path):
            weights.update(load_file(path))
    return weights


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.name != "headers.safetensors")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # safetensors raises its own class for a damaged header
        raise EncoderError(f"{path} cannot be read ({error}); the file is damaged, fetch it again") from error


def _fill(model: Any, weights: dict[str, Tensor], folder: Path, family: Family, *, new_head: bool) -> None:
    """Copy weights by name, with or without the base model's prefix; the last linear layer need not come."""
    prefix = family.base + "."
    found = {name.removeprefix(prefix): value for name, value in weights.items()}
    if family.dense == "classifier.dense":
        for part in ("weight", "bias"):
            if f"pooler.dense.{part}" in found:
                found.setdefault(f"classifier.dense.{part}", found[f"pooler.dense.{part}"])
    state = model.state_dict()
    missing, anew = [], []
    for name, target in state.items():
        source = found.get(name.removeprefix(prefix))
        if source is not None and source.shape == target.shape:
            state[name] = source.to(torch.float32)
        elif source is None and new_head and (not name.startswith(prefix) or "pooler." in name):
            anew.append(name)
        elif not name.startswith(family.last + "."):
            missing.append(name if source is None else f"{name} (shape {list(source.shape)})")
    if missing:
        raise EncoderError(
            f"{folder}: {len(missing)} weights are missing or of another shape, first {missing[0]}; "
            "this checkpoint does not hold the model that its config.json names"
        )
    anew = [name for name in anew if not name.startswith(family.last + ".")]
    if anew:
        logger.info(f"{folder} has no {', '.join(anew)}: begins anew")
    model.load_state_dict(state)


def save_student(
    student: Student, folder: Path, tokenizer_folder: Path, max_length: int, about: dict[str, Any]
) -> None:
    """Write a teacher or student. `about` joins tmkd.json (name, teachers, step).

    The checkpoint's own head is the folded one, so the folder gives the `logit` combination in any tool.
    """
    from tmkd.models.tokenizer import PairTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    encoder = student.encoder
    if isinstance(encoder, LstmEncoder):
        save_lstm(encoder, *student.fold(), folder)
    else:
        _save_checkpoint(encoder, *student.fold(), folder)
    PairTokenizer(tokenizer_folder, max_length).save(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)
    _write_tokenizer_length(folder, max_length)
    if student.soft_heads:
        headers = {
            "golden.weight": student.golden.weight,
            "golden.bias": student.golden.bias,
            "soft.weight": student.soft_weight,
            "soft.bias": student.soft_bias,
        }
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in headers.items()}, folder / "headers.safetensors"
        )
    card = {
        "format": FORMAT,
        "max_length": max_length,
        "classes": student.classes,
        "layers": encoder.layers,
        "soft_headers": student.soft_heads,
        "use_golden": student.use_golden,
        **about,
    }
    (folder / "tmkd.json").write_text(json.dumps(card, indent=2) + "\n")


def _save_checkpoint(encoder: PairEncoder, weight: Tensor, bias: Tensor, folder: Path) -> None:
    head = last_linear(encoder.model)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    encoder.model.config.architectures = [type(encoder.model).__name__]
    encoder.model.config.save_pretrained(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer_length(folder: Path, max_length: int) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    config["model_max_length"] = max_length
    for stale in ("max_length", "stride", "truncation_side", "truncation_strategy", "pad_to_multiple_of"):
        config.pop(stale, None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """tmkd.json of a model folder; EncoderError where there is none or it is of another format."""
    path = folder / "tmkd.json"
    if not path.is_file():
        raise EncoderError(f"{folder} has no tmkd.json; it was not written by tmkd")
    card: dict[str, Any] = json.loads(path.read_text())
    if card.get("format") != FORMAT:
        raise EncoderError(f"{path}: format {card.get('format')!r}, this version reads {FORMAT}")
    return card


def load_student(folder: Path, *, dropout: float = 0.0, freeze_embeddings: bool = True) -> Student:
    """A teacher or student as it was saved."""
    card = read_card(folder)
    classes = int(card["classes"])
    if is_lstm(folder):
        return _lstm_student(folder, classes, dropout, freeze_embeddings)
    encoder = load_encoder(folder, classes, dropout=dropout, freeze_embeddings=freeze_embeddings, new_head=False)
    student = Student(encoder, classes, int(card["soft_headers"]), use_golden=bool(card["use_golden"]))
    with torch.no_grad():
        if student.soft_heads:
            headers = load_file(folder / "headers.safetensors")
            student.golden.weight.copy_(headers["golden.weight"])
            student.golden.bias.copy_(headers["golden.bias"])
            student.soft_weight.copy_(headers["soft.weight"])
            student.soft_bias.copy_(headers["soft.bias"])
        else:
            head = last_linear(encoder.model)
            student.golden.weight.copy_(head.weight)
            student.golden.bias.copy_(head.bias)
    return student


def _lstm_student(folder: Path, classes: int, dropout: float, freeze_embeddings: bool) -> Student:
    encoder, weight, bias = load_lstm(folder, dropout=dropout, freeze_embeddings=freeze_embeddings)
    student = Student(encoder, classes)
    with torch.no_grad():
        student.golden.weight.copy_(weight)
        student.golden.bias.copy_(bias)
    return student


def word_embeddings(folder: Path) -> Tensor:
    """The word-piece embedding table of a checkpoint, [V, d] float32."""
    table: Tensor = load_encoder(folder, 2, layers=1).base.get_input_embeddings().weight.detach().clone()
    return table


def load_finished(folder: Path, classes: int) -> Student:
    """A fine-tuned checkpoint made elsewhere: its own classification head becomes the golden header."""
    require_head(folder, classes)
    if (folder / "tmkd.json").is_file():
        return load_student(folder)
    encoder = load_encoder(folder, classes, new_head=False)
    weights = _read_weights(folder)
    name = encoder.family.last
    weight = weights[f"{name}.weight"]
    student = Student(encoder, classes)
    with torch.no_grad():
        student.golden.weight.copy_(weight)
        student.golden.bias.copy_(weights[f"{name}.bias"])
    return student


def require_head(folder: Path, classes: int) -> None:
    """Whether a checkpoint has a classification head of so many classes.

    Raises:
        EncoderError: it has none, or one of other classes.
    """
    found = head_classes(folder)
    if found != classes:
        told = found or "no"
        raise EncoderError(f"{folder}: a finished teacher needs a head of {classes} classes, this one has {told}")


def head_classes(folder: Path) -> int:
    """How many classes the classification head of a checkpoint has; 0 if there is no such head.

    Raises:
        EncoderError: the architecture is not supported, or a file cannot be read.
    """
    if (folder / "tmkd.json").is_file():
        return int(read_card(folder)["classes"])
    name = f"{family_of(_read_config(folder).model_type, str(folder)).last}.weight"
    return next((shape[0] for path in _weight_files(folder) if (shape := _shape(path, name))), 0)


def _shape(path: Path, name: str) -> list[int]:
    """The shape of a weight of that name; empty where the file has none."""
    with _readable(path), safe_open(path, framework="pt") as file:
        return list(file.get_slice(name).get_shape()) if name in file.keys() else []  # noqa: SIM118
