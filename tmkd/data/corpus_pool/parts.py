"""The parts of a pool that is being mined, and the one file that they become.

    pool.parquet.parts/
    ├── mining.json       what the pool depends on: arguments, questions, index, held-out files
    ├── part-00000.parquet   the pairs of the first questions, and the counts of them in its metadata
    └── ...

A part is written beside its place and renamed, so one that is there is whole. A killed call continues after the last.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.core.console import progress
from tmkd.core.errors import DataError, TmkdError
from tmkd.core.files import disk_errors, read_json, remove_temporary_of, replacing, write_json
from tmkd.core.locks import locked
from tmkd.core.open_files import require_room

FORMATS = (".parquet", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_COLUMNS = pa.schema(
    [
        ("question", pa.string()),
        ("passage", pa.string()),
        ("qid", pa.string()),
        ("pid", pa.string()),
        ("rank", pa.int32()),
        ("bm25", pa.float64()),
        ("source", pa.string()),
    ]
)
_WITH_NUMBER = _COLUMNS.append(pa.field("number", pa.int64()))  # of the passage in the index
_COUNTS = b"tmkd"
_CARD = "mining.json"


class Parts:
    """The parts of a pool, in a folder beside it that one process holds.

    Args:
        output: the pool's file.
        depends_on: what the pool depends on, JSON-like.

    Attributes:
        counts: the counts of every part, in their order.
    """

    def __init__(self, output: Path, depends_on: Mapping[str, Any]) -> None:
        self.output, self.folder = output, folder_of(output)
        self.depends_on = depends_on
        self.counts: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def opened(cls, output: Path, depends_on: Mapping[str, Any]) -> Iterator[Self]:
        """Open the parts of a pool; an empty folder of parts if there is none.

        Raises:
            DataError: there are parts of a pool that depends on something else, or damaged ones.
            TmkdError: another process is mining it.
        """
        parts = cls(output, depends_on)
        busy = TmkdError(f"another process is mining {output}; wait for it, or name another file")
        with disk_errors(parts.folder), locked(parts.folder / "lock", busy):
            parts._open()
            yield parts

    def _open(self) -> None:
        card = self.folder / _CARD
        if not (card.is_file() and self._path(0).is_file()):  # none yet, or what a killed `discard` has left
            for path in self.folder.glob("part-*.parquet"):
                path.unlink()
            write_json(card, self.depends_on)
        fix = f"repeat the first call, or remove {self.folder} to begin anew"
        try:
            before = read_json(card)
            now = json.loads(json.dumps(self.depends_on))
            differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        except (ValueError, TypeError) as error:
            raise DataError(f"{card} is damaged ({error}); {fix}", path=card) from error
        if differing:
            said = ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in differing)
            raise DataError(f"{self.folder} holds parts of a pool that was begun otherwise: {said}; {fix}", path=card)
        while (path := self._path(len(self.counts))).is_file():
            try:
                self.counts.append(json.loads(pq.read_schema(path).metadata[_COUNTS]))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                require_room(error, path)
                raise DataError(f"{path} is damaged ({error}); {fix}", path=path) from error

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def numbers(self) -> Iterator[int]:
        """The passages' numbers in the index, of every pair of every part."""
        for place in range(len(self.counts)):
            yield from pq.read_table(self._path(place), columns=["number"]).column("number").to_pylist()

    def add(self, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, Any]) -> None:
        """Write the next part.

        Args:
            rows: its pairs, with every column of the pool and the passage's `number`.
            counts: what is kept with them.

        Raises:
            NoRoomError: the disk is full.
        """
        schema = _WITH_NUMBER.with_metadata({_COUNTS: json.dumps(counts).encode()})
        with replacing(self._path(len(self.counts))) as temporary:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary, compression="zstd")
        self.counts.append(dict(counts))

    def finish(self) -> None:
        """Write the pool, part by part, beside its place; rename it and remove the parts."""
        write = _write_parquet if self.output.suffix.lower() == ".parquet" else _write_json_lines
        remove_temporary_of(self.output)
        with replacing(self.output) as temporary, progress("write", len(self.counts), "parts") as bar:
            write(temporary, self._tables(bar), str(self.output).endswith(".gz"))
        self.discard()

    def discard(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder)

    def _tables(self, bar: Any) -> Iterator[pa.Table]:
        for place in range(len(self.counts)):
            yield pq.read_table(self._path(place), columns=_COLUMNS.names).replace_schema_metadata(None)
            bar.advance(1)


def folder_of(output: Path) -> Path:
    """The folder of a pool's parts."""
    return output.with_name(f"{output.name}.parts")


def _write_parquet(path: Path, tables: Iterator[pa.Table], packed: bool) -> None:
    with pq.ParquetWriter(path, _COLUMNS, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)  # a row group


def _write_json_lines(path: Path, tables: Iterator[pa.Table], packed: bool) -> None:
    with path.open("wb") as raw:
        file: Any = gzip.GzipFile("", "wb", 6, raw, mtime=0) if packed else raw
        with file:
            for table in tables:
                for row in table.to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
