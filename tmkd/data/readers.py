"""Pairs files of others: JSON lines, CSV, TSV, Parquet, each plain or gzip, with columns of any name.

Every error names the file, the line and the fix; nothing is guessed or skipped.
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import logging
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.core.errors import DataError
from tmkd.core.files import replacing
from tmkd.data import cells
from tmkd.data.pairs import Pairs, pair_id

logger = logging.getLogger(__name__)

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
ScoreKinds = Mapping[str, Literal["logit", "probability"]]


@dataclass(frozen=True)
class Columns:
    """The names that a file gives to what tmkd reads."""

    question: str = "question"
    passage: str = "passage"
    label: str | None = "label"  # None: labels are not read
    qid: str = "qid"
    pid: str = "pid"


def file_format(path: Path | str) -> str:
    """`.jsonl`, `.csv`, ... of a path, a trailing .gz set aside; DataError names the formats there are."""
    name = str(path).removesuffix(".gz")
    extension = Path(name).suffix.lower()
    if extension not in FORMATS:
        raise DataError(f"{path}: unknown extension {extension!r}; known are {', '.join(FORMATS)}, each plain or .gz")
    return extension


def line_of(path: Path | str, row: int) -> str:
    """`file:line` where a row (from 0) of a readable file ends, or `file, row N` where the format has no lines.

    Blank lines and quoted line breaks part rows from lines, so the file is read again: for errors, not for loops.
    """
    if file_format(path) == ".parquet":
        return f"{path}, row {row + 1}"
    return f"{path}:{_numbered_rows(Path(path))[row][0]}"


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
        raise DataError(f"{path} is empty")
    if extension == ".parquet":
        rows = list(enumerate(_parquet_rows(path, content), start=1))
    else:
        text = _decode(path, content)
        rows = _json_rows(path, text) if extension in (".jsonl", ".ndjson") else _delimited_rows(path, text, extension)
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        where = "" if path.is_absolute() else f" (looked for from {Path.cwd()}, where tmkd was called)"
        raise DataError(f"{path}: no such file{where}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not str(path).endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated gzip ({error}); fetch or write it again") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not valid UTF-8; "
            "convert the file, for example with iconv -f latin1 -t utf-8"
        ) from error


def _parquet_rows(path: Path, content: bytes) -> list[dict[str, Any]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        _require_once(file.schema_arrow.names, str(path))
        rows: list[dict[str, Any]] = file.read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error}); fetch or write it again") from error
    return rows


def _require_once(names: Sequence[str], where: str) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"{where}: a column is named twice: {', '.join(map(repr, twice))}; rename one of the two")


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
            raise DataError(f"{path}:{number}: not valid JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            raise DataError(f"{path}:{number}: JSON nested too deeply") from error
        except (ValueError, DataError) as error:  # an integer of thousands of digits; a key twice
            raise DataError(f"{path}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a row is a JSON object, this is {type(row).__name__}")
        rows.append((number, row))
    return rows


def _delimited_rows(path: Path, text: str, extension: str) -> list[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if extension == ".tsv" else ",", strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        header = next(reader)
        if not any(header):
            raise DataError(f"{path}:1: the first line is blank; it must name the columns")
        _require_once(header, f"{path}:1")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise DataError(f"{path}:{reader.line_num}: {len(fields)} fields, the header has {len(header)}")
            rows.append((reader.line_num, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: malformed: {error}; a field that holds a quote is quoted, and the quote doubled"
        ) from error
    return rows


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
    names, delimiter = _names(rows), "\t" if extension == ".tsv" else ","
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    return "".join(_csv_line(cells, delimiter) for cells in lines).encode(errors="backslashreplace")


def _csv_line(cells: Sequence[Any], delimiter: str) -> str:
    """One record. The writer quotes what its line end holds, and both \\r and \\n end a line where it is read again."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any) -> Any:
    return json.dumps(value, default=_json_value) if isinstance(value, list | dict) else value


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every column that any row has, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _arrow_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {}
    for name in _names(rows):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise DataError(f"column {name!r} does not fit Parquet ({error}); write .jsonl instead") from error
    return pa.table(columns)


class Expected(TypedDict, total=False):
    """What a reader expects of the rows; every key may be left out.

    columns: the names in the source. scores: score columns and what they hold; one that is not there is left out.
    classes: C; a label outside [0, C) is refused. need_labels: refuse rows without a label column, or with nothing in
    it. need_scores: refuse rows without one of the score columns. labels: classes by what the label column holds, where
    labels are needed; None: rows to leave out.
    """

    columns: Columns
    scores: ScoreKinds
    classes: int
    need_labels: bool
    need_scores: bool
    labels: Mapping[str, int | None]


def read_pairs(path: Path, **expected: Unpack[Expected]) -> Pairs:
    """Read and check a pairs file.

    Raises:
        DataError: see `read_rows`; a missing column, an empty side, a bad label or score (file:line).
    """
    return rows_to_pairs(read_rows(path), str(path), where=lambda row: line_of(path, row), **expected)


def rows_to_pairs(
    rows: Sequence[Mapping[str, Any]],
    source: str,
    *,
    where: Callable[[int], str] | None = None,
    **expected: Unpack[Expected],
) -> Pairs:
    """Check rows and make pairs of them; `where(row)` tells the place of a row for errors.

    Raises:
        DataError: a missing column, an empty side, a bad label or score; the place is in the message.
    """
    columns, scores = expected.get("columns", Columns()), expected.get("scores", {})
    need_labels, classes = expected.get("need_labels", False), expected.get("classes")
    names = expected.get("labels", {}) if need_labels else {}
    place = where or (lambda row: f"{source}, row {row + 1}")
    present = _names(rows)
    needed = [columns.question, columns.passage, *(scores if expected.get("need_scores") else {})]
    needed += [columns.label] if need_labels and columns.label else []
    for name in needed:
        if name not in present:
            raise DataError(
                f"{source}: there is no column {name!r}; there are: {', '.join(present)}. "
                "Name yours: in a recipe's data.columns or data.scores, or with a command's --question and the like"
            )

    def column(name: str, check: Callable[[Any], Any]) -> list[Any]:
        values = []
        for number, row in enumerate(rows):
            try:
                values.append(check(row.get(name)))
            except cells.BadValue as error:
                raise DataError(f"{place(number)}: {name!r} {error}") from None
        return values

    questions = column(columns.question, cells.text)
    passages = column(columns.passage, cells.text)
    labels = None
    if columns.label is not None and columns.label in present:
        labels = column(columns.label, lambda value: cells.label(value, classes, names))
        if need_labels and all(label is None for label in labels):
            raise DataError(
                f"{source}: the column {columns.label!r} is empty in every row (or -1, a hidden label); labels are "
                "needed here. Name rows that have some, such as another split"
            )
    ids = {name: column(name, cells.identifier) for name in (columns.qid, columns.pid) if name in present}
    pairs = Pairs.build(
        questions,
        passages,
        labels=labels,
        # Rows without an id stand for themselves: one shared "None" would make one question of them all.
        qids=_filled(ids[columns.qid], lambda row: str(questions[row])) if columns.qid in ids else None,
        pids=_filled(ids[columns.pid], lambda row: pair_id(questions[row], passages[row]))
        if columns.pid in ids
        else None,
        scores={
            name: column(name, lambda value, kind=kind: cells.score(value, kind))  # type: ignore[misc]
            for name, kind in scores.items()
            if name in present
        },
    )
    return _left_out(pairs, [names.get(str(row.get(columns.label or "")), 0) is None for row in rows], source)


def _left_out(pairs: Pairs, without: Sequence[bool], source: str) -> Pairs:
    """The pairs less those whose label says that they have none; how many is told."""
    if not any(without):
        return pairs
    logger.info(f"{source}: {sum(without):,} of {len(without):,} rows have no label and are left out")
    return pairs.take([row for row, absent in enumerate(without) if not absent])


def _filled(ids: Sequence[str | None], otherwise: Callable[[int], str]) -> list[str]:
    return [otherwise(row) if found is None else found for row, found in enumerate(ids)]
