"""Load and save models: an encoder cut to n layers, and checkpoints that every tool of the ecosystem opens.

A model folder is an ordinary sequence-classification checkpoint (config.json, model.safetensors, tokenizer.json) with a
model card file (tmkd.json) beside it. Its model.safetensors holds the folded head, with one logit for two classes
(`tmkd.models.one_logit`). headers.safetensors holds the heads as they were trained, wherever that is something else.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmkd.core.errors import EncoderError, first_line
from tmkd.core.files import disk_errors, read_json, write_json
from tmkd.models.card import ModelCard, Origin, has_card, read_card
from tmkd.models.encoders.cached_files import is_cached, load_interaction, save_interaction
from tmkd.models.encoders.families import family_of, last_linear
from tmkd.models.encoders.find import HEADS_FILE, WEIGHTS_FILE
from tmkd.models.encoders.forward import PairEncoder, encoder_of
from tmkd.models.encoders.interaction import InteractionEncoder
from tmkd.models.encoders.lstm import LstmEncoder, is_lstm, load_lstm, save_lstm
from tmkd.models.encoders.tensors import read_tensors, require_finite, write_tensors
from tmkd.models.layers import choose_layers, cut_config, keep_layers, replace_layers
from tmkd.models.one_logit import RELEVANT, class_rows, described, folded_rows
from tmkd.models.ready import ACTIVATIONS, require_head
from tmkd.models.student import Encoder, Student
from tmkd.models.text_tokenizer import QUESTION_FOLDER
from tmkd.models.tokenizer import PairTokenizer
from tmkd.models.tokenizer_files import of_transformers
from tmkd.models.weights import fill, read_weights

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
"""Files beside tokenizer.json that transformers reads, copied where they exist."""


def load_encoder(
    folder: Path,
    classes: int,
    *,
    layers: int | None = None,
    start: str = "bottom",
    dropout: float = 0.0,
    freeze_embeddings: bool = True,
    pooler: str = "keep",
) -> PairEncoder:
    """Load the embeddings, some layers and the pooler of a pre-trained checkpoint, float32.

    Layers between the encoder and the last linear layer that the checkpoint lacks (a pre-trained encoder of most
    families does) start with random weights, by torch's random state.

    Args:
        folder: the checkpoint.
        classes: C of the model that is made.
        layers: how many layers; all unless given.
        start: which layers: the `bottom` ones, evenly `spaced` ones from the first on, or new `random` ones.
        dropout: see `encoder_of`.
        freeze_embeddings: see `encoder_of`.
        pooler: `keep` uses the checkpoint's; `identity` replaces it by the identity matrix; `auto` does so where it was
            never trained. An untrained pooler has small random weights, which give nearly the same h for all texts, and
            a few labels are spent on growing them; with the identity, h is tanh of the first token's vector.

    Returns:
        The encoder, on the CPU.

    Raises:
        EncoderError: the architecture is not supported, the encoder has too few layers, or weights are missing or of
            another shape.
    """
    config, chosen = _read_config(folder), None
    family = family_of(config.model_type, str(folder))
    if layers is not None:
        chosen = _chosen_layers(config.num_hidden_layers, layers, start, folder)
        cut_config(config, chosen)
    _forget_task(config)
    model = _new_module(config, classes)
    weights = read_weights(folder)
    if chosen is not None:
        weights = keep_layers(weights, chosen)
        if start == "random":
            weights = replace_layers(weights, model, family.base + ".")
    fill(model, weights, folder, family, new_head=True)
    encoder = encoder_of(model, dropout=dropout, freeze_embeddings=freeze_embeddings)
    if encoder.dense is not None and _starts_as_identity(encoder, pooler):
        why = ", it was never trained" if pooler == "auto" else ""
        logger.info(f"{folder}: the pooler starts as the identity{why}")
        torch.nn.init.eye_(encoder.dense.weight)
        torch.nn.init.zeros_(encoder.dense.bias)
    return encoder


def _load_whole(folder: Path, classes: int, dropout: float, freeze_embeddings: bool, positive: int = 1) -> PairEncoder:
    """Load the encoder of a fine-tuned checkpoint: every layer is required. One logit is two classes' log-odds."""
    config = _read_config(folder)
    family = family_of(config.model_type, str(folder))
    model, weights = _new_module(config, classes), read_weights(folder)
    head = [f"{family.last}.{part}" for part in ("weight", "bias")]
    if classes == 2 and all(name in weights for name in head):
        weights |= zip(head, class_rows(weights[head[0]], weights[head[1]], positive), strict=True)
    fill(model, weights, folder, family, new_head=False)
    return encoder_of(model, dropout=dropout, freeze_embeddings=freeze_embeddings)


def _new_module(config: Any, classes: int) -> Any:
    """Make a sequence-classification module with random weights, float32."""
    from transformers import AutoModelForSequenceClassification

    config.num_labels = classes
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def _forget_task(config: Any) -> None:
    """Remove what a configuration says about the head that a new one replaces: the names of its classes, its scale."""
    config.num_labels = 1  # another number of classes makes transformers give them new names
    config.problem_type = None
    for name in ACTIVATIONS:
        if hasattr(config, name):
            delattr(config, name)


def _starts_as_identity(encoder: PairEncoder, pooler: str) -> bool:
    return pooler == "identity" or (pooler == "auto" and not bool(encoder.dense.bias.any()))


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{folder}/config.json cannot be read: {first_line(error)}") from error


def _chosen_layers(there: int, layers: int, start: str, folder: Path) -> list[int]:
    try:
        return choose_layers(there, layers, start)
    except ValueError:
        raise EncoderError(f"{folder} has {there} layers; a student cannot take {layers} of them") from None


def require_fit(folder: Path, *, length: int, layers: int = 1) -> None:
    """Check from its configuration that an encoder has enough layers, and a position for every token of a pair.

    Args:
        folder: the encoder.
        length: most tokens of a pair.
        layers: layers that a student takes.

    Raises:
        EncoderError: it has too few layers or positions, or its architecture is not supported.
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
            f"max_length: {folder} has positions for {positions} tokens, and {length} are needed"
            + (" (those before the first token included)" if family.position_offset else "")
        )


def depth(folder: Path) -> int:
    """Return how many layers an encoder has, from its configuration."""
    return int(_read_config(folder).num_hidden_layers)


def hidden_width(folder: Path) -> int:
    """Return the width of an encoder's hidden states, from its configuration."""
    return int(_read_config(folder).hidden_size)


def word_embeddings(folder: Path) -> Tensor:
    """Return the embedding table of a checkpoint, [V, d] float32."""
    table: Tensor = load_encoder(folder, 2, layers=1).base.get_input_embeddings().weight.detach().clone()
    return table


def save_student(student: Student, folder: Path, tokenizer_folder: Path, max_length: int, origin: Origin) -> None:
    """Write a teacher or student.

    The checkpoint's own head is the folded one, so any tool that opens the folder computes the `logit` combination; for
    two classes it has one logit, the log-odds.

    Args:
        student: the model.
        folder: made where it does not exist.
        tokenizer_folder: a model folder whose tokenizer is copied.
        max_length: most tokens of a pair; written into the tokenizer's files.
        origin: what made the model, for the model card file, which is written last: a folder without it is not whole.

    Raises:
        EncoderError: a weight is not finite.
        NoRoomError: the disk is full.
    """
    require_finite(student.state_dict(), folder)
    with disk_errors(folder):
        _write_student(student, folder, tokenizer_folder, max_length, origin)


def _write_student(student: Student, folder: Path, tokenizer_folder: Path, max_length: int, origin: Origin) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    encoder = student.encoder
    if isinstance(encoder, LstmEncoder):
        save_lstm(encoder, *student.fold(), folder)
    elif isinstance(encoder, InteractionEncoder):
        save_interaction(encoder, *student.fold(), folder)
    else:
        _save_checkpoint(encoder, *student.fold(), folder, origin.get("labels"))
    save_tokenizer(tokenizer_folder, folder, max_length)
    if isinstance(encoder, InteractionEncoder) and encoder.question_source is not None:
        save_tokenizer(encoder.question_source, folder / QUESTION_FOLDER, max_length)
    one_logit = student.classes == 2 and isinstance(encoder, PairEncoder)
    if student.soft_heads or one_logit:  # training continues with the rows that it had
        heads = {
            "golden.weight": student.golden.weight,
            "golden.bias": student.golden.bias,
            "soft.weight": student.soft_weight,
            "soft.bias": student.soft_bias,
        }
        write_tensors(heads, folder / HEADS_FILE)
    ModelCard(
        max_length=max_length,
        classes=student.classes,
        layers=encoder.layers,
        soft_heads=student.soft_heads,
        use_golden=student.use_golden,
        **origin,
    ).write(folder)


def name_classes(folder: Path, labels: Sequence[str] | None) -> None:
    """Give the classes of a saved student the names that a recipe has now; they are no part of what is trained.

    Args:
        folder: what `save_student` wrote.
        labels: names of the C classes, where the task names them.
    """
    card, path = read_card(folder), folder / "config.json"
    names = None if labels is None else tuple(labels)
    if card.labels == names:
        return
    content = read_json(path)
    if "id2label" in content:
        unnamed = RELEVANT if card.classes == 2 else [f"LABEL_{number}" for number in range(card.classes)]
        write_json(path, described(content, names or unnamed))
    card.model_copy(update={"labels": names}).write(folder)


def _save_checkpoint(
    encoder: PairEncoder, weight: Tensor, bias: Tensor, folder: Path, labels: Sequence[str] | None
) -> None:
    """Write config.json and model.safetensors with a head of weight [C, d] and bias [C]."""
    encoder.model.config.architectures = [type(encoder.model).__name__]
    encoder.model.config.save_pretrained(folder)
    if labels is not None or len(weight) == 2:
        path = folder / "config.json"
        write_json(path, described(read_json(path), labels or RELEVANT))
    head = dict(zip(("weight", "bias"), folded_rows(weight, bias), strict=True))
    weights = {**encoder.model.state_dict(), **{f"{encoder.family.last}.{name}": part for name, part in head.items()}}
    write_tensors(weights, folder / WEIGHTS_FILE, {"format": "pt"})


def save_tokenizer(source: Path, folder: Path, max_length: int) -> None:
    """Write a tokenizer so that every tool that opens the folder makes the same tokens of a pair.

    Args:
        source: a model folder whose tokenizer is copied.
        folder: where config.json is already; tokenizer.json and the files beside it are written.
        max_length: most tokens of a pair; written into every file that tools read it from.
    """
    tokenizer = PairTokenizer(source, max_length)
    tokenizer.save(folder)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    for stale in ("max_length", "stride", "truncation_side", "truncation_strategy", "pad_to_multiple_of"):
        settings.pop(stale, None)
    settings |= {"model_max_length": max_length, "padding_side": "right", "model_input_names": tokenizer.inputs}
    write_json(path, settings)
    theirs = None if is_lstm(folder) or is_cached(folder) else of_transformers(folder)
    if theirs is None or tokenizer.equals(theirs.backend_tokenizer):
        return
    # Older versions saved what tokenizer.json said although transformers did otherwise; this class reads it as it is.
    write_json(path, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


def load_student(folder: Path, *, dropout: float = 0.0, freeze_embeddings: bool = True) -> Student:
    """Load a teacher or student that `save_student` wrote.

    Args:
        folder: the model folder.
        dropout: see `encoder_of`.
        freeze_embeddings: see `encoder_of`.

    Returns:
        The model, on the CPU.

    Raises:
        EncoderError: tmkd did not write the folder, or a file is damaged.
    """
    card = read_card(folder)
    if is_lstm(folder):
        lstm, weight, bias = load_lstm(folder, dropout=dropout, freeze_embeddings=freeze_embeddings)
        return _with_golden_head(Student(lstm, card.classes), weight, bias)
    encoder: Encoder
    if is_cached(folder):
        encoder, weight, bias = load_interaction(folder, dropout=dropout)
    else:
        encoder = _load_whole(folder, card.classes, dropout, freeze_embeddings, card.positive)
        head = last_linear(encoder.model)
        weight, bias = head.weight, head.bias
    student = Student(encoder, card.classes, card.soft_heads, use_golden=card.use_golden)
    if not student.soft_heads and not (folder / HEADS_FILE).is_file():
        return _with_golden_head(student, weight, bias)
    heads = _read_heads(folder, student)
    with torch.no_grad():
        student.soft_weight.copy_(heads["soft.weight"])
        student.soft_bias.copy_(heads["soft.bias"])
    _with_golden_head(student, heads["golden.weight"], heads["golden.bias"])
    for mean, own in zip(folded_rows(*student.fold()), folded_rows(weight, bias), strict=True):
        if not torch.allclose(mean, own, atol=1e-4):
            raise EncoderError(
                f"{folder}: the mean of the heads in {HEADS_FILE} is not the head in model.safetensors; the two files "
                "are of different models. Train the student again, or copy both from the same folder",
                source=folder,
            )
    return student


def _read_heads(folder: Path, student: Student) -> dict[str, Tensor]:
    path = folder / HEADS_FILE
    if not path.is_file():
        raise EncoderError(f"{path} is missing: tmkd.json says that this student has several heads", source=folder)
    heads = read_tensors(path)
    wanted = {
        "soft.weight": student.soft_weight,
        "soft.bias": student.soft_bias,
        "golden.weight": student.golden.weight,
        "golden.bias": student.golden.bias,
    }
    for name, tensor in wanted.items():
        shape = list(heads[name].shape) if name in heads else "nothing"
        if shape != list(tensor.shape):
            raise EncoderError(
                f"{path}: {name} has the shape {shape}, and this student needs {list(tensor.shape)}; "
                "the file is of another model",
                source=folder,
            )
    require_finite(heads, path)
    return heads


def load_finished(folder: Path, classes: int) -> Student:
    """Load a fine-tuned checkpoint, made by tmkd or elsewhere; a foreign classification head becomes the golden head.

    Args:
        folder: the checkpoint.
        classes: C that it must have.

    Returns:
        The model, on the CPU, with its classes in the checkpoint's order.

    Raises:
        EncoderError: it has no head of so many classes, its architecture is not supported, or a file is damaged.
    """
    require_head(folder, classes)
    if has_card(folder):
        return load_student(folder)
    encoder = _load_whole(folder, classes, dropout=0.0, freeze_embeddings=True)
    head = last_linear(encoder.model)
    return _with_golden_head(Student(encoder, classes), head.weight, head.bias)


@torch.no_grad()
def _with_golden_head(student: Student, weight: Tensor, bias: Tensor) -> Student:
    """Copy a head, weight [C, d] and bias [C], into a student's golden head."""
    student.golden.weight.copy_(weight)
    student.golden.bias.copy_(bias)
    return student
