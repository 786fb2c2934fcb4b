"""An encoder's lowest layers as a checkpoint of their own, for a student that reads texts with fewer layers."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tmkd.core.errors import EncoderError
from tmkd.core.files import cache_folder, disk_errors
from tmkd.models.encoders.find import WEIGHTS_FILE, encoder_fingerprint
from tmkd.models.encoders.tensors import write_tensors
from tmkd.models.layers import cut_config, keep_layers
from tmkd.models.weights import read_weights

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def lowest_layers(folder: Path, count: int | None) -> Path:
    """Return the folder of a checkpoint that has only the first layers of an encoder; it is made once, in the cache.

    Args:
        folder: The encoder, as `find_encoder` returns it.
        count: How many layers; the encoder itself is returned where that is None, or as many as it has.

    Raises:
        EncoderError: The encoder has fewer layers, or cannot be read.
        NoRoomError: The disk is full.
    """
    if count is None:
        return folder
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if count > config.num_hidden_layers:
        raise EncoderError(
            f"cached.encoder_layers: {count}, but {folder} has {config.num_hidden_layers} layers; use at most that",
            source=folder,
        )
    if count == config.num_hidden_layers:
        return folder
    encoders = cache_folder("encoders")
    target = encoders / f"{encoder_fingerprint(folder)}-lowest-{count}"
    if target.is_dir():
        return target
    with disk_errors(target), tempfile.TemporaryDirectory(dir=encoders, prefix=".cut-") as beside:
        fresh, chosen = Path(beside) / "encoder", list(range(count))
        cut_config(config, chosen)
        config.save_pretrained(fresh)
        write_tensors(keep_layers(read_weights(folder), chosen), fresh / WEIGHTS_FILE, {"format": "pt"})
        for name in _TOKENIZER:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, fresh / name)
        try:
            fresh.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    return target
