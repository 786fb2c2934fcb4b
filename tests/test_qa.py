"""Answers: retrieval, ranking, marking, windows, the no-answer threshold; no PyTorch in any of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from qa_fixtures import OverlapScorer, index_of

from tmkd.errors import DataError
from tmkd.qa import Calibration, QuestionAnswerer


@pytest.fixture
def answerer(tmp_path: Path) -> QuestionAnswerer:
    return QuestionAnswerer(OverlapScorer(), index_of(tmp_path / "index"))


def test_the_best_passage_comes_first_with_its_best_sentence_marked(answerer: QuestionAnswerer) -> None:
    answers = answerer.ask("How is a disk mounted with the mount command?", top=2)
    best = answers.answers[0]
    assert answers.answered
    assert (best.rank, best.source, best.title, best.heading_path) == (1, "mount.md", "mount", ("Use",))
    assert best.text[slice(*best.marked)] == "The mount command mounts a disk on a folder."
    assert best.window is None
    assert best.score >= answers.answers[1].score
    assert set(answers.milliseconds) == {"retrieve", "rank", "mark", "total"}
    assert answers.candidates == 2


def test_below_the_threshold_there_are_answers_but_no_answer(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index")
    question = "How do I copy a whole planet?"
    (best,) = QuestionAnswerer(OverlapScorer(), index).ask(question, top=1).answers
    for threshold, answered in ((best.probability - 0.01, True), (best.probability + 0.01, False)):
        asked = QuestionAnswerer(OverlapScorer(), index, calibration=Calibration(threshold=threshold)).ask(question)
        assert asked.answered is answered
        assert asked.answers[0].passage_id == best.passage_id
    cool = QuestionAnswerer(OverlapScorer(), index, calibration=Calibration(2.0)).ask(question).answers[0]
    assert cool.score == best.score
    assert abs(cool.probability - 0.5) < abs(best.probability - 0.5)


def test_a_long_passage_is_read_in_windows(tmp_path: Path) -> None:
    filler = " ".join(f"This is word {number}." for number in range(80))
    text = f"{filler} The mount command mounts a disk. {filler}"
    answerer = QuestionAnswerer(OverlapScorer(48), index_of(tmp_path / "index", {"long.md": text, "b.md": "Mount it."}))
    best = answerer.ask("mount a disk command").answers[0]
    assert best.window is not None
    start, stop = best.window
    assert "The mount command mounts a disk." in text[start:stop]
    assert stop - start < len(text) / 4
    assert text[slice(*best.marked)] == "The mount command mounts a disk."


def test_a_sentence_longer_than_the_window_is_marked_where_it_was_read(tmp_path: Path) -> None:
    text = "a list of words " * 60 + "mount disk command " + "and other words " * 60
    answerer = QuestionAnswerer(OverlapScorer(48), index_of(tmp_path / "index", {"long.md": text}))
    best = answerer.ask("mount a disk command").answers[0]
    assert best.marked == best.window
    assert "mount disk command" in text[slice(*best.marked)]


def test_nothing_found_and_bad_requests(answerer: QuestionAnswerer) -> None:
    nothing = answerer.ask("zebra")
    assert (nothing.answered, nothing.answers, nothing.candidates) == (False, [], 0)
    with pytest.raises(DataError, match="the question is empty"):
        answerer.ask("  ")
    with pytest.raises(DataError, match="top is 0"):
        answerer.ask("mount", top=0)
    with pytest.raises(DataError, match="candidates is 0"):
        answerer.ask("mount", candidates=0)
