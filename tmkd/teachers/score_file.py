"""A teacher whose scores were made elsewhere and lie in a file of their own, joined to the pairs.

Nothing here is an object for each score: a pair's id is 16 bytes, and pairs and rows are read some at a time.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tmkd.core.cluster import Cluster
from tmkd.core.errors import DataError
from tmkd.core.files import digest_of, sha256_of
from tmkd.data.pair_ids import StoredIds, all_numbers_of, chunks_of, numbers_of
from tmkd.data.pairs import Pairs, pair_id
from tmkd.data.readers import line_of, read_rows, rows_with_lines
from tmkd.data.rows import BadValue, identifier, score, text
from tmkd.teachers.interface import Scored, StoredTeacher
from tmkd.teachers.scores import COLUMN, ScoreKind, imported_logits

_TEXTS, _NUMBERS = ("question", "passage"), ("qid", "pid")
_JOINS = (("pair_id",), _TEXTS, _NUMBERS)
"""Columns of the file that name a pair; the first that its first row has are taken. Ids may begin anew in each file, so
texts come before them."""
_VERSION = 2  # raised when rows are joined in another way, so that labels stored before are not taken
_CHUNK = 8192  # pairs whose names are Python strings at the same time


class _Table(NamedTuple):
    """The scores of a file.

    Attributes:
        join: the columns that name a pair.
        ids: the pairs: their `pair_id`, or for qid and pid the `pair_id` of these two as if they were the texts; [M].
        values: their scores, [M] float64.
        rows: the rows of the file that give them, [M] int64.
    """

    join: tuple[str, ...]
    ids: StoredIds
    values: NDArray[np.float64]
    rows: NDArray[np.int64]


class ScoreFileTeacher(StoredTeacher):
    """Scores in a file, one row a pair: JSON, JSONL, CSV, TSV or Parquet.

    The rows are joined by `pair_id`, by the texts `question` and `passage`, or by `qid` and `pid`: the first of these
    that the file's first row has as columns. JSON lines and Parquet are read in a stream, other formats as a whole.

    Scores are stored by the texts of a pair. Those of a file that names pairs by qid and pid are first brought to the
    texts, over all pairs of a run (`of_run`); without that, over the pairs that a call gives.

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
        self._of_run: _Table | None = None  # the scores by the texts of the pairs of a run
        self._from_others = ""  # a hash of the scores that rows get from other rows of the same texts

    @property
    def fingerprint(self) -> str:
        """The column, what it holds, a hash of the file and, of one by qid and pid, what a run's rows get from others.

        The score that a row has under its own qid and pid depends on the file and the pairs alone.
        """
        self._require_file()
        # labels of a partial file of qid and pid that were stored before may lack some, or have those of another run
        others = [self._from_others] if self._from_others or (self.partial and self.by_ids) else []
        return f"{COLUMN}{self.column} ({self.kind}) of file {digest_of([_VERSION, self._content, *others])}"

    @functools.cached_property
    def _content(self) -> str:
        return sha256_of(self.path)

    def _require_file(self) -> None:
        if not self.path.is_file():
            raise DataError(f"teacher {self.name}: {self.path}: no such file", path=self.path)

    @property
    def named_by(self) -> str:
        """The columns that name a pair, in words."""
        return " and ".join(self._table.join)

    @property
    def by_ids(self) -> bool:
        """Whether they are qid and pid: those of another file may be the same and stand for other texts."""
        return self._table.join == _NUMBERS

    @property
    def by_texts(self) -> bool:
        """False where qid and pid name a pair: in other data its texts may have another score."""
        return not self.by_ids

    @property
    def values(self) -> NDArray[np.float64]:
        """Its scores, one a pair, [M]."""
        return self._table.values

    @functools.cached_property
    def _table(self) -> _Table:
        """The score of each pair; rows without a score are left out.

        Raises:
            DataError: a column is missing, a row does not name its pair, a value is no number, a pair has two scores.
        """
        self._require_file()
        rows: Iterator[tuple[int, dict[str, Any]]] = enumerate(row for _, row in rows_with_lines(self.path))
        first = next(rows, None)
        if first is None:
            read_rows(self.path)  # raises the error of a file without rows
            raise AssertionError(self.path)
        join = next((columns for columns in _JOINS if all(name in first[1] for name in columns)), None)
        if join is None:
            raise self._without("column pair_id, no question and passage, and no qid and pid", first[1], rename=True)
        names: dict[str, None] = {}
        ids, values, places = [np.empty((0, 2), np.uint64)], array("d"), array("q")
        rows = itertools.chain([first], rows)
        while some := [*itertools.islice(rows, _CHUNK)]:
            names |= dict.fromkeys(name for _, row in some for name in row)
            scored = [(number, row) for number, row in some if row.get(self.column) not in (None, "")]
            ids.append(numbers_of(pa.array([self._id(row, join, number) for number, row in scored], pa.string())))
            values.extend(self._number(row[self.column], number) for number, row in scored)
            places.extend(number for number, _ in scored)
        if self.column not in names:
            raise self._without(f"column {self.column!r}", names)
        numbers, scores = np.concatenate(ids), np.array(values)
        read = np.array(places, dtype=np.int64)
        once = self._once(numbers, scores, read)
        return _Table(join, StoredIds(numbers[once]), scores[once], read[once])

    def _without(self, what: str, names: Mapping[str, Any], *, rename: bool = False) -> DataError:
        fix = ". Rename those of the texts to question and passage" if rename else ""
        return DataError(
            f"teacher {self.name}: {self.path} has no {what}; its columns are {', '.join(names)}{fix}", path=self.path
        )

    def _id(self, row: Mapping[str, Any], join: tuple[str, ...], number: int) -> str:
        """What the row names its pair by."""
        named = []
        for column in join:
            try:
                found = (text if join == _TEXTS else identifier)(row.get(column))
                if found is None:
                    raise BadValue("is empty; it names the pair of the score")
            except BadValue as error:
                raise DataError(
                    f"teacher {self.name}: {line_of(self.path, number)}: {column!r} {error}",
                    path=self.path, column=column, value=row.get(column),
                ) from None  # fmt: skip
            named.append(found)
        return named[0] if len(named) == 1 else pair_id(*named)

    def _once(
        self,
        ids: NDArray[np.uint64],
        scores: NDArray[np.float64],
        places: NDArray[np.int64],
        called: Callable[[int], str] = lambda row: "a pair",
    ) -> NDArray[np.int64]:
        """Each distinct id once, where it comes last; all rows of an id must have the same score.

        `called` says in words which pair a row is of.
        """
        latest = StoredIds(ids).find(ids)
        other = np.flatnonzero(scores != scores[latest])
        if len(other):
            before, after = other[0], latest[other[0]]
            raise DataError(
                f"teacher {self.name}: {line_of(self.path, int(places[after]))}: {called(int(before))} has two scores, "
                f"{scores[before]:g} and {scores[after]:g}; the first is at "
                f"{line_of(self.path, int(places[before]))}. Give it one score, such as their mean",
                path=self.path, column=self.column,
            )  # fmt: skip
        return np.flatnonzero(latest == np.arange(len(ids)))

    def _number(self, value: Any, number: int) -> float:
        try:
            found = score(value, self.kind)
        except BadValue as error:
            raise DataError(
                f"teacher {self.name}: {line_of(self.path, number)}: {self.column!r} {error}",
                path=self.path, column=self.column, value=value,
            ) from None  # fmt: skip
        assert found is not None  # cells without a score are left out before
        return found

    def _named(self, pairs: Pairs) -> Iterator[NDArray[np.int64]]:
        """As `_find` in the table of the file, which is by the columns that name a pair."""
        if not self.by_ids:
            yield from _find(self._table, pairs)
            return
        named = (pair_id(*both) for both in pairs.names())
        for some in iter(lambda: [*itertools.islice(named, _CHUNK)], []):
            yield self._table.ids.find(numbers_of(pa.array(some)))

    def can_label(self, pairs: Pairs) -> bool:
        """Whether the file names any of the pairs; of a partial one its text may stand elsewhere in the run, too."""
        tables = [self._named(pairs)]
        if self.partial and self._of_run is not None:
            tables.append(_find(self._of_run, pairs))
        return any((places >= 0).any() for places in itertools.chain(*tables))

    def unknown(self, parts: Sequence[Pairs]) -> tuple[int, int]:
        """How many pairs the file has scores for, and how many of them are in none of these parts."""
        known = np.zeros(len(self._table.values), dtype=np.bool_)
        for places in (places for part in parts for places in self._named(part)):
            known[places[places >= 0]] = True
        return len(known), int((~known).sum())

    def of_run(self, parts: Mapping[str, Pairs]) -> ScoreFileTeacher:
        """This teacher for the pairs of a run: a score counts for every row of its question and passage.

        This matters for a file that names pairs by qid and pid alone: which texts these are, only the run says.

        Args:
            parts: the pairs of the run, by what messages call them.

        Raises:
            DataError: a qid and a pid name two pairs, as where every file counts its questions from 0; or two of them
                name one pair, as where a passage stands in two documents, and have different scores.
        """
        found = copy.copy(self)
        if self.by_ids:
            found._of_run = self._by_texts(parts)
            found._from_others = self._hash_of_others(parts, found._of_run)
        return found

    def _hash_of_others(self, parts: Mapping[str, Pairs], table: _Table) -> str:
        """A hash of the scores by `pair_id` of rows that the file does not name themselves; empty if there are none."""
        found = [np.empty((0, 2), np.uint64)]
        for part in parts.values():
            own, places = (np.concatenate([np.empty(0, np.int64), *some])
                           for some in (self._named(part), _find(table, part)))  # fmt: skip
            found.append(all_numbers_of(part.take(np.flatnonzero((own < 0) & (places >= 0))).ids))
        ids = np.unique(np.concatenate(found), axis=0)  # their order is not that of the parts or of the file
        values = table.values[table.ids.find(ids)]
        return hashlib.sha256(ids.tobytes() + values.tobytes()).hexdigest() if len(ids) else ""

    def _by_texts(self, parts: Mapping[str, Pairs]) -> _Table:
        """The scores of those pairs that are in these parts, by `pair_id`; see `of_run`."""
        table, begin = self._table, 0
        count = len(table.values)
        pair, first = np.empty((count, 2), np.uint64), np.full(count, -1)  # of each score, where it was met first
        for part in parts.values():
            places = np.concatenate([np.empty(0, np.int64), *self._named(part)])
            for ids in map(numbers_of, chunks_of(part.ids)):
                own, places = places[: len(ids)], places[len(ids) :]
                rows = np.flatnonzero(own >= 0)
                met, at = np.unique(own[rows], return_index=True)
                new = first[met] < 0
                first[met[new]], pair[met[new]] = begin + rows[at[new]], ids[rows[at[new]]]
                other = rows[(pair[own[rows]] != ids[rows]).any(axis=1)]
                if len(other):
                    raise self._two_pairs(int(first[own[other[0]]]), begin + int(other[0]), parts)
                begin += len(ids)
        there = np.flatnonzero(first >= 0)
        ids, values, rows = pair[there], table.values[there], table.rows[there]
        once = self._once(
            ids, values, rows,
            lambda row: f"{_shown(int(first[there[row]]), parts)} stands under several qid and pid, and",
        )  # fmt: skip
        return _Table(("pair_id",), StoredIds(ids[once]), values[once], rows[once])

    def _two_pairs(self, one: int, other: int, parts: Mapping[str, Pairs]) -> DataError:
        return DataError(
            f"teacher {self.name}: {self.path} names pairs by qid and pid, and in this run the same qid and pid stand "
            f"for two pairs: {_shown(one, parts)}, and {_shown(other, parts)}. It is not known which is meant: give "
            "the file the columns question and passage, or pair_id",
            path=self.path,
        )

    def _table_of(self, pairs: Pairs) -> _Table:
        """The scores by `pair_id`; of a file of qid and pid without its run (`of_run`), those of the given pairs."""
        if self._of_run is not None:
            return self._of_run
        return self._by_texts({"given": pairs}) if self.by_ids else self._table

    def known(self, pairs: Pairs) -> NDArray[np.int64]:
        """The pairs (indices) that the file has a score for."""
        places = _find(self._table_of(pairs), pairs)
        return np.flatnonzero(np.concatenate([np.empty(0, np.bool_), *(some >= 0 for some in places)]))

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
        known = self.known(pairs)
        if len(known) < len(pairs):
            row = int(np.setdiff1d(np.arange(len(pairs)), known, assume_unique=True)[0])
            raise DataError(
                f"teacher {self.name}: {self.path} has no score for {len(pairs) - len(known):,} of {len(pairs):,} "
                f"{where} pairs, first {shown(pairs, row)} (pair_id {pairs.take([row]).pair_ids[0]}). A teacher labels "
                "all pairs of a part or none: add these scores, leave the pairs out, or say `partial: true` for the "
                "teacher",
                path=self.path, column=self.column,
            )  # fmt: skip

    def scored(self, pairs: Pairs, cluster: Cluster | None = None) -> Iterator[Scored]:
        """The scores of all pairs, or of a partial file those that it has."""
        self.require_all(pairs, "given")
        table, end = self._table_of(pairs), 0
        for places in _find(table, pairs):
            there = np.flatnonzero(places >= 0)
            if len(there):
                yield end + there, table.values[places[there]].astype(np.float32)[:, None]
            end += len(places)

    def from_raw(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of two classes, as of a column of scores."""
        return imported_logits(raw[:, 0].astype(np.float64), self.kind).astype(np.float32)


def _find(table: _Table, pairs: Pairs) -> Iterator[NDArray[np.int64]]:
    """Where in a table by `pair_id` the score of each pair is, [n] for some pairs after the others; -1: nowhere."""
    for ids in chunks_of(pairs.ids):
        yield table.ids.find(numbers_of(ids))


def shown(pairs: Pairs, row: int) -> str:
    """The beginning of both texts of a pair, for a message."""
    ((question, passage),) = pairs.take([row]).texts()
    return f"{question[:60]!r} with {passage[:60]!r}"


def _shown(row: int, parts: Mapping[str, Pairs]) -> str:
    """A pair in words, by its row where the parts stand one after the other."""
    for where, part in parts.items():
        if row < len(part):
            return f"{shown(part, row)} ({where})"
        row -= len(part)
    raise AssertionError(row)
