"""A teacher whose scores were made elsewhere and lie in a file of their own, joined to the pairs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.cluster import Cluster
from tmkd.core.errors import DataError
from tmkd.core.files import digest_of, sha256_of
from tmkd.data.pairs import Pairs, pair_id
from tmkd.data.readers import column_names, line_of, read_rows
from tmkd.teachers.interface import Scored, StoredTeacher
from tmkd.teachers.scores import COLUMN, ScoreKind, imported_logits

_JOINS = (("pair_id",), ("qid", "pid"), ("question", "passage"))
"""Columns of the file that name a pair; the first that are there are taken."""


class ScoreFileTeacher(StoredTeacher):
    """Scores in a file, one row a pair: JSON, JSONL, CSV, TSV or Parquet.

    The rows are joined by `pair_id`, by `qid` and `pid`, or by the texts `question` and `passage`: the first of these
    that the file has as columns.

    Attributes:
        path: the file.
        column: the column of scores.
        kind: what it holds: log-odds (`logit`) or the probability of class 1 (`probability`).
        name: what messages and reports call the teacher.
        partial: whether pairs may be without a score.
    """

    def __init__(self, path: str | Path, column: str, kind: ScoreKind, name: str, *, partial: bool = False) -> None:
        self.path = Path(path)
        self.column = column
        self.kind = kind
        self.name = name
        self.partial = partial

    @functools.cached_property
    def fingerprint(self) -> str:
        """The column, what it holds, and a hash of the file."""
        if not self.path.is_file():
            raise DataError(f"teacher {self.name}: {self.path}: no such file", path=self.path)
        return f"{COLUMN}{self.column} ({self.kind}) of file {digest_of(sha256_of(self.path))}"

    @functools.cached_property
    def _table(self) -> tuple[tuple[str, ...], dict[tuple[str, ...], float]]:
        """The columns that name a pair, and the score of each pair; rows without a score are left out.

        Raises:
            DataError: a column is missing, a value is no number, or a pair has two scores.
        """
        _ = self.fingerprint  # says what is wrong if there is no such file
        rows = read_rows(self.path)
        there = column_names(rows)
        join = next((columns for columns in _JOINS if all(name in there for name in columns)), None)
        if self.column not in there or join is None:
            missing = (
                f"column {self.column!r}"
                if self.column not in there
                else "column pair_id, no qid and pid, and no question and passage"
            )
            raise DataError(
                f"teacher {self.name}: {self.path} has no {missing}; its columns are {', '.join(there)}", path=self.path
            )
        found: dict[tuple[str, ...], float] = {}
        for number, row in enumerate(rows):
            if row.get(self.column) in (None, ""):
                continue
            value = self._number(row[self.column], number)
            key = tuple(str(row[name]) for name in join)
            if found.setdefault(key, value) != value:
                raise DataError(
                    f"teacher {self.name}: {line_of(self.path, number)}: the pair with {' and '.join(join)} "
                    f"{' and '.join(map(repr, key))} has two scores, {found[key]:g} and {value:g}",
                    path=self.path,
                )
        return join, found

    def _number(self, value: Any, number: int) -> float:
        try:
            found = float(value)
        except (TypeError, ValueError):
            found = math.nan
        wrong = not math.isfinite(found) or (self.kind == "probability" and not 0 <= found <= 1)
        if wrong:
            what = "a probability from 0 to 1" if self.kind == "probability" else "a finite number"
            raise DataError(
                f"teacher {self.name}: {line_of(self.path, number)}: {self.column} is {value!r}, not {what}",
                path=self.path, column=self.column, value=value,
            )  # fmt: skip
        return found

    def _keys(self, pairs: Pairs) -> list[tuple[str, ...]]:
        join = self._table[0]
        if join == ("pair_id",):
            return [(name,) for name in pairs.pair_ids]
        columns = (pairs.qids, pairs.pids) if join == ("qid", "pid") else (pairs.questions, pairs.passages)
        return list(zip(*columns, strict=True))

    def can_label(self, pairs: Pairs) -> bool:
        """Whether the file has a score for any of the pairs."""
        return any(key in self._table[1] for key in self._keys(pairs))

    def unknown(self, parts: Sequence[Pairs]) -> tuple[int, int]:
        """How many scores the file has, and how many of them are for no pair of these parts."""
        known = {key for part in parts for key in self._keys(part)}
        return len(self._table[1]), sum(key not in known for key in self._table[1])

    def known(self, pairs: Pairs) -> NDArray[np.int64]:
        """The pairs (indices) that the file has a score for."""
        return np.flatnonzero([key in self._table[1] for key in self._keys(pairs)])

    def require_all(self, pairs: Pairs, where: str) -> None:
        """Check that the file has a score for every pair, unless it is partial.

        Args:
            pairs: N pairs.
            where: what the error calls them.

        Raises:
            DataError: some have none; says how many, and names the first.
        """
        if self.partial:
            return
        keys = self._keys(pairs)
        missing = [row for row, key in enumerate(keys) if key not in self._table[1]]
        if missing:
            row = missing[0]
            raise DataError(
                f"teacher {self.name}: {self.path} has no score for {len(missing):,} of {len(pairs):,} {where} pairs, "
                f"first {pairs.questions[row][:60]!r} with {pairs.passages[row][:60]!r} (pair_id "
                f"{pair_id(pairs.questions[row], pairs.passages[row])}). A teacher labels all pairs of a part or none: "
                "add these scores, leave the pairs out, or say `partial: true` for the teacher",
                path=self.path, column=self.column,
            )  # fmt: skip

    def scored(self, pairs: Pairs, cluster: Cluster | None = None) -> Iterator[Scored]:
        """The scores of all pairs at once, or of a partial file those that it has."""
        self.require_all(pairs, "given")
        rows, keys = self.known(pairs), self._keys(pairs)
        if len(rows):
            yield rows, np.array([self._table[1][keys[row]] for row in rows], dtype=np.float32)[:, None]

    def from_raw(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of two classes, as of a column of scores."""
        return imported_logits(raw[:, 0].astype(np.float64), self.kind).astype(np.float32)
