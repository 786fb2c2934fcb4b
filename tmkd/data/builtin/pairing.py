"""Make labelled pairs and pool pairs of questions, answers and headings; `debian_docs` says by which rules."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tmkd.config.sections import DebianDocsSizes
from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.data.builtin.corpus import Corpus, Question, pick_headings, repeats
from tmkd.data.decontamination import NEAR
from tmkd.data.documents.bm25 import PassageIndex
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.text import contains, jaccard, normalise, tokens, unit_hash
from tmkd.data.pairs import Pairs

TRAIN, DEV = 0.55, 0.15  # the rest is test
MOST_POSITIVES = 4
HEADING_NEGATIVES = 3
TRAIN_NEGATIVES = 4  # of a question in the training set
EVAL_NEGATIVES = 9  # of a question in the development and test sets
SEED = 0  # chooses the headings, and the questions where there is a limit on them
ANYTHING = 4  # one negative in this many may be any passage, the others are passages of other answers
MOST_CODE = 0.6  # share of code; a later passage of an answer with more code than this hardly answers by itself


def make_pairs(corpus: Corpus, sizes: DebianDocsSizes) -> tuple[dict[str, Pairs], dict[str, Any]]:
    """Make the pairs of train, dev, test and pool.

    Returns:
        The pairs of each part by its name, and counts of what is in them, for the report.

    Raises:
        DataError: no question is left for train, dev or test.
    """
    return _Builder(corpus, sizes).build()


@dataclass
class _Rows:
    questions: list[str] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    qids: list[str] = field(default_factory=list)
    pids: list[str] = field(default_factory=list)

    def add(self, question: str, qid: str, passage: Passage, label: int | None) -> None:
        self.questions.append(question)
        self.passages.append(passage.text)
        self.labels.append(label)
        self.qids.append(qid)
        self.pids.append(passage.pid)

    def pairs(self, *, labelled: bool) -> Pairs:
        labels = self.labels if labelled else None
        return Pairs.build(self.questions, self.passages, labels=labels, qids=self.qids, pids=self.pids)


@dataclass(frozen=True)
class _Part:
    """An index over some of the passages. numbers: the place of each in the corpus; None: it has all passages."""

    index: PassageIndex
    numbers: list[int] | None

    def search(self, query: str, count: int) -> Iterator[int]:
        """Numbers of the best passages, best first."""
        hits = (number for number, _ in self.index.search(query, count))
        return hits if self.numbers is None else (self.numbers[number] for number in hits)


class _Builder:
    """Makes the pairs. Holds the corpus, its index, and the questions and passages that training must not see."""

    def __init__(self, corpus: Corpus, sizes: DebianDocsSizes) -> None:
        self.passages = corpus.passages
        self.headings = corpus.headings
        self.sizes = sizes
        self.index = PassageIndex.build(corpus.passages)
        self.everything = _Part(self.index, None)
        self.held_questions: list[frozenset[str]] = []
        self.held_passages: set[int] = set()
        questions = [question for question in corpus.questions if self._positives(question)]
        self.answers = self._part({number for question in questions for number in self._positives(question)})
        self.parts = self._split(questions)

    def build(self) -> tuple[dict[str, Pairs], dict[str, Any]]:
        """Every part's pairs by its name, and the counts."""
        train, dev, test = (self._labelled(self.parts[name], name) for name in ("train", "dev", "test"))
        pool, counts = self._pool()
        for name, part in (("train", train), ("dev", dev), ("test", test)):
            if not len(part):
                raise DataError(f"debian-docs: no question is left for {name}; use more packages or more questions")
        rows = {"train": train, "dev": dev, "test": test, "pool": pool}
        return rows, {
            "rows": {name: len(part) for name, part in rows.items()},
            "questions": {name: len(found) for name, found in self.parts.items()},
            "questions_per_source": dict(Counter(one.source for found in self.parts.values() for one in found)),
            "positives": {name: int((rows[name].labels == 1).sum()) for name in ("train", "dev", "test")},
            "auc_of_being_an_answer": {name: self._auc_of_kind(rows[name]) for name in ("train", "dev", "test")},
            "pool": counts,
            "passages": len(self.passages),
            "held_out_passages": len(self.held_passages),
        }

    def _positives(self, question: Question) -> list[int]:
        """The first passages of the answer, without those that contain the question and later ones of mostly code."""
        usable = [number for number in question.passages if not repeats(self.passages[number], question.text)]
        prose = [number for number in usable if number == usable[0] or self.passages[number].code <= MOST_CODE]
        return prose[:MOST_POSITIVES]

    def _split(self, questions: Sequence[Question]) -> dict[str, list[Question]]:
        """Train, dev and test by hash. Questions of train and dev nearly equal to a held-out question are dropped."""
        most = self.sizes.max_questions
        if most is not None:
            questions = sorted(questions, key=lambda one: unit_hash(one.text, f"use {SEED}"))[:most]
        parts: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
        for question in questions:
            place = unit_hash(question.text, "split")
            parts["train" if place < TRAIN else "dev" if place < TRAIN + DEV else "test"].append(question)
        self.held_questions = [tokens(question.text) for question in parts["test"]]
        parts["dev"] = [question for question in parts["dev"] if not self._near_held(question.text)]
        self.held_questions += [tokens(question.text) for question in parts["dev"]]
        parts["train"] = [question for question in parts["train"] if not self._near_held(question.text)]
        held = [*parts["dev"], *parts["test"]]
        with progress("decontaminate", len(held), "questions") as bar:
            for question in held:
                self._hold_out(question)
                bar.advance(1)
        # if two questions share an answer, the held-out question keeps it
        parts["train"] = [one for one in parts["train"] if not self.held_passages.intersection(one.passages)]
        return parts

    def _near_held(self, text: str) -> bool:
        words = tokens(text)
        return any(jaccard(words, held) >= NEAR for held in self.held_questions)

    def _hold_out(self, question: Question) -> None:
        """Hold out the answer's passages, passages nearly equal to one, and passages that quote the question."""
        self.held_passages.update(question.passages)
        for number in question.passages:
            text = self.passages[number].text
            words = tokens(text)
            for other, _ in self.index.search(text, 6):
                if other not in self.held_passages and jaccard(words, tokens(self.passages[other].text)) >= NEAR:
                    self.held_passages.add(other)
        if len(normalise(question.text).split()) > 2:
            for other, _ in self.index.search(question.text, 50):
                if contains(self.passages[other].text, question.text):
                    self.held_passages.add(other)

    def _auc_of_kind(self, rows: Pairs) -> float:
        """The ROC-AUC of the feature "this passage belongs to an answer", which should be near 0.5: of no use."""
        answers = {passage.pid for passage in self.passages if passage.answer_of is not None}
        is_answer = np.array([pid in answers for pid in rows.pids])
        return round(0.5 + float(is_answer[rows.labels == 1].mean() - is_answer[rows.labels == 0].mean()) / 2, 3)

    def _part(self, numbers: Iterable[int]) -> _Part:
        """An index over some of the passages."""
        ordered = sorted(numbers)
        return _Part(PassageIndex.build([self.passages[number] for number in ordered]), ordered)

    def _retrieve(
        self, question: str, count: int, *, training: bool, without: Sequence[int] = (), among: _Part | None = None
    ) -> Iterator[Passage]:
        """The best passages that may be paired with a question; none of `without`, nor nearly equal to one of those."""
        among = among or self.everything
        own = [tokens(self.passages[number].text) for number in without]
        excluded = set(without) | (self.held_passages if training else set())
        found = 0
        # a question of one rare word finds too little; then search with its answer, too
        more = [f"{question} {self.passages[number].text}" for number in without[:1]]
        for query in (question, *more):
            for number in among.search(query, 2 * count + 40):
                if found == count:
                    return
                passage = self.passages[number]
                if number in excluded or repeats(passage, question):
                    continue
                if own and any(jaccard(tokens(passage.text), words) >= NEAR for words in own):
                    continue
                yield passage
                excluded.add(number)
                found += 1

    def _labelled(self, questions: Sequence[Question], name: str) -> Pairs:
        rows = _Rows()
        negatives = TRAIN_NEGATIVES if name == "train" else EVAL_NEGATIVES
        with progress(f"{name} pairs", len(questions), "questions") as bar:
            for question in questions:
                for number in self._positives(question):
                    rows.add(question.text, question.qid, self.passages[number], 1)
                for passage in self._negatives(question, negatives, training=name == "train"):
                    rows.add(question.text, question.qid, passage, 0)
                bar.advance(1)
        if name == "train":
            self._add_headings(rows)
        return rows.pairs(labelled=True)

    def _add_headings(self, rows: _Rows) -> None:
        """Pairs of headings: the first passage below each, and the best of the first passages below other headings."""
        below: dict[str, list[int]] = {}
        for number, passage in enumerate(self.passages):
            if passage.answer_of is None and passage.heading_path and number not in self.held_passages:
                below.setdefault(normalise(passage.heading_path[-1]), []).append(number)
        firsts = self._part({numbers[0] for numbers in below.values()})
        left = self.sizes.train_headings
        with progress("train pairs of headings", left, "headings") as bar:
            for heading in self._free_headings() if left else ():
                own = below.get(normalise(heading), [])
                if not own or repeats(self.passages[own[0]], heading):
                    continue
                qid = _heading_id(heading)
                rows.add(heading, qid, self.passages[own[0]], 1)
                for passage in self._retrieve(heading, HEADING_NEGATIVES, training=True, without=own, among=firsts):
                    rows.add(heading, qid, passage, 0)
                bar.advance(1)
                left -= 1
                if left == 0:
                    break

    def _negatives(self, question: Question, count: int, *, training: bool) -> list[Passage]:
        """The best passages of other answers; one in ANYTHING, or more if those run out, from all passages."""
        own = question.passages
        of_answers = self._retrieve(
            question.text, count - count // ANYTHING, training=training, without=own, among=self.answers
        )
        chosen = {passage.pid: passage for passage in of_answers}
        for passage in self._retrieve(question.text, 2 * count, training=training, without=own):
            if len(chosen) == count:
                break
            chosen.setdefault(passage.pid, passage)
        return list(chosen.values())

    def _pool(self) -> tuple[Pairs, dict[str, int]]:
        rows = _Rows()
        asked = {one.qid for found in self.parts.values() for one in found}
        train = self.parts["train"]
        headings = list(itertools.islice(self._free_headings(), self.sizes.headings))
        with progress("pool", len(train) + len(headings), "questions") as bar:
            for question in train:
                found = self._retrieve(question.text, self.sizes.pool_per_question, training=True)
                own = (self.passages[number] for number in self._positives(question))
                others = self._retrieve(
                    question.text, self.sizes.pool_per_question // 3, training=True, without=question.passages,
                    among=self.answers,
                )  # fmt: skip
                for passage in {passage.pid: passage for passage in (*own, *found, *others)}.values():
                    rows.add(question.text, question.qid, passage, None)
                bar.advance(1)
            of_questions = len(rows.questions)
            for heading in headings:
                qid = _heading_id(heading)
                assert qid not in asked
                for passage in self._retrieve(heading, self.sizes.pool_per_heading, training=True):
                    rows.add(heading, qid, passage, None)
                bar.advance(1)
        counts = {
            "of_questions": of_questions,
            "of_headings": len(rows.questions) - of_questions,
            "headings": len(headings),
        }
        return rows.pairs(labelled=False), counts

    def _free_headings(self) -> Iterator[str]:
        """Headings in the order of a hash, except those nearly equal to a held-out or equal to a training question."""
        train = {normalise(question.text) for question in self.parts["train"]}
        usable = [one for one in self.headings if normalise(one[0]) not in train]
        for heading, _ in pick_headings(usable, len(usable), SEED):
            if not self._near_held(heading):
                yield heading


def _heading_id(heading: str) -> str:
    return f"h-{hashlib.blake2b(heading.encode(), digest_size=8).hexdigest()}"
