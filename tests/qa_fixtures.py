"""A scorer without a model and small indexes, for the tests of answering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.data.documents.index import Document, DocumentIndex, Found, update_index
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.text import text_hash, tokens
from tmkd.inference.qa.cases import Asked, Case
from tmkd.inference.qa.ranking import Scored
from tmkd.inference.qa.retrieval import Retrieved

TEXTS = {
    "copy.md": "The cp command copies a file. Use -r for folders, which are copied whole.",
    "mount.md": "A disk is a device. The mount command mounts a disk on a folder. Nobody mounts a file.",
    "sort.md": "Sort the keys by their values. Then walk the sorted keys.",
}


class OverlapScorer:
    """Log-odds from shared words: what a student should see, without one. Keeps what it was asked."""

    def __init__(self, max_length: int = 64) -> None:
        self.max_length = max_length
        self.asked: list[tuple[str, str]] = []

    def scores(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        self.asked += zip(questions, passages, strict=True)
        return np.array(
            [4 * len(tokens(q) & tokens(p)) / len(tokens(q)) - 2 for q, p in zip(questions, passages, strict=True)]
        )


def document(key: str, *texts: str) -> Document:
    """A document of these passages."""
    passages = [Passage(text_hash(text), text, key.split(".")[0], ("Use",), key, text_hash(key)) for text in texts]
    return Document(key, text_hash(" ".join(texts)), lambda: passages)


def index_of(folder: Path, texts: dict[str, str] | None = None) -> DocumentIndex:
    """An index of one passage a document."""
    update_index(folder, lambda: [document(key, *filter(None, [text])) for key, text in (texts or TEXTS).items()])
    return DocumentIndex.open(folder)


def asked(qid: str, by_bm25: str, ranked: str, right: str, by_dense: str = "") -> Asked:
    """A question whose passages are letters, in the order of BM25, as the student ranks them, and by dense search.

    Neighbours in an order differ by one point of BM25, one of log-odds, or 0.08 of the cosine.
    """
    retrieved = []
    for pid in dict.fromkeys(by_bm25 + by_dense):
        points = float(len(by_bm25) - by_bm25.index(pid)) if pid in by_bm25 else 0.0
        cosine = (0.9 - 0.08 * by_dense.index(pid) if pid in by_dense else 0.0) if by_dense else None
        words, dense = (order.index(pid) + 1 if pid in order else None for order in (by_bm25, by_dense))
        retrieved.append(Retrieved(Found(Passage(pid, pid, "", (), "", ""), "", points), cosine, words, dense))
    scored = {pid: Scored(-float(place), None) for place, pid in enumerate(ranked)}
    return Asked(Case(qid, qid, frozenset(right), frozenset()), retrieved, [], scored, 4)
