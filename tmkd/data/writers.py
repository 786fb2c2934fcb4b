"""Write rows as JSON lines, CSV, TSV or Parquet, plain or gzip, whole or not at all."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.core.errors import DataError
from tmkd.core.files import replacing
from tmkd.data.readers import column_names, file_format


def write_rows(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows in the format of the extension, beside and renamed; `-` is JSON lines on standard output.

    A CSV or TSV cell that is a list becomes JSON; in JSON a time becomes ISO text and bytes become base64.
    """
    if str(path) == "-":
        for row in rows:
            sys.stdout.write(_json_line(row))
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise DataError(f"{path}: cannot be written: there is no folder {target.parent}")
    content = _encoded(rows, file_format(target))
    if str(path).endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def _json_line(row: Mapping[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False, default=_json_value)
    try:
        line.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which only an escape can carry
        line = json.dumps(row, default=_json_value)
    return line + "\n"


def _json_value(value: Any) -> str:
    """What JSON has no type for and Parquet has: times, decimals, bytes."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def _encoded(rows: Sequence[Mapping[str, Any]], extension: str) -> bytes:
    if extension == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(_arrow_table(rows), sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())
    if extension in (".jsonl", ".ndjson"):
        return "".join(map(_json_line, rows)).encode()
    names, delimiter = column_names(rows), "\t" if extension == ".tsv" else ","
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    return "".join(_csv_line(cells, delimiter) for cells in lines).encode(errors="backslashreplace")


def _csv_line(cells: Sequence[Any], delimiter: str) -> str:
    """Format one record.

    The csv module quotes a cell that holds a character of its line terminator. A reader takes a carriage return as well
    as a line feed for the end of a line, so the terminator holds both here and is replaced afterwards.
    """
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any) -> Any:
    return json.dumps(value, default=_json_value) if isinstance(value, list | dict) else value


def _arrow_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {}
    for name in column_names(rows):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise DataError(f"column {name!r} does not fit Parquet ({error}); write .jsonl instead") from error
    return pa.table(columns)
