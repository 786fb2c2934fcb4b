"""Files that another process may replace while the server runs, such as those of an index."""

from __future__ import annotations

import time
from pathlib import Path

from tmkd.core.files import changed_at

LOOK = 2.0  # seconds between two looks


class Watched:
    """Says when one of some files was replaced, and looks only every `LOOK` seconds. One thread at a time may ask it.

    Args:
        paths: The files; one that is not there may appear.

    Attributes:
        seen: When each was written, as far as the caller has read them.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self.seen = self._version()
        self._looked = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() - self._looked > LOOK

    def changed(self) -> tuple[int, ...] | None:
        """When the files were written, where that differs from `seen`; None where it does not, or it is too early."""
        if not self.due:
            return None
        self._looked = time.monotonic()
        version = self._version()
        return None if version == self.seen else version

    def _version(self) -> tuple[int, ...]:
        return tuple(changed_at(path) for path in self._paths)
