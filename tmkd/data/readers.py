"""Read rows of JSON, JSON lines, CSV, TSV and Parquet, each plain or gzip, as they are (`tmkd.data.rows` checks them).

Every error names the file, the line and the fix; nothing is guessed or skipped. What is read in another way than its
extension says (semicolons, UTF-16, an array of objects) is said in the log.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tmkd.core.errors import DataError
from tmkd.core.files import Quoting, keys_once, named_twice
from tmkd.data.delimited import Dialect, bad_line, delimited_lines, find_dialect, text_lines

logger = logging.getLogger(__name__)
_BATCH = 1024  # rows of Parquet in memory at once

JSON_FORMATS = (".jsonl", ".ndjson", ".json")
FORMATS = (*JSON_FORMATS, ".csv", ".tsv", ".parquet")
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
          codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip


class Rows(list[dict[str, Any]]):
    """The rows of a file, and what a row's values do not tell.

    Attributes:
        lines: the line (from 1) on which each row ends; None for Parquet, which has no lines.
        dialect: how a CSV or TSV file separates its columns; None for other formats.
        kept: where `read_rows` was asked to keep it: the JSON text of every row, or the Arrow table of a Parquet file.
        first: the number (from 0) that the first of the rows has in its file.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = (), lines: list[int] | None = None) -> None:
        super().__init__(rows)
        self.lines = lines
        self.dialect: Dialect | None = None
        self.kept: list[str] | pa.Table | None = None
        self.first = 0


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
    read again: call this for an error, not in a loop. `Rows.lines` has the lines of rows that were just read.
    """
    lines = read_rows(Path(path)).lines
    return None if lines is None else lines[row]


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


def stream_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, plain or .gz, with their numbers (from 1), without their ends.

    The file is not read as a whole, except one in UTF-16, as a byte order mark says.

    Raises:
        DataError: as `read_text`.
    """
    with _opened(path) as file:
        first = file.readline()
        wide = any(first.startswith(mark) for mark in _MARKS) or 0 in first[:64]
        if wide or not first.endswith(b"\n"):  # one line without an end may hold carriage returns instead
            yield from enumerate(text_lines(read_text(path)), start=1)
            return
        for number, line in enumerate(itertools.chain([first.removeprefix(codecs.BOM_UTF8)], file), start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise _undecodable(path, number, line[error.start], "UTF-8") from error
            yield number, text.removesuffix("\n").removesuffix("\r")


def stream_rows(path: Path, quoting: Quoting = "auto") -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with its place as errors name it; JSON lines and Parquet are never read as a whole.

    CSV, TSV and JSON arrays are, and so are Parquet in .gz and what is in UTF-16.

    Args:
        path: the file.
        quoting: as `read_rows` takes it.

    Raises:
        DataError: as `read_rows`.
    """
    number = -1
    for number, (line, row) in enumerate(rows_with_lines(path, quoting)):
        yield place_of(path, number, line), row
    if number < 0:
        raise DataError(f"{path} has no rows", path=path)


def rows_with_lines(path: Path, quoting: Quoting = "auto") -> Iterable[tuple[int | None, dict[str, Any]]]:
    """The rows as `stream_rows` gives them, each with its line as in `Rows.lines`; none for a file without rows."""
    extension = file_format(path)
    if extension == ".parquet" and not str(path).endswith(".gz"):
        return ((None, row) for row in _stream_parquet(path))
    if extension in JSON_FORMATS and not _begins_array(path):
        return _stream_json(path)
    whole = read_rows(path, quoting)
    return zip(whole.lines or itertools.repeat(None), whole, strict=False)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """An open file, decompressed if its name ends in .gz; errors of reading it are those of `_bytes`."""
    try:
        with path.open("rb") as raw, cast(IO[bytes], gzip.open(raw)) if str(path).endswith(".gz") else raw as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged_gzip(path, error) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _begins_array(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _stream_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in stream_lines(path):
        if line.strip():
            with _json_errors(path, number):
                row = json.loads(line, object_pairs_hook=keys_once)
            yield number, _require_object(path, number, row)


def _stream_parquet(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as raw:
        try:
            with pq.ParquetFile(raw) as file:
                _require_once(file.schema_arrow.names, str(path))
                for batch in file.iter_batches(_BATCH):
                    yield from _table_rows(pa.Table.from_batches([batch]), path)
        except (pa.ArrowException, OSError) as error:
            raise _no_parquet(path, error) from error


def read_rows(path: Path, quoting: Quoting = "auto", *, keep: bool = False) -> Rows:
    """The rows of a file as they are.

    A JSON file is an array of objects, or one object a line, whatever its extension.

    Args:
        path: the file.
        quoting: what a quote in a CSV or TSV file means (`tmkd.data.delimited.find_dialect`).
        keep: keep the JSON text of every row, or the table of a Parquet file, for `tmkd.data.writers.Extended`.

    Raises:
        DataError: no such file, an empty one, damaged gzip, undecodable bytes, malformed JSON or CSV (file:line).
    """
    extension = file_format(path)
    content = _bytes(path)
    if not content.strip():
        raise DataError(f"{path} is empty", path=path)
    if extension == ".parquet":
        table = _parquet_table(path, content)
        rows = Rows(_table_rows(table, path))
        rows.kept = table if keep else None
    else:
        text = _decode(path, content)
        del content  # what is decoded need not be in memory twice
        rows = _json_rows(path, text, keep) if extension in JSON_FORMATS else _delimited_rows(path, text, quoting)
    if not rows:
        raise DataError(f"{path} has no rows", path=path)
    return rows


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not str(path).endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged_gzip(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        where = "" if path.is_absolute() else f" (looked for from {Path.cwd()}, where tmkd was called)"
        return DataError(f"{path}: no such file{where}", path=path)
    return DataError(f"{path}: cannot be read: {error.strerror or error}", path=path)


def _damaged_gzip(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged or truncated gzip ({error}); fetch or write it again", path=path)


def _undecodable(path: Path, line: int, byte: int, name: str) -> DataError:
    fix = "convert the file, for example with iconv -f latin1 -t utf-8"
    return bad_line(path, line, f"byte 0x{byte:02x} is not valid {name}; {fix}")


def _no_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a readable Parquet file ({error}); fetch or write it again", path=path)


def _decode(path: Path, content: bytes) -> str:
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
    if encoding != "utf-8-sig":
        logger.info(f"{path}: read as {encoding.upper()}, as its byte order mark says")
    elif 4 * content[:64].count(0) >= len(content[:64]):
        raise bad_line(
            path, 1, "holds zero bytes, as UTF-16 without a byte order mark does; convert it, for example with "
            "iconv -f utf-16le -t utf-8",
        )  # fmt: skip
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        name = encoding.removesuffix("-sig").upper()
        raise _undecodable(path, line, content[error.start], name) from error


def _parquet_table(path: Path, content: bytes) -> pa.Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        _require_once(file.schema_arrow.names, str(path))
        return file.read()
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from error


def _table_rows(table: pa.Table, path: Path) -> list[dict[str, Any]]:
    """The rows of an Arrow table. Python's times have no nanoseconds, so times that have some are ISO text."""
    columns = {name: _values(table.column(name), f"{path}: column {name!r}") for name in table.column_names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: pa.ChunkedArray, where: str) -> list[Any]:
    if pa.types.is_temporal(column.type) and getattr(column.type, "unit", "") == "ns":
        found: list[str | None] = pc.cast(column, pa.string()).to_pylist()
        return [None if one is None else one.replace(" ", "T", 1) for one in found]
    try:
        return list(column.to_pylist())
    except (ValueError, pa.ArrowException) as error:  # such as nanoseconds within a struct
        raise DataError(f"{where}, {column.type}, cannot be read ({error}); write it as text") from error


def _require_once(names: Sequence[str], where: str) -> None:
    if twice := named_twice(names):
        raise DataError(f"{where}: a column is named twice: {', '.join(map(repr, twice))}; rename one of the two")


def _json_rows(path: Path, text: str, keep: bool) -> Rows:
    array = text.startswith("[", _skip_space(text, 0))
    if array:
        logger.info(f"{path}: read as one JSON array of objects")
    rows, lines, texts = Rows(), [], []
    for line, piece, row in _json_array(path, text) if array else _json_lines(path, text):
        rows.append(_require_object(path, line, row))
        lines.append(line)
        if keep:
            texts.append(piece)
    rows.lines, rows.kept = lines, texts if keep else None
    return rows


def _require_object(path: Path, line: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise bad_line(path, line, f"a row is a JSON object, this is {type(row).__name__}")
    return row


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, str, Any]]:
    """Every line, its text and its value. Lines end at a line feed alone: U+2028 and form feeds may stand in a text."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        with _json_errors(path, number):
            row = json.loads(line, object_pairs_hook=keys_once)
        yield number, line, row


def _json_array(path: Path, text: str) -> Iterator[tuple[int, str, Any]]:
    """Every element of an array: the line on which it ends, its text and its value."""
    decoder = json.JSONDecoder(object_pairs_hook=keys_once)
    begin = _skip_space(text, _skip_space(text, 0) + 1)
    line = 1 + text.count("\n", 0, begin)
    while not text.startswith("]", begin):
        with _json_errors(path, line):
            row, end = decoder.raw_decode(text, begin)
        line += text.count("\n", begin, end)
        yield line, text[begin:end], row
        after = _skip_space(text, end)
        if text.startswith("]", after):
            begin = after
            break
        if not text.startswith(",", after):
            raise bad_line(path, line, "not a valid JSON array: an element is followed by neither a comma nor ]")
        begin = _skip_space(text, after + 1)
        line += text.count("\n", end, begin)
        if text.startswith("]", begin):
            raise bad_line(path, line, "not a valid JSON array: no element follows the last comma")
    if text[begin + 1 :].strip():
        raise bad_line(path, line, "not valid JSON: text follows the array")


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place


@contextmanager
def _json_errors(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        below = error.lineno - 1 if "\n" in error.doc else 0
        problem = f"not valid JSON: {error.msg} at column {error.colno}"
        if not below and path.name.removesuffix(".gz").endswith(".json"):
            problem += "; the file is one array of objects, or one object a line"
        raise bad_line(path, max(line, below + 1), problem) from error
    except RecursionError as error:
        raise bad_line(path, line, "JSON nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits; a key twice
        raise bad_line(path, line, str(error)) from error


def _delimited_rows(path: Path, text: str, quoting: Quoting) -> Rows:
    dialect = find_dialect(path, text, quoting)
    lines = delimited_lines(path, text, dialect)
    first, header = next(lines, (1, []))
    if not any(header) or text[:1] in ("\n", "\r"):
        raise bad_line(path, 1, "the first line is blank; it must name the columns")
    _require_once(header, f"{path}:{first}")
    numbers: list[int] = []
    found = Rows(lines=numbers)
    for number, cells in lines:
        numbers.append(number)
        found.append(dict(zip(header, cells, strict=True)))
    found.dialect = dialect
    return found
