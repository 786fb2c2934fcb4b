"""Read and write safetensors files: whole, finite, and with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tmkd.core.errors import EncoderError
from tmkd.core.files import replacing
from tmkd.core.open_files import require_room


def read_tensors(path: Path, names: frozenset[str] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file.
        names: the tensors to read; all unless given.

    Returns:
        The tensors by name.

    Raises:
        EncoderError: the file is damaged or lacks a tensor.
    """
    with damage_named(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else sorted(names))}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        tensors: by name; on any device.
        path: the file.
        metadata: of the file.

    Raises:
        NoRoomError: the disk is full.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path, sum(tensor.nbytes for tensor in plain.values())) as temporary:
        save_file(plain, temporary, metadata=metadata)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what the library says of a damaged file into an error that names it.

    Raises:
        EncoderError: the block failed.
        TmkdError: the file could not be opened because too many are open.
    """
    try:
        yield
    except Exception as error:  # safetensors raises its own class for a damaged file
        require_room(_of_system(error, path), path)
        raise EncoderError(
            f"{path} cannot be read ({error}); the file is damaged, fetch it again", source=path.parent
        ) from error


def _of_system(error: Exception, path: Path) -> Exception:
    """The error, or the system's own where safetensors says "no such file", as it does of all that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        try:
            path.open("rb").close()
        except OSError as found:
            return found
    return error


def require_finite(weights: Mapping[str, Tensor], where: Path) -> None:
    """Check that no weight is NaN or infinite.

    Args:
        weights: by name.
        where: the model's folder or file, for messages.

    Raises:
        EncoderError: a weight is not finite.
    """
    bad = [name for name, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        count = int((~weights[bad[0]].isfinite()).sum())
        raise EncoderError(
            f"{where}: {len(bad)} weights are not finite, first {bad[0]} ({count:,} of its "
            f"{weights[bad[0]].numel():,} numbers are NaN or infinite). No text has a score with them: fetch the model "
            "again, or train it anew with a lower learning rate",
            source=where,
        )
