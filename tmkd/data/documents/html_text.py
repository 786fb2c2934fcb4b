"""The text of an HTML element: what of it is dropped, where its blocks begin and end, what its links say of it."""

from __future__ import annotations

import re
from typing import Any

from tmkd.data.documents.markup import BLOCKS, DROP_CLASSES, DROP_IDS, DROP_TAGS, HEADINGS, are_line_numbers, is_power
from tmkd.data.documents.text import word_set

PERMALINKS = word_set("permalink headerlink viewcode-back")  # dropped in code, where other classes mean something else
_NUMBERED = re.compile(r"^\(?\d+[.)]\s*\S")
_PERMALINK_SIGNS = word_set("# ¶ §")
_EDGE = "\0"  # the edge of a block in code; no other text holds it
_EDGES = re.compile(rf"\n?{_EDGE}(?:\n?{_EDGE})*\n?")


def dropped(element: Any) -> bool:
    """Whether an element is no text: by its name, class or id, or since it is a permalink or holds line numbers."""
    if not isinstance(element.tag, str) or (element.tag in DROP_TAGS and not _holds_page(element)):
        return True
    classes = element.get("class")
    if classes and not DROP_CLASSES.isdisjoint(classes.split()):
        return True
    if element.get("id") in DROP_IDS and element.tag not in HEADINGS:
        return True
    if element.tag == "a" and (element.get("href") or "").startswith("#") and element.text in _PERMALINK_SIGNS:
        return len(element) == 0
    return are_line_numbers(classes, element.itertext())


def _holds_page(element: Any) -> bool:
    """Whether it is a form around the main text, as ASP.NET writes it, and not one to search or to log in."""
    return element.tag == "form" and any(one.tag in HEADINGS for one in element.iter())


def is_block(element: Any) -> bool:
    """Whether an element stands on lines of its own; a custom element (`my-card`) does if no text is beside it."""
    if element.tag in BLOCKS or element.tag in HEADINGS:
        return True
    if not isinstance(element.tag, str) or "-" not in element.tag or (_before(element) + (element.tail or "")).strip():
        return False
    beside = (one.tag for one in (element.getprevious(), element.getnext()) if one is not None)
    return all(not isinstance(tag, str) or tag in BLOCKS or tag in HEADINGS or "-" in tag for tag in beside)


def _before(element: Any) -> str:
    """The text right before an element, within the same parent."""
    previous = element.getprevious()
    if previous is None:
        parent = element.getparent()
        return "" if parent is None else parent.text or ""
    return previous.tail or ""


def mark_powers(root: Any) -> None:
    """Write a sign before raised numbers that follow a digit: 2<sup>32</sup> is 2^32 and not 232."""
    for raised in root.iter("sup"):
        previous = raised.getprevious()
        before = _before(raised) or ("" if previous is None else inline_text(previous))
        if before[-1:].isdigit() and is_power(inline_text(raised)):
            raised.text = f"^{(raised.text or '').lstrip()}"


def inline_text(element: Any) -> str:
    """The text of an element without dropped elements, with spaces for line breaks and at the edges of blocks."""
    parts = [element.text or ""]
    for child in element:
        edge = " " if child.tag == "br" or is_block(child) else ""
        parts += [edge, "" if dropped(child) else inline_text(child), edge, child.tail or ""]
    return "".join(parts)


def label_text(element: Any) -> str:
    """The text of a heading or a term. Where a button is all that it holds, as in a list of questions, the button's."""
    text = inline_text(element)
    return text if text.strip() else " ".join(inline_text(button) for button in element.iter("button"))


def code_text(element: Any) -> str:
    """The text of code without line numbers and buttons, with newlines for line breaks and at the edges of blocks."""
    return _EDGES.sub("\n", _preformatted(element))


def _preformatted(element: Any) -> str:
    parts = [element.text or ""]
    for child in element:
        if child.tag == "br":
            parts.append("\n")
        elif not _not_code(child):
            edge = _EDGE if is_block(child) else ""
            parts += [edge, _preformatted(child), edge]
        parts.append(child.tail or "")
    return "".join(parts)


def _not_code(element: Any) -> bool:
    if not isinstance(element.tag, str) or element.tag in DROP_TAGS:
        return True
    classes = element.get("class")
    return (classes and not PERMALINKS.isdisjoint(classes.split())) or are_line_numbers(classes, element.itertext())


def only_links(element: Any) -> bool:
    """Whether a list is a table of contents: it has two links or more, and 90% of its letters are in links."""
    links = list(element.iter("a"))
    if len(links) < 2:
        return False
    linked = sum(len("".join(link.itertext()).strip()) for link in links if link.get("href"))
    text = len("".join("".join(element.itertext()).split()))
    spaces = sum("".join(link.itertext()).count(" ") for link in links)
    return text > 0 and linked - spaces >= 0.9 * text


def bold_question(element: Any) -> str | None:
    """The text of a paragraph that is all in bold and is numbered or a question, else None."""
    if (element.text or "").strip() or len(element) != 1 or (element[0].tail or "").strip():
        return None
    text = " ".join(inline_text(element).split())
    bold = element[0].tag in ("b", "strong")
    return text if bold and (_NUMBERED.match(text) or text.endswith("?")) else None


def cells_of(row: Any) -> list[str] | None:
    """The texts of a table row's cells, empty ones too; None if a cell holds code, a list, a table or a division."""
    if any(one.tag in ("pre", "ul", "ol", "dl", "table", "div") for one in row.iter()):
        return None
    return [" ".join(inline_text(cell).split()) for cell in row if not dropped(cell)]
