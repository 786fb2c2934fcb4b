"""Names that were seen, on disk: memory stays the same, however many there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from tmkd.core.errors import DataError

_CACHE = 4 << 10  # KiB


class SeenNames:
    """A set of names, each with a value, in a temporary file that is gone when the set is closed.

    The file is where SQLite has temporary files: `$SQLITE_TMPDIR`, else `$TMPDIR`, else `/var/tmp`.

    Example:
        with SeenNames() as seen:
            assert seen.add("a", 1) is None
            assert seen.add("a", 2) == 1
    """

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", isolation_level=None)
        for order in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", f"cache_size = -{_CACHE}"):
            self._rows.execute(f"PRAGMA {order}")
        self._rows.execute("CREATE TABLE seen (name TEXT PRIMARY KEY, value) WITHOUT ROWID")
        self._rows.execute("BEGIN")

    def __enter__(self) -> SeenNames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the alphabet."""
        return (name for (name,) in self._rows.execute("SELECT name FROM seen ORDER BY name"))

    def __contains__(self, name: str) -> bool:
        return self._rows.execute("SELECT 1 FROM seen WHERE name = ?", (name,)).fetchone() is not None

    def get(self, name: str) -> Any:
        """The value of a name; None if the name is not there."""
        return (self._rows.execute("SELECT value FROM seen WHERE name = ?", (name,)).fetchone() or (None,))[0]

    def add(self, name: str, value: int | str = 0) -> Any:
        """Add a name.

        Args:
            name: any text that UTF-8 can encode.
            value: what is kept with it, if it is new.

        Returns:
            None for a new name; the value of one that is there already, which stays as it is.

        Raises:
            DataError: there is no room for temporary files.
        """
        try:
            if self._rows.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (name, value)).rowcount:
                return None
        except sqlite3.OperationalError as error:
            raise DataError(
                f"temporary files cannot be written ({error}); free some space, or name another folder in TMPDIR"
            ) from error
        return self.get(name)
