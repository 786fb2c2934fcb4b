"""Read documents to index them: HTML, Markdown, plain text and POD in folders, JSON lines, Parquet, BEIR data sets.

All files below a folder are read, except hidden ones, and each once even if several links lead to it. A folder with a
corpus.jsonl is read as a BEIR data set, which keeps its questions beside it. The caller may give corpora that have a
name instead of a place, such as the built-in `debian-docs`. What cannot be read as text is skipped with a warning that
names it, or refused where the caller is strict. Single bytes that do not fit a file's charset are replaced, with a
warning that counts them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from stat import S_ISREG
from urllib.parse import quote

from tmkd.core.console import Bar, progress
from tmkd.core.errors import DataError, needs_extra
from tmkd.data.documents.charset import Decoded, decode_html, decode_pod, decode_text
from tmkd.data.documents.document_rows import PARQUET, Fields, read_rows, repeated
from tmkd.data.documents.index import Changes, Document, DocumentIndex, update_index
from tmkd.data.documents.markdown import parse_markdown, parse_plain
from tmkd.data.documents.passages import Passage, content_digest, section_passages
from tmkd.data.documents.pod import parse_pod
from tmkd.data.documents.sections import Section
from tmkd.data.documents.seen import SeenNames

logger = logging.getLogger(__name__)

_HTML = (".html", ".htm", ".xhtml")
TEXT_KINDS = (*_HTML, ".md", ".markdown", ".txt", ".text", ".rst", ".pod")
ROW_KINDS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", PARQUET)
_BEIR = "corpus.jsonl"
_MOST_WARNINGS = 20
_GOOD_FOR_EACH_BAD = 100  # characters; with more bad bytes than one in so many it is in another charset, or binary


@dataclass(frozen=True)
class Reading:
    """How documents are read.

    Attributes:
        fields: the names of the fields of JSON lines and Parquet.
        url: the address of the folder, to which a file's path within it is appended, percent-encoded; None: the path
            itself is shown.
        most_bytes: larger files, and longer lines of JSON lines files, are not read.
        strict: whether to refuse what cannot be read instead of skipping it.
        whole: whether a row of JSON lines or Parquet is a passage as it stands, and not a document to be cut. Its
            section is then named as the row is; with the file before it, if rows of several files are read.
    """

    fields: Fields = field(default_factory=Fields)
    url: str | None = None
    most_bytes: int = 64 << 20
    strict: bool = False
    whole: bool = False


@dataclass(frozen=True)
class SourceFile:
    """A file to be read.

    Attributes:
        path: where it is.
        name: its key in the index.
        source: what is shown as the place of its passages.
        size: bytes.
        passages: makes passages of the file's content; None: rows, each of which is a document.
    """

    path: Path
    name: str
    source: str
    size: int
    passages: Callable[[bytes], list[Passage]] | None


Corpora = Mapping[str, Callable[[], list[SourceFile]]]
"""Corpora that have a name instead of a place: the name, and what fetches and lists the files."""


def index_documents(
    places: Sequence[str | Path], folder: Path, reading: Reading = Reading(), *, corpora: Corpora | None = None
) -> Changes:
    """Make the index in `folder` hold the documents of these places and no others.

    Only documents that were added, have changed (by their content) or are gone are written, in one commit.

    Args:
        places: folders, files, and names of `corpora`.
        folder: the index; made where it does not exist.
        reading: how documents are read.
        corpora: corpora that have a name instead of a place.

    Returns:
        What changed, in documents.

    Raises:
        DataError: as `DocumentReader` and `update_index`; the index is then as it was.
        FetchError: a named corpus cannot be fetched.
        MissingExtraError: a package is not installed.
    """
    reader = DocumentReader(places, reading, corpora=corpora)
    changes = update_index(folder, reader.documents)
    changes.skipped = len(reader.skipped)
    if reader.other:
        logger.info(f"left out {reader.other:,} files of other kinds")
    if reader.replaced:
        changes.replaced = sum(reader.replaced.values())
        logger.warning(f"{changes.replaced:,} bad bytes were replaced, in {len(reader.replaced):,} files")
    if changes.empty:
        _tell_empty(folder, reader.whole_files)
    return changes


def _tell_empty(folder: Path, files: Collection[str]) -> None:
    """Warn of files that gave no passage. Rows without text have a warning of their own."""
    found = [key for key in DocumentIndex.open(folder).without_passages() if key in files]
    if found:
        logger.warning(f"{len(found):,} of {len(files):,} files gave no passage, the first {min(found)}")


class DocumentReader:
    """The documents of some places, each a folder, a file or the name of a corpus.

    Args:
        places: folders, files, and names of `corpora`.
        reading: how documents are read.
        corpora: corpora that have a name instead of a place.

    Attributes:
        skipped: why files were skipped, one line for each.
        other: how many files have an extension that is not read.
        replaced: the number of replaced bad bytes, by file.

    Raises:
        DataError: a place does not exist, has no known format, or holds no document.
        FetchError: a named corpus cannot be fetched.
    """

    def __init__(
        self, places: Sequence[str | Path], reading: Reading = Reading(), *, corpora: Corpora | None = None
    ) -> None:
        self.reading = reading
        self.corpora = corpora or {}
        self.skipped: list[str] = []
        self.other = 0
        self.replaced: dict[str, int] = {}
        self._seen: set[tuple[int, int]] = set()
        self._files = [file for place in dict.fromkeys(map(str, places)) for file in self._place(place)]
        self._one_file = sum(file.passages is None for file in self._files) == 1

    @property
    def whole_files(self) -> set[str]:
        """The keys of the documents that are files, and not rows of files."""
        return {file.name for file in self._files if file.passages is not None}

    def documents(self) -> Iterator[Document]:
        """Every document that can be read.

        Raises:
            DataError: a malformed line of a JSON lines file (names file and line), an id that is used twice, or, if
                `reading.strict`, anything that cannot be read.
        """
        with progress("index", sum(_kib(file.size) for file in self._files), "KiB") as bar:
            for file in self._files:
                if file.passages is None:
                    yield from self._rows(file, bar)
                else:
                    if (document := self._whole(file, file.passages)) is not None:
                        yield document
                    bar.advance(_kib(file.size))
        if len(self.skipped) > _MOST_WARNINGS:
            logger.warning(f"{len(self.skipped) - _MOST_WARNINGS:,} more were skipped")

    def _place(self, place: str) -> list[SourceFile]:
        path = Path(place)
        if place in self.corpora and not path.exists():
            return self.corpora[place]()
        if path.is_file():
            kind = _kind(path.name)
            if kind is None:
                raise DataError(f"{place}: unknown format; known are {', '.join((*TEXT_KINDS, *ROW_KINDS))}")
            return [file] if (file := self._file(path, path.parent, kind)) else []
        if not path.is_dir():
            named = "".join(f" (or {name}, a built-in corpus)" for name in self.corpora)
            raise DataError(f"{place}: no such file or folder{named}")
        if (path / _BEIR).is_file():
            beside = [
                one.name for one in path.iterdir() if _kind(one.name) and one.name not in (_BEIR, "queries.jsonl")
            ]
            if beside:
                logger.warning(
                    f"{place}: with a {_BEIR} it is a corpus in BEIR's form: {len(beside):,} other files in it are not "
                    f"read, first {min(beside)}"
                )
            return [file] if (file := self._file(path / _BEIR, path, ".jsonl")) else []
        skipped, other = len(self.skipped), self.other
        found = list(self._walk(path))
        if not found and skipped == len(self.skipped):
            others = f" among its {self.other - other:,} files" if self.other > other else ""
            raise DataError(f"{place} holds no document{others}; known are {', '.join((*TEXT_KINDS, *ROW_KINDS))}")
        return [file for one, kind in found if (file := self._file(one, path, kind))]

    def _walk(self, root: Path) -> Iterator[tuple[Path, str]]:
        """Files of known kinds in the order of their names. Each folder once, so that loops of links end."""
        entered: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(root, followlinks=True, onerror=self._unreadable_folder):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                kind = _kind(name)
                if name.startswith("."):
                    continue
                if kind is None:
                    self.other += 1
                else:
                    yield Path(folder, name), kind

    def _unreadable_folder(self, error: OSError) -> None:
        self._skip(f"{error.filename}: {error.strerror or error}")

    def _file(self, path: Path, root: Path, kind: str) -> SourceFile | None:
        """The file to read; None if it was seen before or is skipped."""
        name = _named(os.path.normpath(path))
        try:
            status = path.stat()
        except OSError as error:
            self._skip(f"{name}: {error.strerror or error}")
            return None
        if (status.st_dev, status.st_ino) in self._seen:
            return None
        self._seen.add((status.st_dev, status.st_ino))
        if not S_ISREG(status.st_mode):
            self._skip(f"{name}: not a file, but a pipe, a socket or a device")
            return None
        if kind in TEXT_KINDS and status.st_size > self.reading.most_bytes:
            self._skip(f"{name}: {status.st_size >> 20:,} MiB; larger than {self.reading.most_bytes >> 20:,} MiB")
            return None
        source = name if self.reading.url is None else _address(self.reading.url, path.relative_to(root))
        passages = None if kind in ROW_KINDS else partial(_file_passages, kind, path.stem, source)
        return SourceFile(path, name, source, status.st_size, passages)

    def _skip(self, why: str) -> None:
        if self.reading.strict:
            raise DataError(why)
        self.skipped.append(why)
        if len(self.skipped) <= _MOST_WARNINGS:
            logger.warning(f"skipped {why}")

    def _whole(self, file: SourceFile, passages: Callable[[bytes], list[Passage]]) -> Document | None:
        """A file that is a single document; None if it is skipped."""
        try:
            data = file.path.read_bytes()
        except OSError as error:
            self._skip(f"{file.name}: {error.strerror or error}")
            return None
        if not self._readable(file, data):
            return None
        return Document(file.name, content_digest(file.source.encode(), data), partial(passages, data))

    def _readable(self, file: SourceFile, data: bytes) -> bool:
        """Whether the file's bytes are text. Single bad bytes are said and counted; a text full of them is skipped."""
        kind = file.path.suffix.lower()
        decoded = _decoded(kind, data)
        if (zeros := decoded.text.count("\0")) * _GOOD_FOR_EACH_BAD > len(decoded.text):
            self._skip(f"{file.name}: binary, no text; {zeros:,} of its {len(decoded.text):,} characters are NUL")
            return False
        if not decoded.replaced:
            return True
        bad = (
            f"{file.name}:{decoded.line(data)}: byte 0x{data[decoded.first]:02x} is not valid {decoded.charset.upper()}"
        )
        can_declare = kind in (*_HTML, ".pod")
        if self.reading.strict or (not can_declare and decoded.replaced * _GOOD_FOR_EACH_BAD > len(decoded.text)):
            self._skip(f"{bad}; convert it with iconv")
            return False
        self.replaced[file.name] = decoded.replaced
        if len(self.replaced) <= _MOST_WARNINGS:
            declare = "declare the charset of the file or " if can_declare else ""
            logger.warning(f"{bad}; {decoded.replaced:,} such places read as \ufffd; {declare}convert it with iconv")
        return True

    def _rows(self, file: SourceFile, bar: Bar) -> Iterator[Document]:
        """The documents of a file of rows."""
        shown = count = 0
        without: dict[str, list[int]] = {}  # why documents have no passage: the number of the first, and how many do

        def reached(read: int) -> None:
            nonlocal shown
            if read >> 10 > shown:
                bar.advance((read >> 10) - shown)
                shown = read >> 10

        reading = self.reading
        with SeenNames() as seen:
            for number, row in read_rows(file.path, file.name, reading.fields, reading.most_bytes, reached):
                before = seen.add(row.id, number)
                if before is not None and not row.named:
                    continue
                if before is not None:
                    raise repeated((file.name, number), row.id, before)
                count += 1
                if (why := row.lacks(whole=reading.whole)) is not None:
                    without.setdefault(why, [number, 0])[1] += 1
                key = f"{file.name}#{row.id}"
                whole = (row.id if self._one_file else key) if reading.whole else None
                yield Document(key, row.digest(whole), partial(row.passages, row.url or key, whole))
        if not count:
            raise DataError(f"{file.name} has no documents")
        for why, (first, how_many) in without.items():
            logger.warning(
                f"{file.name}: {how_many:,} of {count:,} documents have {why}, and so no passage; "
                f"the first is {'in row' if file.name.endswith(PARQUET) else 'on line'} {first}"
            )
        if _kib(file.size) > shown:
            bar.advance(_kib(file.size) - shown)


def _address(folder: str, below: Path) -> str:
    """The address of a file in a folder: one slash between the two, what no address may hold percent-encoded.

    To an address with a query (`https://docs.example/show?file=`) the path is appended as it is.
    """
    path = quote(os.fsencode(below.as_posix()))
    return folder + path if "?" in folder or "#" in folder else f"{folder.rstrip('/')}/{path}"


def _named(path: str) -> str:
    """A path as text. Bytes that are not UTF-8 are written as escapes, so that different names stay different."""
    return path.encode("utf-8", "backslashreplace").decode()


def _kind(name: str) -> str | None:
    lower = name.lower()
    return next((kind for kind in (*ROW_KINDS, *TEXT_KINDS) if lower.endswith(kind)), None)


def _kib(size: int) -> int:
    return max(1, size >> 10)


def _decoded(kind: str, data: bytes) -> Decoded:
    if kind in _HTML:
        return decode_html(data)
    return decode_pod(data) if kind == ".pod" else decode_text(data)


def _sections(kind: str, data: bytes) -> list[Section]:
    if kind in _HTML:
        with needs_extra("qa"):
            from tmkd.data.documents.html import parse_html
        return parse_html(data)
    text = _decoded(kind, data).text
    if kind == ".pod":
        try:
            return parse_pod(text)
        except RecursionError:
            return parse_plain(text)
    return (parse_markdown if kind in (".md", ".markdown") else parse_plain)(text)


def _file_passages(kind: str, stem: str, source: str, data: bytes) -> list[Passage]:
    sections = _sections(kind, data)
    return section_passages(sections, next((one.title for one in sections if one.title), stem), source)
