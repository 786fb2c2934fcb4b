"""Make labelled pairs and pool pairs of questions, answers and headings; `debian_docs` says by which rules."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tmkd.config.sections import DebianDocsSizes
from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.data.builtin.candidates import Candidates, Part
from tmkd.data.builtin.corpus import Corpus, Question, pick_headings, repeats
from tmkd.data.builtin.judgements import Judgements
from tmkd.data.decontamination import MOST_TELLING, NEAR, feature_auc
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.text import jaccard, question_key, tokens, unit_hash
from tmkd.data.pairs import Pairs

TRAIN, DEV = 0.55, 0.15  # the rest is test
HEADING_NEGATIVES = 3
TRAIN_NEGATIVES = 4  # of a question in the training set
EVAL_NEGATIVES = 9  # of a question in the development and test sets
SEED = 0  # chooses the headings, and the questions where there is a limit on them
ANYTHING = 4  # one negative in this many may be any passage, the others are passages of other answers


def make_pairs(
    corpus: Corpus, sizes: DebianDocsSizes, judgements: Judgements
) -> tuple[dict[str, Pairs], dict[str, Any]]:
    """Make the pairs of train, dev, test and pool.

    Returns:
        The pairs of each part by its name, and counts of what is in them, for the report.

    Raises:
        DataError: no question is left for train, dev or test, or a feature that says nothing of the question tells the
            labels of the development or test set apart.
    """
    return _Builder(corpus, sizes, judgements).build()


def to_judge(corpus: Corpus, judgements: Judgements, spare: int) -> list[tuple[str, list[str], list[str]]]:
    """What the bi-encoder is to be asked yet: questions, their positives, and negatives that BM25 puts above these.

    The rows replace a negative that answers by the next candidate, which may not be judged either. So call this again
    after judging, until it returns nothing.

    Args:
        corpus: the documentation.
        judgements: what the bi-encoder has been asked already.
        spare: negatives of each question beyond those that its rows need.
    """
    return _Builder(corpus, DebianDocsSizes(), judgements, spare).to_judge()


def refuse_shortcuts(aucs: Mapping[str, Mapping[str, float]]) -> None:
    """Check the ROC-AUC of features that say nothing of the question, by feature and held-out set.

    Raises:
        DataError: one is further from 0.5 than MOST_TELLING: figures on such rows would mean little.
    """
    for feature, by_part in aucs.items():
        for name, auc in by_part.items():
            if max(auc, 1 - auc) > MOST_TELLING:
                raise DataError(
                    f"debian-docs: in the {name} set the feature {feature!r} of the passage alone has a ROC-AUC of "
                    f"{auc:.3f}, and {MOST_TELLING} is the most that is allowed: a scorer could do without the "
                    "question. Use more packages or more questions"
                )


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


class _Builder:
    """Makes the pairs. Holds the candidates, and the questions and passages that training must not see."""

    def __init__(self, corpus: Corpus, sizes: DebianDocsSizes, judgements: Judgements, spare: int = 0) -> None:
        self.passages = corpus.passages
        self.headings = corpus.headings
        self.sizes = sizes
        self.spare = spare
        self.candidates = Candidates(corpus.passages, judgements)
        self.held_questions: list[frozenset[str]] = []
        self.held_passages: set[int] = set()
        self.answering: Counter[str] = Counter()  # negatives that answer, by part
        self.unjudged: dict[str, list[tuple[Question, int]]] = {"train": [], "dev": [], "test": []}
        questions = [question for question in corpus.questions if self.candidates.positives(question)]
        self.answers = self._answers_of(questions)
        self.parts = self._split(questions)
        self.negatives = self._held_negatives(corpus.questions)
        if sizes.max_questions is not None:  # after the choice of what is held out, which must not depend on sizes
            ordered = sorted(questions, key=lambda one: unit_hash(one.text, f"use {SEED}"))
            used = {question.qid for question in ordered[: sizes.max_questions]}
            self.parts = {name: [one for one in part if one.qid in used] for name, part in self.parts.items()}

    def build(self) -> tuple[dict[str, Pairs], dict[str, Any]]:
        """Every part's pairs by its name, and the counts."""
        train, dev, test = (self._labelled(self.parts[name], name) for name in ("train", "dev", "test"))
        pool, counts = self._pool()
        for name, part in (("train", train), ("dev", dev), ("test", test)):
            if not len(part):
                raise DataError(f"debian-docs: no question is left for {name}; use more packages or more questions")
        rows = {"train": train, "dev": dev, "test": test, "pool": pool}
        answers = {passage.pid for passage in self.passages if passage.answer_of is not None}
        seen = {*train.pids, *pool.pids}
        being_answer = {name: auc_of(rows[name], answers.__contains__) for name in ("train", "dev", "test")}
        being_unseen = {name: auc_of(rows[name], lambda pid: pid not in seen) for name in ("dev", "test")}
        refuse_shortcuts({"is an answer": {n: being_answer[n] for n in ("dev", "test")}, "is unseen": being_unseen})
        return rows, {
            "rows": {name: len(part) for name, part in rows.items()},
            "questions": {name: len(found) for name, found in self.parts.items()},
            "questions_per_source": dict(Counter(one.source for found in self.parts.values() for one in found)),
            "positives": {name: int((rows[name].labels == 1).sum()) for name in ("train", "dev", "test")},
            "auc_of_being_an_answer": being_answer,
            "auc_of_being_unseen": being_unseen,
            "negatives_that_answer": {name: self.answering[name] for name in ("train", "dev", "test")},
            "negatives_never_judged": {name: len(found) for name, found in self.unjudged.items()},
            "pool": counts,
            "passages": len(self.passages),
            "held_out_passages": len(self.held_passages),
        }

    def _split(self, questions: Sequence[Question]) -> dict[str, list[Question]]:
        """Train, dev and test by hash. Questions of train and dev nearly equal to a held-out question are dropped."""
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
            for question in held:  # hold out the answer, what is nearly equal to it, and what quotes the question
                for number in question.passages:
                    self.held_passages |= self.candidates.near(number)
                self.held_passages |= self.candidates.quoting(question.text)
                bar.advance(1)
        # if two questions share an answer, the held-out question keeps it
        parts["train"] = [one for one in parts["train"] if not self.held_passages.intersection(one.passages)]
        return parts

    def _near_held(self, text: str) -> bool:
        words = tokens(text)
        return any(jaccard(words, held) >= NEAR for held in self.held_questions)

    def _answers_of(self, questions: Iterable[Question]) -> Part:
        return self.candidates.part({number for one in questions for number in self.candidates.positives(one)})

    def _held_negatives(self, questions: Iterable[Question]) -> dict[str, list[int]]:
        """The negatives of every development and test question, by qid; they and what is nearly equal are held out.

        They are answers to other held-out questions, and passages of no question's answer. So neither a positive nor a
        negative of these sets is in training or in the pool, whatever the sizes.
        """
        held = {name: self.parts[name] for name in ("dev", "test")}
        of_held = {question.qid for part in held.values() for question in part}
        trained = {number for one in questions if one.qid not in of_held for number in one.passages}
        trained -= self.held_passages
        answers = self._answers_of(question for part in held.values() for question in part)
        found: dict[str, list[int]] = {}
        for name, part in held.items():
            with progress(f"{name} negatives", len(part), "questions") as bar:
                for question in part:
                    found[question.qid] = self._negatives(
                        question, EVAL_NEGATIVES + self.spare, answers, name,
                        lambda number: trained.isdisjoint(self.candidates.near(number)),
                    )  # fmt: skip
                    bar.advance(1)
        for number in {number for chosen in found.values() for number in chosen}:
            self.held_passages |= self.candidates.near(number)
        return found

    def _negatives(
        self, question: Question, count: int, answers: Part, name: str, may: Callable[[int], bool]
    ) -> list[int]:
        """The best passages of other answers; one in ANYTHING, or more if those run out, from all passages.

        Without passages that answer the question, which are counted.
        """
        answering, unjudged = set(), set()

        def usable(number: int) -> bool:
            if not may(number):
                return False
            judged = self.candidates.judged(question, number)
            if judged is None:
                unjudged.add(number)
            elif judged:
                answering.add(number)
            return not judged

        def retrieve(most: int, among: Part) -> Iterator[int]:
            return self.candidates.retrieve(question.text, most, among, own=question.passages, usable=usable)

        chosen = dict.fromkeys(retrieve(count - count // ANYTHING, answers))
        others = retrieve(2 * count, self.candidates.everything)
        while len(chosen) < count and (number := next(others, None)) is not None:
            chosen[number] = None
        self.answering[name] += len(answering)
        self.unjudged[name] += [(question, number) for number in sorted(unjudged)]
        return list(chosen)

    def _free(self, number: int) -> bool:
        return number not in self.held_passages

    def _labelled(self, questions: Sequence[Question], name: str) -> Pairs:
        rows = _Rows()
        with progress(f"{name} pairs", len(questions), "questions") as bar:
            for question in questions:
                for number in self.candidates.positives(question):
                    rows.add(question.text, question.qid, self.passages[number], 1)
                negatives = self.negatives.get(question.qid)
                if negatives is None:
                    negatives = self._negatives(question, TRAIN_NEGATIVES + self.spare, self.answers, name, self._free)
                for number in negatives:
                    rows.add(question.text, question.qid, self.passages[number], 0)
                bar.advance(1)
        if name == "train":
            self._add_headings(rows)
        return rows.pairs(labelled=True)

    def _add_headings(self, rows: _Rows) -> None:
        """Pairs of headings: the first passage below each, and the best of the first passages below other headings.

        No negative of a heading is judged: the passages below a heading need not answer it as a FAQ's answer does.
        """
        below: dict[str, list[int]] = {}
        for number, passage in enumerate(self.passages):
            if passage.answer_of is None and passage.heading_path and number not in self.held_passages:
                below.setdefault(question_key(passage.heading_path[-1]), []).append(number)
        firsts = self.candidates.part({numbers[0] for numbers in below.values()})
        left = self.sizes.train_headings
        with progress("train pairs of headings", left, "headings") as bar:
            for heading in self._free_headings() if left else ():
                own = below.get(question_key(heading), [])
                if not own or repeats(self.passages[own[0]], heading):
                    continue
                qid = _heading_id(heading)
                rows.add(heading, qid, self.passages[own[0]], 1)
                found = self.candidates.retrieve(heading, HEADING_NEGATIVES, firsts, own=own, usable=self._free)
                for number in found:
                    rows.add(heading, qid, self.passages[number], 0)
                bar.advance(1)
                left -= 1
                if left == 0:
                    break

    def _pool(self) -> tuple[Pairs, dict[str, int]]:
        rows = _Rows()
        asked = {one.qid for found in self.parts.values() for one in found}
        train = self.parts["train"]
        headings = list(itertools.islice(self._free_headings(), self.sizes.headings))
        retrieve, everything = self.candidates.retrieve, self.candidates.everything
        most = self.sizes.pool_per_question
        with progress("pool", len(train) + len(headings), "questions") as bar:
            for question in train:
                own = self.candidates.positives(question)
                found = retrieve(question.text, most, everything, usable=self._free)
                others = retrieve(question.text, most // 3, self.answers, own=question.passages, usable=self._free)
                for number in dict.fromkeys((*own, *found, *others)):
                    rows.add(question.text, question.qid, self.passages[number], None)
                bar.advance(1)
            of_questions = len(rows.questions)
            for heading in headings:
                qid = _heading_id(heading)
                assert qid not in asked
                for number in retrieve(heading, self.sizes.pool_per_heading, everything, usable=self._free):
                    rows.add(heading, qid, self.passages[number], None)
                bar.advance(1)
        counts = {
            "of_questions": of_questions,
            "of_headings": len(rows.questions) - of_questions,
            "headings": len(headings),
        }
        return rows.pairs(labelled=False), counts

    def _free_headings(self) -> Iterator[str]:
        """Headings in the order of a hash, except those nearly equal to a held-out or equal to a training question."""
        train = {question_key(question.text) for question in self.parts["train"]}
        usable = [one for one in self.headings if question_key(one[0]) not in train]
        for heading, _ in pick_headings(usable, len(usable), SEED):
            if not self._near_held(heading):
                yield heading

    def to_judge(self) -> list[tuple[str, list[str], list[str]]]:
        """See the function of this name."""
        self._labelled(self.parts["train"], "train")
        asked: dict[str, tuple[Question, list[str]]] = {}
        for question, number in (pair for found in self.unjudged.values() for pair in found):
            asked.setdefault(question.qid, (question, []))[1].append(self.passages[number].text)
        return [
            (question.text, [self.passages[number].text for number in self.candidates.positives(question)], texts)
            for question, texts in asked.values()
        ]


def auc_of(rows: Pairs, feature: Callable[[str], bool]) -> float:
    """The ROC-AUC of a feature of the passage's id alone; near 0.5: it says nothing of the label."""
    return round(feature_auc(np.array([feature(pid) for pid in rows.pids]), rows.labels), 3)


def _heading_id(heading: str) -> str:
    return f"h-{hashlib.blake2b(heading.encode(), digest_size=8).hexdigest()}"
