"""The tokenizer of a model folder as its files have it: the library's object, the padding token, what has no embedding.

`tmkd.models.tokenizer` makes pairs of texts into tokens with it, `tmkd.models.text_tokenizer` single texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tmkd.core.errors import EncoderError
from tmkd.core.files import read_json
from tmkd.models.card import has_card

SEGMENTS = "token_type_ids"
_PAD_TOKENS = ("[PAD]", "<pad>")


def load_tokenizer(folder: Path) -> tuple[Any, bool]:
    """Load the tokenizer of a model folder, with the padding and truncation of its file.

    Args:
        folder: a folder that tmkd saved, whose tokenizer.json decides, or a checkpoint made elsewhere, whose tokenizer
            is the one that transformers reads from all its files. A folder that holds nothing but tokenizer.json is
            read as it is.

    Returns:
        A `tokenizers.Tokenizer`, and whether the model is given segment ids.

    Raises:
        EncoderError: no tokenizer.json, a damaged one, or a tokenizer that transformers does not run as a fast one.
    """
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        raise EncoderError(
            f"{folder} has no tokenizer.json; write one with "
            "`AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)`, "
            "or copy it from where the model came from"
        )
    ours = has_card(folder)
    if not ours and (settings.is_file() or (folder / "config.json").is_file()):
        whole = of_transformers(folder)
        return whole.backend_tokenizer, SEGMENTS in whole.model_input_names
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a file it cannot parse
        raise EncoderError(f"{path} cannot be read ({error}); the file is damaged, fetch it again") from error
    said = _json_of(settings) if ours else {}
    tokenizer.encode_special_tokens = bool(said.get("split_special_tokens"))
    return tokenizer, SEGMENTS in said.get("model_input_names", [SEGMENTS])


def of_transformers(folder: Path) -> Any:
    """Load the tokenizer of a model folder with transformers.

    Args:
        folder: the model folder.

    Returns:
        A fast tokenizer of transformers.

    Raises:
        EncoderError: transformers cannot read it, or has no fast tokenizer for it.
    """
    from transformers import AutoTokenizer

    try:
        whole = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        assert isinstance(whole.backend_tokenizer, Tokenizer)
    except Exception as error:  # what is wrong in its files shows as errors of many classes
        raise EncoderError(
            f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}). "
            "One of tokenizer.json, tokenizer_config.json and config.json is damaged or of another model; "
            "fetch them again",
            source=folder,
        ) from error
    return whole


def _json_of(path: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing where it is not there."""
    if not path.is_file():
        return {}
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise EncoderError(f"{path} cannot be read ({error}); the file is damaged, fetch it again") from error


def unknown_id(tokenizer: Any) -> int | None:
    """The token id of what the vocabulary has no token for; None where every text has tokens (bytes)."""
    name = getattr(tokenizer.model, "unk_token", None) or "<unk>"
    found: int | None = tokenizer.token_to_id(name)
    return found


def padding_id(tokenizer: Any, folder: Path) -> int:
    """Return the padding id: from config.json (MPNet derives positions from it), else by the token's usual name."""
    config = _json_of(folder / "config.json")
    value = config.get("pad_token_id")
    if isinstance(value, int) and 0 <= value < int(config.get("vocab_size", value + 1)):
        return value
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    for token in _PAD_TOKENS:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    raise EncoderError(f"{folder}/tokenizer.json has no padding token ({' or '.join(_PAD_TOKENS)}); add one")


def without_embedding(tokenizer: Any, folder: Path) -> dict[int, str]:
    """The added tokens (a mask that is never used, say) for which the weights have no embedding, by id."""
    rows = _json_of(folder / "config.json").get("vocab_size")
    if not isinstance(rows, int):
        return {}
    beyond = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=False).items() if number >= rows}
    if beyond:
        raise EncoderError(
            f"{folder}: the tokenizer knows {len(beyond)} tokens, first {beyond[min(beyond)]!r} ({min(beyond)}), for "
            f"which the weights have no embedding (vocab_size {rows} in config.json); the two are of different models",
            source=folder,
        )
    return {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if number >= rows}
