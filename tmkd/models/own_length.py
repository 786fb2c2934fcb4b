"""How many tokens of a pair a finished cross-encoder reads, as its own files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmkd.models.card import has_card, read_card
from tmkd.models.encoders.families import FAMILIES
from tmkd.models.ready import checkpoint_json

_UNSAID = 512  # tokens of a checkpoint that says neither a length nor its positions
_SAID = {"sentence_bert_config.json": "max_seq_length", "tokenizer_config.json": "model_max_length"}
"""Files and keys in the order in which sentence-transformers takes them."""
_NO_LIMIT = 10**6  # what is not below this, such as 1e30, is no length


def own_length(folder: Path) -> int:
    """The most tokens of a pair that a checkpoint reads: what it was saved with, and no more than it has positions for.

    Where the files give no length, or a huge number for no limit, it is the number of positions.

    Args:
        folder: the checkpoint; of one that tmkd wrote, tmkd.json says the length.

    Raises:
        EncoderError: a file cannot be read.
    """
    if has_card(folder):
        return read_card(folder).max_length
    found = [_positions(checkpoint_json(folder / "config.json"))]
    for name, key in _SAID.items():
        said = checkpoint_json(folder / name).get(key) if (folder / name).is_file() else None
        if isinstance(said, int | float) and 1 <= said < _NO_LIMIT:
            found.append(int(said))
            break
    return min((length for length in found if length), default=_UNSAID)


def _positions(config: dict[str, Any]) -> int:
    """How many tokens have a position; 0 where the configuration does not say."""
    positions, family = config.get("max_position_embeddings"), FAMILIES.get(str(config.get("model_type")))
    if not isinstance(positions, int) or positions < 1:
        return 0
    before = int(config.get("pad_token_id") or 0) + 1 if family is not None and family.position_offset else 0
    return positions - before
