"""CSV and TSV text as rows: which character separates the columns, whether quotes quote, and strict reading of both.

A quote means two things in the files of this field. In CSV, a cell in quotes may hold delimiters and line breaks, and a
quote is written twice (RFC 4180). MS MARCO, GLUE and most other tab-separated files have no quoting: a quote is a
character of the text, and every line is a row. Reading the second kind as the first swallows all rows between a cell
that begins with a quote and a later one that ends with one, so `find_dialect` decides by the whole file.
"""

from __future__ import annotations

import csv
import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tmkd.core.errors import DataError
from tmkd.core.files import Quoting

logger = logging.getLogger(__name__)

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
_LONGEST = 2**31 - 1  # characters of a field: the csv module takes a C long, which has 32 bits on Windows
Line = tuple[int, list[str]]
"""The line (from 1) on which a row ends, and the row's cells."""


@dataclass(frozen=True)
class Dialect:
    """How a file separates its columns.

    Attributes:
        delimiter: the character between two cells.
        quoted: a cell in quotes may hold delimiters, line breaks and doubled quotes. If not, a quote is text.
    """

    delimiter: str
    quoted: bool


def find_dialect(path: Path, text: str, quoting: Quoting = "auto") -> Dialect:
    """Decide how a file is to be read.

    Columns of a `.tsv` file are separated by tabs; those of a `.csv` file by commas, semicolons or tabs, whichever its
    first line holds. Quotes quote in files with commas and semicolons. With tabs they do if the first line is quoted
    (`"question"<tab>"passage"`), if not every line has as many cells as the first and the file is strictly valid with
    quoting, or if every cell with a quote is quoted and one of them holds a doubled quote. Otherwise they are text.

    Args:
        path: the file; its extension counts, and messages name it.
        text: its content.
        quoting: `none` and `csv` decide about quotes; `auto` decides by the content.
    """
    first = _QUOTED.sub("", _first_line(text))
    there = [one for one in _DELIMITERS if one in first] or [","]
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        delimiter = "\t"
    else:
        fitting = [one for one in there if len(there) == 1 or _is_regular(path, text, Dialect(one, quoting != "none"))]
        delimiter = (fitting or there)[0]
        if delimiter != ",":
            logger.info(f"{path}: columns are separated by {_DELIMITERS[delimiter]}")
    if quoting != "auto" or delimiter != "\t":
        return Dialect(delimiter, quoting != "none")
    dialect = Dialect(delimiter, '"' in text and _quotes_cells(path, text))
    if '"' in text and _any_cell_begins_with_quote(text):
        kept = "quote cells, as in CSV" if dialect.quoted else "are text, and every line is a row"
        logger.info(f"{path}: quotes {kept} (`quoting: {'none' if dialect.quoted else 'csv'}` if not)")
    return dialect


def delimited_lines(path: Path, text: str, dialect: Dialect) -> Iterator[Line]:
    """The rows of a file, the first of which names the columns; blank lines are left out.

    Args:
        path: named by errors.
        text: its content.
        dialect: how it is read.

    Raises:
        DataError: with quoting, a quote that is not closed or that ends inside a cell; a row with more or fewer cells
            than the first. The message names the line.
    """
    lines = _quoted_lines(path, text, dialect.delimiter) if dialect.quoted else _plain_lines(text, dialect.delimiter)
    wanted = begin = 0
    for number, cells in lines:
        if cells and not wanted:
            wanted = len(cells)
        if cells and len(cells) != wanted:
            span = "" if begin + 1 == number or not dialect.quoted else f" (the row begins on line {begin + 1})"
            problem = f"{len(cells)} fields, the header has {wanted}{span}"
            if not dialect.quoted and any(cell.startswith('"') for cell in cells):
                problem += "; quotes are read as text here, `quoting: csv` lets them quote"
            raise bad_line(path, number, problem)
        begin = number
        if cells:
            yield number, cells


def csv_lines(names: list[str], rows: Iterable[list[str]], dialect: Dialect) -> Iterator[str]:
    """Format a file, line by line, so that `find_dialect` and `delimited_lines` read the same cells.

    The csv module quotes a cell that holds a character of its line terminator. A reader takes a carriage return as well
    as a line feed for the end of a line, so the terminator holds both here and is replaced afterwards.

    Args:
        names: the names of the columns. With tabs and quoting they are quoted, which says that quotes quote.
        rows: the cells of every row.
        dialect: how it is written; without quoting, the cells must hold no delimiter and no line feed.
    """
    if not dialect.quoted:
        yield from (dialect.delimiter.join(cells) + "\n" for cells in (names, *rows))
        return
    buffer = io.StringIO(newline="")
    usual = csv.writer(buffer, delimiter=dialect.delimiter, lineterminator="\r\n")
    every = csv.writer(buffer, delimiter=dialect.delimiter, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    for number, cells in enumerate(itertools.chain([names], rows)):
        (every if number == 0 and dialect.delimiter == "\t" else usual).writerow(cells)
        yield buffer.getvalue().removesuffix("\r\n") + "\n"
        buffer.seek(0)
        buffer.truncate()


def text_lines(text: str) -> list[str]:
    """The lines of a text. A carriage return ends a line only where it stands before a line feed, or for it.

    `str.splitlines` would cut at form feeds and U+2028 too, which stand within lines.
    """
    if "\n" not in text:
        return text.split("\r")
    return text.replace("\r\n", "\n").split("\n")


def _first_line(text: str) -> str:
    return re.split(r"[\r\n]", text, maxsplit=1)[0]


def _is_regular(path: Path, text: str, dialect: Dialect) -> bool:
    """Whether the file can be read in a dialect, with equally many cells in every row."""
    try:
        for _ in delimited_lines(path, text, dialect):
            pass
    except DataError:
        return False
    return True


def _quotes_cells(path: Path, text: str) -> bool:
    """Whether quotes quote cells in a file with tabs (the rule is in `find_dialect`)."""
    lines = text_lines(text)
    header = lines[0].split("\t")
    if all(_QUOTED.fullmatch(cell) for cell in header):
        return True
    if any(line.count("\t") != len(header) - 1 for line in lines if line):
        return _is_strictly_quoted(path, text)
    needed = False  # some cell holds what only quoting can carry
    for line in lines:
        if '"' not in line:
            continue
        for cell in line.split("\t"):
            if '"' in cell:
                if not _QUOTED.fullmatch(cell):
                    return False
                needed = needed or '"' in cell[1:-1] or "\r" in cell
    return needed


def _is_strictly_quoted(path: Path, text: str) -> bool:
    """Whether every quote of the file belongs to a quoted cell, and all rows have equally many cells."""
    unquoted = re.sub(rf"(?:(?<=[\t\n\r])|\A){_QUOTED.pattern}(?=[\t\n\r]|\Z)", "", text)
    return '"' not in unquoted and _is_regular(path, text, Dialect("\t", quoted=True))


def _any_cell_begins_with_quote(text: str) -> bool:
    return text.startswith('"') or '\t"' in text or '\n"' in text


def _plain_lines(text: str, delimiter: str) -> Iterator[Line]:
    for number, line in enumerate(text_lines(text), start=1):
        yield number, line.split(delimiter) if line else []


def _quoted_lines(path: Path, text: str, delimiter: str) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 0
    with _fields_of_any_length():
        try:
            for cells in reader:
                yield reader.line_num, cells
                begin = reader.line_num
        except csv.Error as error:
            at = f" on line {reader.line_num}, in the row that begins here" if reader.line_num > begin + 1 else ""
            problem = f"malformed: {error}{at}; a cell that holds a quote is quoted, and the quote doubled"
            if "unexpected end of data" in str(error):
                problem = "a quote in the row that begins here is never closed"
            fix = "; where quotes are text and quote nothing, say `quoting: none` (on the command line: --quoting none)"
            raise bad_line(path, begin + 1, problem + fix) from error


def bad_line(path: Path, line: int, problem: str) -> DataError:
    """The error of a line (from 1) that cannot be read."""
    return DataError(f"{path}:{line}: {problem}", path=path, line=line)


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the limit of the csv module on the length of a field, which is one for the whole process."""
    before = csv.field_size_limit(_LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)
