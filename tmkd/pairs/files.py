"""Pairs files of others: JSON lines, CSV, TSV, Parquet, each plain or gzip, with columns of any name.

Every error names the file, the line and the fix; nothing is guessed or skipped.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.errors import DataError
from tmkd.pairs.record import Pairs

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
    """`file:line` of a row (from 0), or `file, row N` where the format has no lines."""
    extension = file_format(path)
    if extension == ".parquet":
        return f"{path}, row {row + 1}"
    return f"{path}:{row + (2 if extension in ('.csv', '.tsv') else 1)}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file as they are.

    Raises:
        DataError: no such file, an empty one, damaged gzip, undecodable bytes, malformed JSON or CSV (file:line).
    """
    extension = file_format(path)
    content = _bytes(path)
    if not content.strip():
        raise DataError(f"{path} is empty")
    if extension == ".parquet":
        try:
            rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(content)).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from error
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
        raise DataError(f"{path}: no such file") from error
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


def _json_rows(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not valid JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            raise DataError(f"{path}:{number}: JSON nested too deeply") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a row is a JSON object, this is {type(row).__name__}")
        rows.append(row)
    return rows


def _delimited_rows(path: Path, text: str, extension: str) -> list[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if extension == ".tsv" else ",", strict=True)
    rows: list[dict[str, Any]] = []
    try:
        header = next(reader)
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: the header names a column twice: {', '.join(header)}")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise DataError(f"{path}:{reader.line_num}: {len(fields)} fields, the header has {len(header)}")
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: malformed: {error}") from error
    return rows


def write_rows(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows in the format of the extension, beside and renamed; `-` is JSON lines on standard output.

    A CSV or TSV cell that is a list becomes JSON.
    """
    if str(path) == "-":
        for row in rows:
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    target = Path(path)
    content = _encoded(rows, file_format(target))
    if str(path).endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def _encoded(rows: Sequence[Mapping[str, Any]], extension: str) -> bytes:
    if extension == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())
    if extension in (".jsonl", ".ndjson"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    buffer = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names, delimiter="\t" if extension == ".tsv" else ",", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()}
        )
    return buffer.getvalue().encode()


def read_pairs(
    path: Path,
    *,
    columns: Columns | None = None,
    scores: ScoreKinds | None = None,
    classes: int | None = None,
    need_labels: bool = False,
) -> Pairs:
    """Read and check a pairs file.

    Args:
        columns: the names in the file.
        scores: score columns and what they hold.
        classes: C; a label outside [0, C) is refused.
        need_labels: refuse a file without a label column.

    Raises:
        DataError: see `read_rows`; a missing column, an empty side, a bad label or score (file:line).
    """
    rows = read_rows(path)
    return rows_to_pairs(
        rows, str(path), columns=columns, scores=scores, classes=classes, need_labels=need_labels,
        where=lambda row: line_of(path, row),
    )  # fmt: skip


def rows_to_pairs(
    rows: Sequence[Mapping[str, Any]],
    source: str,
    *,
    columns: Columns | None = None,
    scores: ScoreKinds | None = None,
    classes: int | None = None,
    need_labels: bool = False,
    where: Any = None,
) -> Pairs:
    """Check rows and make pairs of them; `where(row)` tells the place of a row for errors."""
    columns = columns or Columns()
    place = where or (lambda row: f"{source}, row {row + 1}")
    present = list(dict.fromkeys(name for row in rows for name in row))
    scores = {name: kind for name, kind in (scores or {}).items() if name in present}
    needed = [columns.question, columns.passage, *([columns.label] if need_labels and columns.label else [])]
    for name in needed:
        if name not in present:
            raise DataError(
                f"{source}: there is no column {name!r}; there are: {', '.join(present)}. "
                "Name yours in data.columns of the recipe, or with --question, --passage, --label"
            )
    labels = None
    if columns.label is not None and columns.label in present:
        labels = [_label(row.get(columns.label), place(i), columns.label, classes) for i, row in enumerate(rows)]
    return Pairs.build(
        [_text(row, columns.question, place(i)) for i, row in enumerate(rows)],
        [_text(row, columns.passage, place(i)) for i, row in enumerate(rows)],
        labels=labels,
        qids=[str(row.get(columns.qid)) for row in rows] if columns.qid in present else None,
        pids=[str(row.get(columns.pid)) for row in rows] if columns.pid in present else None,
        scores={
            name: [_score(row.get(name), place(i), name, kind) for i, row in enumerate(rows)]
            for name, kind in scores.items()
        },
    )


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is {'absent' if value is None else type(value).__name__}, it must be text")
    if not value.strip():
        raise DataError(f"{where}: {name!r} is empty; remove the row or fill it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name!r} holds an unpaired surrogate, which is not text") from error
    return value


def _label(value: Any, where: str, name: str, classes: int | None) -> int | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
        whole = int(number)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: {name!r} is {value!r}, it must be an integer from 0") from None
    if isinstance(value, bool) or number != whole:
        raise DataError(f"{where}: {name!r} is {value!r}, it must be an integer from 0")
    if whole < 0 or (classes is not None and whole >= classes):
        span = f"0 to {classes - 1}" if classes is not None else "0 and up"
        raise DataError(f"{where}: {name!r} is {whole}, out of range; labels are {span} (`classes` in the recipe)")
    return whole


def _score(value: Any, where: str, name: str, kind: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: score {name!r} is {value!r}, it must be a number") from None
    if not math.isfinite(number):
        raise DataError(f"{where}: score {name!r} is {number}, it must be finite; leave it empty where there is none")
    if kind == "probability" and not 0 <= number <= 1:
        raise DataError(f"{where}: score {name!r} is {number}, a probability is within 0 and 1 (or declare it `logit`)")
    return number
