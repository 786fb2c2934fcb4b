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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd.core.errors import DataError
from tmkd.core.files import disk_errors
from tmkd.data.documents.bm25 import best, build_query, import_tantivy, searchable
from tmkd.data.documents.index_files import (
    create_files,
    let_others_read,
    links_to,
    open_files,
    open_writer,
    unwritable,
    version_of,
)
from tmkd.data.documents.passages import Passage

HEADING_WEIGHT = 0.5  # of a word in a heading, relative to a word in the text
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

    Attributes:
        version: a digest of what it holds; changes when passages are added or removed.
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
        version, after = None, version_of(self.folder)
        while version != after:  # a commit came between
            version = after
            links = None if os.access(self.folder, os.W_OK) else links_to(self.folder)
            index = open_files(self.folder, None if links is None else Path(links.name))
            after = version_of(self.folder)
        self._state, self.version = (index, index.searcher()), after
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

    def passages(self) -> Iterator[Passage]:
        """Every passage of every document; the same text comes as often as there are documents with it."""
        index, searcher = self._state
        query = import_tantivy().Query.term_set_query(index.schema, "role", [_LATER, _FIRST])
        for _, address in searcher.search(query, max(1, searcher.num_docs), count=False).hits:
            yield _stored(searcher.doc(address))[2]

    def beside(self, found: Sequence[Found]) -> dict[str, list[str]]:
        """The ids of the passages right before and right after each of these in its document, by the passage's id.

        Args:
            found: passages as `search` or `look_up` gives them; those that are no longer there have no entry.
        """
        index, searcher = self._state
        query, must = import_tantivy().Query, import_tantivy().Occur.Must
        pids, keys = ({one.passage.pid for one in found}, {one.document for one in found})
        parts = [(must, query.term_set_query(index.schema, name, sorted(values)))
                 for name, values in (("pid", pids), ("document", keys))]  # fmt: skip
        wanted = {(one.document, one.passage.pid) for one in found}
        most = max(1, sum(searcher.doc_freq("pid", pid) for pid in pids))
        beside: dict[str, list[str]] = {}
        for _, address in searcher.search(query.boolean_query(parts), most, count=False).hits:
            key, place, passage = _stored(searcher.doc(address))
            if (key, passage.pid) in wanted:
                beside[passage.pid] = _neighbours(searcher, address, key, place)
        return beside

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
        index = create_files(folder)
        writer = open_writer(index, folder)
        try:
            changes = _Update(index, writer).run(documents())
            writer.commit()
        except BaseException as error:
            with suppress(Exception):
                writer.rollback()
            if isinstance(error, ValueError):  # as which the library raises errors of the disk
                raise unwritable(folder, error) from error
            raise
        writer.wait_merging_threads()
        let_others_read(folder)
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


def _neighbours(searcher: Any, address: Any, key: str, place: int) -> list[str]:
    """Ids of the passages beside one. A document's passages are written one after the other, so their addresses are."""
    found = []
    for step in (-1, 1):
        with suppress(ValueError, OverflowError):  # there is no such address
            there = type(address)(address.segment_ord, address.doc + step)
            other = json.loads(searcher.doc(there)["stored"][0])
            if (other["document"], other["place"]) == (key, place + step):
                found.append(str(other["passage"][0]))
    return found


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
