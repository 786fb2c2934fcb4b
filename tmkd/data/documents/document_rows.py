"""Documents in rows: JSON lines, plain or gzip (BEIR's corpus.jsonl is one of these), and Parquet; read in a stream."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from tmkd.core.errors import DataError
from tmkd.core.files import keys_once
from tmkd.data.documents.passages import Passage, content_digest, section_passages
from tmkd.data.documents.sections import Section, paragraphs
from tmkd.data.documents.text import normalise, storable, text_hash
from tmkd.data.documents.words import word_count

PARQUET = ".parquet"
_NAMING = 4  # never raised: rows without an id keep their names in indexes and pools, however they are parsed
_BATCH = 1024  # rows of Parquet in memory at once


@dataclass(frozen=True)
class Fields:
    """The names of the fields of JSON lines and Parquet. Without a field `id`, `_id` is read, as BEIR has it."""

    id: str = "id"
    title: str = "title"
    text: str = "text"
    url: str = "url"


@dataclass(frozen=True)
class DocumentRow:
    """A row of a file. named: whether the row has an id; if not, the id is a hash of its content."""

    id: str
    named: bool
    title: str
    text: str
    url: str

    @classmethod
    def of_line(cls, line: bytes, place: tuple[str, int], fields: Fields) -> DocumentRow:
        """Parse a line of JSON lines.

        Args:
            line: the line's bytes.
            place: the file's name and the line's number, for errors.
            fields: the names of the fields.

        Raises:
            DataError: the line is not valid UTF-8 or JSON, no object, or has a key twice or fields that cannot be
                used.
        """
        try:
            row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=keys_once)
        except UnicodeDecodeError as error:
            raise _bad_line(place, f"byte 0x{line[error.start]:02x} is not valid UTF-8") from error
        except json.JSONDecodeError as error:
            raise _bad_line(place, f"not valid JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            raise _bad_line(place, f"not valid JSON: {error}") from error
        except ValueError as error:  # an integer of thousands of digits; a key twice
            raise _bad_line(place, str(error)) from error
        if not isinstance(row, dict):
            raise _bad_line(place, f"a line must be a JSON object, this is {type(row).__name__}")
        return cls.of(row, place, fields)

    @classmethod
    def of(cls, row: Mapping[str, Any], place: tuple[str, int], fields: Fields) -> DocumentRow:
        """Read the fields of a row.

        Args:
            row: its values by their names.
            place: the file's name and the number of the line or row, for errors.
            fields: the names of the fields.

        Raises:
            DataError: a field is missing or cannot be used.
        """
        if fields.text not in row:
            there = ", ".join(map(repr, list(row)[:12])) or "none"
            raise _bad_line(place, f"there is no field {fields.text!r} (--text-field names it); there are: {there}")
        title, text, url = (_text(row.get(name), name, place) for name in (fields.title, fields.text, fields.url))
        identifier = row.get(fields.id, row.get("_id") if fields.id == "id" else None)
        if isinstance(identifier, dict | list):
            raise _bad_line(place, f"{fields.id!r} is {type(identifier).__name__}, it must be text or a number")
        digits = content_digest(title.encode(), text.encode(), url.encode(), parsing=_NAMING)[:16]
        named = identifier not in (None, "")
        return cls(storable(str(identifier)) if named else digits, named, title, text, url)

    def digest(self, whole: str | None = None) -> str:
        """A hash that changes when the passages may have changed.

        Args:
            whole: as `passages` takes it.
        """
        more = () if whole is None else (b"whole", whole.encode())
        return content_digest(self.title.encode(), self.text.encode(), self.url.encode(), *more)

    def lacks(self, *, whole: bool) -> str | None:
        """What the row has in place of a passage: "no text", "no word", "one word and no title"; None if it has one.

        Args:
            whole: whether the text is a passage as it stands.
        """
        parts = self.text.split(None, 2)
        if not parts or whole:
            return None if parts else "no text"
        if len(parts) > 2 and all(any(map(str.isalnum, part)) for part in parts[:2]):
            return None
        words = word_count(normalise(self.text))
        if words > 1 or (words and self.title):
            return None
        return "one word and no title" if words else "no word"

    def passages(self, source: str, whole: str | None = None) -> list[Passage]:
        """The passages of the text, whose paragraphs are separated by blank lines.

        Args:
            source: shown as the place of the passages.
            whole: not to cut the text: it is one passage as it stands, and this is the id of its section.
        """
        if whole is not None:
            text = self.text.strip()
            return [Passage(text_hash(text), text, self.title, (), source, whole)] if text else []
        return section_passages([Section("", (), self.title, paragraphs(self.text))], self.title, source)


def row_id(document: str, passage: Passage) -> str | None:
    """The id of the row that a passage is, as the file has it; None for a passage that was cut from a document.

    Args:
        document: the key of the passage's document in the index.
        passage: the passage.
    """
    whole = passage.section
    return whole if document == whole or document.endswith(f"#{whole}") else None


def repeated(place: tuple[str, int], identifier: str, before: int) -> DataError:
    """The error of a row whose id another row has.

    Args:
        place: the file's name and the number of the line or row.
        identifier: the id.
        before: the number of the other.
    """
    where = "row" if place[0].lower().endswith(PARQUET) else "line"
    return _bad_line(
        place, f"the id {identifier!r} is in {where} {before} already; ids must differ (--id-field names their field)"
    )


def _bad_line(place: tuple[str, int], problem: str) -> DataError:
    name, number = place
    if name.lower().endswith(PARQUET):
        return DataError(f"{name}, row {number}: {problem}", path=name)
    return DataError(f"{name}:{number}: {problem}", path=name, line=number)


def _text(value: Any, name: str, place: tuple[str, int]) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad_line(place, f"{name!r} is {type(value).__name__}, it must be text")
    return storable(value)


def read_rows(
    path: Path, name: str, fields: Fields, most: int, reached: Callable[[int], None]
) -> Iterator[tuple[int, DocumentRow]]:
    """The rows of a file with their numbers: of JSON lines the number of the line, from 1.

    Args:
        path: the file.
        name: what errors call it.
        fields: the names of the fields.
        most: bytes of a line; a longer one is refused.
        reached: called with the number of bytes of the file that were read so far.

    Raises:
        DataError: a malformed row (the message names it), a damaged file.
    """
    rows = _parquet_rows if name.lower().endswith(PARQUET) else _line_rows
    try:
        yield from rows(path, name, fields, most, reached)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: damaged or truncated gzip ({error}); fetch or write it again") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def _line_rows(
    path: Path, name: str, fields: Fields, most: int, reached: Callable[[int], None]
) -> Iterator[tuple[int, DocumentRow]]:
    with path.open("rb") as raw, unpacked(path, raw) as lines:
        for number, line in enumerate(_lines_of(lines, most, name), start=1):
            if line.strip():
                yield number, DocumentRow.of_line(line, (name, number), fields)
            reached(raw.tell())


def unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """The content of an open file, decompressed if the file's name ends in .gz."""
    return cast(IO[bytes], gzip.open(raw)) if path.name.lower().endswith(".gz") else raw


def _lines_of(file: IO[bytes], most: int, name: str) -> Iterator[bytes]:
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise _bad_line((name, number), f"the line is longer than {most >> 20:,} MiB; see --max-mb")
        yield line


def _parquet_rows(
    path: Path, name: str, fields: Fields, most: int, reached: Callable[[int], None]
) -> Iterator[tuple[int, DocumentRow]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = {fields.id, "_id", fields.title, fields.text, fields.url}
            there = [one for one in file.schema_arrow.names if one in wanted]
            if fields.text not in there:
                DocumentRow.of(dict.fromkeys(file.schema_arrow.names), (name, 1), fields)  # raises, and names them
            number, size, total = 0, path.stat().st_size, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(_BATCH, columns=there):
                for row in batch.to_pylist():
                    number += 1
                    yield number, DocumentRow.of(row, (name, number), fields)
                reached(size * number // total)
    except pa.ArrowException as error:
        raise DataError(f"{name} is not a readable Parquet file ({error}); fetch or write it again") from error
