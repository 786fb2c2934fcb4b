"""`tmkd bench qa`: how well and how fast an export answers from an index, against BM25 alone on the same candidates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval
from rich.console import RenderableType
from rich.table import Table

from tmkd.core.console import progress
from tmkd.core.cpu import machine
from tmkd.core.errors import DataError
from tmkd.core.files import cache_folder
from tmkd.data.builtin.corpus import CORPORA
from tmkd.data.documents.reader import index_documents
from tmkd.data.writers import write_rows
from tmkd.evaluation.bootstrap import Interval, Resamples, interval
from tmkd.evaluation.metrics import Questions
from tmkd.evaluation.ranking import Floats
from tmkd.inference.qa import QuestionAnswerer
from tmkd.inference.qa.cases import Asked, ask_all, built_in, from_file

logger = logging.getLogger(__name__)

METRICS = {
    "success@1": "success_1",
    "success@5": "success_5",
    "MRR": "recip_rank",
    "nDCG@10": "ndcg_cut_10",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
}
BUILT_IN = "debian-docs"
STAGES = ("retrieve", "rank", "mark", "total")
_ASKED = {"success.1,5", "recip_rank", "ndcg_cut.10", "recall.10,100"}
_RESAMPLES = 2000
_WARM_UP = 5  # questions that are asked before the clock starts


@dataclass(frozen=True)
class Quality:
    """One metric, with its interval over questions.

    Attributes:
        bm25: Of BM25 alone.
        ranked: Of retrieval and ranking.
        difference: Ranked minus BM25, on the same resamples of questions.
    """

    bm25: Interval
    ranked: Interval
    difference: Interval

    def to_json(self) -> dict[str, Any]:
        """Each as {"mean", "low", "high"}."""
        named = (("bm25", self.bm25), ("retrieve and rank", self.ranked), ("difference", self.difference))
        return {name: value.to_json() for name, value in named}


@dataclass(frozen=True)
class QaFigures:
    """What `run` measured.

    Attributes:
        data: Name of the questions.
        backend: What scored.
        questions: Number of questions.
        passages: Passages of the index.
        candidates: Passages that were retrieved and ranked for each question.
        retrieval_weight: How much BM25's rank counted, from the export's calibration.
        quality: By metric.
        milliseconds: By stage, one number a question, after a warm-up.
        wrong: What `wrong_first` gives.
    """

    data: str
    backend: str
    questions: int
    passages: int
    candidates: int
    retrieval_weight: float
    quality: dict[str, Quality]
    milliseconds: dict[str, Floats]
    wrong: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Every number: metrics with 95% intervals over questions, times as median, 95th percentile and largest."""
        times = {
            stage: dict(zip(("p50", "p95", "max"), np.percentile(values, [50, 95, 100]).tolist(), strict=True))
            for stage, values in self.milliseconds.items()
        }
        names = ("data", "backend", "questions", "passages", "candidates", "retrieval_weight")
        counts = {name: getattr(self, name) for name in names}
        quality = {name: value.to_json() for name, value in self.quality.items()}
        return {"bench": "qa", "machine": machine(), **counts, "quality": quality, "milliseconds": times}

    def write_wrong(self, path: Path) -> None:
        """Write `wrong` to a file of pairs, whose ending gives the format."""
        write_rows(path, self.wrong)

    def shown(self) -> list[RenderableType]:
        """Two tables for a terminal."""
        title = f"{self.data}: {self.questions:,} questions, {self.candidates} candidates of {self.passages:,} passages"
        found = Table(title=title, title_justify="left")
        for column in ("", "BM25 alone", "retrieve and rank", "difference"):
            found.add_column(column, justify="left" if not column else "right")
        for name, value in self.quality.items():
            found.add_row(name, f"{value.bm25:.3f}", f"{value.ranked:.3f}", f"{value.difference:+.3f}")
        clock = Table(title=f"milliseconds of one question, warm ({self.backend}; {machine()})", title_justify="left")
        for column in ("", "median", "95th percentile"):
            clock.add_column(column, justify="left" if not column else "right")
        for stage, values in self.milliseconds.items():
            clock.add_row(stage, *(f"{value:.1f}" for value in np.percentile(values, [50, 95])))
        return [found, clock]


def run(
    model: Path, index: Path | None, pairs: Path | None, *, candidates: int = 100, threads: int | None = None
) -> QaFigures:
    """Measure an export on questions whose answers are known.

    Args:
        model: The export.
        index: An index of documents; None for the built-in corpus, which is indexed in the cache.
        pairs: Labelled pairs of passages of the index; None for the built-in test questions.
        candidates: Passages to retrieve and rank for each question.
        threads: Of the scorer; None for all usable cores.

    Raises:
        DataError: There are pairs without an index, or they cannot be used.
        ExportError: The export cannot be used.
    """
    if pairs is not None and index is None:
        raise DataError("--pairs needs --index: the documents that answer their questions")
    answerer = QuestionAnswerer.open(model, index or _built_in_index(), threads=threads)
    material = built_in(answerer.index)[1] if pairs is None else from_file(pairs, answerer.index)
    weight = answerer.calibration.retrieval_weight
    asked = ask_all(answerer, material, candidates)
    backend = str(getattr(answerer.scorer, "backend", ""))
    times = _latency(answerer, [case.question for case in material.cases], candidates)
    passages = len(answerer.index)
    return QaFigures(
        material.name, backend, len(material.cases), passages, candidates, weight, compare(asked, weight), times,
        wrong_first(asked, weight),
    )  # fmt: skip


def _built_in_index() -> Path:
    folder = cache_folder("bench") / f"index-{BUILT_IN}"
    logger.info(f"bench: {BUILT_IN} is indexed in {folder}")
    index_documents([BUILT_IN], folder, corpora=CORPORA)
    return folder


def wrong_first(asked: Sequence[Asked], retrieval_weight: float) -> list[dict[str, Any]]:
    """The first passage of each question, where no label says that it answers.

    Somebody should read them: labels name one passage that answers a question, and documents hold others.

    Args:
        asked: Questions with their ranked candidates.
        retrieval_weight: How much BM25's rank counts.

    Returns:
        One row for each such question.
    """
    found = []
    for one in asked:
        first = next(iter(one.ranked(retrieval_weight)), None)
        if first is not None and first.found.passage.pid not in one.case.right:
            passage = first.found.passage
            row = {"question": one.case.question, "passage": passage.text, "title": passage.title}
            found.append({**row, "heading_path": list(passage.heading_path), "source": passage.source})
    return found


def compare(asked: Sequence[Asked], retrieval_weight: float) -> dict[str, Quality]:
    """Compare the two orders of the same candidates.

    Args:
        asked: Questions with their candidates and scores.
        retrieval_weight: How much BM25's rank counts in the second order.

    Returns:
        By metric. Passages that answer and were not retrieved count too.
    """
    names = [one.case.qid for one in asked]
    resamples = Resamples(Questions.of(np.ones(len(names), dtype=np.int64), names), _RESAMPLES, seed=0)
    order = resamples.questions.names
    alone = _evaluate(asked, {one.case.qid: [found.passage.pid for found in one.present] for one in asked}, order)
    ranked = {one.case.qid: [scored.found.passage.pid for scored in one.ranked(retrieval_weight)] for one in asked}
    both = _evaluate(asked, ranked, order)
    return {
        name: Quality(
            _interval(resamples, alone[name]),
            _interval(resamples, both[name]),
            _interval(resamples, both[name] - alone[name]),
        )
        for name in METRICS
    }


def _evaluate(asked: Sequence[Asked], runs: Mapping[str, Sequence[str]], order: Sequence[str]) -> dict[str, Floats]:
    """trec_eval's values by metric, each [G] float64, one for each question of `order`."""
    relevant = {one.case.qid: dict.fromkeys(one.case.right, 1) for one in asked}
    scored = {qid: {pid: -float(place) for place, pid in enumerate(pids)} for qid, pids in runs.items()}
    found = pytrec_eval.RelevanceEvaluator(relevant, _ASKED).evaluate(scored)
    return {name: np.array([found.get(qid, {}).get(theirs, 0.0) for qid in order]) for name, theirs in METRICS.items()}


def _interval(resamples: Resamples, values: Floats) -> Interval:
    return interval(float(values.mean()), resamples.weights @ values / resamples.weights.sum(axis=1))


def _latency(answerer: QuestionAnswerer, questions: Sequence[str], candidates: int) -> dict[str, Floats]:
    """Ask the questions one after the other, as `tmkd ask` does: milliseconds by stage, each [questions] float64."""
    for question in questions[:_WARM_UP]:
        answerer.ask(question, candidates=candidates)
    times = []
    with progress("time the questions", len(questions), "questions") as bar:
        for question in questions:
            times.append(answerer.ask(question, candidates=candidates).milliseconds)
            bar.advance(1)
    return {stage: np.array([one[stage] for one in times]) for stage in STAGES}
