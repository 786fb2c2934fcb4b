"""Which passages a question is paired with: the best of BM25, or some of every quantile of a deeper list.

A passage is left out that contains the question (one of fewer than three words: that is the question), has the same
text as one before it in the list or nearly so, is of the held-out sets, or is in as many pairs as it may be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tmkd.core.files import Quoting
from tmkd.data.decontamination import HeldOut, quoted_in
from tmkd.data.documents.index import DocumentIndex, Found
from tmkd.data.documents.text import jaccard, normalise, same_text, tokens
from tmkd.data.pairs import pair_id
from tmkd.data.sampling import of_quantiles

NEAR = 0.9  # two passages of a question's list whose words have this Jaccard similarity or more are nearly the same
_MARGIN = 20  # ranks read beyond those wanted, in place of passages that are left out
_REMEMBERED = 2048  # passages whose words are kept

Kind = Literal["top", "stratified"]
REASONS = {
    "contains_question": "contain the question",
    "same_text": "have the same text as one before",
    "nearly_same": "have nearly the same words as one before",
    "held_out": "are of the held-out files",
    "over_most": "are in as many pairs as a passage may be",
}
"""Why passages are left out of a question's list, as counts and as messages name it."""


@dataclass(frozen=True)
class Mining:
    """How passages are chosen for questions, and how the file of questions is read.

    Attributes:
        passages: how many passages a question gets, at most.
        sampling: `top`: the best ones; `stratified`: as many from every quantile of the list.
        depth: how many ranks of BM25's list are read, at most.
        quantiles: of `stratified`: how many quantiles the list is cut into.
        most: in how many pairs a passage is, at most; None: in any number.
        seed: of `stratified`: decides which passages of a quantile are chosen.
        column: the column of the question; `text` in a file queries.jsonl, else `question`, unless given.
        quoting: what a quote in a CSV or TSV file means, of questions or in `without`.
        without: files of pairs (development, test) whose questions and right passages are left out; labels from 1 on
            are right ones, and in a file without labels every passage is.
        without_columns: names of their columns by what they hold (question, passage, label), where they have other
            names; a column of labels that is named must be there.

    Raises:
        ValueError: numbers that do not fit each other.
    """

    passages: int = 30
    sampling: Kind = "top"
    depth: int = 200
    quantiles: int = 4
    most: int | None = None
    seed: int = 0
    column: str | None = None
    quoting: Quoting = "auto"
    without: Sequence[str | Path] = ()
    without_columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "without_columns", dict(self.without_columns))  # a plain one, which can be copied
        if self.sampling not in get_args(Kind):
            raise ValueError(f"sampling is {self.sampling!r}; it is one of {', '.join(get_args(Kind))}")
        if self.passages < 1 or (self.most is not None and self.most < 1):
            raise ValueError("passages and most must be at least 1")
        if unknown := sorted(self.without_columns.keys() - {"question", "passage", "label"}):
            raise ValueError(f"without_columns names {', '.join(unknown)}; there are question, passage and label")
        if self.depth < self.passages:
            raise ValueError(f"depth is {self.depth}, passages {self.passages}; a list is as deep as it has passages")
        if self.sampling == "stratified" and not 2 <= self.quantiles <= self.passages:
            raise ValueError(f"quantiles is {self.quantiles}; it must be from 2 to passages, {self.passages}")


@dataclass(frozen=True)
class Ranked:
    """A passage in a question's list: its place in BM25's list, from 1, and its text's number in the index."""

    found: Found
    rank: int
    number: int


class Uses:
    """In how many pairs each passage is, in one array for each segment of the index.

    Args:
        most: in how many a passage may be; None: nothing is counted.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._counts: dict[int, NDArray[np.uint32]] = {}

    def full(self, number: int) -> bool:
        """Whether the passage of this number (`Found.number`) may be in no other pair."""
        if self.most is None:
            return False
        counts, place = self._counts.get(number >> 32), number & 0xFFFFFFFF
        return counts is not None and place < len(counts) and int(counts[place]) >= self.most

    def add(self, number: int) -> None:
        """Count a pair of the passage."""
        if self.most is None:
            return
        segment, place = number >> 32, number & 0xFFFFFFFF
        counts = self._counts.get(segment, np.zeros(0, np.uint32))
        if place >= len(counts):
            grown = np.zeros(max(1024, 2 * len(counts), place + 1), np.uint32)
            grown[: len(counts)] = counts
            self._counts[segment] = counts = grown
        counts[place] += 1


class Retriever:
    """Finds the passages of a question.

    Args:
        index: the index.
        mining: how they are chosen.
        held: what must not be in the pool; None: nothing.
        uses: in how many pairs each passage is; the caller counts.
    """

    def __init__(self, index: DocumentIndex, mining: Mining, held: HeldOut | None, uses: Uses) -> None:
        self.index, self.mining, self.held, self.uses = index, mining, held, uses
        self._words = lru_cache(_REMEMBERED)(_words)

    def passages(self, question: str) -> tuple[list[Ranked], list[int], int, Counter[str]]:
        """Choose passages.

        Returns:
            The chosen passages, best first; the numbers of all candidates, chosen or not; the number of BM25's hits;
            how many passages were left out, by reason (`REASONS`).
        """
        mining = self.mining
        top = mining.sampling == "top"
        reach = min(mining.depth, mining.passages + _MARGIN) if top else mining.depth
        while True:
            hits = self.index.hits(question, reach)
            kept, left_out = self._kept(question, hits, mining.passages if top else mining.depth)
            if not top or len(kept) == mining.passages or len(hits) < reach or reach == mining.depth:
                break
            reach = mining.depth
        listed = [one.number for one in kept]
        if not top:
            names = [pair_id(question, one.found.passage.text) for one in kept]
            parts = of_quantiles(names, mining.passages, mining.quantiles, mining.seed)
            kept = [kept[place] for place in sorted(place for part in parts for place in part)]
        return kept, listed, len(hits), left_out

    def _kept(self, question: str, hits: list[Found], wanted: int) -> tuple[list[Ranked], Counter[str]]:
        is_quoted = quoted_in(question)
        kept: list[Ranked] = []
        texts: set[str] = set()
        sets: list[frozenset[str]] = []
        left_out: Counter[str] = Counter()
        for rank, found in enumerate(hits, start=1):
            if len(kept) == wanted:
                break
            number = found.number if self.mining.most is None else self.index.text_number(found)
            text = found.passage.text
            plain, phrase, words = self._words(text)
            if is_quoted(phrase):
                reason = "contains_question"
            elif self.held is not None and (self.held.pair(question, text) or self.held.passage(text)):
                reason = "held_out"
            elif plain in texts:
                reason = "same_text"
            elif _near_one(words, sets):
                reason = "nearly_same"
            elif self.uses.full(number):
                reason = "over_most"
            else:
                kept.append(Ranked(found, rank, number))
                texts.add(plain)
                sets.append(words)
                continue
            left_out[reason] += 1
        return kept, left_out


def _words(text: str) -> tuple[str, str, frozenset[str]]:
    """A text as it is compared: with the same text, with a phrase, by its words."""
    return same_text(text), normalise(text), tokens(text)


def _near_one(words: frozenset[str], sets: list[frozenset[str]]) -> bool:
    least, most = NEAR * len(words), len(words) / NEAR  # of sets of other sizes the similarity is lower
    return any(least <= len(other) <= most and jaccard(words, other) >= NEAR for other in sets)
