"""A passage as Tantivy stores it in the index on disk: the words to search, its ids, and the whole passage as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tmkd.data.documents.bm25 import import_tantivy, searchable
from tmkd.data.documents.passages import Passage

LATER, FIRST, EMPTY = 0, 1, 2  # roles: a passage, a document's first passage, a document without any


def as_document(key: str, digest: str, place: int, passage: Passage | None) -> Any:
    """A passage as Tantivy's object.

    Args:
        key: the key of the passage's document.
        digest: that of the document, which its first passage carries.
        place: which passage of the document it is, from 0.
        passage: the passage; None: the document has none.
    """
    found = import_tantivy().Document()
    found.add_text("document", key)
    found.add_unsigned("role", EMPTY if passage is None else FIRST if place == 0 else LATER)
    whole: dict[str, Any] = {"document": key, "place": place}
    if place == 0:
        whole["digest"] = digest
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


def stored(document: Any) -> tuple[str, int, Passage]:
    """Of a stored passage the key of its document, its place in the document, and the passage."""
    whole = json.loads(document["stored"][0])
    pid, text, title, headings, source, section, code = whole["passage"]
    return whole["document"], whole["place"], Passage(pid, text, title, tuple(headings), source, section, code=code)


def number_of(address: Any) -> int:
    """The number of a passage in the index: that of its segment times 2^32, and its place in the segment."""
    return (int(address.segment_ord) << 32) + int(address.doc)


def reader(searcher: Any) -> Callable[[Any], tuple[tuple[str, int], tuple[str, Passage, int]]]:
    """What `best` reads of a hit: document and place, by which equal scores are ordered; document, passage, number."""

    def read(address: Any) -> tuple[tuple[str, int], tuple[str, Passage, int]]:
        key, place, passage = stored(searcher.doc(address))
        return (key, place), (key, passage, number_of(address))

    return read


def neighbours(searcher: Any, address: Any, key: str, place: int) -> list[str]:
    """Ids of the passages beside one. A document's passages are written one after the other, so their addresses are."""
    found = []
    for step in (-1, 1):
        with suppress(ValueError, OverflowError):  # there is no such address
            there = type(address)(address.segment_ord, address.doc + step)
            other = json.loads(searcher.doc(there)["stored"][0])
            if (other["document"], other["place"]) == (key, place + step):
                found.append(str(other["passage"][0]))
    return found
