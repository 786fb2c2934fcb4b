"""Retrieve the passages to rank: by BM25, and by dense search where the index has the states of the student's encoder.

BM25 finds passages that share words with the question; dense search (`tmkd.inference.dense`) finds those whose
embeddings are near. Their two orders are fused by reciprocal ranks, one of them counting more (Cormack et al.,
"Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009). A passage right before
or after a good one in its document counts as well, also where neither search found it: answers go on. On the built-in
development questions this found more right passages than sums of normalised scores did (Bruch et al., "An Analysis of
Fusion Functions for Hybrid Retrieval", TOIS 2023); `docs/answering.md` has the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.data.documents.index import DocumentIndex, Found
from tmkd.inference.dense import DenseSearch
from tmkd.inference.dense_graph import Graph
from tmkd.inference.state_store import StateStore, has_states, how_to_compute
from tmkd.models.text_states import TextStates, text_key

logger = logging.getLogger(__name__)

DENSE_SHARE = 0.7  # what a rank by dense search counts, where nothing else was chosen; one by BM25 counts the rest
_K = 10  # added to every rank; a larger number makes the first ranks count less against later ones
_BESIDE = 0.3  # what a passage adds to the one before and the one after it, as a share of what itself has
_MOST_BESIDE = 20  # first ranks of each order whose neighbours are candidates


class QuestionReader(Protocol):
    """What embeds questions, such as `tmkd.inference.text_encoder.TextEncoder`.

    Attributes:
        identity: A fingerprint of everything that decides the embeddings.
    """

    @property
    def identity(self) -> str: ...  # noqa: D102

    def question(self, text: str) -> tuple[Any, NDArray[np.float32], *tuple[Any, ...]]:
        """A tuple of which the second is the question's embedding, [d] float32 of length 1.

        Args:
            text: The question.
        """
        ...


@dataclass(frozen=True)
class Retrieved:
    """A passage that was retrieved.

    Attributes:
        found: The passage, with its BM25 score for the question.
        cosine: Of its embedding and the question's; None where dense search was not used.
        bm25_rank: Its place among the best by BM25, from 1; None if it is not among them.
        dense_rank: Its place among the best by dense search, from 1; None if it is not among them.
        beside: Ids of passages with a rank that are right before or after it in a document.
    """

    found: Found
    cosine: float | None
    bm25_rank: int | None
    dense_rank: int | None
    beside: tuple[str, ...] = ()

    @property
    def pid(self) -> str:
        """The passage's id."""
        return self.found.passage.pid


class Retriever:
    """Retrieves passages of an index. Threads may share it.

    Args:
        index: The index.
        reader: Embeds questions; None retrieves by BM25 alone.
        store: The stored states of the index's passages, by the encoder of `reader`; None as there.

    Attributes:
        index: As given.
        store: As given, or what `refresh` found.
        dense: Searches the embeddings; None where BM25 alone retrieves.
    """

    def __init__(
        self, index: DocumentIndex, reader: QuestionReader | None = None, store: StateStore | None = None
    ) -> None:
        self.index, self.store, self._reader = index, store, reader
        self._model: str | Path | None = None
        self.dense = self._search()

    @classmethod
    def open(cls, index: DocumentIndex, reader: QuestionReader | None, *, model: str | Path | None = None) -> Retriever:
        """A retriever that searches the index's stored embeddings too, where they are those of `reader`.

        Where they are not, or there are none, a warning says so, and what to run.

        Args:
            index: The index.
            reader: Embeds questions; None for a student that reads question and passage together.
            model: The export, for messages.
        """
        found = cls(index, reader)
        found._model = model
        found._open_store()
        return found

    def _open_store(self) -> None:
        if self._reader is None:
            return
        try:
            self.store = StateStore.open(self.index.folder, self._reader.identity, model=self._model)
        except DataError as error:
            logger.warning(f"BM25 alone retrieves: {error}")
        else:
            logger.info(f"{self.index.folder} has the states of {self.store.passages:,} passages")
            self.dense = self._search()

    def _search(self) -> DenseSearch | None:
        store = self.store
        if store is None:
            return None
        self._say_if_older(store)
        dense = DenseSearch(store.embeddings, store.pids, Graph.open(store))
        if dense.damaged:
            logger.warning(
                f"{store.folder} is damaged: {dense.damaged:,} embeddings are not of length 1, and dense search leaves "
                f"them out; compute them again with: {how_to_compute(store.index, store.model)}"
            )
        return dense

    def _say_if_older(self, store: StateStore) -> None:
        """Warn of passages that were indexed after the states; where documents were only deleted there are none."""
        if store.card.index == self.index.version or not (missing := without_states(self.index, store)):
            return
        logger.warning(
            f"{store.index} has changed since the states of its passages were computed: {missing:,} of its passages "
            f"have none, and BM25 alone finds these. Compute them with: {how_to_compute(store.index, store.model)}"
        )

    def stored(self, text: str) -> TextStates | None:
        """The stored states of a text: a passage that the encoder reads whole, or a window of a longer one."""
        return None if self.store is None else self.store.get(text_key(text))

    def is_stored(self, text: str) -> bool:
        """Whether a text is stored as one. Its states are not read, so they may be damaged."""
        return self.store is not None and text_key(text) in self.store

    def refresh(self) -> None:
        """Show what the index and its states hold now, also where it had no states. Running searches go on undisturbed.

        Raises:
            DataError: As `DocumentIndex.refresh`; it then still shows what it showed before.
        """
        version = self.index.version
        self.index.refresh()
        if self.store is None:
            if has_states(self.index.folder):
                self._open_store()
            return
        card = self.store.card
        try:
            self.store.refresh()
        except DataError as error:
            logger.warning(f"{error}. Embeddings that were read before are used until then")
        if self.store.card != card:
            self.dense = self._search()
        elif self.index.version != version:
            self._say_if_older(self.store)

    def gather(
        self, question: str, count: int, *, exclude: Collection[str] = (), headings: bool = True
    ) -> list[Retrieved]:
        """What candidates are chosen from (`fuse`).

        These are the `count` best passages by BM25 and, with dense search, the `count` best by that, and the passages
        beside the best of both.

        Args:
            question: Any text.
            count: How many of each.
            exclude: As `DocumentIndex.search` takes it.
            headings: As `DocumentIndex.search` takes it. Dense search never reads them.
        """
        by_words = self.index.search(question, count, exclude=exclude, headings=headings)
        bm25_ranks = {one.passage.pid: rank for rank, one in enumerate(by_words, 1)}
        dense = self.dense
        if self._reader is None or dense is None:
            return [Retrieved(one, None, rank, None) for rank, one in enumerate(by_words, 1)]

        def look_up(pids: Collection[str]) -> dict[str, Found]:
            found = self.index.look_up(pids, question, exclude=exclude, headings=headings)
            return {one.passage.pid: one for one in found}

        embedding = self._reader.question(question)[1]
        there = {one.passage.pid: one for one in by_words}
        reach = count
        while True:  # passages of excluded or deleted documents have embeddings, too
            near = dense.search(embedding, reach)
            there |= look_up([pid for pid in near if pid not in there])
            nearest = [pid for pid in near if pid in there][:count]
            if len(nearest) >= count or len(near) < reach:
                break
            reach *= 2
        dense_ranks = {pid: rank for rank, pid in enumerate(nearest, 1)}
        best = dict.fromkeys([*list(bm25_ranks)[:_MOST_BESIDE], *nearest[:_MOST_BESIDE]])
        beside = _turned(self.index.beside([there[pid] for pid in best]))
        there |= look_up([pid for pid in beside if pid not in there])
        pids = [pid for pid in dict.fromkeys([*bm25_ranks, *dense_ranks, *beside]) if pid in there]
        cosines = near | dense.cosines(embedding, [pid for pid in pids if pid not in near])
        least = min(cosines.values(), default=0.0)  # for a passage that was indexed after the embeddings were computed
        return [
            Retrieved(
                there[pid], cosines.get(pid, least), bm25_ranks.get(pid), dense_ranks.get(pid),
                tuple(beside.get(pid, ())),
            )
            for pid in pids
        ]  # fmt: skip


def keys_in(index: DocumentIndex) -> set[bytes]:
    """The keys (`text_key`) of the different passages of an index. Every passage is read for that."""
    return {text_key(passage.text) for passage in index.passages()}


def without_states(index: DocumentIndex, store: StateStore) -> int:
    """How many different passages of an index have no states."""
    return len(keys_in(index) - store.passage_keys())


def _turned(beside: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each neighbour of a passage the passages that it is beside."""
    turned: dict[str, list[str]] = {}
    for pid, others in beside.items():
        for other in others:
            turned.setdefault(other, []).append(pid)
    return turned


def fuse(gathered: Sequence[Retrieved], count: int, dense_share: float) -> list[Retrieved]:
    """The best of what was gathered, best first.

    Args:
        gathered: As `Retriever.gather` gives it.
        count: How many.
        dense_share: What a rank by dense search counts, 0 to 1; one by BM25 counts the rest.
    """
    if not gathered or gathered[0].cosine is None:
        return list(gathered[:count])
    own = {
        one.pid: (1 - dense_share) * _reciprocal(one.bm25_rank) + dense_share * _reciprocal(one.dense_rank)
        for one in gathered
    }
    fused = [own[one.pid] + _BESIDE * max((own[pid] for pid in one.beside), default=0.0) for one in gathered]
    order = sorted(range(len(gathered)), key=lambda place: (-fused[place], place))
    return [gathered[place] for place in order[:count]]


def _reciprocal(rank: int | None) -> float:
    return 0.0 if rank is None else 1 / (_K + rank)
