"""Write rows as JSON, JSON lines, CSV, TSV or Parquet, plain or gzip, whole or not at all."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import logging
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.core.console import write_json_line
from tmkd.core.errors import DataError
from tmkd.core.files import remove_temporary_of, replacing
from tmkd.data.delimited import Dialect, csv_lines
from tmkd.data.readers import JSON_FORMATS, Rows, column_names, file_format

logger = logging.getLogger(__name__)

_TOGETHER = 8192  # rows whose new columns are Python values at the same time
_NO_JSON = ("NaN", "Infinity")  # what Python writes for numbers that JSON does not have


def write_rows(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows in the format of the extension, beside and renamed; `-` is JSON lines on standard output.

    A CSV or TSV cell that is a list becomes JSON; in JSON a time becomes ISO text, bytes become base64, and a number
    that is not finite becomes null, which is logged.

    Raises:
        DataError: the rows do not fit the format, or the file cannot be written.
        NoRoomError: the disk is full; the message says how many bytes the file has.
    """
    Extended(Rows(map(dict, rows)), path).write([{}] * len(rows))


class Extended:
    """Rows of a file, to be written with columns added. What cannot be written is refused at once, not after hours.

    What the rows hold stays as it was: the columns of a Parquet file in Parquet keep their types, the objects of a JSON
    file in JSON their text, the cells of a CSV file in CSV their separator. A number that JSON does not have (NaN,
    Infinity) becomes null, which is logged.

    Args:
        rows: as `read_rows(..., keep=True)` gives them.
        path: the file to write, whose extension is its format; `-` is JSON lines on standard output.

    Raises:
        DataError: a column does not fit Parquet, there is no folder for the file, or its extension is unknown.
    """

    def __init__(self, rows: Rows, path: Path | str) -> None:
        self.path = path
        self.rows = rows
        self.extension = ".jsonl" if str(path) == "-" else file_format(path)
        if str(path) != "-" and not Path(path).parent.is_dir():
            raise DataError(f"{path}: cannot be written: there is no folder {Path(path).parent}")
        self._table: pa.Table | None = None
        self._texts: list[str] = []
        if self.extension == ".parquet":
            self._table = rows.kept if isinstance(rows.kept, pa.Table) else _arrow_table(rows)
        elif self.extension in JSON_FORMATS:
            self._texts = list(_json_texts(rows, str(path)))

    def write(self, added: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows, beside and renamed. A line is made when it is written; lines are not in memory together.

        Args:
            added: the new columns of each row, numbers or lists of numbers; every row has the same.

        Raises:
            DataError: the file cannot be written.
            NoRoomError: the disk is full; the message says how many bytes the file has.
        """
        if str(self.path) == "-":
            for line in self._json_lines(added):
                write_json_line(line)
            return
        pieces = self._pieces(added)
        counted = _Counted(_gzipped(pieces) if str(self.path).endswith(".gz") else pieces)
        remove_temporary_of(Path(self.path))
        try:
            with replacing(Path(self.path), counted.all_bytes) as temporary, temporary.open("wb") as file:
                file.writelines(counted)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def _pieces(self, added: Iterable[Mapping[str, Any]]) -> Iterator[bytes | memoryview]:
        """The content of the file: line by line, or that of a Parquet file, which is compressed, at once."""
        if self._table is not None:
            sink = pa.BufferOutputStream()
            pq.write_table(_with_columns(self._table, added), sink, compression="zstd")
            yield memoryview(sink.getvalue())
        elif self.extension == ".json":
            for number, line in enumerate(self._json_lines(added)):
                yield f"{',' if number else '['}\n{line}".encode()
            yield b"\n]\n" if self._texts else b"[\n\n]\n"
        elif self.extension in JSON_FORMATS:
            for line in self._json_lines(added):
                yield f"{line}\n".encode()
        else:
            for line in self._csv_lines(added):
                yield line.encode(errors="backslashreplace")

    def _csv_lines(self, added: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        following = iter(added)
        first = [*itertools.islice(following, 1)]
        names, new = column_names(self.rows), column_names(first)
        cells = (
            [*(_cell(row.get(name)) for name in names), *(_cell(more[name]) for name in new)]
            for row, more in zip(self.rows, itertools.chain(first, following), strict=True)
        )
        return csv_lines([*names, *new], cells, self._dialect())

    def _dialect(self) -> Dialect:
        """The dialect that the rows were read in, where its delimiter suits the extension; else the usual one."""
        given, tabs = self.rows.dialect, self.extension == ".tsv"
        if given is not None and (given.delimiter == "\t") == tabs and (given.quoted or tabs):
            return given
        return Dialect("\t" if self.extension == ".tsv" else ",", quoted=True)

    def _json_lines(self, added: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        for text, more in zip(self._texts, added, strict=True):
            whole = text
            if more:
                start = text[: text.rindex("}")].rstrip()
                whole = start + ("" if start.endswith("{") else ", ") + json.dumps(more)[1:]
            yield whole


class _Counted:
    """The pieces of a file, whose bytes are counted as they are read."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._pieces, self._bytes = pieces, 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self._bytes += len(piece)
            yield piece

    def all_bytes(self) -> int:
        """The bytes of all pieces; those that were not read yet are read."""
        for _ in self:
            pass
        return self._bytes


def _gzipped(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The pieces as one gzip file without a name or a time, so that the same content gives the same bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _with_columns(table: pa.Table, added: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The table with new columns, whose Python values are in memory for some rows at a time."""
    rows = iter(added)
    columns: dict[str, list[pa.Array]] = {}
    while some := [*itertools.islice(rows, _TOGETHER)]:
        for name in some[0]:
            columns.setdefault(name, []).append(pa.array([row[name] for row in some]))
    for name, parts in columns.items():
        table = table.append_column(name, pa.chunked_array(parts).combine_chunks())
    return table


def _json_texts(rows: Rows, where: str) -> Iterator[str]:
    """Each row as JSON on one line: its own text where that was kept and is valid."""
    changed: Counter[str] = Counter()
    texts: Iterable[str | None] = rows.kept if isinstance(rows.kept, list) else [None] * len(rows)
    for text, row in zip(texts, rows, strict=True):
        if text is None or any(word in text for word in _NO_JSON):
            yield _json_text(row, changed)
        else:
            yield text.strip().replace("\r", " ").replace("\n", " ")  # of an array, whose objects have line breaks
    _say_changed(changed, where)


def _say_changed(changed: Counter[str], where: str) -> None:
    if changed:
        found = ", ".join(f"{count:,} in column {name!r}" for name, count in changed.items())
        logger.warning(f"{where}: JSON has no NaN and no Infinity; such numbers are written as null: {found}")


def _json_text(row: Mapping[str, Any], changed: Counter[str]) -> str:
    """A row as JSON. A number that is not finite becomes null, and is counted by column in `changed`."""
    try:
        text = json.dumps(row, ensure_ascii=False, default=_json_value, allow_nan=False)
    except ValueError:
        finite = {}
        for name, value in row.items():
            finite[name], count = _finite(value)
            if count:
                changed[name] += count
        text = json.dumps(finite, ensure_ascii=False, default=_json_value, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which only an escape can carry
        text = json.dumps(json.loads(text))
    return text


def _finite(value: Any) -> tuple[Any, int]:
    """The value with None for each number in it that is not finite, and how many there were."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, 1
    if isinstance(value, dict):
        pairs = {key: _finite(one) for key, one in value.items()}
        return {key: one for key, (one, _) in pairs.items()}, sum(count for _, count in pairs.values())
    if isinstance(value, list | tuple):
        items = [_finite(one) for one in value]
        return [one for one, _ in items], sum(count for _, count in items)
    return value, 0


def _json_value(value: Any) -> str:
    """What JSON has no type for and Parquet has: times, decimals, bytes."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bytes):
        return _json_value(value) if value else ""
    return json.dumps(value, default=_json_value) if isinstance(value, list | dict) else str(value)


def _arrow_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {}
    for name in column_names(rows):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise DataError(f"column {name!r} does not fit Parquet ({error}); write .jsonl instead") from error
    return pa.table(columns)


def write_tables(path: Path | str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write one table after the other in the format of the extension, beside and renamed; one is in memory at a time.

    Cells are written as `write_rows` writes them.

    Args:
        path: the file.
        schema: that of every table.
        tables: the tables.

    Raises:
        DataError: there is no folder for the file, or its extension is unknown.
        NoRoomError: the disk is full; an earlier file stays.
    """
    target, extension = Path(path), file_format(path)
    if not target.parent.is_dir():
        raise DataError(f"{path}: cannot be written: there is no folder {target.parent}")
    remove_temporary_of(target)
    with replacing(target) as temporary, temporary.open("wb") as raw, ExitStack() as opened:
        file: IO[bytes] | gzip.GzipFile = raw
        if str(path).endswith(".gz"):
            file = opened.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        if extension == ".parquet":
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table)
            return
        rows = (row for table in tables for row in table.to_pylist())
        for line in _lines_of(rows, schema.names, extension, str(path)):
            file.write(line.encode(errors="backslashreplace"))


def _lines_of(rows: Iterable[Mapping[str, Any]], names: list[str], extension: str, where: str) -> Iterator[str]:
    """The lines of a text file."""
    if extension not in JSON_FORMATS:
        dialect = Dialect("\t" if extension == ".tsv" else ",", quoted=True)
        yield from csv_lines(names, ([_cell(row[name]) for name in names] for row in rows), dialect)
        return
    changed: Counter[str] = Counter()
    array = extension == ".json"
    yield "[\n" if array else ""
    for number, row in enumerate(rows):
        between = ",\n" if array and number else ""
        yield between + _json_text(row, changed) + ("" if array else "\n")
    yield "\n]\n" if array else ""
    _say_changed(changed, where)
