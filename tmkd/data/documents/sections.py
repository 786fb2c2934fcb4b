"""A parsed document: sections in reading order, each with a heading, the headings above it, and blocks of text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_CHAPTER = r"(?:Chapter|Appendix|Part)\s+[\dA-Z]+(?:\.\d+)*"
_NUMBER = re.compile(rf"""^(?:{_CHAPTER}[.:]\s+|\(\d\d?\)\s*|(?:[A-Z]\.|\d+\.)(?:\d+\.)+\s+)(?=[^\W\d_]|["'`“«‘¿¡<])""")
_ANY_NUMBER = re.compile(rf"^\s*(?:{_CHAPTER}[.:]?\s+|\(\d+\)\s*|[A-Z]?(?:\d+\.)+\d*\.?\s+|[A-Z](?:\.\d+)+\.?\s+)")
_PERMALINK = re.compile(r"(?:\s*¶#?|\s#)\s*$")
_BLANK_LINE = re.compile(r"\r?\n[ \t]*\r?\n")


@dataclass(frozen=True)
class Block:
    """A paragraph or list item (one line); or code (its lines unchanged) or a table (one line for each row)."""

    text: str
    code: bool = False


def paragraphs(text: str) -> list[Block]:
    """The paragraphs of a text that has no other layout: blank lines separate them, and each is put on one line."""
    found = (" ".join(one.split()) for one in _BLANK_LINE.split(text))
    return [Block(one) for one in found if one]


@dataclass
class Section:
    """A heading and the text below it, up to the next heading of any level.

    Attributes:
        heading: the heading, as `clean_heading` or `bare_heading` gives it; empty for text before the first heading.
        path: the headings above it, outermost first. The document's title is among them only if it is a heading.
        title: the document's title.
        blocks: the text, in reading order.
    """

    heading: str
    path: tuple[str, ...]
    title: str
    blocks: list[Block] = field(default_factory=list)


def clean_heading(text: str) -> str:
    """A heading as one line, without its permalink sign and a number that can only be that of a section.

    Those are `5.1.`, `A.1.`, `(14)` and `Chapter 5.` before words; `3. Oktober`, `2.4 GHz` and `X.509` stay.
    """
    return _without(_NUMBER, text)


def bare_heading(text: str) -> str:
    """A heading as one line, without its permalink sign and whatever number stands before it."""
    return _without(_ANY_NUMBER, text)


def _without(number: re.Pattern[str], text: str) -> str:
    text = _PERMALINK.sub("", " ".join(text.split()))
    return number.sub("", text).strip() or text.strip()


def clean_code(text: str) -> str:
    """Code with spaces for tabs, without common indent and outer blank lines, and never two blank lines in a row."""
    lines = [line.rstrip() for line in textwrap.dedent(text.expandtabs(4)).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


class SectionBuilder:
    """Collects headings and blocks in reading order. A stack of open headings gives each section its path.

    Args:
        title: the document's title.
        clean: makes a heading of its text.
    """

    def __init__(self, title: str, clean: Callable[[str], str] = clean_heading) -> None:
        self.title = title
        self._clean = clean
        self._stack: list[tuple[int, str]] = []
        self.sections: list[Section] = [Section("", (), title)]

    def heading(self, level: int, text: str) -> None:
        """Open a section, and close all open ones of its level or deeper. A heading without text is ignored."""
        text = self._clean(text)
        if not text:
            return
        while self._stack and self._stack[-1][0] >= level:
            self._stack.pop()
        self.sections.append(Section(text, tuple(name for _, name in self._stack), self.title))
        self._stack.append((level, text))

    @property
    def headings(self) -> tuple[tuple[int, str], ...]:
        """The open headings with their levels, outermost first."""
        return tuple(self._stack)

    def resume(self, headings: Sequence[tuple[int, str]]) -> None:
        """Continue the section in which these headings were open (after a box in its text), if another one is open."""
        if self._stack == list(headings):
            return
        self._stack = list(headings)
        names = [name for _, name in headings]
        self.sections.append(Section(names[-1] if names else "", tuple(names[:-1]), self.title))

    def block(self, text: str, *, code: bool = False, joint: str = "\n\n") -> None:
        """Add a block to the open section. Neighbouring code becomes one block, with `joint` in between."""
        text = clean_code(text) if code else " ".join(text.split())
        if not text:
            return
        blocks = self.sections[-1].blocks
        if code and blocks and blocks[-1].code:
            blocks[-1] = Block(f"{blocks[-1].text}{joint}{text}", code=True)
        else:
            blocks.append(Block(text, code))

    def done(self) -> list[Section]:
        """The sections. An empty one is kept if it has a heading: a question may have its answer in sections below."""
        return [section for section in self.sections if section.blocks or section.heading]
