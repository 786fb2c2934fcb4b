"""Questions whose answers are known. Each is asked twice: with and without the documents that answer it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.core.files import Quoting
from tmkd.data.documents.index import DocumentIndex
from tmkd.data.documents.text import text_hash
from tmkd.data.pairs import Pairs
from tmkd.inference.qa.answer import QuestionAnswerer
from tmkd.inference.qa.calibration import Calibration
from tmkd.inference.qa.ranking import Ranked, Scored, order
from tmkd.inference.qa.retrieval import Retrieved, fuse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A question whose answer is in the index.

    Attributes:
        qid: Names the question.
        question: The question.
        right: Ids of the passages that answer it.
        documents: Keys of all documents that hold one of these passages.
    """

    qid: str
    question: str
    right: frozenset[str]
    documents: frozenset[str]


@dataclass(frozen=True)
class Material:
    """Labelled pairs, and the questions among them whose answers are in the index.

    Attributes:
        name: Their name in reports.
        pairs: The labelled pairs.
        cases: The questions.
        headings: Whether retrieval may read the documents' headings. It may not where the questions were taken from
            the headings: it would find each answer by its own question.
        positive: The label of the passages that answer.
    """

    name: str
    pairs: Pairs
    cases: list[Case]
    headings: bool
    positive: int = 1


@dataclass(frozen=True)
class Asked:
    """What was retrieved for a question, and the student's scores.

    Attributes:
        case: The question.
        present: Passages that were gathered with the question's source documents in the index.
        absent: Passages that were gathered when those documents were excluded.
        scored: The student's score of each passage, by its id.
        count: How many of the gathered passages become candidates.
    """

    case: Case
    present: list[Retrieved]
    absent: list[Retrieved]
    scored: dict[str, Scored]
    count: int

    def candidates(self, dense_share: float, *, sources: bool = True) -> list[Retrieved]:
        """The candidates before ranking, best first, with or without the question's source documents."""
        return fuse(self.present if sources else self.absent, self.count, dense_share)

    def ranked(self, calibration: Calibration, *, sources: bool = True) -> list[Ranked]:
        """The candidates, best first, as an answerer with this calibration ranks them."""
        found = self.candidates(calibration.dense_share, sources=sources)
        return order(found, [self.scored[one.pid] for one in found], calibration.weights)

    def found_by(self, way: str) -> list[str]:
        """Ids of the passages that one way of retrieval found, best first; `way` is "bm25" or "dense"."""
        ranks = {one.pid: getattr(one, f"{way}_rank") for one in self.present}
        return sorted((pid for pid, rank in ranks.items() if rank is not None), key=lambda pid: ranks[pid])

    def recall(self, pids: Iterable[str]) -> float:
        """The share of the question's right passages that is among these."""
        return len(self.case.right & set(pids)) / len(self.case.right)


def from_file(path: Path, index: DocumentIndex, quoting: Quoting = "auto", positive: int = 1) -> Material:
    """Labelled pairs of a file. Their passages must be passages of the index, as `tmkd ask --json` prints them.

    Args:
        path: A file of pairs with labels 0 and 1.
        index: The index.
        quoting: What a quote in a CSV or TSV file means (`tmkd.data.delimited.find_dialect`).
        positive: The label of the passages that answer.

    Raises:
        DataError: The file cannot be used, or the index holds none of the passages that answer.
    """
    from tmkd.data.rows import read_pairs

    naming = "The columns of cases are called question, passage and label; rename yours"
    pairs = read_pairs(path, classes=2, need_labels=True, quoting=quoting, naming=naming)
    return Material(
        path.name, pairs, _cases(pairs, index, str(path), positive=positive), headings=True, positive=positive
    )


def built_in(index: DocumentIndex) -> tuple[Material, Material]:
    """Development and test questions of the built-in data set. Every passage of a question's answer counts as right.

    Args:
        index: An index of `debian-docs`.

    Raises:
        DataError: The index does not hold `debian-docs`.
        FetchError: The data set could not be fetched.
    """
    from tmkd.data.builtin.debian_docs import build_demo

    docs = build_demo()
    answers: dict[str, set[str]] = {}
    for passage in docs.passages:
        if passage.answer_of is not None:
            answers.setdefault(passage.answer_of, set()).add(passage.pid)
    dev, test = (
        Material(f"debian-docs {name}", pairs, _cases(pairs, index, f"debian-docs {name}", answers), headings=False)
        for name, pairs in (("development", docs.dev), ("test", docs.test))
    )
    return dev, test


def _cases(
    pairs: Pairs, index: DocumentIndex, source: str, answers: Mapping[str, Iterable[str]] | None = None, *,
    positive: int = 1,
) -> list[Case]:  # fmt: skip
    right: dict[str, set[str]] = {}
    questions: dict[str, str] = {}
    for qid, question, passage, label in zip(pairs.qids, pairs.questions, pairs.passages, pairs.labels, strict=True):
        if label == positive:
            questions.setdefault(qid, question)
            right.setdefault(qid, set((answers or {}).get(qid, ()))).add(text_hash(passage))
    holding = index.holding(pid for pids in right.values() for pid in pids)
    cases = []
    for qid, pids in right.items():
        documents = frozenset(key for pid in pids for key in holding.get(pid, ()))
        if documents:
            cases.append(Case(qid, questions[qid], frozenset(pids), documents))
    if not cases:
        raise DataError(
            f"{source}: none of the passages that it labels {positive} is in {index.folder}; label passages as the "
            "index holds them (`tmkd ask --json` prints them), or index the documents that they come from"
        )
    asked = len(set(pairs.qids))
    for count, why in (
        (asked - len(right), f"none of their passages is labelled {positive}"),
        (len(right) - len(cases), "the index holds no answer"),
    ):
        if count:
            logger.warning(f"{source}: {count:,} of {asked:,} questions are left out: {why}")
    return cases


def ask_all(answerer: QuestionAnswerer, material: Material, candidates: int) -> list[Asked]:
    """Ask every question with and without its source documents. A passage that is found both times is scored once."""
    asked = []
    with progress(f"ask {material.name}", len(material.cases), "questions") as bar:
        for case in material.cases:
            asked.append(_ask(answerer, case, candidates, material.headings))
            bar.advance(1)
    return asked


def _ask(answerer: QuestionAnswerer, case: Case, candidates: int, headings: bool) -> Asked:
    present = answerer.gather(case.question, candidates, headings=headings)
    absent = answerer.gather(case.question, candidates, exclude=case.documents, headings=headings)
    both = {one.pid: one for one in (*present, *absent)}
    scored = answerer.score(case.question, list(both.values()))
    return Asked(case, present, absent, dict(zip(both, scored, strict=True)), candidates)


def scored_pairs(answerer: QuestionAnswerer, material: Material) -> tuple[list[float], list[int]]:
    """The student's log-odds of every pair that has a label, and 1 where the pair's passage answers, else 0."""
    pairs = material.pairs
    questions, passages, labels = pairs.questions, pairs.passages, pairs.labels.tolist()
    known = [row for row, label in enumerate(labels) if label >= 0]
    scores: list[float] = []
    with progress("score pairs", len(known)) as bar:
        for part in _parts(known, 512):
            scores += answerer.scorer.scores([questions[row] for row in part], [passages[row] for row in part]).tolist()
            bar.advance(len(part))
    return scores, [int(labels[row] == material.positive) for row in known]


def _parts(rows: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
