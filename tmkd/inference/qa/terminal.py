"""Answers as a person reads them on a terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from tmkd.inference.qa.answer import Answer, Answers


def shown(answers: Answers) -> list[RenderableType]:
    """Each answer with its headings, its text, its source and its scores; the best sentence is bold.

    Where no answer is good enough, or no passage was found, the first line says so.
    """
    found: list[RenderableType] = []
    if not answers.answers:
        found.append(Text("no passage of the index has a word of this question"))
    elif not answers.answered:
        found.append(Text("no passage answers this well; the nearest:", style="yellow"))
    for answer in answers.answers:
        found += _one(answer)
    return found


def _one(answer: Answer) -> list[RenderableType]:
    headings = " > ".join(dict.fromkeys(one for one in (answer.title, *answer.heading_path) if one))
    head = Text(f"{answer.rank}. ", style="bold").append(headings or answer.source, style="bold cyan")
    text = Text(answer.text)
    text.stylize("bold", *answer.marked)
    read = ""
    if answer.window is not None:  # only this part of a long passage was scored best
        start, stop = answer.window
        text.stylize("dim", 0, start)
        text.stylize("dim", stop, len(answer.text))
        read = f", read in part: characters {start:,} to {stop:,}"
    place = f"{answer.source}  probability {answer.probability:.2f}, score {answer.score:+.2f}"
    foot = Text(f"{place}, {answer.retrieval_rank}. by BM25{read}", style="dim")
    return [head, Padding(text, (0, 0, 0, 3)), Padding(foot, (0, 0, 1, 3))]


def timing(answers: Answers) -> str:
    """How many passages were ranked, and the milliseconds of each stage, in one line."""
    times = answers.milliseconds
    return (
        f"{answers.candidates} passages in {times['total']:.0f} ms: "
        f"retrieve {times['retrieve']:.0f}, rank {times['rank']:.0f}, mark {times['mark']:.0f}"
    )
