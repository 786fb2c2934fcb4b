"""Rows of Arrow tables, taken piece by piece: in memory, or in an uncompressed file that is read where it is needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tmkd.core.mapped import MappedFile

_ROWS = 65_536  # of a chunk of the file
_READ = 32_768  # rows that are read at the same time


def write_arrow(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables into one Arrow file that `ArrowFile` maps.

    Args:
        path: The file; it is overwritten in place.
        schema: That of every table.
        tables: One after another; one is in memory at a time.
    """
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for table in tables:
            writer.write_table(table, max_chunksize=_ROWS)


class Chunks:
    """The rows of a table, of which some are taken, chunk by chunk.

    `pa.Table.take` would first copy whole columns of text into one piece, which Arrow refuses from 2 GiB on.

    Args:
        table: The table.
        used: Called with the number of places in which a chunk was read.
    """

    def __init__(self, table: pa.Table, used: Callable[[int], None] | None = None) -> None:
        self._chunks = table.to_batches()
        self._ends = np.cumsum([chunk.num_rows for chunk in self._chunks], dtype=np.int64)
        self._schema, self._used = table.schema, used

    def batches(self, columns: Sequence[str], rows: NDArray[np.integer]) -> Iterator[pa.RecordBatch]:
        """Some columns of some rows [n], in the order that is asked for, batch by batch."""
        for start in range(0, len(rows), _READ):
            yield self.taken(columns, rows[start : start + _READ])

    def taken(self, columns: Sequence[str], rows: NDArray[np.integer]) -> pa.RecordBatch:
        """Some columns of some rows, in the order that is asked for, in one piece."""
        if not len(rows):
            return pa.RecordBatch.from_pylist([], pa.schema([self._schema.field(name) for name in columns]))
        order = np.argsort(rows, kind="stable")
        ordered = np.asarray(rows, dtype=np.int64)[order]
        chunks = np.searchsorted(self._ends, ordered, side="right")
        cuts = [0, *(np.flatnonzero(np.diff(chunks)) + 1).tolist(), len(rows)]
        pieces = []
        for begin, end in itertools.pairwise(cuts):
            chunk = self._chunks[int(chunks[begin])].select(columns)
            first = int(self._ends[chunks[begin]]) - chunk.num_rows
            pieces.append(chunk.take(pa.array(ordered[begin:end] - first)))
            if self._used is not None:
                self._used(2 * len(columns) * (end - begin))  # where a text is, and the text
        places = np.empty(len(rows), dtype=np.int64)
        places[order] = np.arange(len(rows))
        (batch,) = pa.Table.from_batches(pieces).combine_chunks().to_batches()
        return batch.take(pa.array(places))


class ArrowFile:
    """The rows of an Arrow file, or some of them in any order; only numbers of rows are in memory.

    Args:
        path: The file, which may be removed afterwards.

    Attributes:
        table: All rows of the file, not copied.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no Arrow file (`pa.ArrowInvalid`), or not whole.
    """

    def __init__(self, path: Path) -> None:
        self._mapped = MappedFile(path)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._mapped.memory)))
        self.table: pa.Table = reader.read_all()
        self._chunks = Chunks(self.table, self._mapped.used)

    def batches(self, columns: Sequence[str], rows: NDArray[np.integer] | None = None) -> Iterator[pa.RecordBatch]:
        """Some columns, batch by batch.

        Args:
            columns: Their names.
            rows: The rows and their order, [n]; all in their order unless given.
        """
        if rows is not None:
            yield from self._chunks.batches(columns, rows)
            return
        for batch in self.table.select(columns).to_batches(max_chunksize=_READ):
            yield batch
            self._mapped.used(1, batch.nbytes)

    def taken(self, columns: Sequence[str], rows: NDArray[np.integer]) -> pa.RecordBatch:
        """Some columns of some rows, in the order that is asked for."""
        return self._chunks.taken(columns, rows)
