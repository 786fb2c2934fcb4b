"""POD (Perl's documentation format, perlpodspec) to sections."""

from __future__ import annotations

import re

from tmkd.corpus.sections import Section, SectionBuilder

_ENTITIES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/", "quot": '"', "amp": "&", "apos": "'", "nbsp": " "}
_OPEN = re.compile(r"([A-Z])(<(?:<+\s)?)")
_COMMAND = re.compile(r"=([a-zA-Z]\w*)\s*(.*)", re.DOTALL)
_BULLET = re.compile(r"^(?:\*|\d+\.?|-)?\s*")


def parse_pod(text: str) -> list[Section]:
    """Sections of a POD document, in reading order; text outside POD (code of a module) is left out."""
    paragraphs = re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n"))
    builder = SectionBuilder(_title(paragraphs))
    inside, skipping, item = False, False, ""
    for paragraph in paragraphs:
        paragraph = paragraph.strip("\n")
        command = _COMMAND.match(paragraph)
        if command is None:
            if not inside or skipping or not paragraph.strip():
                continue
            code = paragraph[0] in " \t"
            if code and item:
                builder.block(item)
                item = ""
            builder.block(paragraph if code else _joined(item, render(paragraph)), code=code)
            item = "" if not code else item
            continue
        name, argument = command.group(1), command.group(2)
        if name == "begin":
            skipping = not argument.startswith(":")
        elif name == "end":
            skipping = False
        inside = name != "cut"
        if item and name in ("item", "back", "over") or name.startswith("head"):
            if item and name != "item":
                builder.block(item)
                item = ""
        if name.startswith("head") and name[4:].isdigit() and not skipping:
            builder.heading(int(name[4:]), render(argument))
        elif name == "item" and not skipping:
            label = _BULLET.sub("", render(argument), count=1).strip()
            item = f"{item}, {label}" if item and label else item or label
    if item:
        builder.block(item)
    return builder.done()


def _joined(item: str, text: str) -> str:
    return f"{item}: {text}" if item else text


def _title(paragraphs: list[str]) -> str:
    """The line under `=head1 NAME`, as "name - what it is"."""
    for place, paragraph in enumerate(paragraphs[:-1]):
        if re.match(r"\s*=head1\s+NAME", paragraph):
            return " ".join(render(paragraphs[place + 1]).split())
    return ""


def render(text: str) -> str:
    """POD with its formatting codes (`C<...>`, `L<...>`, `E<lt>`, nested or not) as plain text."""
    plain, _ = _render(text, 0, "")
    return plain


def _render(text: str, place: int, closing: str) -> tuple[str, int]:
    """Render from `place` up to `closing` (or the end); gives the text and the place after the closing sign."""
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
    """What a reader sees of `L<...>`: the text before the bar, else the address, else the page and section."""
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
