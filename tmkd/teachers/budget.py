"""How many requests a command sends to an endpoint. The processes of one command (`--jobs`) count together."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakSet

_folder: Path | None = None  # where the processes of this command count together
_all: WeakSet[Budget] = WeakSet()


class Budget:
    """The requests that may be sent to an endpoint.

    Attributes:
        name: of the endpoint, as a file name; the same in all processes.
        most: how many requests may be sent in all; None for any number.
        sent: how many were sent: by this process, and by those that it counted together with.
    """

    def __init__(self, name: str, most: int | None) -> None:
        self.name, self.most, self.sent = name, most, 0
        _all.add(self)

    def spend(self) -> bool:
        """Count one more request; False where no more may be sent."""
        if self.most is not None and not (self.sent < self.most if _folder is None else self._spend_in(_folder)):
            return False
        self.sent += 1
        return True

    def _spend_in(self, folder: Path, count: int = 1) -> bool:
        """Count requests in a file, which has a byte for each; the system lets processes append one after another."""
        assert self.most is not None
        with (folder / self.name).open("ab", buffering=0) as file:
            file.write(b"." * count)
            return file.tell() <= self.most

    def share(self, folder: Path) -> None:
        """Count what was sent before this process counts together with others."""
        if self.most is not None and self.sent:
            self._spend_in(folder, self.sent)

    def take_back(self, folder: Path) -> None:
        """Count alone again, from what all processes have sent."""
        if self.most is not None and (file := folder / self.name).is_file():
            self.sent = min(file.stat().st_size, self.most)


def count_together(folder: Path | None) -> None:
    """Count the requests of this process together with those of the others that name the same folder.

    Args:
        folder: a folder, empty where this process is the first; None to count alone again.
    """
    global _folder
    for budget in _all:
        if folder is not None:
            budget.share(folder)
        elif _folder is not None:
            budget.take_back(_folder)
    _folder = folder
