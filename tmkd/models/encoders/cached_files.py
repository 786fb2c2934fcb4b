"""The folder of a student that reads passages once: its interaction layers, and the encoders that read its texts.

An encoder that was not trained is the same file as the checkpoint that it came from (a hard link where the file system
has them). One that was trained with the student is written anew.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from tmkd.core.errors import EncoderError
from tmkd.core.files import read_json, write_json
from tmkd.core.open_files import require_room
from tmkd.models.encoders.families import model_type
from tmkd.models.encoders.find import (
    INDEX_FILE,
    WEIGHTS_FILE,
    encoder_fingerprint,
    weight_files,
    weights_fingerprint,
)
from tmkd.models.encoders.forward import PairEncoder
from tmkd.models.encoders.interaction import InteractionEncoder, InteractionShape
from tmkd.models.encoders.tensors import read_tensors, require_finite, write_tensors
from tmkd.models.text_tokenizer import QUESTION_FOLDER

MODEL_TYPE = "tmkd-cached"
ENCODER_FOLDER = "encoder"  # in a student's folder: the checkpoint of E, config.json and weights
_TRAINED = "readers."  # begins the names of E's weights where they are trained with the student


def is_cached(folder: Path) -> bool:
    """Return whether a model folder holds a student that reads passages once."""
    return model_type(folder) == MODEL_TYPE


def interaction_shape(folder: Path) -> InteractionShape:
    """Read the shape of a student's interaction from its folder's config.json."""
    config = read_json(folder / "config.json")
    return InteractionShape(**{name: config[name] for name in InteractionShape.__dataclass_fields__})


def question_folder(folder: Path) -> Path | None:
    """Return where a student's encoder of questions is; None where E reads them."""
    inner = folder / QUESTION_FOLDER
    return inner if inner.is_dir() else None


def first_encoders(folder: Path) -> dict[str, str]:
    """Return of each encoder, by its folder's name, the fingerprint of the weights that it had before any training."""
    config = read_json(folder / "config.json")
    there = [name for name in (ENCODER_FOLDER, QUESTION_FOLDER) if (folder / name).is_dir()]
    return {**{name: weights_fingerprint(folder / name) for name in there}, **config.get("trained_from", {})}


def was_trained(folder: Path) -> bool:
    """Return whether a student's encoders were trained with it, by the run that made it or by one before."""
    return bool(read_json(folder / "config.json").get("trained_from"))


def save_interaction(encoder: InteractionEncoder, weight: Tensor, bias: Tensor, folder: Path) -> None:
    """Write config.json and model.safetensors, and the checkpoints of the encoders into folders of their own.

    Args:
        encoder: The encoder.
        weight: Of the head, [C, w + 1].
        bias: Of the head, [C].
        folder: An existing folder.
    """
    own = {name: part for name, part in encoder.state_dict().items() if not name.startswith(_TRAINED)}
    write_tensors({**own, "classifier.weight": weight, "classifier.bias": bias}, folder / WEIGHTS_FILE)
    about: dict[str, object] = {"trained_from": encoder.trained_from} if encoder.trained_from else {}
    readers = encoder.readers
    _save_encoder(encoder.source, None if readers is None else readers.passage, folder / ENCODER_FOLDER)
    if encoder.question_source is not None:
        _save_encoder(encoder.question_source, None if readers is None else readers.question, folder / QUESTION_FOLDER)
        about["question_encoder_fingerprint"] = weights_fingerprint(folder / QUESTION_FOLDER)
    write_json(
        folder / "config.json",
        {
            "model_type": MODEL_TYPE, "num_labels": len(bias), "num_hidden_layers": encoder.layers,
            "encoder_fingerprint": encoder_fingerprint(folder / ENCODER_FOLDER), **about, **asdict(encoder.shape),
        },
    )  # fmt: skip


def _save_encoder(source: Path, trained: PairEncoder | None, inner: Path) -> None:
    """Write the checkpoint of an encoder: its trained weights, or links to the files of `source`."""
    inner.mkdir(exist_ok=True)
    if trained is not None:
        shutil.copyfile(source / "config.json", inner / "config.json")
        write_tensors(trained.base.state_dict(), inner / WEIGHTS_FILE, {"format": "pt"})
        return
    shards = [path for path in (source / INDEX_FILE,) if path.is_file()]
    for path in (source / "config.json", *shards, *weight_files(source)):
        _link(path, inner / path.name)


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`; a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def load_interaction(folder: Path, *, dropout: float) -> tuple[InteractionEncoder, Tensor, Tensor]:
    """Load the interaction layers and the head; the encoders are not loaded.

    Args:
        folder: A folder that `save_interaction` wrote.
        dropout: See `InteractionLayer`.

    Returns:
        The encoder, the head's weight [C, w + 1] and its bias [C].

    Raises:
        EncoderError: A file is damaged or does not hold this architecture, or a folder holds another encoder.
    """
    inner, asking = folder / ENCODER_FOLDER, folder / QUESTION_FOLDER
    try:
        config = read_json(folder / "config.json")
        wanted = config.get("question_encoder_fingerprint")
        encoder = InteractionEncoder(
            interaction_shape(folder), inner, dropout=dropout, question_source=asking if wanted else None
        )
        encoder.trained_from = config.get("trained_from", {})
        tensors = read_tensors(folder / WEIGHTS_FILE)
        weight, bias = tensors.pop("classifier.weight"), tensors.pop("classifier.bias")
        encoder.load_state_dict(tensors)
    except Exception as error:  # safetensors raises a class of its own for a damaged file
        require_room(error, folder)
        raise EncoderError(f"{folder} does not hold a complete cached student ({error}); train it again") from error
    require_finite({**tensors, "classifier.weight": weight, "classifier.bias": bias}, folder)
    same = encoder_fingerprint(inner) == config["encoder_fingerprint"]
    for found, place in ((same, inner), (wanted is None or weights_fingerprint(asking) == wanted, asking)):
        if not found:
            raise EncoderError(
                f"{place} is not the encoder that this student was trained with; copy it again, or train the student "
                "again",
                source=folder,
            )
    return encoder, weight, bias
