"""Pairs of a file of any size: read, checked and written to the disk some rows at a time, and mapped from there."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tmkd.core.errors import DataError
from tmkd.core.files import Quoting, disk_errors
from tmkd.data.arrow_file import ArrowFile, write_arrow
from tmkd.data.pairs import Pairs
from tmkd.data.readers import Rows, read_rows, rows_with_lines
from tmkd.data.row_counts import RowCounts
from tmkd.data.rows import Columns, ScoreKinds, checked_column, checked_scores, filled_qids, identifier, require_columns
from tmkd.data.rows import text as text_of

_ROWS = 8192  # in memory at the same time
_LARGE = 1 << 23  # bytes of a file from which on it is worth it


def is_large(path: Path) -> bool:
    """Whether a file is so large that its pairs are better kept on the disk; False where there is none."""
    return path.is_file() and path.stat().st_size >= _LARGE


class PairStream:
    """Reads unlabelled pairs as `tmkd.data.rows.read_pairs` does, with the same checks.

    If several values in a file are wrong, the error names the first of them, in whatever column it is.

    Args:
        path: The file. JSON lines and Parquet are read in a stream, other formats as a whole.
        columns: The names of its columns; that of labels is not read.
        scores: Score columns and what they hold.
        counts: Counts the rows that are read.
        quoting: What a quote in a CSV or TSV file means.

    Attributes:
        names: Every column that any row has.
    """

    def __init__(
        self, path: Path, columns: Columns, scores: ScoreKinds, counts: RowCounts, quoting: Quoting = "auto"
    ) -> None:
        self.path, self.columns, self.scores, self.counts, self.quoting = path, columns, scores, counts, quoting
        self.names: dict[str, None] = {}

    def read(self, folder: Path) -> Pairs:
        """The pairs, in a file that is gone with the process.

        Args:
            folder: Where there is room for the texts; it is made.

        Raises:
            DataError: As `read_pairs` raises it.
            NoRoomError: The disk is full.
        """
        file = _kept(self._tables(), folder)
        pairs = Pairs.mapped(file)
        without_qid, without_pid = (pairs.table.column(name).null_count for name in ("qid", "pid"))
        known = {"pid": self.columns.pid, **{name: name for name in self.scores}}
        absent = [name for name, column in known.items() if column not in self.names]
        absent += ["qid"] if without_qid == len(pairs) else []
        if ("qid" not in absent and without_qid) or ("pid" not in absent and without_pid):
            qids = filled_qids(pairs.qids, pairs.questions, self.counts)  # all questions are in memory meanwhile
            file = _kept(_filled(pairs.table, qids), folder)
        return Pairs.mapped(file, without=absent)

    def _tables(self) -> Iterator[pa.Table]:
        rows = iter(rows_with_lines(self.path, self.quoting))
        for first in itertools.count(0, _ROWS):
            some = list(itertools.islice(rows, _ROWS))
            if not some:
                if first == 0:
                    read_rows(self.path, self.quoting)  # raises the error of a file without rows
                return
            lines = [line for line, _ in some if line is not None]
            chunk = Rows((row for _, row in some), lines or None)
            chunk.first = first
            self.names |= dict.fromkeys(name for row in chunk for name in row)
            try:
                yield self._table(chunk)
            except DataError as error:
                if error.column not in self.names:  # perhaps no row has it
                    self.names |= dict.fromkeys(name for _, row in rows for name in row)
                    require_columns([self.columns.question, self.columns.passage], [*self.names], self.path)
                raise

    def _table(self, rows: Rows) -> pa.Table:
        columns, path = self.columns, self.path
        questions = checked_column(rows, columns.question, text_of, path)
        passages = checked_column(rows, columns.passage, text_of, path)
        self.counts.read += len(rows)
        return Pairs.build(
            questions,
            passages,
            qids=checked_column(rows, columns.qid, identifier, path),
            pids=checked_column(rows, columns.pid, identifier, path),
            scores={name: checked_scores(rows, name, kind, path) for name, kind in self.scores.items()},
        ).table


def _filled(table: pa.Table, qids: list[str] | None) -> Iterator[pa.Table]:
    """The rows with these qids, where there are some, and the pair's id as the pid of a row that has none."""
    end = 0
    for batch in table.to_batches():
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns["pid"] = pc.coalesce(columns["pid"], columns["pair_id"])
        if qids is not None:
            columns["qid"] = pa.array(qids[end : end + len(batch)], pa.string())
        end += len(batch)
        yield pa.table(columns)


def _kept(tables: Iterator[pa.Table], folder: Path) -> ArrowFile:
    """Tables of one schema in a file that has no name any more; the disk has its room again when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder / "pairs.arrow"):
        number, name = tempfile.mkstemp(prefix="pairs-", suffix=".tmp", dir=folder)
        os.close(number)
        path = Path(name)
        try:
            first = next(tables)
            write_arrow(path, first.schema, itertools.chain([first], tables))
            return ArrowFile(path)
        finally:
            path.unlink()
