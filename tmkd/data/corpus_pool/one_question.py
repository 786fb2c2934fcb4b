"""The pairs of one question: mined in this process, or by the workers of a Ray cluster."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tmkd.core.cluster import Cluster, Do, Work
from tmkd.core.errors import ClusterError
from tmkd.data.corpus_pool.questions import Question
from tmkd.data.corpus_pool.retrieve import Retriever, Uses
from tmkd.data.documents.document_rows import row_id
from tmkd.data.documents.index import DocumentIndex

_EACH = 32  # parts a worker in one job


@dataclass(frozen=True)
class MinedQuestion:
    """What became of a question.

    Attributes:
        text: the question.
        row: its row in the file of questions.
        held_out: whether it is of the held-out files; then it is not searched for.
        hits: how many hits BM25 had.
        rows: its pairs, as a pool has them, with the `number` of the passage in the index.
        left_out: how many passages were left out, by reason.
        listed: the numbers of the passages that its pairs were chosen from.
    """

    text: str
    row: int
    held_out: bool
    hits: int
    rows: list[dict[str, Any]]
    left_out: dict[str, int]
    listed: list[int]

    @classmethod
    def of(cls, question: Question, retriever: Retriever) -> MinedQuestion:
        """Find the passages of a question."""
        if retriever.held is not None and retriever.held.question(question.text):
            return cls(question.text, question.row, True, 0, [], {}, [])
        chosen, listed, hits, dropped = retriever.passages(question.text)
        rows = []
        for one in chosen:
            passage = one.found.passage
            rows.append({
                "question": question.text, "passage": passage.text, "qid": question.qid,
                "pid": row_id(one.found.document, passage) or passage.pid, "rank": one.rank, "bm25": one.found.score,
                "source": passage.source, "number": one.number,
            })  # fmt: skip
        return cls(question.text, question.row, False, hits, rows, dict(dropped), listed)


def mined_on(
    cluster: Cluster, parts: Iterable[list[Question]], retriever: Retriever
) -> Iterator[tuple[list[Question], Iterator[MinedQuestion]]]:
    """Let the workers of a cluster find the passages of questions.

    The pool is that of one process. Where a passage may be in so many pairs only, a worker does not know in how many it
    is: a question in whose list one was too often is searched for again here. (Of `stratified` one that was not chosen
    counts, too: without it the quantiles are others.)

    Args:
        cluster: the cluster.
        parts: the questions, some at a time.
        retriever: finds passages; the workers open the same index.

    Yields:
        The questions of each part, in their order, and what became of them.
    """
    work = _Search(retriever)
    waiting = iter(parts)
    while job := list(itertools.islice(waiting, _EACH * cluster.workers)):
        tables = [pa.table({"question": [json.dumps(asdict(one)) for one in part]}) for part in job]
        for part, table in zip(job, cluster.map(work, tables, ordered=True), strict=True):
            found = [MinedQuestion(**json.loads(one)) for one in table["mined"].to_pylist()]
            if [one.row for one in found] != [one.row for one in part]:
                raise ClusterError("the cluster gave the pairs of other questions than those that were asked for")
            yield (
                part,
                (
                    MinedQuestion.of(question, retriever) if any(map(retriever.uses.full, one.listed)) else one
                    for question, one in zip(part, found, strict=True)
                ),
            )


class _Search(Work):
    """Finds the passages of questions in an index that all nodes see.

    Args:
        retriever: as of this process.
    """

    sent = False

    def __init__(self, retriever: Retriever) -> None:
        self.folder, self._version = retriever.index.folder.resolve(), retriever.index.version
        self._mining, self._held = retriever.mining, retriever.held

    def open(self, folder: Path | None) -> Do:
        """See `Work`: what became of each question, of the questions."""
        assert folder is not None
        index = DocumentIndex.open(folder)
        if index.version != self._version:
            raise ClusterError(f"a node of the cluster sees another version of the index {folder}")
        retriever = Retriever(index, self._mining, self._held, Uses(self._mining.most))

        def do(table: pa.Table) -> pa.Table:
            questions = [Question(**json.loads(one)) for one in table["question"].to_pylist()]
            return pa.table({"mined": [json.dumps(asdict(MinedQuestion.of(one, retriever))) for one in questions]})

        return do
