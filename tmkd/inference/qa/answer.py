"""Answer a question: retrieve passages, rank them with the student, mark the sentence of each that answers best."""

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
from tmkd.data.documents.index import DocumentIndex
from tmkd.data.documents.text import storable
from tmkd.inference.qa.calibration import Calibration
from tmkd.inference.qa.ground import GroundCheck
from tmkd.inference.qa.marking import StateMarker, sentences
from tmkd.inference.qa.ranking import Ranked, Scored, order
from tmkd.inference.qa.retrieval import Retrieved, Retriever, fuse
from tmkd.inference.qa.windows import LONGEST_TOKEN, Span, Windows
from tmkd.inference.text_encoder import TextEncoder


class PairScorer(Protocol):
    """Anything that scores pairs, such as `tmkd.inference.scorer.Scorer`.

    Attributes:
        max_length: Tokens of a pair that it reads.
    """

    max_length: int

    def scores(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds that each passage answers its question, [N] float64.

        Args:
            questions: N questions.
            passages: N passages.
        """
        ...


@dataclass(frozen=True)
class Answer:
    """A passage that may answer the question.

    Attributes:
        rank: Its place among the answers, from 1.
        passage_id: A hash of its text.
        text: The passage.
        marked: Character span of its best sentence in `text`.
        window: Character span of the part that was scored best, where the passage is longer than the student reads;
            None where the student read it whole.
        score: The raw score that answers are ranked by: the student's log-odds minus what retrieval takes off
            (`Calibration.weights`).
        probability: The calibrated probability of the score, to show.
        retrieval_rank: Its place among the candidates before ranking, from 1: by BM25, or by BM25 and dense search
            together.
        title: The title of its document.
        heading_path: The headings above it in its document, outermost first.
        source: The path or URL of its document.
        bm25_rank: Its place among the best by BM25, from 1; None if it is not among them.
        dense_rank: Its place among the best by dense search, from 1; None if it is not among them, or if BM25 alone
            retrieved. Without both it is beside a passage that was found.
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
    bm25_rank: int | None = None
    dense_rank: int | None = None

    def retrieved_by(self) -> str:
        """How it was retrieved, in words, such as "3. by BM25 and 1. by dense search"."""
        ranks = (("BM25", self.bm25_rank), ("dense search", self.dense_rank))
        ways = " and ".join(f"{rank}. by {name}" for name, rank in ranks if rank is not None)
        return ways or "beside a passage that was found"


@dataclass(frozen=True)
class Answers:
    """The answers to a question, best first.

    Attributes:
        question: The question.
        answered: False where the best answer is below the no-answer threshold (`Calibration.accepts`), or where no
            passage was found. `answers` holds the best passages even then.
        answers: The best passages.
        candidates: How many passages were ranked.
        milliseconds: Time by stage: "retrieve", "rank", "mark", and "total".
        truncated: Whether the question takes more than half of what the student reads, so that beside a long passage
            its end is not read.
    """

    question: str
    answered: bool
    answers: list[Answer]
    candidates: int
    milliseconds: dict[str, float]
    truncated: bool = False

    def shown(self) -> list[RenderableType]:
        """The answers for a terminal: headings, text with the best sentence in bold, source and scores.

        The first line says so where no answer is good enough or no passage was found.
        """
        found: list[RenderableType] = []
        if self.truncated:
            found.append(Text("the question is longer than the student reads; its end was not read", style="yellow"))
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
            foot = Text(f"{place}, {answer.retrieved_by()}{read}", style="dim")
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
        """All fields, as JSON holds them."""
        return asdict(self)


class QuestionAnswerer:
    """Answers questions from an index of documents with a student. Threads may share it if they may share its scorer.

    Args:
        scorer: The student.
        index: Where passages are found.
        calibration: Temperature, no-answer threshold and the weights of retrieval. Where it was made on another index,
            with other candidates or another backend, a line of the log says so once.
        model: The folder of the student's tokenizer. It counts the tokens of passages that may be longer than the
            student reads; without it they are estimated.
        retriever: How passages are found; by BM25 alone unless given.
        reader: Of a cached student, which reads question and passage each without the other: its encoder. Sentences are
            then marked by the passage's states, and not scored as passages of their own.

    Example:
        >>> answerer = QuestionAnswerer.open("workspace/runs/demo/export", "workspace/index")  # doctest: +SKIP
        >>> answerer.ask("How do I sort a hash by value?", top=1).answers[0].source  # doctest: +SKIP
        'perlfaq4'
    """

    def __init__(
        self,
        scorer: PairScorer,
        index: DocumentIndex,
        *,
        calibration: Calibration = Calibration(),  # noqa: B008 (frozen)
        model: str | Path | None = None,
        retriever: Retriever | None = None,
        reader: TextEncoder | None = None,
    ) -> None:
        self.scorer, self.index, self.calibration = scorer, index, calibration
        self.retriever = Retriever(index) if retriever is None else retriever
        self.backend: str | None = getattr(scorer, "backend", None)  # other scorers than exports have none
        export = None if model is None else Path(model)
        self._ground = GroundCheck(calibration.ground, self.retriever, export, self.backend)
        self._ground.compare()
        self._windows = Windows(scorer.max_length, export, apart=reader is not None)
        self._reader = reader
        self._marker = None if reader is None else StateMarker(reader, self.retriever)

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
            model: An export, as `tmkd export` writes it.
            index: An index, as `tmkd index` writes it.
            backend: As `tmkd.inference.scorer.Scorer` takes it.
            threads: As `tmkd.inference.scorer.Scorer` takes it.
            calibration: Used in place of the one in the export.

        Raises:
            ValueError: `threads` is below 1.
            ExportError: The export cannot be used, or has other than two classes.
            DataError: The index cannot be used, or holds no passage.
            MissingExtraError: A package for the index or the backend is not installed.
        """
        from tmkd.inference.scorer import Scorer

        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(DocumentIndex.open, Path(index))
            scorer = Scorer(model, backend=backend, threads=threads)
            opened = opening.result()
        if scorer.classes != 2:
            raise ExportError(f"{model} has {scorer.classes} classes; answering needs a student of two")
        if not len(opened):
            raise DataError(f"{index} holds no passage; fill it with: tmkd index DOCS --out {index}")
        retriever = Retriever.open(opened, scorer.text_encoder, model=model)
        if retriever.store is not None:
            scorer.attach(retriever.store)
        return cls(
            scorer, opened, calibration=calibration or Calibration.read(Path(model)), model=Path(model),
            retriever=retriever, reader=scorer.text_encoder,
        )  # fmt: skip

    def ask(self, question: str, *, top: int = 5, candidates: int = 100) -> Answers:
        """The best passages for a question.

        Args:
            question: Any text; it has no syntax.
            top: Most answers to give.
            candidates: Most passages to retrieve and rank.

        Raises:
            ValueError: `top` or `candidates` is below 1.
            DataError: The question is empty.
        """
        if top < 1:
            raise ValueError(f"top is {top}; it must be 1 or more")
        clock = _Clock()
        question = storable(question)
        retrieved = self.retrieve(question, candidates)
        clock.lap("retrieve")
        self._ground.compare(candidates)
        ranked = self.rank(question, retrieved)[:top]
        clock.lap("rank")
        marks = self._mark(question, ranked)
        answers = [
            self._answer(place, one, mark) for place, (one, mark) in enumerate(zip(ranked, marks, strict=True), 1)
        ]
        clock.lap("mark")
        answered = bool(answers) and self.calibration.accepts(answers[0].score)
        return Answers(question, answered, answers, len(retrieved), clock.total(), self._cuts(question))

    def _cuts(self, question: str) -> bool:
        """Whether the end of a question is not read. Questions that are read apart may have their own tokenizer."""
        if self._reader is None or len(question) > LONGEST_TOKEN * self._reader.max_length:
            return self._windows.cuts(question)
        return self._reader.cuts(question)

    def retrieve(
        self, question: str, candidates: int, *, exclude: Collection[str] = (), headings: bool = True
    ) -> list[Retrieved]:
        """Retrieve the passages to rank, best first: by BM25, or by BM25 and dense search together.

        Args:
            question: Any text.
            candidates: Most passages to retrieve.
            exclude: As `DocumentIndex.search` takes it.
            headings: As `DocumentIndex.search` takes it.

        Raises:
            ValueError: `candidates` is below 1.
            DataError: The question is empty.
        """
        gathered = self.gather(question, candidates, exclude=exclude, headings=headings)
        return fuse(gathered, candidates, self.calibration.dense_share)

    def gather(
        self, question: str, candidates: int, *, exclude: Collection[str] = (), headings: bool = True
    ) -> list[Retrieved]:
        """What `retrieve` chooses from: as many passages by BM25, and as many by dense search.

        Args:
            question: As for `retrieve`.
            candidates: As for `retrieve`.
            exclude: As for `retrieve`.
            headings: As for `retrieve`.

        Raises:
            ValueError: As for `retrieve`.
            DataError: As for `retrieve`.
        """
        if not question.strip():
            raise DataError("the question is empty")
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}; it must be 1 or more")
        return self.retriever.gather(question, candidates, exclude=exclude, headings=headings)

    def rank(self, question: str, retrieved: Sequence[Retrieved]) -> list[Ranked]:
        """Rank retrieved passages by the student's scores and the calibration's weights (see `order`).

        Args:
            question: The question.
            retrieved: The passages, best first.
        """
        return order(retrieved, self.score(question, retrieved), self.calibration.weights)

    def score(self, question: str, retrieved: Sequence[Retrieved]) -> list[Scored]:
        """The student's score of each passage: that of its best window."""
        texts = [one.found.passage.text for one in retrieved]
        windows = self._windows_of(question, texts)
        pieces = [text[start:stop] for text, spans in zip(texts, windows, strict=True) for start, stop in spans]
        if not pieces:
            return []
        scores = self._scores(question, pieces)
        scored = []
        for spans in windows:
            best, window = max(((next(scores), span) for span in spans), key=lambda one: one[0])
            scored.append(Scored(best, window if len(spans) > 1 else None))
        return scored

    def _windows_of(self, question: str, texts: Sequence[str]) -> list[list[Span]]:
        """As `Windows.of`; a passage that is stored as one text has one window, so its tokens need no counting."""
        known = [self._windows.apart and self.retriever.is_stored(text) for text in texts]
        others = iter(self._windows.of(question, [text for text, one in zip(texts, known, strict=True) if not one]))
        return [[(0, len(text))] if one else next(others) for text, one in zip(texts, known, strict=True)]

    def _scores(self, question: str, texts: Sequence[str]) -> Iterator[float]:
        """The score of each text. A question that is longer than the student can read is cut first."""
        asked = question[: LONGEST_TOKEN * self.scorer.max_length]
        return iter(self.scorer.scores([asked] * len(texts), texts).tolist())

    def _mark(self, question: str, ranked: Sequence[Ranked]) -> list[Span]:
        """The best sentence of each passage: by its states, or scored as if it were a passage."""
        spans = [sentences(one.found.passage.text, one.scored.window) for one in ranked]
        several = [row for row, one in enumerate(spans) if len(one) > 1]
        best = [one[0] for one in spans]
        if self._marker is not None and several:
            asked = self._marker.asked(question)
            for row in several:
                text, window = ranked[row].found.passage.text, ranked[row].scored.window
                best[row] = self._marker.best(asked, text, window, spans[row])
        elif several:
            texts = [ranked[row].found.passage.text[start:stop] for row in several for start, stop in spans[row]]
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
            one.retrieved.bm25_rank,
            one.retrieved.dense_rank,
        )


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
