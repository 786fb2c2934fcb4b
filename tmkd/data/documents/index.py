"""The passage index on disk: memory-mapped, readable while it is written, updated document by document.

A commit of Tantivy writes passages and the state of their documents together (the first passage of a document carries
the document's digest), so the two cannot disagree. A commit replaces one small file, so an update that is killed leaves
the index as it was. A reader keeps the version that it opened until it is refreshed.

    index/
    ├── tmkd-index.json    the format
    └── *                  Tantivy's files
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tmkd.core.errors import DataError
from tmkd.core.files import disk_errors, write_json
from tmkd.data.documents.bm25 import TOKENIZER, best, build_query, import_tantivy, searchable, use_tokenizer
from tmkd.data.documents.passages import Passage

FORMAT = 2  # of the index: raise it when older indexes can no longer be read
CARD = "tmkd-index.json"
HEADING_WEIGHT = 0.5  # of a word in a heading, relative to a word in the text
_HEAP = 128 << 20
_FIELDS = {"text": 1.0, "headings": HEADING_WEIGHT}
_LATER, _FIRST, _EMPTY = 0, 1, 2  # roles: a passage, a document's first passage, a document without any


@dataclass(frozen=True)
class Document:
    """A document to index.

    Attributes:
        key: the document's name in the index; stays the same when the document changes.
        digest: a hash that changes when the passages may have changed.
        passages: reads the document and cuts it into passages; called only if the document is new or has changed.
    """

    key: str
    digest: str
    passages: Callable[[], Sequence[Passage]]


@dataclass(frozen=True)
class Found:
    """A hit: the passage, the key of its document, and the BM25 score."""

    passage: Passage
    document: str
    score: float


@dataclass
class Changes:
    """What an update did.

    Attributes:
        added: documents that are new in the index.
        changed: documents whose passages were replaced.
        deleted: documents that were removed.
        unchanged: documents that stay as they were.
        skipped: files that could not be read, and are not in the index.
        passages: how many passages the index holds after the update.
        replaced: bytes that did not fit the charset of their file and were replaced.
    """

    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    skipped: int = 0
    passages: int = 0
    replaced: int = 0

    def sentence(self) -> str:
        """The counts in words."""
        text = f"{self.added:,} added, {self.changed:,} changed, {self.deleted:,} deleted, {self.unchanged:,} unchanged"
        text += f", {self.skipped:,} skipped" if self.skipped else ""
        text = f"{text} documents; {self.passages:,} passages"
        return f"{text}; {self.replaced:,} bad bytes replaced" if self.replaced else text


class DocumentIndex:
    """An index on disk, open for reading: it shows what the index held when it was opened or refreshed.

    Threads may share it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.refresh()

    @classmethod
    def open(cls, folder: str | Path) -> DocumentIndex:
        """Open an index that `update_index` or `tmkd index` wrote.

        Raises:
            DataError: there is no such folder or no index in it, or the index is damaged or of another format.
            MissingExtraError: Tantivy is not installed.
        """
        return cls(folder)

    def refresh(self) -> None:
        """Show what the index holds now. Searches that are running are not disturbed.

        Raises:
            DataError: as `open`; it then still shows what it showed before.
        """
        links = None if os.access(self.folder, os.W_OK) else _links_to(self.folder)
        index = _open(self.folder, None if links is None else Path(links.name))
        self._state = (index, index.searcher())
        self._links = links  # this removes the links of before; what was opened through them stays open

    def __len__(self) -> int:
        """How many passages it holds."""
        _, searcher = self._state
        return int(searcher.num_docs) - self._count(_EMPTY)

    @property
    def documents(self) -> int:
        """How many documents it holds, including documents without text."""
        return self._count(_FIRST) + self._count(_EMPTY)

    def _count(self, role: int) -> int:
        index, searcher = self._state
        query = import_tantivy().Query.term_query(index.schema, "role", role)
        return int(searcher.search(query, 1, count=True).count)

    def search(self, question: str, k: int, *, exclude: Collection[str] = (), headings: bool = True) -> list[Found]:
        """The k best passages by BM25, best first, each text once.

        Args:
            question: any text; it has no syntax.
            k: how many passages.
            exclude: keys of documents whose passages are left out.
            headings: whether to search the title and the headings as well as the text.
        """
        index, searcher = self._state
        query = build_query(index, question, _fields(headings), exclude=("document", exclude))
        found: dict[str, Found] = {}
        reach = k
        while True:  # the same text may be in several documents
            hits = best(searcher, query, reach, searcher.num_docs, _reader(searcher))
            for (key, passage), score in hits:
                found.setdefault(passage.pid, Found(passage, key, score))
            if len(found) >= k or len(hits) < reach:
                return list(found.values())[:k]
            found.clear()
            reach *= 2

    def look_up(
        self, pids: Collection[str], question: str, *, exclude: Collection[str] = (), headings: bool = True
    ) -> list[Found]:
        """The passages with these ids, with their BM25 scores, best first; each once, and unknown ids are left out.

        Args:
            pids: ids of passages.
            question: any text; a passage without a word of it has a score of 0.
            exclude: as `search` takes it.
            headings: as `search` takes it.
        """
        index, searcher = self._state
        only = import_tantivy().Query.term_set_query(index.schema, "pid", sorted(pids))
        query = build_query(index, question, _fields(headings), exclude=("document", exclude), only=only)
        copies = sum(searcher.doc_freq("pid", pid) for pid in pids)
        hits = best(searcher, query, copies, searcher.num_docs, _reader(searcher))
        found: dict[str, Found] = {}
        for (key, passage), score in hits:
            found.setdefault(passage.pid, Found(passage, key, score))
        return list(found.values())

    def holding(self, pids: Iterable[str]) -> dict[str, set[str]]:
        """For each passage id the keys of the documents that contain the passage; unknown ids are left out."""
        index, searcher = self._state
        term = import_tantivy().Query.term_query
        found: dict[str, set[str]] = {}
        for pid in set(pids):
            most = max(1, searcher.doc_freq("pid", pid))
            for _, address in searcher.search(term(index.schema, "pid", pid), most, count=False).hits:
                found.setdefault(pid, set()).add(_stored(searcher.doc(address))[0])
        return found


def update_index(folder: Path, documents: Callable[[], Iterable[Document]]) -> Changes:
    """Make the index in `folder` hold these documents and no others, in one commit.

    Only documents that are new, have changed or are gone are written.

    Args:
        folder: the index; made if it does not exist.
        documents: yields every document; called once the index is locked.

    Returns:
        What changed.

    Raises:
        DataError: the folder holds something else or an index of another format, two documents have the same key, or
            another process is writing to the index. The index is then as it was.
        MissingExtraError: Tantivy is not installed.
    """
    folder = Path(folder)
    with disk_errors(folder):
        index = _create(folder)
        writer = _writer(index, folder)
        try:
            changes = _Update(index, writer).run(documents())
            writer.commit()
        except BaseException as error:
            with suppress(Exception):
                writer.rollback()
            if isinstance(error, ValueError):  # as which the library raises errors of the disk
                raise _unwritable(folder, error) from error
            raise
        writer.wait_merging_threads()
        _let_others_read(folder)
    changes.passages = len(DocumentIndex.open(folder))
    return changes


class _Update:
    """One pass over the documents, which writes those that differ from the index."""

    def __init__(self, index: Any, writer: Any) -> None:
        self.writer = writer
        self.changes = Changes()
        self.before = _digests(index)
        self.seen: set[str] = set()

    def run(self, documents: Iterable[Document]) -> Changes:
        for document in documents:
            if document.key in self.seen:
                raise DataError(f"two documents are named {document.key}; rename one of them")
            self.seen.add(document.key)
            self._take(document)
        for key in self.before.keys() - self.seen:
            self.writer.delete_documents_by_term("document", key)
            self.changes.deleted += 1
        return self.changes

    def _take(self, document: Document) -> None:
        before = self.before.get(document.key)
        if before == document.digest:
            self.changes.unchanged += 1
            return
        passages = document.passages()
        if before is None:
            self.changes.added += 1
        else:
            self.changes.changed += 1
            self.writer.delete_documents_by_term("document", document.key)
        for place, passage in enumerate(passages):
            self.writer.add_document(_document(document, place, passage))
        if not passages:
            self.writer.add_document(_document(document, 0, None))


def _document(document: Document, place: int, passage: Passage | None) -> Any:
    """A passage as a Tantivy document: the words to search, its ids, and the whole passage as JSON."""
    found = import_tantivy().Document()
    found.add_text("document", document.key)
    found.add_unsigned("role", _EMPTY if passage is None else _FIRST if place == 0 else _LATER)
    whole: dict[str, Any] = {"document": document.key, "place": place}
    if place == 0:
        whole["digest"] = document.digest
    if passage is not None:
        found.add_text("pid", passage.pid)
        found.add_text("text", searchable(passage.text))
        found.add_text("headings", searchable(" ".join((passage.title, *passage.heading_path))))
        whole["passage"] = [
            passage.pid, passage.text, passage.title, list(passage.heading_path), passage.source, passage.section,
            passage.code,
        ]  # fmt: skip
    found.add_bytes("stored", json.dumps(whole, ensure_ascii=False).encode())
    return found


def _stored(document: Any) -> tuple[str, int, Passage]:
    whole = json.loads(document["stored"][0])
    pid, text, title, headings, source, section, code = whole["passage"]
    return whole["document"], whole["place"], Passage(pid, text, title, tuple(headings), source, section, code=code)


def _fields(headings: bool) -> dict[str, float]:
    return _FIELDS if headings else {"text": 1.0}


def _reader(searcher: Any) -> Callable[[Any], tuple[tuple[str, int], tuple[str, Passage]]]:
    """What `best` reads of a hit: document and place, by which equal scores are ordered; document and passage."""

    def read(address: Any) -> tuple[tuple[str, int], tuple[str, Passage]]:
        key, place, passage = _stored(searcher.doc(address))
        return (key, place), (key, passage)

    return read


def _digests(index: Any) -> dict[str, str]:
    """The digest of every document of the index, by key."""
    searcher = index.searcher()
    query = import_tantivy().Query.term_set_query(index.schema, "role", [_FIRST, _EMPTY])
    hits = searcher.search(query, max(1, searcher.search(query, 1, count=True).count), count=False).hits
    wholes = (json.loads(searcher.doc(address)["stored"][0]) for _, address in hits)
    return {whole["document"]: whole["digest"] for whole in wholes}


def _schema(tantivy: Any) -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name=TOKENIZER)
    builder.add_text_field("headings", tokenizer_name=TOKENIZER)
    builder.add_text_field("document", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("pid", tokenizer_name="raw", index_option="basic")
    builder.add_unsigned_field("role", indexed=True)
    builder.add_bytes_field("stored", stored=True)
    return builder.build()


def _links_to(folder: Path) -> TemporaryDirectory[str]:
    """A folder of links to an index in a read-only folder; the library writes a lock file beside what it opens."""
    links = TemporaryDirectory(prefix="tmkd-index-")
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.suffix != ".lock":
            Path(links.name, path.name).symlink_to(path.resolve())
    return links


def _let_others_read(folder: Path) -> None:
    """Give two files of the index the mode that its other files have; the library lets only their owner read them."""
    mode = (folder / CARD).stat().st_mode & 0o777
    for name in ("meta.json", ".managed.json"):
        with suppress(OSError):
            (folder / name).chmod(mode)


def _open(folder: Path, links: Path | None = None) -> Any:
    tantivy = import_tantivy()
    card = folder / CARD
    how = f"make one with: tmkd index DOCS --out {folder}"
    if not card.is_file():
        if folder.exists():
            raise DataError(f"{folder} {'holds no index' if folder.is_dir() else 'is a file, no index'}; name another")
        raise DataError(f"{folder} is not there; {how}")
    try:
        written = json.loads(card.read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{card} is damaged ({type(error).__name__}: {error}); remove {folder} and {how}") from error
    if written != FORMAT:
        raise DataError(f"{folder} is an index of format {written!r}, this version reads {FORMAT}; remove it and {how}")
    try:
        index = use_tokenizer(tantivy.Index.open(str(links or folder)))
        index.config_reader(reload_policy="manual")
        index.reload()
    except Exception as error:  # the library raises bare exceptions of many kinds
        reason = str(error).strip().splitlines()[0]
        if "ermission" in reason:
            raise DataError(f"the index {folder} cannot be opened ({reason}); check who owns its files") from error
        raise DataError(f"the index {folder} cannot be opened ({reason}); remove the folder and {how}") from error
    return index


def _create(folder: Path) -> Any:
    """Open the index for writing; make it if there is none."""
    tantivy = import_tantivy()
    if (folder / CARD).is_file() and (folder / "meta.json").is_file():
        return _open(folder)
    if not (folder / CARD).is_file() and folder.exists():  # a card without an index: the first call was killed early
        others = [] if not folder.is_dir() else [one for one in folder.iterdir() if not one.name.startswith(CARD)]
        if others or not folder.is_dir():
            raise DataError(f"{folder} is there already and holds no index; name another place with --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CARD, {"format": FORMAT})
    tantivy.Index(_schema(tantivy), str(folder))
    return _open(folder)


def _unwritable(folder: Path, error: ValueError) -> DataError:
    free = shutil.disk_usage(folder).free >> 20
    return DataError(
        f"the index {folder} cannot be written ({str(error).splitlines()[0]}; {free:,} MiB free on its disk); it is as "
        "it was. Free some space, or use another --out"
    )


def _writer(index: Any, folder: Path) -> Any:
    try:
        return index.writer(_HEAP, num_threads=1)
    except ValueError as error:
        if "lock" not in str(error).lower():
            raise
        raise DataError(
            f"another process is writing to the index {folder}; wait for it, or use another --out"
        ) from error
