"""Questions from a file, in a stream: of a long file only a few rows are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmkd.core.errors import DataError
from tmkd.core.files import Quoting
from tmkd.data.documents.seen import SeenNames
from tmkd.data.documents.text import question_key, text_hash
from tmkd.data.readers import FORMATS, stream_lines, stream_rows
from tmkd.data.rows import BadValue, identifier, text

_BEIR = "queries.jsonl"
_IDS = ("qid", "_id", "id")  # columns that name a question, the first of them that there is


@dataclass(frozen=True)
class Question:
    """A question of a file.

    Attributes:
        qid: its id in the file (a column `qid`, `_id` or `id`); else a hash of it.
        text: the question.
        row: the number of its row, from 1.
    """

    qid: str
    text: str
    row: int


@dataclass
class QuestionFile:
    """The questions of a file: JSON lines, CSV, TSV, Parquet, plain or .gz, or .txt with one a line; or a BEIR folder.

    JSON lines, Parquet and text are read in a stream; other formats are read as a whole.

    Attributes:
        path: the file; of a BEIR folder its queries.jsonl.
        column: the column of the question.
        quoting: what a quote in a CSV or TSV file means.
        duplicates: how many rows `distinct` has left out so far, since their question came before.
        renamed: how many questions it has named by their text so far, since another question had their id.

    Raises:
        DataError: no such file, or another format.
    """

    path: Path
    column: str | None = None
    quoting: Quoting = "auto"
    duplicates: int = field(default=0, init=False)
    renamed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.path.is_dir():
            if not (self.path / _BEIR).is_file():
                raise DataError(f"{self.path}: a folder of questions holds {_BEIR}, as BEIR has it; this one does not")
            self.path /= _BEIR
        name = self.path.name.lower().removesuffix(".gz")
        if not name.endswith((*FORMATS, ".txt")):
            raise DataError(f"{self.path}: unknown extension; known are .txt, {', '.join(FORMATS)}, each plain or .gz")
        self.plain = name.endswith(".txt")
        self.column = self.column or ("text" if name == _BEIR else "question")

    def count(self) -> int:
        """How many rows there are: the lines of a text or JSON lines file, blank ones too."""
        if self.plain or self.path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
            return sum(1 for _ in stream_lines(self.path))
        if self.path.suffix.lower() == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                return int(pq.read_metadata(self.path).num_rows)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self.path} is not a readable Parquet file ({error})", path=self.path) from error
        return sum(1 for _ in stream_rows(self.path, self.quoting))

    def __iter__(self) -> Iterator[Question]:
        """Every row's question.

        Raises:
            DataError: as `tmkd.data.readers.stream_rows`; there is no such column; a question that is no text or empty.
        """
        found = False
        for question in self._lines() if self.plain else self._rows():
            found = True
            yield question
        if not found:
            raise DataError(f"{self.path} holds no question", path=self.path)

    def distinct(self) -> Iterator[Question]:
        """Every question once, in whatever spelling (`tmkd.data.documents.text.question_key`); counts the others.

        A question whose id an earlier one has, such as the id of a document, is named by its text: passages of two
        questions under one id would be ranked against each other.
        """
        self.duplicates = self.renamed = 0
        with SeenNames() as seen, SeenNames() as ids:
            for question in self:
                if seen.add(text_hash(question_key(question.text), 16)) is not None:
                    self.duplicates += 1
                elif ids.add(question.qid) is None:
                    yield question
                else:
                    self.renamed += 1
                    yield _question(question.text, None, question.row)

    def _lines(self) -> Iterator[Question]:
        for number, line in stream_lines(self.path):
            if line.strip():
                yield _question(line.strip(), None, number)

    def _rows(self) -> Iterator[Question]:
        column = str(self.column)
        for number, (place, row) in enumerate(stream_rows(self.path, self.quoting), start=1):
            if number == 1 and column not in row:
                raise DataError(
                    f"{place}: there is no column {column!r}; there are: {', '.join(row) or 'none'} "
                    "(--question-column names yours)",
                    path=self.path,
                    column=column,
                )
            name = next((one for one in _IDS if one in row), None)
            yield _question(_checked(row, column, place, text), name and _checked(row, name, place, identifier), number)


def _question(asked: str, qid: str | None, row: int) -> Question:
    return Question(qid or text_hash(question_key(asked)), asked, row)


def _checked(row: Mapping[str, Any], column: str, place: str, check: Any) -> Any:
    try:
        return check(row.get(column))
    except BadValue as error:
        raise DataError(f"{place}: {column!r} {error}", column=column, value=row.get(column)) from None
