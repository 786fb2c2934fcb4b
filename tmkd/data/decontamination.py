"""Decontamination: find questions and answers of the development and test sets, and texts nearly equal to them."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tmkd.data.documents.text import jaccard, normalise, question_key, tokens
from tmkd.data.documents.words import bigrams, word_count, words
from tmkd.data.pairs import Pairs, pair_key

NEAR = 0.8  # two texts whose sets of words have this Jaccard similarity or more count as nearly equal
MOST_TELLING = 0.65  # ROC-AUC that a feature which says nothing of the question may have in a held-out set
_REMEMBERED = 1 << 15  # texts whose answer is kept, since a text is often asked for again
LEAST_QUOTED = 3
"""Words of a question that can be called quoted; shorter ones occur in many texts by chance."""


def quoted_in(question: str) -> Callable[[str], bool]:
    """A test of texts (`normalise`): does one repeat the question?

    That is to have its words in a row, or where these are fewer than three, to have no others.
    """
    asked = normalise(question)
    if word_count(asked) < LEAST_QUOTED:
        return lambda text: bool(asked) and text == asked
    return lambda text: f" {asked} " in f" {text} "


def feature_auc(has: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """ROC-AUC of a feature that a passage has or has not; near 0.5: it says nothing of the label.

    Args:
        has: whether the passage of each pair has it, [N].
        labels: the classes 0 and 1, [N]; both occur.
    """
    return 0.5 + float(has[labels == 1].mean() - has[labels == 0].mean()) / 2


class NearTexts:
    """A set of texts that answers whether another text is nearly equal to one of them; exact, by prefix filtering.

    If two sets have a Jaccard similarity of t or more, they share at least ceil(t n) words, n being the size of either.
    So they share one of its n - ceil(t n) + 1 rarest words (Bayardo, Ma, Srikant 2007, "Scaling up all pairs similarity
    search"). And the smaller set has at least t times as many words as the larger one.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._sets = sorted({words for text in texts if (words := tokens(text))}, key=len)
        self._sizes = [len(words) for words in self._sets]
        self._counts = Counter(word for words in self._sets for word in words)
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, words in enumerate(self._sets):
            for word in self._rarest(words):
                self._places[word].append(place)

    def __contains__(self, text: str) -> bool:
        """Whether one of the texts is nearly equal to this one: a Jaccard similarity of their words of NEAR or more."""
        return self.near(tokens(text))

    def near(self, words: frozenset[str]) -> bool:
        """The same, for a text given as its distinct words."""
        first = bisect_left(self._sizes, NEAR * len(words))
        end = bisect_right(self._sizes, len(words) / NEAR)
        places: set[int] = set()
        for word in self._rarest(words):
            having = self._places.get(word, [])
            places.update(having[bisect_left(having, first) : bisect_left(having, end)])
        return any(jaccard(words, self._sets[place]) >= NEAR for place in places)

    def _rarest(self, words: frozenset[str]) -> list[str]:
        count = len(words) - math.ceil(NEAR * len(words)) + 1
        return sorted(words, key=lambda word: (self._counts[word], word))[:count] if words else []


class HeldOut:
    """The held-out sets (development and test): which questions, passages and pairs must not be in a pool.

    Questions and pairs are the same in every spelling of them (`tmkd.data.documents.text.question_key`). A passage must
    not be in the pool if it answers a held-out question (the positive class of two), if it is nearly equal to such
    an answer, or if it quotes a held-out question.

    Args:
        parts: the development and the test set.
        classes: C. For more than two classes no passage is an answer.
        positive: the class of the answers.
    """

    def __init__(self, parts: Sequence[Pairs], classes: int, positive: int = 1) -> None:
        questions = {question for part in parts for question in part.questions}
        self.questions = NearTexts(questions)
        self._pair_keys = {key for part in parts for key in part.pair_keys}
        answers: set[str] = set()
        if classes == 2:
            for part in parts:
                texts = part.passages
                answers.update(texts[row] for row in np.flatnonzero(part.labels == positive))
        self._answers = NearTexts(answers)
        self._question_keys, self._answer_keys = set(map(question_key, questions)), set(map(question_key, answers))
        self._quotable: dict[str, list[str]] = defaultdict(list)  # normalised questions by their rarest word
        phrases = {phrase: phrase.split() for phrase in map(normalise, questions)}
        counts = Counter(word for found in phrases.values() for word in found)
        for phrase, found in sorted(phrases.items()):
            if word_count(phrase) >= LEAST_QUOTED:
                self._quotable[min(found, key=lambda word: (counts[word], word))].append(f" {phrase} ")
        self._found_question = lru_cache(_REMEMBERED)(self._is_question)
        self._found_passage = lru_cache(_REMEMBERED)(self._is_answer)

    def question(self, text: str) -> bool:
        """Whether a question is a held-out one, or nearly equal to one."""
        return self._found_question(text)

    def pair(self, question: str, passage: str) -> bool:
        """Whether a pair is a held-out one."""
        return pair_key(question, passage) in self._pair_keys

    def passage(self, text: str) -> bool:
        """Whether a passage answers a held-out question, is nearly equal to such an answer, or quotes the question."""
        return self._found_passage(text)

    def _is_question(self, text: str) -> bool:
        return question_key(text) in self._question_keys or text in self.questions

    def _is_answer(self, text: str) -> bool:
        if question_key(text) in self._answer_keys:
            return True
        found = words(text)
        if self._answers.near(frozenset(bigrams(found))):
            return True
        padded = f" {' '.join(found)} "
        return any(phrase in padded for word in set(found) for phrase in self._quotable.get(word, ()))
