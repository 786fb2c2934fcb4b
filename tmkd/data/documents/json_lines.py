"""Documents in JSON lines: one object a line, plain or gzip; BEIR's corpus.jsonl is one of these."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from tmkd.core.errors import DataError
from tmkd.data.documents.passages import Passage, content_digest, section_passages
from tmkd.data.documents.sections import Block, Section
from tmkd.data.documents.text import storable


@dataclass(frozen=True)
class Fields:
    """The names of the fields of JSON lines. Without a field `id`, `_id` is read, as BEIR has it."""

    id: str = "id"
    title: str = "title"
    text: str = "text"
    url: str = "url"


@dataclass(frozen=True)
class JsonRow:
    """A line of a JSON lines file. named: whether the line has an id; if not, the id is a hash of its content."""

    id: str
    named: bool
    title: str
    text: str
    url: str

    @classmethod
    def of(cls, line: bytes, place: tuple[str, int], fields: Fields) -> JsonRow:
        """Parse a line.

        Args:
            line: the line's bytes.
            place: the file's name and the line's number, for errors.
            fields: the names of the fields.

        Raises:
            DataError: the line is not valid UTF-8 or JSON, no object, or has fields that cannot be used.
        """
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise _bad_line(place, f"byte 0x{line[error.start]:02x} is not valid UTF-8") from error
        except json.JSONDecodeError as error:
            raise _bad_line(place, f"not valid JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise _bad_line(place, f"not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise _bad_line(place, f"a line must be a JSON object, this is {type(row).__name__}")
        if fields.text not in row:
            there = ", ".join(map(repr, list(row)[:12])) or "none"
            raise _bad_line(place, f"there is no field {fields.text!r} (--text-field names it); there are: {there}")
        title, text, url = (_text(row.get(name), name, place) for name in (fields.title, fields.text, fields.url))
        identifier = row.get(fields.id, row.get("_id") if fields.id == "id" else None)
        if isinstance(identifier, dict | list):
            raise _bad_line(place, f"{fields.id!r} is {type(identifier).__name__}, it must be text or a number")
        digits = content_digest(title.encode(), text.encode(), url.encode())[:16]
        named = identifier not in (None, "")
        return cls(storable(str(identifier)) if named else digits, named, title, text, url)

    def digest(self) -> str:
        """A hash that changes when the passages may have changed."""
        return content_digest(self.title.encode(), self.text.encode(), self.url.encode())

    def passages(self, source: str) -> list[Passage]:
        """The passages of the text, whose paragraphs are separated by blank lines.

        Args:
            source: shown as the place of the passages.
        """
        paragraphs = [Block(" ".join(one.split())) for one in self.text.split("\n\n")]
        return section_passages(
            [Section("", (), self.title, [one for one in paragraphs if one.text])], self.title, source
        )


def _bad_line(place: tuple[str, int], problem: str) -> DataError:
    name, number = place
    return DataError(f"{name}:{number}: {problem}", path=name, line=number)


def _text(value: Any, name: str, place: tuple[str, int]) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad_line(place, f"{name!r} is {type(value).__name__}, it must be text")
    return storable(value)


def unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """The content of an open file, decompressed if the file's name ends in .gz."""
    return cast(IO[bytes], gzip.open(raw)) if path.name.lower().endswith(".gz") else raw


def lines_of(file: IO[bytes], most: int, name: str) -> Iterator[bytes]:
    """The lines of an open file.

    Raises:
        DataError: a line is longer than `most` bytes.
    """
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise _bad_line((name, number), f"the line is longer than {most >> 20:,} MiB; see --max-mb")
        yield line
