"""What sentence-transformers writes about the modules of a model: modules.json, checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tmkd.core.errors import EncoderError
from tmkd.core.files import read_json

MODULES_FILE = "modules.json"


@dataclass(frozen=True)
class Module:
    """One module of a model.

    Attributes:
        kind: its class without the module path, such as `Pooling`.
        place: the folder of its files.
    """

    kind: str
    place: Path


def read_modules(folder: Path) -> list[Module]:
    """Read which modules a model has, in their order; an empty list where it has no modules.json.

    Raises:
        EncoderError: the file is damaged, names code of its own, or a module has weights that are not in safetensors.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return []
    try:
        content = read_json(path)
        found = [(str(one["type"]), folder / str(one["path"])) for one in content]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"{path} cannot be read: {error}", source=folder) from error
    for kind, place in found:
        if not kind.startswith("sentence_transformers."):
            raise EncoderError(f"{path} names code of its own, {kind}, which is not run", source=folder)
        if list(place.glob("pytorch_model*.bin")) and not list(place.glob("*.safetensors")):
            raise EncoderError(
                f"{place} has weights in pytorch_model.bin alone. That format can run code when it is opened and is "
                "not read; save the model with sentence-transformers 3 or newer",
                source=folder,
            )
    return [Module(kind.rpartition(".")[2], place) for kind, place in found]
