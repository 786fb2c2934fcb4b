"""Read rows of JSON lines, CSV, TSV and Parquet, each plain or gzip, as they are (`tmkd.data.rows` checks them).

Every error names the file, the line and the fix; nothing is guessed or skipped.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.core.errors import DataError

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def file_format(path: Path | str) -> str:
    """The format of a file by its extension: `.jsonl`, `.csv`, ...; a trailing .gz does not count.

    Raises:
        DataError: the extension is not one of `FORMATS`.
    """
    name = str(path).removesuffix(".gz")
    extension = Path(name).suffix.lower()
    if extension not in FORMATS:
        raise DataError(
            f"{path}: unknown extension {extension!r}; known are {', '.join(FORMATS)}, each plain or .gz", path=path
        )
    return extension


def line_number(path: Path | str, row: int) -> int | None:
    """The line (from 1) on which a row (from 0) of a readable file ends; None for Parquet, which has no lines.

    The number of a row does not give its line, since there may be blank lines and quoted line breaks. So the file is
    read again: call this for an error, not in a loop.
    """
    return None if file_format(path) == ".parquet" else _numbered_rows(Path(path))[row][0]


def place_of(source: Path | str, row: int, line: int | None) -> str:
    """The place of a row (from 0) as errors name it: `file:line`, or `file, row N` where there is no line."""
    return f"{source}, row {row + 1}" if line is None else f"{source}:{line}"


def line_of(path: Path | str, row: int) -> str:
    """The place of a row (from 0) of a readable file, as `place_of` names it."""
    return place_of(path, row, line_number(path, row))


def column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every column that any row has, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def read_text(path: Path) -> str:
    """The text of a file, plain or .gz.

    Raises:
        DataError: no such file, damaged gzip, undecodable bytes.
    """
    return _decode(path, _bytes(path))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file as they are.

    Raises:
        DataError: no such file, an empty one, damaged gzip, undecodable bytes, malformed JSON or CSV (file:line).
    """
    return [row for _, row in _numbered_rows(path)]


def _numbered_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    extension = file_format(path)
    content = _bytes(path)
    if not content.strip():
        raise DataError(f"{path} is empty", path=path)
    if extension == ".parquet":
        rows = list(enumerate(_parquet_rows(path, content), start=1))
    else:
        text = _decode(path, content)
        rows = _json_rows(path, text) if extension in (".jsonl", ".ndjson") else _delimited_rows(path, text, extension)
    if not rows:
        raise DataError(f"{path} has no rows", path=path)
    return rows


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        where = "" if path.is_absolute() else f" (looked for from {Path.cwd()}, where tmkd was called)"
        raise DataError(f"{path}: no such file{where}", path=path) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", path=path) from error
    if not str(path).endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated gzip ({error}); fetch or write it again", path=path) from error


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not valid UTF-8; "
            "convert the file, for example with iconv -f latin1 -t utf-8",
            path=path,
            line=line,
        ) from error


def _parquet_rows(path: Path, content: bytes) -> list[dict[str, Any]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        _require_once(file.schema_arrow.names, str(path))
        rows: list[dict[str, Any]] = file.read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({error}); fetch or write it again", path=path
        ) from error
    return rows


def _require_once(names: Sequence[str], where: str) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"{where}: a column is named twice: {', '.join(map(repr, twice))}; rename one of the two")


def _bad_line(path: Path, line: int, problem: str) -> DataError:
    return DataError(f"{path}:{line}: {problem}", path=path, line=line)


def _json_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        _require_once([name for name, _ in members], "the object")
    return found


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_json_object)
        except json.JSONDecodeError as error:
            raise _bad_line(path, number, f"not valid JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            raise _bad_line(path, number, "JSON nested too deeply") from error
        except (ValueError, DataError) as error:  # an integer of thousands of digits; a key twice
            raise _bad_line(path, number, str(error)) from error
        if not isinstance(row, dict):
            raise _bad_line(path, number, f"a row is a JSON object, this is {type(row).__name__}")
        rows.append((number, row))
    return rows


def _delimited_rows(path: Path, text: str, extension: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if extension == ".tsv" else ",", strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        with _fields_of_any_length():
            header = next(reader)
            if not any(header):
                raise _bad_line(path, 1, "the first line is blank; it must name the columns")
            _require_once(header, f"{path}:1")
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    problem = f"{len(fields)} fields, the header has {len(header)}"
                    raise _bad_line(path, reader.line_num, problem)
                rows.append((reader.line_num, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        problem = f"malformed: {error}; a field that holds a quote is quoted, and the quote doubled"
        raise _bad_line(path, reader.line_num, problem) from error
    return rows


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the limit of the csv module on the length of a field, which is one for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
