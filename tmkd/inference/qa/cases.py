"""Questions whose answers are known, asked twice: with the documents that answer them in the index, and without."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.data.documents.index import DocumentIndex, Found
from tmkd.data.documents.text import text_hash
from tmkd.data.pairs import Pairs
from tmkd.inference.qa.answer import QuestionAnswerer, Ranked, Scored, order

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A question whose answer is in the index.

    Attributes:
        qid: names the question.
        right: ids of the passages that answer it.
        documents: keys of all documents that hold one of them.
    """

    qid: str
    question: str
    right: frozenset[str]
    documents: frozenset[str]


@dataclass(frozen=True)
class Material:
    """Labelled pairs, what of the index answers them, and whether headings may help to find it.

    Attributes:
        name: for reports.
        headings: False where the questions were headings of the documents: then the headings give them away.
    """

    name: str
    pairs: Pairs
    cases: list[Case]
    headings: bool


@dataclass(frozen=True)
class Asked:
    """What was retrieved for a question, best first, and how the student sees it.

    Attributes:
        present: with the question's source documents in the index. absent: as if they were not there.
    """

    case: Case
    present: list[Found]
    absent: list[Found]
    scored: dict[str, Scored]

    def ranked(self, retrieval_weight: float, *, sources: bool = True) -> list[Ranked]:
        """The passages in order, with or without the question's sources."""
        found = self.present if sources else self.absent
        return order(found, [self.scored[one.passage.pid] for one in found], retrieval_weight)


def from_file(path: Path, index: DocumentIndex) -> Material:
    """Labelled pairs of a file whose passages are passages of the index (as `tmkd ask --json` gives them).

    Raises:
        DataError: the file cannot be used, or no passage that it labels 1 is in the index.
    """
    from tmkd.data.rows import read_pairs

    pairs = read_pairs(path, classes=2, need_labels=True)
    return Material(path.name, pairs, _cases(pairs, index, str(path)), headings=True)


def built_in(index: DocumentIndex) -> tuple[Material, Material]:
    """The built-in data set's development and test questions; every passage of a question's answer counts as right.

    Raises:
        DataError: the index does not hold `debian-docs`. FetchError: the data set is not to be had.
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
    pairs: Pairs, index: DocumentIndex, source: str, answers: Mapping[str, Iterable[str]] | None = None
) -> list[Case]:
    right: dict[str, set[str]] = {}
    questions: dict[str, str] = {}
    for qid, question, passage, label in zip(pairs.qids, pairs.questions, pairs.passages, pairs.labels, strict=True):
        if label == 1:
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
            f"{source}: none of the passages that it labels 1 is in {index.folder}; label passages as the index holds "
            "them (`tmkd ask --json` prints them), or index the documents that they come from"
        )
    if len(cases) < len(right):
        logger.info(
            f"{source}: {len(right) - len(cases):,} of {len(right):,} questions have no answer in the index; left out"
        )
    return cases


def ask_all(answerer: QuestionAnswerer, material: Material, candidates: int) -> list[Asked]:
    """Ask every question with and without its source documents; a passage that is found both times is scored once."""
    asked = []
    with progress(f"ask {material.name}", len(material.cases), "questions") as bar:
        for case in material.cases:
            asked.append(_ask(answerer, case, candidates, material.headings))
            bar.advance(1)
    return asked


def _ask(answerer: QuestionAnswerer, case: Case, candidates: int, headings: bool) -> Asked:
    present = answerer.retrieve(case.question, candidates, headings=headings)
    absent = answerer.retrieve(case.question, candidates, exclude=case.documents, headings=headings)
    both = {one.passage.pid: one for one in (*present, *absent)}
    scored = answerer.score(case.question, list(both.values()))
    return Asked(case, present, absent, dict(zip(both, scored, strict=True)))


def scored_pairs(answerer: QuestionAnswerer, pairs: Pairs) -> tuple[list[float], list[int]]:
    """The student's log-odds and the label of every labelled pair."""
    questions, passages, labels = pairs.questions, pairs.passages, pairs.labels.tolist()
    known = [row for row, label in enumerate(labels) if label >= 0]
    scores: list[float] = []
    with progress("score pairs", len(known)) as bar:
        for part in _parts(known, 512):
            scores += answerer.scorer.scores([questions[row] for row in part], [passages[row] for row in part]).tolist()
            bar.advance(len(part))
    return scores, [labels[row] for row in known]


def _parts(rows: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
