"""A question to its answers: retrieve passages, rank them with the student, mark the sentence that answers best."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from tmkd.core.errors import DataError, ExportError
from tmkd.data.documents.index import DocumentIndex, Found
from tmkd.data.documents.passages import sentence_spans
from tmkd.data.documents.text import storable
from tmkd.inference.qa.calibration import Calibration
from tmkd.inference.qa.windows import LONGEST_TOKEN, Span, Windows

_LEAST_WORDS = 3  # a shorter sentence ("Yes.") says nothing on its own


class PairScorer(Protocol):
    """What scores pairs: `tmkd.inference.scorer.Scorer`, or anything that stands before one.

    Attributes:
        max_length: tokens of a pair that it reads.
    """

    max_length: int

    def scores(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds that the passage answers the question, [N] float64."""
        ...


@dataclass(frozen=True)
class Answer:
    """A passage that may answer.

    Attributes:
        rank: from 1.
        passage_id: names the passage's text.
        text: the passage.
        marked: character span in `text` of its best sentence.
        window: character span that was scored best, where the passage is longer than the student's length.
        score: log-odds, unsquashed, less what retrieval holds against the passage (`Calibration.retrieval_weight`):
            ranked by this.
        probability: calibrated (temperature), for display.
        retrieval_rank: its rank by BM25, from 1.
        title: of its document. heading_path: the headings it stands under, outermost first.
        source: its document's path or URL.
    """

    rank: int
    passage_id: str
    text: str
    marked: tuple[int, int]
    window: tuple[int, int] | None
    score: float
    probability: float
    retrieval_rank: int
    title: str
    heading_path: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Answers:
    """The answers to a question, best first.

    Attributes:
        answered: False where the best probability is below the no-answer threshold, or nothing was found; answers are
            given all the same.
        candidates: how many passages were ranked.
        milliseconds: "retrieve", "rank", "mark", "total".
    """

    question: str
    answered: bool
    answers: list[Answer]
    candidates: int
    milliseconds: dict[str, float]

    def shown(self) -> list[RenderableType]:
        """The answers for a terminal: headings, text with the best sentence in bold, source and scores.

        The first line says so where no answer is good enough or no passage was found.
        """
        found: list[RenderableType] = []
        if not self.answers:
            found.append(Text("no passage of the index has a word of this question"))
        elif not self.answered:
            found.append(Text("no passage answers this well; the nearest:", style="yellow"))
        for answer in self.answers:
            headings = " > ".join(dict.fromkeys(one for one in (answer.title, *answer.heading_path) if one))
            head = Text(f"{answer.rank}. ", style="bold").append(headings or answer.source, style="bold cyan")
            text, read = Text(answer.text), ""
            text.stylize("bold", *answer.marked)
            if answer.window is not None:  # only this part of a long passage was scored best
                start, stop = answer.window
                text.stylize("dim", 0, start)
                text.stylize("dim", stop, len(answer.text))
                read = f", read in part: characters {start:,} to {stop:,}"
            place = f"{answer.source}  probability {answer.probability:.2f}, score {answer.score:+.2f}"
            foot = Text(f"{place}, {answer.retrieval_rank}. by BM25{read}", style="dim")
            found += [head, Padding(text, (0, 0, 0, 3)), Padding(foot, (0, 0, 1, 3))]
        return found

    def timing(self) -> str:
        """How many passages were ranked, and the milliseconds of each stage, in one line."""
        times = self.milliseconds
        return (
            f"{self.candidates} passages in {times['total']:.0f} ms: "
            f"retrieve {times['retrieve']:.0f}, rank {times['rank']:.0f}, mark {times['mark']:.0f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Every field; spans are lists of two."""
        return asdict(self)


@dataclass(frozen=True)
class Scored:
    """A passage as the student sees it: log-odds of its best window, and that window; None where it was read whole."""

    log_odds: float
    window: Span | None


@dataclass(frozen=True)
class Ranked:
    """A retrieved passage: its rank by BM25 from 1, how the student sees it, and the score that it is ranked by."""

    found: Found
    retrieval_rank: int
    scored: Scored
    score: float


def order(found: Sequence[Found], scored: Sequence[Scored], retrieval_weight: float) -> list[Ranked]:
    """Retrieved passages (best first) by the student's log-odds and, at that weight, by BM25; equal ones as retrieved.

    BM25 counts by how far a passage stays behind the best of its question: that is what can be compared.
    """
    top = max((one.score for one in found), default=0.0)
    ranked = [
        Ranked(one, place, seen, seen.log_odds - retrieval_weight * (top - one.score))
        for place, (one, seen) in enumerate(zip(found, scored, strict=True), start=1)
    ]
    return sorted(ranked, key=lambda one: (-one.score, one.retrieval_rank))


class QuestionAnswerer:
    """Answers questions from an index with a student. As safe to share between threads as its scorer.

    Args:
        scorer: the student.
        index: where passages are found.
        calibration: temperature and no-answer threshold.
        model: the folder of the student's tokenizer, to count tokens exactly where a passage may be longer than the
            student's length; without it they are estimated.
    """

    def __init__(
        self,
        scorer: PairScorer,
        index: DocumentIndex,
        *,
        calibration: Calibration = Calibration(),  # noqa: B008 (frozen)
        model: Path | None = None,
    ) -> None:
        self.scorer, self.index, self.calibration = scorer, index, calibration
        self._windows = Windows(scorer.max_length, model)

    @classmethod
    def open(
        cls,
        model: str | Path,
        index: str | Path,
        *,
        backend: str = "auto",
        threads: int | None = None,
        calibration: Calibration | None = None,
    ) -> QuestionAnswerer:
        """Open an export and an index.

        Args:
            model: the export.
            index: the folder of the index.
            backend: a backend of the export, or `auto`, as for `tmkd.Scorer`.
            threads: threads that score, as for `tmkd.Scorer`.
            calibration: used in place of the export's own.

        Raises:
            ExportError: no export, a damaged one, or one with other than two classes.
            DataError: no usable index, or an empty one.
            MissingExtraError: the index needs a package that is not installed.
        """
        from tmkd.inference.scorer import Scorer

        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(DocumentIndex.open, Path(index))
            scorer = Scorer(Path(model), backend=backend, threads=threads)
            opened = opening.result()
        if scorer.classes != 2:
            raise ExportError(f"{model} has {scorer.classes} classes; answering needs a student of two")
        if not len(opened):
            raise DataError(f"{index} holds no passage; fill it with: tmkd index DOCS --out {index}")
        return cls(scorer, opened, calibration=calibration or Calibration.read(Path(model)), model=Path(model))

    def ask(self, question: str, *, top: int = 5, candidates: int = 100) -> Answers:
        """The best passages for a question.

        Args:
            top: how many answers are wanted.
            candidates: how many passages are retrieved and ranked.

        Raises:
            DataError: an empty question, or a number below 1.
        """
        if top < 1:
            raise DataError(f"top is {top}; ask for 1 answer or more")
        clock = _Clock()
        question = storable(question)
        found = self.retrieve(question, candidates)
        clock.lap("retrieve")
        ranked = self.rank(question, found)[:top]
        clock.lap("rank")
        marks = self._mark(question, ranked)
        answers = [
            self._answer(place, one, mark) for place, (one, mark) in enumerate(zip(ranked, marks, strict=True), 1)
        ]
        clock.lap("mark")
        least = self.calibration.threshold
        answered = bool(answers) and (least is None or answers[0].probability >= least)
        return Answers(question, answered, answers, len(found), clock.total())

    def retrieve(
        self, question: str, candidates: int, *, exclude: Collection[str] = (), headings: bool = True
    ) -> list[Found]:
        """The passages to be ranked, best first by BM25; arguments as `DocumentIndex.search` takes them.

        Raises:
            DataError: an empty question, or no candidates.
        """
        if not question.strip():
            raise DataError("the question is empty")
        if candidates < 1:
            raise DataError(f"candidates is {candidates}; rank 1 passage or more")
        return self.index.search(question, candidates, exclude=exclude, headings=headings)

    def rank(self, question: str, found: Sequence[Found]) -> list[Ranked]:
        """Retrieved passages (best first), ranked; see `order`."""
        return order(found, self.score(question, found), self.calibration.retrieval_weight)

    def score(self, question: str, found: Sequence[Found]) -> list[Scored]:
        """How the student sees each passage."""
        texts = [one.passage.text for one in found]
        windows = self._windows.of(question, texts)
        pieces = [text[start:stop] for text, spans in zip(texts, windows, strict=True) for start, stop in spans]
        if not pieces:
            return []
        scores = self._scores(question, pieces)
        scored = []
        for spans in windows:
            best, window = max(((next(scores), span) for span in spans), key=lambda one: one[0])
            scored.append(Scored(best, window if len(spans) > 1 else None))
        return scored

    def _scores(self, question: str, texts: Sequence[str]) -> Iterator[float]:
        """The score of each text; of a question longer than any student reads, what it reads is enough."""
        asked = question[: LONGEST_TOKEN * self.scorer.max_length]
        return iter(self.scorer.scores([asked] * len(texts), texts).tolist())

    def _mark(self, question: str, ranked: Sequence[Ranked]) -> list[Span]:
        """The best sentence of each passage, each sentence scored as a passage of its own."""
        spans = [_sentences(one.found.passage.text, one.scored.window) for one in ranked]
        several = [row for row, one in enumerate(spans) if len(one) > 1]
        texts = [ranked[row].found.passage.text[start:stop] for row in several for start, stop in spans[row]]
        best = [one[0] for one in spans]
        if texts:
            scores = self._scores(question, texts)
            for row in several:
                best[row] = max(((next(scores), span) for span in spans[row]), key=lambda scored: scored[0])[1]
        return best

    def _answer(self, rank: int, one: Ranked, marked: Span) -> Answer:
        passage = one.found.passage
        return Answer(
            rank,
            passage.pid,
            passage.text,
            marked,
            one.scored.window,
            one.score,
            self.calibration.probability(one.score),
            one.retrieval_rank,
            passage.title,
            passage.heading_path,
            passage.source,
        )


def _sentences(text: str, window: Span | None) -> list[Span]:
    """The sentences of a passage (a line of code is one) in its best window, of a few words at least; never none."""
    spans = []
    start = 0
    for line in text.split("\n"):
        spans += [(start + first, start + last) for first, last in sentence_spans(line)]
        start += len(line) + 1
    if window is not None:
        spans = [span for span in spans if span[0] < window[1] and window[0] < span[1]]
        wide = window[1] - window[0]  # a "sentence" without end is marked where it was read
        spans = [(max(a, window[0]), min(b, window[1])) if b - a > wide else (a, b) for a, b in spans]
    telling = [(first, last) for first, last in spans if len(text[first:last].split()) >= _LEAST_WORDS]
    return telling or spans or [window or (0, len(text))]


class _Clock:
    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name] = 1000 * (now - self._last)
        self._last = now

    def total(self) -> dict[str, float]:
        return {**self._laps, "total": 1000 * (self._last - self._start)}
