"""An array of NumPy's format, mapped by PyTorch and without an open file; `tmkd.core.mapped` does without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def mapped_array(path: Path) -> NDArray[Any]:
    """What `np.save` wrote, mapped, and read only.

    `np.load` keeps a file descriptor for each array that it maps, and a process may have some hundreds of them.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
        EOFError: It is empty.
    """
    found = np.load(path, mmap_mode="r")  # where its numbers begin, and whether they are all there
    whole = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)  # closes the file, reads nothing
    numbers = np.frombuffer(whole.numpy(), found.dtype, found.size, found.offset)
    numbers.flags.writeable = False
    return numbers.reshape(found.shape, order="F" if np.isfortran(found) else "C")
