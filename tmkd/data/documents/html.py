"""Parse HTML documentation into sections: headings, paragraphs, items, table rows and code, in reading order.

One parser for the pages of the usual generators (DocBook, Sphinx, AsciiDoc) and for hand-made ones. Navigation, tables
of contents, footers, permalinks and language switches are dropped: by element, class or id, or because a list consists
of links only. On question-and-answer pages a question may not be a heading element but a `dt` that ends in a question
mark, or a paragraph all in bold that is numbered or asks something. Both count as headings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lxml import etree
from lxml import html as lxml_html

from tmkd.data.documents.charset import decode_html
from tmkd.data.documents.html_text import (
    bold_question,
    cells_of,
    code_text,
    dropped,
    inline_text,
    is_block,
    label_text,
    mark_powers,
    only_links,
)
from tmkd.data.documents.markup import DROP_CLASSES, DROP_IDS, HEADINGS, NEVER_TEXT, text_of
from tmkd.data.documents.sections import Section, SectionBuilder, bare_heading, clean_heading
from tmkd.data.documents.text import word_set

_NOTES = word_set("note tip warning caution important")
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_BOX_LEVEL = 8  # the title of a box is below every heading element
_QUESTION_LEVEL = 7
_COMPLAINT = re.compile(r"(?:I|I['’]m|I['’]ve|My)\s.*\.$")  # "My hook does not run."
_CODE = word_set("pre listing xmp")


def parse_html(data: bytes, *, built_in: bool = False) -> list[Section]:
    """Sections of an HTML document, in reading order; none if it has no text.

    A line break or the edge of a block is white space, in `pre` a newline. A document that is nested too deeply for a
    tree is one section with all of its text.

    Args:
        data: the file's bytes, decoded as `decode_html` does: in the declared charset, else as UTF-8.
        built_in: whether to read it as the built-in documentation, whose passages must stay as they are: headings lose
            every number, notes every heading and the text right after it, a term without a definition is joined with
            what follows, and raised numbers are not marked.
    """
    text = decode_html(data).text
    try:
        return _sections(text, built_in)
    except RecursionError:
        builder = SectionBuilder("")
        builder.block(text_of(text))
        return builder.done()


def _sections(text: str, built_in: bool) -> list[Section]:
    """The sections of what is marked as the main text; else of the body; else of the body with all that is dropped.

    What is dropped by class, by id or as a form is read where nothing else has text and most of it is no links.
    """
    found: list[Section] = []
    clean = bare_heading if built_in else clean_heading
    for main, undressed in ((True, False), (False, False), (False, True)):
        root = _tree(text, powers=not built_in)
        title = _title(root, clean)
        if undressed and not _undress(root):
            break
        walker = _Walker(SectionBuilder(title, clean), built_in=built_in)
        for element in _mains(root) if main else root.iter("body"):
            walker.walk(element)
            walker.end_term()
        sections = walker.builder.done()
        if any(section.blocks for section in sections):
            return sections
        found = found or sections
    return found


def add_html(builder: SectionBuilder, text: str) -> None:
    """Add the headings and blocks of a piece of HTML, as it stands in a Markdown document."""
    try:
        _Walker(SectionBuilder("")).walk(_tree(text))  # a first time, which shows whether it is nested too deeply
    except RecursionError:
        builder.block(text_of(text))
        return
    walker = _Walker(builder)
    walker.walk(_tree(text))
    walker.end_term()


def html_title(text: str) -> str:
    """The title of an HTML document or of a piece of one: its first `h1`, else its `title`, else empty."""
    try:
        return _title(_tree(text))
    except RecursionError:
        return ""


def _tree(text: str, *, powers: bool = True) -> Any:
    """The root element; an empty one if there is no text.

    Args:
        text: the document.
        powers: whether to mark raised numbers (`mark_powers`).

    Raises:
        RecursionError: the elements are nested too deeply for libxml2.
    """
    parser = lxml_html.HTMLParser(encoding="utf-8", remove_comments=True)
    try:
        root = lxml_html.document_fromstring(text.encode(), parser=parser)
    except etree.ParserError:  # nothing but comments
        return lxml_html.Element("html")
    if any(error.type_name == "ERR_RESOURCE_LIMIT" for error in parser.error_log):
        raise RecursionError
    if powers:
        mark_powers(root)
    return root


def _title(root: Any, clean: Callable[[str], str] = clean_heading) -> str:
    for element in [*root.iter("h1"), *root.iter("title")]:
        text = clean(label_text(element))
        if text:
            return re.sub(r"\s+[—-]\s+(?:Python|Apache)\b.*$| Manual Page$", "", text)
    return ""


def _mains(root: Any) -> list[Any]:
    """The elements with the main text, none inside another; the whole body if none is marked as such."""
    for path in ('.//*[@role="main"]', './/*[@id="page-content"]', './/body/*[@id="content"]', ".//body"):
        found = root.findall(path)
        if found:
            return [one for one in found if not any(above in found for above in one.iterancestors())]
    return [root]


def _undress(root: Any) -> bool:
    """Take away the classes, ids and forms for which text is dropped; tells whether most of the text is no links."""
    for element in root.iter("*"):
        classes = [one for one in (element.get("class") or "").split() if one in NEVER_TEXT or one not in DROP_CLASSES]
        element.set("class", " ".join(classes))
        if element.get("id") in DROP_IDS - NEVER_TEXT:
            del element.attrib["id"]
        if element.tag == "form":
            element.tag = "div"
    letters = sum(len("".join(inline_text(body).split())) for body in root.iter("body"))
    return sum(len("".join(inline_text(link).split())) for link in root.iter("a")) < letters / 2


class _Walker:
    """Visits every element once. `_buffer` collects inline text until the next block begins or ends.

    Args:
        builder: takes what is found.
        built_in: as `parse_html` takes it.
    """

    def __init__(self, builder: SectionBuilder, *, built_in: bool = False) -> None:
        self._built_in = built_in
        self.builder = builder
        self._buffer: list[str] = []
        self._tables: dict[Any, bool] = {}  # whether a table has rows of several cells with text
        self._term = ""  # a `dt` waits here for its `dd`

    def flush(self) -> None:
        text = "".join(self._buffer).strip()
        self._buffer.clear()
        if text:
            if self._term:
                text = f"{self._term.rstrip(':')}: {text}"
                self._term = ""
            self.builder.block(text)

    def end_term(self) -> None:
        """Write what is collected; a term that has no definition is a block of its own."""
        self.flush()
        if not self._built_in:
            self._write_term()

    def _write_term(self) -> None:
        self.builder.block(self._term)
        self._term = ""

    def walk(self, element: Any) -> None:
        if element.text:
            self._buffer.append(element.text)
        for child in element:
            if not dropped(child):
                self._element(child)
            elif is_block(child):
                self.flush()
            if child.tail:
                self._buffer.append(child.tail)

    def _element(self, element: Any) -> None:
        tag = element.tag
        if tag == "br":
            self._buffer.append(" ")
        elif tag in HEADINGS:
            self._heading(HEADINGS[tag], label_text(element))
        elif tag in _CODE:
            self._code(element)
        elif is_block(element):
            self.flush()
            self._block(element, tag)
            self.flush()
        else:
            self.walk(element)

    def _heading(self, level: int, text: str) -> None:
        self.end_term()
        self._term = ""
        self.builder.heading(level, text)

    def _code(self, element: Any) -> None:
        self.flush()
        self._write_term()
        self.builder.block(code_text(element), code=True)

    def _block(self, element: Any, tag: str) -> None:
        if tag in ("ul", "ol", "dl", "table") and only_links(element):
            return
        if tag == "dt":
            self._definition(element)
        elif tag == "p" and (question := bold_question(element)) is not None:
            self._heading(_QUESTION_LEVEL, question)
        elif tag == "tr" and (cells := cells_of(element)) is not None:
            self._row(element, cells)
        elif tag in ("div", "aside") and (classes := set((element.get("class") or "").split())):
            self._box(element, classes)
        else:
            self.walk(element)
            if tag in ("dd", "dl"):
                self.end_term()

    def _box(self, element: Any, classes: set[str]) -> None:
        """A division. A note loses its label ("Tip"); a sidebar becomes a section of its own inside the text."""
        if not classes & {"sidebar", *_NOTES}:
            self.walk(element)
            return
        above = self.builder.headings
        if "sidebar" in classes:
            title = element.find('.//p[@class="title"]')
            if title is not None:
                for kind in title.findall(".//em"):  # "BACK TO BASICS", the kind of box
                    kind.text = None
                self._heading(_BOX_LEVEL, inline_text(title))
                title.drop_tree()  # but not the text after it
        else:
            for label in [child for child in element.iter() if child.tag in HEADINGS or child.tag == "th"]:
                if self._built_in or _NOT_LETTERS.sub("", inline_text(label)).lower() in _NOTES:
                    label.clear(keep_tail=not self._built_in)
                    label.tag = "span"
        self.walk(element)
        self.flush()
        self.builder.resume(above)

    def _row(self, row: Any, cells: list[str]) -> None:
        """A row of a table: one line with bars between the cells. One cell in a table without columns is prose."""
        if sum(map(bool, cells)) > 1 or (len(cells) > 1 and any(cells) and self._has_columns(row)):
            self.end_term()
            self.builder.block(" | ".join(cells), code=True, joint="\n")
        else:
            self._buffer.extend(cells)

    def _has_columns(self, row: Any) -> bool:
        """Whether any row of the table that this row belongs to has text in several cells."""
        table = next(row.iterancestors("table"), row)
        if table not in self._tables:
            self._tables[table] = any(sum(map(bool, cells_of(one) or ())) > 1 for one in table.iter("tr"))
        return self._tables[table]

    def _definition(self, element: Any) -> None:
        text = " ".join(label_text(element).split())
        if len(text.split()) > 2 and (text.endswith("?") or _COMPLAINT.match(text)):
            self._heading(_QUESTION_LEVEL, text)
        else:  # several terms may share one definition
            self._term = f"{self._term}, {text}" if self._term else text
