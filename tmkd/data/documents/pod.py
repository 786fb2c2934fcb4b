"""Parse POD (Perl's documentation format, see perlpodspec) into sections."""

from __future__ import annotations

import re
from collections.abc import Callable

from tmkd.data.documents.sections import Section, SectionBuilder, clean_heading

_ENTITIES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/", "quot": '"', "amp": "&", "apos": "'", "nbsp": " "}
_OPEN = re.compile(r"([A-Z])(<(?:<+\s)?)")
_COMMAND = re.compile(r"=([a-zA-Z]\w*)\s*(.*)", re.DOTALL)
_BULLET = re.compile(r"^(?:\*\s*|(?:\d+\.?|-)\s*$)")


def parse_pod(text: str, clean: Callable[[str], str] = clean_heading) -> list[Section]:
    """Sections of a POD document, in reading order. Text outside of POD (the code of a module) is left out.

    Args:
        text: the document.
        clean: makes a heading of its text.
    """
    paragraphs = re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n"))
    reader = _Reader(SectionBuilder(_title(paragraphs), clean))
    for paragraph in paragraphs:
        reader.paragraph(paragraph.strip("\n"))
    reader.end_item()
    return reader.builder.done()


class _Reader:
    """Takes the paragraphs one by one. Keeps a list item's label until the paragraph that it belongs to comes."""

    def __init__(self, builder: SectionBuilder) -> None:
        self.builder = builder
        self._inside = False  # between a command and `=cut`
        self._foreign = False  # between `=begin html` and `=end html`
        self._item = ""

    def paragraph(self, text: str) -> None:
        command = _COMMAND.match(text)
        if command is not None:
            self._command(command.group(1), command.group(2))
        elif not self._inside or self._foreign or not text.strip():
            return
        elif text[0] in " \t":
            self.end_item()
            self.builder.block(text, code=True)
        else:
            self.builder.block(f"{self._item}: {render(text)}" if self._item else render(text))
            self._item = ""

    def end_item(self) -> None:
        """Write a label that no paragraph has followed."""
        self.builder.block(self._item)
        self._item = ""

    def _command(self, name: str, argument: str) -> None:
        self._inside = name != "cut"
        if name == "begin":
            self._foreign = not argument.startswith(":")
        elif name == "end":
            self._foreign = False
        elif self._foreign:
            return
        elif re.fullmatch(r"head[1-6]", name):
            self.end_item()
            self.builder.heading(int(name[4:]), render(argument))
        elif name in ("over", "back"):
            self.end_item()
        elif name == "item":
            label = " ".join(_BULLET.sub("", render(argument), count=1).split())
            self._item = f"{self._item}, {label}" if self._item and label else self._item or label


def _title(paragraphs: list[str]) -> str:
    """The line below `=head1 NAME`: "name - what it is"."""
    for place, paragraph in enumerate(paragraphs[:-1]):
        if re.match(r"\s*=head1\s+NAME", paragraph):
            return " ".join(render(paragraphs[place + 1]).split())
    return ""


def render(text: str) -> str:
    """Plain text of POD with formatting codes (`C<...>`, `L<...>`, `E<lt>`, which may be nested)."""
    plain, _ = _render(text, 0, "")
    return plain


def _render(text: str, place: int, closing: str) -> tuple[str, int]:
    """Render from `place` to `closing` or the end. Returns the text and the place after the closing sign."""
    parts: list[str] = []
    while place < len(text):
        if closing and text.startswith(closing, place):
            return "".join(parts), place + len(closing)
        found = _OPEN.match(text, place)
        if found is None:
            parts.append(text[place])
            place += 1
            continue
        opening = found.group(2)
        inner_close = ">" if opening == "<" else " " + ">" * (len(opening.strip()))
        inner, place = _render(text, found.end(), inner_close)
        parts.append(_code(found.group(1), inner.strip() if len(opening) > 1 else inner))
    return "".join(parts), place


def _code(letter: str, inner: str) -> str:
    if letter in "XZ":
        return ""
    if letter == "E":
        if inner in _ENTITIES:
            return _ENTITIES[inner]
        number = inner.removeprefix("0x")
        try:
            return chr(int(number, 16 if number != inner else 10))
        except (ValueError, OverflowError):
            return inner
    if letter == "L":
        return _link(inner)
    return inner


def _link(inner: str) -> str:
    """The content of `L<...>` as a reader sees it: the text before the bar, else the address, else page and section."""
    if re.match(r"\w+:[^:\s]", inner):
        return inner
    shown, bar, _ = inner.partition("|")
    if bar:
        return shown
    page, slash, section = inner.partition("/")
    section = section.strip('"')
    if slash and section:
        return f'"{section}" in {page}' if page else f'"{section}"'
    return page.strip('"')
