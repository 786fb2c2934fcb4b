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
from tmkd.data.documents.bm25 import best, build_query, import_tantivy
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
from tmkd.data.documents.seen import SeenNames
from tmkd.data.documents.stored import EMPTY, FIRST, LATER, as_document, neighbours, number_of, reader, stored

HEADING_WEIGHT = 0.5  # of a word in a heading, relative to a word in the text
_FIELDS = {"text": 1.0, "headings": HEADING_WEIGHT}
_AT_ONCE = 50_000  # documents whose names are in memory at once


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
    """A hit.

    Attributes:
        passage: the passage.
        document: the key of its document.
        score: the BM25 score.
        number: where the passage stands in the index: the number of its segment times 2^32, and its place there. It is
            the same as long as the version of the index is.
    """

    passage: Passage
    document: str
    score: float
    number: int = -1


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
        empty: how many of its documents have no passage.
        replaced: bytes that did not fit the charset of their file and were replaced.
    """

    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    skipped: int = 0
    passages: int = 0
    empty: int = 0
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
        return int(searcher.num_docs) - self._count(EMPTY)

    @property
    def documents(self) -> int:
        """How many documents it holds, including documents without text."""
        return self._count(FIRST) + self._count(EMPTY)

    def without_passages(self) -> Iterator[str]:
        """The keys of the documents that have no passage."""
        index, searcher = self._state
        query = import_tantivy().Query.term_query(index.schema, "role", EMPTY)
        for _, address in searcher.search(query, max(1, searcher.num_docs), count=False).hits:
            yield json.loads(searcher.doc(address)["stored"][0])["document"]

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
        while True:  # the same text may be in several documents, and under several headings of one
            hits = best(searcher, query, reach, searcher.num_docs, reader(searcher))
            for (key, passage, number), score in hits:
                found.setdefault(passage.pid, Found(passage, key, score, number))
            if len(found) >= k or len(hits) < reach:
                return list(found.values())[:k]
            found.clear()
            reach *= 2

    def hits(self, question: str, k: int) -> list[Found]:
        """The k best passages by BM25 with title and headings, best first; a text comes as often as the index has it.

        Args:
            question: any text; it has no syntax.
            k: how many passages.
        """
        index, searcher = self._state
        query = build_query(index, question, _FIELDS)
        hits = best(searcher, query, k, searcher.num_docs, reader(searcher))
        return [Found(passage, key, score, number) for (key, passage, number), score in hits]

    def text_number(self, found: Found) -> int:
        """The least number among the passages with the text of a hit: one number for each text."""
        index, searcher = self._state
        copies = searcher.doc_freq("pid", found.passage.pid)
        if copies < 2:
            return found.number
        query = import_tantivy().Query.term_query(index.schema, "pid", found.passage.pid)
        return min(number_of(address) for _, address in searcher.search(query, copies, count=False).hits)

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
        hits = best(searcher, query, copies, searcher.num_docs, reader(searcher))
        found: dict[str, Found] = {}
        for (key, passage, number), score in hits:
            found.setdefault(passage.pid, Found(passage, key, score, number))
        return list(found.values())

    def passages(self) -> Iterator[Passage]:
        """Every passage of every document; a text comes as often as documents, and headings in one, have it."""
        index, searcher = self._state
        query = import_tantivy().Query.term_set_query(index.schema, "role", [LATER, FIRST])
        for _, address in searcher.search(query, max(1, searcher.num_docs), count=False).hits:
            yield stored(searcher.doc(address))[2]

    def beside(self, found: Sequence[Found]) -> dict[str, list[str]]:
        """The ids of other texts right before and right after each of these in its document, by the passage's id.

        Args:
            found: passages as `search` or `look_up` gives them; those that are no longer there have no entry.
        """
        index, searcher = self._state
        query, must = import_tantivy().Query, import_tantivy().Occur.Must
        pids, keys = ({one.passage.pid for one in found}, {one.document for one in found})
        parts = [(must, query.term_set_query(index.schema, name, sorted(values)))
                 for name, values in (("pid", pids), ("document", keys))]  # fmt: skip
        wanted = {(one.document, one.passage.pid, one.passage.heading_path) for one in found}
        most = max(1, sum(searcher.doc_freq("pid", pid) for pid in pids))
        beside: dict[str, list[str]] = {}
        for _, address in searcher.search(query.boolean_query(parts), most, count=False).hits:
            key, place, passage = stored(searcher.doc(address))
            if (key, passage.pid, passage.heading_path) in wanted:
                others = dict.fromkeys(neighbours(searcher, address, key, place))
                beside[passage.pid] = [other for other in others if other != passage.pid]
        return beside

    def holding(self, pids: Iterable[str]) -> dict[str, set[str]]:
        """For each passage id the keys of the documents that contain the passage; unknown ids are left out."""
        index, searcher = self._state
        term = import_tantivy().Query.term_query
        found: dict[str, set[str]] = {}
        for pid in set(pids):
            most = max(1, searcher.doc_freq("pid", pid))
            for _, address in searcher.search(term(index.schema, "pid", pid), most, count=False).hits:
                found.setdefault(pid, set()).add(stored(searcher.doc(address))[0])
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
    written = DocumentIndex.open(folder)
    changes.passages, changes.empty = len(written), written._count(EMPTY)
    return changes


class _Update:
    """One pass over the documents, which writes those that differ from the index.

    What the index has and which documents were seen is kept on disk, so that memory does not grow with the documents.
    """

    def __init__(self, index: Any, writer: Any) -> None:
        self.writer = writer
        self.changes = Changes()
        self.index = index

    def run(self, documents: Iterable[Document]) -> Changes:
        with SeenNames() as before, SeenNames() as seen:
            for key, digest in _digests(self.index):
                before.add(key, digest)
            for document in documents:
                if seen.add(document.key) is not None:
                    raise DataError(f"two documents are named {document.key}; rename one of them")
                self._take(document, before.get(document.key))
            for key in before:
                if key not in seen:
                    self.writer.delete_documents_by_term("document", key)
                    self.changes.deleted += 1
        return self.changes

    def _take(self, document: Document, before: str | None) -> None:
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
            self.writer.add_document(as_document(document.key, document.digest, place, passage))
        if not passages:
            self.writer.add_document(as_document(document.key, document.digest, 0, None))


def _fields(headings: bool) -> dict[str, float]:
    return _FIELDS if headings else {"text": 1.0}


def _digests(index: Any) -> Iterator[tuple[str, str]]:
    """The key and the digest of every document of the index; of those with a passage in groups by its hash."""
    searcher = index.searcher()
    query, must = import_tantivy().Query, import_tantivy().Occur.Must
    firsts = query.term_query(index.schema, "role", FIRST)
    digits = 0
    while searcher.num_docs > _AT_ONCE * 16**digits:
        digits += 1
    parts = [query.term_query(index.schema, "role", EMPTY)]
    for number in range(16**digits):
        of_group = query.regex_query(index.schema, "pid", f"{number:0{digits}x}.*") if digits else query.all_query()
        parts.append(query.boolean_query([(must, firsts), (must, of_group)]))
    for part in parts:
        size = int(searcher.search(part, 1, count=True).count)
        for _, address in searcher.search(part, max(1, size), count=False).hits:
            whole = json.loads(searcher.doc(address)["stored"][0])
            yield whole["document"], whole["digest"]
