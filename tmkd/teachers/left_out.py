"""The pairs that a partial judge leaves out: it gives no answer for them that can be used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

FEW, SHARE = 10, 0.1  # so many pairs may be left out, or this share of the set that is labelled
_FILE = "refused.jsonl"


class LeftOut:
    """Pairs that are not asked about again, and why; noted in a file as they come.

    Attributes:
        reasons: why each pair was left out, by its pair_id.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self._file: Path | None = None
        self._whole, self._here, self._new = 0, 0, 0

    def keep_in(self, folder: Path) -> None:
        """Read the pairs that earlier commands noted in a folder, and note new ones there."""
        if self._file is not None:
            return
        self._file = folder / _FILE
        if self._file.is_file():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, TypeError):  # a line that was cut when the process was killed
                    one, reason = json.loads(line)
                    self.reasons[str(one)] = str(reason)

    def begin(self, pairs: Iterable[str], whole: int) -> None:
        """Begin to label what is left of a set.

        Args:
            pairs: the pair_id of each pair that has no label yet.
            whole: how many pairs the set has, those with a label included.
        """
        self._whole, self._new = whole, 0
        self._here = sum(one in self.reasons for one in pairs)

    @property
    def new(self) -> list[str]:
        """Why pairs were left out since `begin`, the first one first."""
        return list(self.reasons.values())[len(self.reasons) - self._new :]

    def add(self, one: str, reason: str) -> None:
        """Leave a pair out."""
        if one in self.reasons:
            return
        self.reasons[one] = reason
        self._new += 1
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps([one, reason])}\n")

    def too_many(self, *, answered: bool) -> str:
        """Say that too many pairs of the set are left out, in this command and before; empty where so many may be.

        Args:
            answered: whether any pair has had an answer since `begin`. Without one no more than `FEW` may be new.
        """
        count, most = self._here + self._new, max(FEW, SHARE * self._whole)
        if self._new > FEW and not answered:
            count, limit = self._new, f"{FEW} before the first that can be used"
        elif count > most:
            limit = f"{FEW} and {SHARE:.0%} of the {self._whole:,} pairs"
        else:
            return ""
        return f"{count} of its answers cannot be used, which is more than {limit}"

    def ask_again(self) -> None:
        """Take back what was left out since `begin`: these pairs are asked about once the cause is mended."""
        kept = list(self.reasons.items())[: len(self.reasons) - self._new]
        self.reasons, self._new = dict(kept), 0
        if self._file is not None and self._file.is_file():
            self._file.write_text("".join(f"{json.dumps(one)}\n" for one in kept), encoding="utf-8")
