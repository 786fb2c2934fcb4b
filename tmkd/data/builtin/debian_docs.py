"""The built-in data set `debian-docs`: real questions, real answers, from the documentation that Debian packages.

Labelled pairs come from FAQs: a passage of a question's own answer is positive. Negatives are the best BM25 passages,
three quarters of them of other answers, the rest of anything else. Answers read unlike reference text: with negatives
from anywhere, nearly all of them reference text, "is this out of an FAQ" alone had a ROC-AUC of 0.95, and teachers that
learned it told an answer from other answers no better than chance. So the passages that are positive for one question
are the negatives of others. The unlabelled pool pairs each training question with the passages of its own answer, with
what BM25 finds and with other answers, and headings, taken as questions, with what BM25 finds.
Training rows, and only these, may also hold headings as questions: the first passage below one is positive, the best of
those first below other headings are negative.

What keeps the measurement honest: the split hashes the question; a training question that is nearly one of development
or test is dropped; a passage of a development or test answer (or one nearly the same, or one that quotes such a
question) is in no training row and no pool row; a passage that contains the question it is paired with is not used.
A negative may still answer the question: another page can say the same. That noise is the same for every method.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.core.files import cache_folder
from tmkd.data.builtin.corpus import Corpus, Question, pick_headings, read_corpus, repeats
from tmkd.data.builtin.debian_packages import fetch
from tmkd.data.decontamination import NEAR
from tmkd.data.documents.bm25 import PassageIndex
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.text import contains, jaccard, normalise, tokens, unit_hash
from tmkd.data.pairs import Pairs

logger = logging.getLogger(__name__)

FORMAT = 3  # raise it when the code below, the parsers or the cutting change what comes out
TRAIN, DEV = 0.55, 0.15  # the rest is test
MOST_POSITIVES = 4
HEADING_NEGATIVES = 3
ANYTHING = 4  # one negative in so many may be of any document, the others are of other answers
MOST_CODE = 0.6  # a later passage of an answer with more code than this hardly answers on its own
_PARTS = ("train", "dev", "test", "pool")


@dataclass(frozen=True)
class DebianDocs:
    """The data set.

    Attributes:
        train, dev, test: labelled pairs (0 or 1), with qid and pid.
        pool: unlabelled pairs, with qid and pid.
        passages: the passage corpus, each text once.
        info: package versions, options, counts, and `digest`, the hash of all rows.
    """

    train: Pairs
    dev: Pairs
    test: Pairs
    pool: Pairs
    passages: list[Passage]
    info: dict[str, Any]


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


def build(
    *,
    pool_per_question: int = 30,
    headings: int = 4000,
    pool_per_heading: int = 6,
    train_headings: int = 0,
    train_negatives: int = 4,
    eval_negatives: int = 9,
    packages: Sequence[str] | None = None,
    seed: int = 0,
    max_questions: int | None = None,
) -> DebianDocs:
    """Build the data set, or read what an earlier call with the same packages and options built.

    Args:
        pool_per_question: passages retrieved for each training question, beside those of its own answer.
        headings: how many section headings are taken as questions of the pool.
        pool_per_heading: passages retrieved for each.
        train_headings: how many section headings are taken as questions of the training rows.
        train_negatives, eval_negatives: BM25 negatives of a question in train, and in dev and test.
        packages: names from tmkd.data.builtin.catalogue (perl-doc, debian-faq, ...); None is all.
        seed: chooses the headings, and the questions where `max_questions` is set; the split does not depend on it.
        max_questions: use only so many questions.

    Raises:
        FetchError: the packages are not to be had; says what else there is.
        DataError: an unknown package name, or no question left for train, dev or test.
    """
    options = {
        "pool_per_question": pool_per_question,
        "headings": headings,
        "pool_per_heading": pool_per_heading,
        "train_headings": train_headings,
        "train_negatives": train_negatives,
        "eval_negatives": eval_negatives,
        "seed": seed,
        "max_questions": max_questions,
    }
    fetched = fetch(packages)
    versions = {package.name: package.version for package in fetched}
    key = hashlib.sha256(json.dumps([FORMAT, versions, options], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder("debian-docs", "built") / key
    if not folder.is_dir():
        corpus = read_corpus(fetched)
        docs = _Builder(corpus, options).build({"packages": versions, "options": options})
        _save(docs, folder)
    return _load(folder)


def build_demo() -> DebianDocs:
    """The data set at the sizes of recipes/demo.yaml: where that has run it is built already."""
    return build(pool_per_question=8, headings=80, pool_per_heading=5)


@dataclass(frozen=True)
class _Part:
    """An index over some of the passages; numbers: where each stands in the corpus, None for all of them."""

    index: PassageIndex
    numbers: list[int] | None

    def search(self, query: str, count: int) -> Iterator[int]:
        """Numbers of the best passages, best first."""
        hits = (number for number, _ in self.index.search(query, count))
        return hits if self.numbers is None else (self.numbers[number] for number in hits)


class _Builder:
    """Holds the corpus, its index, and which passages training must not see."""

    def __init__(self, corpus: Corpus, options: dict[str, Any]) -> None:
        self.passages = corpus.passages
        self.headings = corpus.headings
        self.options = options
        self.index = PassageIndex.build(corpus.passages)
        self.everything = _Part(self.index, None)
        self.held_questions: list[frozenset[str]] = []
        self.held_passages: set[int] = set()
        questions = [question for question in corpus.questions if self._positives(question)]
        self.answers = self._part({number for question in questions for number in self._positives(question)})
        self.parts = self._split(questions)

    def build(self, info: dict[str, Any]) -> DebianDocs:
        """All rows; `info` gets the counts and the digest added."""
        train, dev, test = (self._labelled(self.parts[name], name) for name in ("train", "dev", "test"))
        pool, counts = self._pool()
        for name, part in (("train", train), ("dev", dev), ("test", test)):
            if not len(part):
                raise DataError(f"debian-docs: no question is left for {name}; use more packages or more questions")
        rows = dict(zip(_PARTS, (train, dev, test, pool), strict=True))
        digest = hashlib.sha256("".join(part.digest() for part in rows.values()).encode()).hexdigest()[:32]
        info |= {
            "rows": {name: len(part) for name, part in rows.items()},
            "questions": {name: len(found) for name, found in self.parts.items()},
            "questions_per_source": dict(Counter(one.source for found in self.parts.values() for one in found)),
            "positives": {name: int((rows[name].labels == 1).sum()) for name in ("train", "dev", "test")},
            "auc_of_being_an_answer": {name: self._auc_of_kind(rows[name]) for name in ("train", "dev", "test")},
            "pool": counts,
            "passages": len(self.passages),
            "held_out_passages": len(self.held_passages),
            "digest": digest,
        }
        return DebianDocs(train, dev, test, pool, self.passages, info)

    def _positives(self, question: Question) -> list[int]:
        """The first passages of the answer, without what quotes the question and what is later and mostly code."""
        usable = [number for number in question.passages if not repeats(self.passages[number], question.text)]
        told = [number for number in usable if number == usable[0] or self.passages[number].code <= MOST_CODE]
        return told[:MOST_POSITIVES]

    def _split(self, questions: Sequence[Question]) -> dict[str, list[Question]]:
        """Train, dev and test by hash; train and dev lose what is nearly a question held out from them."""
        most = self.options["max_questions"]
        if most is not None:
            questions = sorted(questions, key=lambda one: unit_hash(one.text, f"use {self.options['seed']}"))[:most]
        parts: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
        for question in questions:
            place = unit_hash(question.text, "split")
            parts["train" if place < TRAIN else "dev" if place < TRAIN + DEV else "test"].append(question)
        self.held_questions = [tokens(question.text) for question in parts["test"]]
        parts["dev"] = [question for question in parts["dev"] if not self._near_held(question.text)]
        self.held_questions += [tokens(question.text) for question in parts["dev"]]
        parts["train"] = [question for question in parts["train"] if not self._near_held(question.text)]
        held = [*parts["dev"], *parts["test"]]
        with progress("hold out", len(held), "questions") as bar:
            for question in held:
                self._hold_out(question)
                bar.advance(1)
        # an answer that two questions share is the held-out one's
        parts["train"] = [one for one in parts["train"] if not self.held_passages.intersection(one.passages)]
        return parts

    def _near_held(self, text: str) -> bool:
        words = tokens(text)
        return any(jaccard(words, held) >= NEAR for held in self.held_questions)

    def _hold_out(self, question: Question) -> None:
        """Keep from training: the answer's passages, what is nearly one of them, and what quotes the question."""
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
        """The ROC-AUC of knowing only whether a passage is out of an answer: near 0.5 where that tells nothing."""
        answers = {passage.pid for passage in self.passages if passage.answer_of is not None}
        is_answer = np.array([pid in answers for pid in rows.pids])
        return round(0.5 + float(is_answer[rows.labels == 1].mean() - is_answer[rows.labels == 0].mean()) / 2, 3)

    def _part(self, numbers: Iterable[int]) -> _Part:
        """Some of the passages, searchable alone."""
        ordered = sorted(numbers)
        return _Part(PassageIndex.build([self.passages[number] for number in ordered]), ordered)

    def _retrieve(
        self, question: str, count: int, *, training: bool, without: Sequence[int] = (), among: _Part | None = None
    ) -> Iterator[Passage]:
        """The best passages that may stand beside a question; `without`, and what is nearly one of it, is left out."""
        among = among or self.everything
        own = [tokens(self.passages[number].text) for number in without]
        excluded = set(without) | (self.held_passages if training else set())
        found = 0
        # a question of one rare word finds too little: then its answer, where it has one, asks as well
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
        negatives = self.options["train_negatives" if name == "train" else "eval_negatives"]
        with progress(f"{name} rows", len(questions), "questions") as bar:
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
        """Training rows of headings: the first passage below one, and the best of those first below other headings."""
        below: dict[str, list[int]] = {}
        for number, passage in enumerate(self.passages):
            if passage.answer_of is None and passage.heading_path and number not in self.held_passages:
                below.setdefault(normalise(passage.heading_path[-1]), []).append(number)
        firsts = self._part({numbers[0] for numbers in below.values()})
        left = self.options["train_headings"]
        with progress("train rows of headings", left, "headings") as bar:
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
        """The best passages of other answers, and the best of anything for one in ANYTHING and where those run out."""
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
        headings = list(itertools.islice(self._free_headings(), self.options["headings"]))
        with progress("pool", len(train) + len(headings), "questions") as bar:
            for question in train:
                found = self._retrieve(question.text, self.options["pool_per_question"], training=True)
                own = (self.passages[number] for number in self._positives(question))
                others = self._retrieve(
                    question.text, self.options["pool_per_question"] // 3, training=True, without=question.passages,
                    among=self.answers,
                )  # fmt: skip
                for passage in {passage.pid: passage for passage in (*own, *found, *others)}.values():
                    rows.add(question.text, question.qid, passage, None)
                bar.advance(1)
            of_questions = len(rows.questions)
            for heading in headings:
                qid = _heading_id(heading)
                assert qid not in asked
                for passage in self._retrieve(heading, self.options["pool_per_heading"], training=True):
                    rows.add(heading, qid, passage, None)
                bar.advance(1)
        counts = {
            "of_questions": of_questions,
            "of_headings": len(rows.questions) - of_questions,
            "headings": len(headings),
        }
        return rows.pairs(labelled=False), counts

    def _free_headings(self) -> Iterator[str]:
        """Headings in the order of a hash: none that is nearly a held-out question or repeats a training question."""
        train = {normalise(question.text) for question in self.parts["train"]}
        usable = [one for one in self.headings if normalise(one[0]) not in train]
        for heading, _ in pick_headings(usable, len(usable), self.options["seed"]):
            if not self._near_held(heading):
                yield heading


def _heading_id(heading: str) -> str:
    return f"h-{hashlib.blake2b(heading.encode(), digest_size=8).hexdigest()}"


def _save(docs: DebianDocs, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        place = Path(temporary) / "whole"
        for name in _PARTS:
            getattr(docs, name).save(place / f"{name}.parquet")
        columns = {
            name: [getattr(passage, name) for passage in docs.passages]
            for name in ("pid", "text", "title", "source", "section", "answer_of", "code")
        }
        table = pa.table({**columns, "heading_path": [list(passage.heading_path) for passage in docs.passages]})
        pq.write_table(table, place / "passages.parquet", compression="zstd")
        (place / "info.json").write_text(json.dumps(docs.info, indent=2))
        if folder.exists():  # another process was faster
            shutil.rmtree(place)
        else:
            os.replace(place, folder)
    logger.info(
        f"debian-docs: {docs.info['rows']} rows, {docs.info['passages']:,} passages, digest {docs.info['digest']}"
    )


def _load(folder: Path) -> DebianDocs:
    table = pq.read_table(folder / "passages.parquet")
    names = ("pid", "text", "title", "heading_path", "source", "section", "answer_of", "code")
    columns = [table.column(name).to_pylist() for name in names]
    columns[3] = [tuple(path) for path in columns[3]]
    passages = [Passage(*fields) for fields in zip(*columns, strict=True)]
    train, dev, test, pool = (Pairs.load(folder / f"{name}.parquet") for name in _PARTS)
    return DebianDocs(train, dev, test, pool, passages, json.loads((folder / "info.json").read_text()))
