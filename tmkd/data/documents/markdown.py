"""Parse Markdown (CommonMark with tables and YAML front matter) and plain text into sections."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import yaml

from tmkd.core.errors import needs_extra
from tmkd.data.documents.markup import shown_tags, text_of
from tmkd.data.documents.sections import Section, SectionBuilder

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?=\S)(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_NESTING = {"maxNesting": 1000}  # blocks in blocks; beyond that the parser would drop the rest of the text
_MOST_NAMED = 100  # lines that begin with the name of a script; each needs another reading
_UNCLOSED = re.compile(r"\s*<(script|style|textarea)\b(?!.*</\1)", re.DOTALL | re.IGNORECASE)
_UNDERLINE = re.compile(r"^([=\-~^\"'`#*+:.])\1{2,}\s*$")


def parse_markdown(text: str) -> list[Section]:
    """Sections of a Markdown document, in reading order.

    The title is that of the front matter, else the first heading of level 1. A document that is nested too deeply to
    be parsed is read as plain text.

    Raises:
        MissingExtraError: markdown-it-py is not installed.
    """
    try:
        return _parsed(text)
    except RecursionError:
        return parse_plain(text)


def _parsed(text: str) -> list[Section]:
    with needs_extra("qa"):
        from markdown_it import MarkdownIt

        from tmkd.data.documents.html import add_html, html_title

    title, body = _front_matter(text.replace("\r\n", "\n").replace("\r", "\n"))  # each ends a line in CommonMark
    tokens = _tokens(MarkdownIt("commonmark", _NESTING).enable("table"), body)
    builder = SectionBuilder(title or _first_heading(tokens, html_title))
    row: list[str] = []  # the cells of the table row that is open
    for place, token in enumerate(tokens):
        before = tokens[place - 1].type if place else ""
        if token.type == "inline" and before == "heading_open":
            builder.heading(int(tokens[place - 1].tag[1]), _plain(token.children or ()))
        elif token.type == "inline" and before in ("td_open", "th_open"):
            row.append(_plain(token.children or ()))
        elif token.type == "inline":
            builder.block(_plain(token.children or ()))
        elif token.type in ("fence", "code_block"):
            builder.block(token.content, code=True)
        elif token.type == "html_block":
            add_html(builder, token.content)
        elif token.type == "tr_close":
            builder.block(" | ".join(row), code=True, joint="\n")
            row = []
    return builder.done()


def _tokens(parser: Any, body: str) -> list[Any]:
    """The tokens of a text. A line that begins with a script which is never closed is no HTML, or the rest would be."""
    tokens: list[Any] = parser.parse(body)
    for _ in range(_MOST_NAMED):
        line = next((one.map[0] for one in tokens if one.type == "html_block" and _UNCLOSED.match(one.content)), None)
        if line is None:
            break
        lines = body.split("\n")
        lines[line] = lines[line].replace("<", "&lt;", 1)
        body = "\n".join(lines)
        tokens = parser.parse(body)
    return tokens


def _front_matter(text: str) -> tuple[str, str]:
    """The title in the front matter, and the text after it.

    A first line `---` begins front matter only if a YAML mapping follows at once; else it is a line across the page.
    """
    found = _FRONT_MATTER.match(text)
    if found is None:
        return "", text
    try:
        fields = yaml.load(found.group(1), Loader=yaml.BaseLoader)  # every value as it is written: "1.10", not 1.1
    except (yaml.YAMLError, RecursionError):
        return "", text
    if not isinstance(fields, dict):
        return "", text
    title = fields.get("title")
    return " ".join(title.split()) if isinstance(title, str) else "", text[found.end() :]


def _first_heading(tokens: Sequence[Any], html_title: Callable[[str], str]) -> str:
    """The first heading of level 1, which may be an HTML element; empty if there is none."""
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h1":
            return " ".join(_plain(tokens[place + 1].children or ()).split())
        if token.type == "html_block" and "<h1" in token.content.lower() and (title := html_title(token.content)):
            return title
    return ""


def _plain(children: Sequence[Any]) -> str:
    """Inline Markdown as a reader sees it: the text of links and code, the description of pictures.

    Inline HTML is read as in an HTML page: a line break is white space, and buttons and scripts are no text. What only
    looks like it (`<your-name>`, a script that is never closed) is text.
    """
    shown = shown_tags({child.content for child in children if child.type == "html_inline"})
    parts = []  # the text, as HTML
    for child in children:
        if child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif child.type == "image":
            parts.append(escape(_plain(child.children or ())))
        elif child.type == "html_inline" and child.content not in shown:
            parts.append(child.content)
        else:
            parts.append(escape(child.content))
    return text_of("".join(parts))


def parse_plain(text: str) -> list[Section]:
    """Sections of a plain text, in reading order.

    Blank lines separate paragraphs, an indented paragraph is code, and an underlined line is a heading. If the text
    begins with a heading, that is the title.
    """
    paragraphs = [one.strip("\n") for one in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")) if one.strip()]
    levels: list[str] = []  # the signs that underline headings, in the order of their first use: outermost first
    title = _heading(paragraphs[0].split("\n")) if paragraphs else None
    builder = SectionBuilder(title or "")
    for paragraph in paragraphs:
        lines = paragraph.split("\n")
        if _heading(lines) is not None:
            sign = lines[1][0]
            levels += [sign] if sign not in levels else []
            builder.heading(levels.index(sign) + 1, lines[0])
            lines = lines[2:]
        if lines and all(line.startswith(("    ", "\t")) for line in lines if line.strip()):
            builder.block("\n".join(lines), code=True)
        else:
            builder.block("\n".join(lines))
    return builder.done()


def _heading(lines: Sequence[str]) -> str | None:
    """The first line if the second underlines it, else None."""
    underlined = len(lines) > 1 and _UNDERLINE.match(lines[1]) and len(lines[1].strip()) >= len(lines[0].strip()) > 0
    return lines[0].strip() if underlined else None
