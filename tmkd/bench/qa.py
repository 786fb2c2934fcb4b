"""`tmkd bench qa`: how well and how fast an export answers from an index, against what retrieval alone finds."""

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
from tmkd.inference.qa import Calibration, QuestionAnswerer
from tmkd.inference.qa.cases import Asked, ask_all, built_in, from_file

logger = logging.getLogger(__name__)

METRICS = {
    "success@1": "success_1",
    "success@5": "success_5",
    "MRR": "recip_rank",
    "nDCG@10": "ndcg_cut_10",
    "recall@10": "recall_10",
    "success@100": "success_100",
    "recall@100": "recall_100",
}
_COLUMNS = {"bm25": "BM25 alone", "dense": "dense alone", "bm25 and dense": "BM25 and dense"}
BUILT_IN = "debian-docs"
STAGES = ("retrieve", "rank", "mark", "total")
_ASKED = {"success.1,5,100", "recip_rank", "ndcg_cut.10", "recall.10,100"}
_WEIGHTS = ("retrieval_weight", "dense_weight", "dense_share")  # of the calibration
_RESAMPLES = 2000
_WARM_UP = 5  # questions that are asked before the clock starts


@dataclass(frozen=True)
class Quality:
    """One metric, with its interval over questions.

    Attributes:
        bm25: Of BM25 alone.
        dense: Of dense search alone; None where it was not used.
        candidates: Of both together, before ranking; None where dense search was not used.
        ranked: Of retrieval and ranking.
        difference: Ranked minus BM25, on the same resamples of questions.
    """

    bm25: Interval
    dense: Interval | None
    candidates: Interval | None
    ranked: Interval
    difference: Interval

    def named(self) -> dict[str, Interval]:
        """Those that there are, by the names that reports give them."""
        both = {"dense": self.dense, "bm25 and dense": self.candidates}
        used = {name: value for name, value in both.items() if value is not None}
        return {"bm25": self.bm25, **used, "retrieve and rank": self.ranked, "difference": self.difference}

    def to_json(self) -> dict[str, Any]:
        """Each as {"mean", "low", "high"}."""
        return {name: value.to_json() for name, value in self.named().items()}


@dataclass(frozen=True)
class QaFigures:
    """What `run` measured.

    Attributes:
        data: Name of the questions.
        backend: What scored.
        questions: Number of questions.
        passages: Passages of the index.
        candidates: Passages that were retrieved and ranked for each question.
        calibration: Of the export; its weights were used.
        quality: By metric.
        milliseconds: By stage, one number a question, after a warm-up.
        wrong: What `wrong_first` gives.
    """

    data: str
    backend: str
    questions: int
    passages: int
    candidates: int
    calibration: Calibration
    quality: dict[str, Quality]
    milliseconds: dict[str, Floats]
    wrong: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Every number: metrics with 95% intervals over questions, times as median, 95th percentile and largest."""
        times = {
            stage: dict(zip(("p50", "p95", "max"), np.percentile(values, [50, 95, 100]).tolist(), strict=True))
            for stage, values in self.milliseconds.items()
        }
        names = ("data", "backend", "questions", "passages", "candidates")
        counts = {name: getattr(self, name) for name in names}
        counts |= {name: getattr(self.calibration, name) for name in _WEIGHTS}
        quality = {name: value.to_json() for name, value in self.quality.items()}
        return {"bench": "qa", "machine": machine(), **counts, "quality": quality, "milliseconds": times}

    def write_wrong(self, path: Path) -> None:
        """Write `wrong` to a file of pairs, whose ending gives the format."""
        write_rows(path, self.wrong)

    def shown(self) -> list[RenderableType]:
        """Two tables for a terminal."""
        title = f"{self.data}: {self.questions:,} questions, {self.candidates} candidates of {self.passages:,} passages"
        found = Table(title=title, title_justify="left")
        found.add_column("")
        for column in next(iter(self.quality.values())).named():
            found.add_column(_COLUMNS.get(column, column), justify="right")
        for name, value in self.quality.items():
            cells = value.named()
            shown = [f"{one:+.3f}" if column == "difference" else f"{one:.3f}" for column, one in cells.items()]
            found.add_row(name, *shown)
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
    calibration = answerer.calibration
    asked = ask_all(answerer, material, candidates)
    backend = str(getattr(answerer.scorer, "backend", ""))
    times = _latency(answerer, [case.question for case in material.cases], candidates)
    passages = len(answerer.index)
    return QaFigures(
        material.name, backend, len(material.cases), passages, candidates, calibration, compare(asked, calibration),
        times, wrong_first(asked, calibration),
    )  # fmt: skip


def _built_in_index() -> Path:
    folder = cache_folder("bench") / f"index-{BUILT_IN}"
    logger.info(f"bench: {BUILT_IN} is indexed in {folder}")
    index_documents([BUILT_IN], folder, corpora=CORPORA)
    return folder


def wrong_first(asked: Sequence[Asked], calibration: Calibration) -> list[dict[str, Any]]:
    """The first passage of each question, where no label says that it answers.

    Somebody should read them: labels name one passage that answers a question, and documents hold others.

    Args:
        asked: Questions with their ranked candidates.
        calibration: What retrieval counts.

    Returns:
        One row for each such question.
    """
    found = []
    for one in asked:
        first = next(iter(one.ranked(calibration)), None)
        if first is not None and first.found.passage.pid not in one.case.right:
            passage = first.found.passage
            row = {"question": one.case.question, "passage": passage.text, "title": passage.title}
            found.append({**row, "heading_path": list(passage.heading_path), "source": passage.source})
    return found


def compare(asked: Sequence[Asked], calibration: Calibration) -> dict[str, Quality]:
    """Compare what retrieval finds, each way alone and both together, with the order after ranking.

    Args:
        asked: Questions with their candidates and scores.
        calibration: What retrieval counts in the choice of candidates and in the final order.

    Returns:
        By metric. Passages that answer and were not retrieved count too.
    """
    names = [one.case.qid for one in asked]
    resamples = Resamples(Questions.of(np.ones(len(names), dtype=np.int64), names), _RESAMPLES, seed=0)
    ways = {"bm25": {one.case.qid: one.found_by("bm25") for one in asked}}
    if any(one.found_by("dense") for one in asked):
        ways["dense"] = {one.case.qid: one.found_by("dense") for one in asked}
        shared = calibration.dense_share
        ways["candidates"] = {one.case.qid: [found.pid for found in one.candidates(shared)] for one in asked}
    ways["ranked"] = {one.case.qid: [found.retrieved.pid for found in one.ranked(calibration)] for one in asked}
    values = {way: _evaluate(asked, found, resamples.questions.names) for way, found in ways.items()}

    def measured(metric: str) -> Quality:
        of = {way: _interval(resamples, found[metric]) for way, found in values.items()}
        difference = _interval(resamples, values["ranked"][metric] - values["bm25"][metric])
        return Quality(of["bm25"], of.get("dense"), of.get("candidates"), of["ranked"], difference)

    return {name: measured(name) for name in METRICS}


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
