"""What became of the rows of one file or part: read, used, left out and why. The log and the report say it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)


@dataclass
class RowCounts:
    """Counts the rows of one part, from the file to the pairs that are used.

    Example:
        >>> counts = RowCounts("test.tsv", read=100)
        >>> counts.leave_out("duplicates of another row", 3, example="line 7")
        >>> counts.used
        97

    Attributes:
        where: what messages call the part: a file, or `train`, `dev`, `test`, `pool`.
        read: rows that the file has.
        left_out: the number of rows that are not used, by reason.
        warnings: what a reader of the figures should know, as sentences.
    """

    where: str
    read: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def used(self) -> int:
        """The number of rows that are used."""
        return self.read - sum(self.left_out.values())

    def leave_out(self, reason: str, count: int, example: str = "", *, level: int = logging.WARNING) -> None:
        """Count rows that are not used, and log it. Nothing happens where the count is 0.

        Args:
            reason: why, as what these rows are: "duplicates of another row".
            count: the number of rows.
            example: one of them, or its place.
            level: of the log's line; `logging.INFO` for what the recipe asks for.
        """
        if not count:
            return
        self.left_out[reason] = self.left_out.get(reason, 0) + count
        shown = f", for example {example}" if example else ""
        logger.log(level, f"{self.where}: {count:,} of {self.read:,} rows are left out: {reason}{shown}")

    def warn(self, sentence: str) -> None:
        """Keep a sentence for the report, and log it as a warning; once, however often it is said."""
        if sentence in self.warnings:
            return
        self.warnings.append(sentence)
        logger.warning(f"{self.where}: {sentence}")

    def to_json(self) -> dict[str, Any]:
        """Return {"read", "used", "left_out": {reason: rows}, "warnings": [sentences]}."""
        return {"read": self.read, "used": self.used, "left_out": self.left_out, "warnings": self.warnings}
