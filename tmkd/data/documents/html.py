"""Parse HTML documentation into sections: headings, paragraphs, items, table rows and code, in reading order.

One parser for the pages of the usual generators (DocBook, Sphinx, AsciiDoc) and for hand-made ones. Navigation, tables
of contents, footers, permalinks and language switches are dropped: by element, class or id, or because a list consists
of links only. On question-and-answer pages a question may not be a heading element but a `dt` that ends in a question
mark, or a paragraph all in bold that is numbered or asks something. Both count as headings.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from lxml import etree
from lxml import html as lxml_html

from tmkd.data.documents.sections import Section, SectionBuilder, clean_heading
from tmkd.data.documents.text import word_set

_DROP_TAGS = word_set(
    """
    script style nav form svg button iframe noscript head footer img input select textarea object audio video
    """
)
_DROP_CLASSES = word_set(
    """
    navheader navfooter toc related sphinxsidebar docnav nosearch fancy_toc fancy-toc menu toplang permalink
    headerlink indexterm footer footnote footnotes contents comments_section lang-toggle up top bottomlang
    mobile-nav documentation_options searchmenu legalnotice revhistory productname edition colophon index
    genindex imgblock mediaobject admonition-title edit-this-page breadcrumbs
    """
)
_DROP_IDS = word_set(
    """
    toc quickview page-header path footer footer-text comments_section searchmenu banner title topics
    """
)
_HEADINGS = {f"h{n}": n for n in range(1, 7)}
_BLOCKS = word_set(
    """
    p div section article main ul ol li dl dt dd blockquote table thead tbody tfoot tr td th pre hr center
    address figure figcaption details summary aside header body caption fieldset
    """
)
_NOTES = word_set("note tip warning caution important")
_BOX_LEVEL = 8  # the title of a box is below every heading element
_QUESTION_LEVEL = 7
_COMPLAINT = re.compile(r"(?:I|I['’]m|I['’]ve|My)\s.*\.$")  # "My hook does not run."
_NUMBERED = re.compile(r"^\(?\d+[.)]\s*\S")


def parse_html(data: bytes) -> list[Section]:
    """Sections of an HTML document, in reading order; none if it has no text.

    Args:
        data: the file's bytes. The encoding is UTF-8 if they are valid UTF-8, else the one that the document declares.
    """
    if not data.strip():
        return []
    parser = lxml_html.HTMLParser(encoding=_encoding(data), remove_comments=True)
    try:
        root = lxml_html.document_fromstring(data, parser=parser)
    except etree.ParserError:  # nothing but comments
        return []
    if any(error.type_name == "ERR_RESOURCE_LIMIT" for error in parser.error_log):
        return _flat(data)
    walker = _Walker(_title(root))
    try:
        walker.walk(_main(root))
    except RecursionError:
        return _flat(data)
    walker.flush()
    return walker.builder.done()


def _flat(data: bytes) -> list[Section]:
    """The text of a document as one section, for a document that is nested too deeply to be parsed."""
    reader = _TextOnly()
    reader.feed(data.decode("utf-8", "replace"))
    reader.close()
    builder = SectionBuilder("")
    builder.block(" ".join(reader.parts))
    return builder.done()


class _TextOnly(HTMLParser):
    """Collects a document's text. Deeply nested documents need no more memory or stack than others."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._dropped = ""  # the script or style that is open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "title"):
            self._dropped = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._dropped:
            self._dropped = ""

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            self.parts.append(data)


def _encoding(data: bytes) -> str | None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return "utf-8"


def _title(root: Any) -> str:
    for element in [*root.iter("h1"), *root.iter("title")]:
        text = clean_heading(_inline(element))
        if text:
            return re.sub(r"\s+[—-]\s+(?:Python|Apache)\b.*$| Manual Page$", "", text)
    return ""


def _main(root: Any) -> Any:
    """The element with the main text; the whole body if none is marked as such."""
    for path in ('.//*[@role="main"]', './/*[@id="page-content"]', './/body/*[@id="content"]', ".//body"):
        found = root.find(path)
        if found is not None:
            return found
    return root


def _dropped(element: Any) -> bool:
    if not isinstance(element.tag, str) or element.tag in _DROP_TAGS:
        return True
    classes = element.get("class")
    if classes and not _DROP_CLASSES.isdisjoint(classes.split()):
        return True
    return element.get("id") in _DROP_IDS and element.tag not in _HEADINGS


def _inline(element: Any) -> str:
    """The text of an element without dropped elements, with spaces for line breaks."""
    parts = [element.text or ""]
    for child in element:
        if isinstance(child.tag, str) and child.tag == "br":
            parts.append(" ")
        elif not _dropped(child):
            parts.append(_inline(child))
        parts.append(child.tail or "")
    return "".join(parts)


def _only_links(element: Any) -> bool:
    """Whether a list is a table of contents: it has two links or more, and 90% of its letters are in links."""
    links = list(element.iter("a"))
    if len(links) < 2:
        return False
    linked = sum(len("".join(link.itertext()).strip()) for link in links if link.get("href"))
    text = len("".join("".join(element.itertext()).split()))
    spaces = sum("".join(link.itertext()).count(" ") for link in links)
    return text > 0 and linked - spaces >= 0.9 * text


def _bold_question(element: Any) -> str | None:
    """The text of a paragraph that is all in bold and is numbered or a question, else None."""
    if (element.text or "").strip() or len(element) != 1 or (element[0].tail or "").strip():
        return None
    text = " ".join(_inline(element).split())
    bold = element[0].tag in ("b", "strong")
    return text if bold and (_NUMBERED.match(text) or text.endswith("?")) else None


class _Walker:
    """Visits every element once. `_buffer` collects inline text until the next block begins or ends."""

    def __init__(self, title: str) -> None:
        self.builder = SectionBuilder(title)
        self._buffer: list[str] = []
        self._term = ""  # a `dt` waits here for its `dd`

    def flush(self) -> None:
        text = "".join(self._buffer).strip()
        self._buffer.clear()
        if text:
            if self._term:
                text = f"{self._term.rstrip(':')}: {text}"
                self._term = ""
            self.builder.block(text)

    def walk(self, element: Any) -> None:
        if element.text:
            self._buffer.append(element.text)
        for child in element:
            if not _dropped(child):
                self._element(child)
            if child.tail:
                self._buffer.append(child.tail)

    def _element(self, element: Any) -> None:
        tag = element.tag
        if tag == "br":
            self._buffer.append(" ")
        elif tag in _HEADINGS:
            self._heading(_HEADINGS[tag], _inline(element))
        elif tag == "pre":
            self._code(element)
        elif tag in _BLOCKS:
            self.flush()
            self._block(element, tag)
            self.flush()
        else:
            self.walk(element)

    def _heading(self, level: int, text: str) -> None:
        self.flush()
        self._term = ""
        self.builder.heading(level, text)

    def _code(self, element: Any) -> None:
        self.flush()
        if self._term:
            self.builder.block(self._term)
            self._term = ""
        self.builder.block("".join(element.itertext()), code=True)

    def _block(self, element: Any, tag: str) -> None:
        if tag in ("ul", "ol", "dl", "table") and _only_links(element):
            return
        if tag == "dt":
            self._definition(element)
        elif tag == "p" and (question := _bold_question(element)) is not None:
            self._heading(_QUESTION_LEVEL, question)
        elif tag == "tr" and not any(cell.tag in ("pre", "ul", "ol", "dl", "table", "div") for cell in element.iter()):
            self._row(element)
        elif tag in ("div", "aside") and (classes := set((element.get("class") or "").split())):
            self._box(element, classes)
        else:
            self.walk(element)

    def _box(self, element: Any, classes: set[str]) -> None:
        """A division. A note loses its label ("Tip"); a sidebar becomes a section of its own inside the text."""
        if "sidebar" in classes:
            depth = self.builder.depth
            title = element.find('.//p[@class="title"]')
            if title is not None:
                for kind in title.findall(".//em"):  # "BACK TO BASICS", the kind of box
                    kind.text = None
                self._heading(_BOX_LEVEL, _inline(title))
                title.getparent().remove(title)
            self.walk(element)
            self.flush()
            self.builder.resume(depth)
            return
        if classes & _NOTES:
            for label in [child for child in element.iter() if child.tag in _HEADINGS or child.tag == "th"]:
                label.clear()
                label.tag = "span"
        self.walk(element)

    def _row(self, element: Any) -> None:
        """A row of a table: one line with bars between the cells. A single cell is prose in a frame."""
        cells = [text for cell in element if isinstance(cell.tag, str) and (text := " ".join(_inline(cell).split()))]
        if len(cells) > 1:
            self.builder.block(" | ".join(cells), code=True, joint="\n")
        else:
            self._buffer.extend(cells)

    def _definition(self, element: Any) -> None:
        text = " ".join(_inline(element).split())
        if len(text.split()) > 2 and (text.endswith("?") or _COMPLAINT.match(text)):
            self._heading(_QUESTION_LEVEL, text)
        else:  # several terms may share one definition
            self._term = f"{self._term}, {text}" if self._term else text
