"""Find passages that a question can be paired with: positives, candidates for negatives, and what is nearly equal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from tmkd.data.builtin.corpus import Question, repeats
from tmkd.data.builtin.judgements import Judgements
from tmkd.data.decontamination import NEAR
from tmkd.data.documents.bm25 import PassageIndex
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.text import contains, jaccard, normalise, tokens

MOST_POSITIVES = 4
MOST_CODE = 0.6  # share of code; a later passage of an answer with more code than this hardly answers by itself
DEEPEST = 1000  # hits among which BM25's rank of a question's positives is looked up


@dataclass(frozen=True)
class Part:
    """An index over some of the passages.

    Attributes:
        index: the index.
        numbers: the place of each of its passages in the corpus; None: it has all passages.
    """

    index: PassageIndex
    numbers: list[int] | None

    def search(self, query: str, count: int) -> Iterator[int]:
        """Numbers of the best passages, best first."""
        hits = (number for number, _ in self.index.search(query, count))
        return hits if self.numbers is None else (self.numbers[number] for number in hits)


class Candidates:
    """Searches the corpus with BM25.

    Args:
        passages: the corpus; a passage is named by its place in it.
        judgements: which negatives a bi-encoder puts above the positives.
    """

    def __init__(self, passages: list[Passage], judgements: Judgements) -> None:
        self.passages = passages
        self.judgements = judgements
        self._index = PassageIndex.build(passages)
        self.everything = Part(self._index, None)
        self._above: dict[str, frozenset[int]] = {}
        self._near: dict[int, set[int]] = {}
        self._words: dict[int, frozenset[str]] = {}

    def part(self, numbers: Iterable[int]) -> Part:
        """An index over some of the passages."""
        ordered = sorted(numbers)
        return Part(PassageIndex.build([self.passages[number] for number in ordered]), ordered)

    def positives(self, question: Question) -> list[int]:
        """The first passages of the answer, without those that contain the question and later ones of mostly code."""
        usable = [number for number in question.passages if not repeats(self.passages[number], question.text)]
        prose = [number for number in usable if number == usable[0] or self.passages[number].code <= MOST_CODE]
        return prose[:MOST_POSITIVES]

    def near(self, number: int) -> set[int]:
        """The passage itself, and those nearly equal to it that BM25 finds with its text."""
        if number not in self._near:
            words = self.words(number)
            hits = (other for other, _ in self._index.search(self.passages[number].text, 6))
            self._near[number] = {number, *(other for other in hits if jaccard(words, self.words(other)) >= NEAR)}
        return self._near[number]

    def quoting(self, question: str) -> set[int]:
        """Passages that quote a question of three words or more."""
        if len(normalise(question).split()) <= 2:
            return set()
        hits = (other for other, _ in self._index.search(question, 50))
        return {other for other in hits if contains(self.passages[other].text, question)}

    def words(self, number: int) -> frozenset[str]:
        """The distinct words of a passage."""
        if number not in self._words:
            self._words[number] = tokens(self.passages[number].text)
        return self._words[number]

    def retrieve(
        self,
        question: str,
        count: int,
        among: Part,
        *,
        own: Collection[int] = (),
        usable: Callable[[int], bool],
    ) -> Iterator[int]:
        """The best passages that may be paired with a question, best first, each once.

        Args:
            question: the question.
            count: how many at most.
            among: where to search.
            own: passages of the question's answer: neither they nor passages nearly equal to one are found.
            usable: called for a passage once all else speaks for it; what it refuses is replaced by the next.
        """
        own_words = [self.words(number) for number in own]
        seen = set(own)
        found = 0
        # a question of one rare word finds too little; then search with its answer, too
        more = [f"{question} {self.passages[number].text}" for number in list(own)[:1]]
        for query in (question, *more):
            for number in among.search(query, 2 * count + 40):
                if found == count:
                    return
                if number in seen or repeats(self.passages[number], question):
                    continue
                if any(jaccard(self.words(number), words) >= NEAR for words in own_words):
                    continue
                if not usable(number):
                    continue
                yield number
                seen.add(number)
                found += 1

    def outranks(self, question: Question, number: int) -> bool:
        """Whether BM25, over the whole corpus, puts a passage above all positives of the question."""
        if question.qid not in self._above:
            own = set(self.positives(question))
            hits = [(other, round(score, 4)) for other, score in self._index.search(question.text, DEEPEST)]
            best = next((score for other, score in hits if other in own), 0.0)
            self._above[question.qid] = frozenset(other for other, score in hits if score > best)
        return number in self._above[question.qid]

    def judged(self, question: Question, number: int) -> bool | None:
        """Whether BM25 and the bi-encoder both put a passage above all positives; None: the latter was not asked."""
        if not self.outranks(question, number):
            return False
        return self.judgements.above_positive(question.text, self.passages[number].text)
