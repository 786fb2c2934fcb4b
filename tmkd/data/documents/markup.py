"""HTML elements: which are not text, which stand on lines of their own; and the text of markup without a tree.

The sets of elements, classes and ids come from the pages of the usual generators.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from html.parser import HTMLParser

from tmkd.data.documents.text import word_set

DROP_TAGS = word_set(
    """
    script style title nav form svg button iframe noscript head footer img input select textarea object audio video
    template datalist clipboard-copy
    """
)
DROP_CLASSES = word_set(
    """
    navheader navfooter toc related sphinxsidebar docnav nosearch fancy_toc fancy-toc menu toplang permalink
    headerlink indexterm footer footnote footnotes contents comments_section lang-toggle up top bottomlang
    mobile-nav documentation_options searchmenu legalnotice revhistory productname edition colophon index
    genindex imgblock mediaobject admonition-title edit-this-page breadcrumbs
    """
)
DROP_IDS = word_set(
    """
    toc quickview page-header path footer footer-text comments_section searchmenu banner title topics
    """
)
NEVER_TEXT = word_set(
    """
    navheader navfooter toc sphinxsidebar docnav fancy_toc fancy-toc toplang permalink headerlink indexterm lang-toggle
    bottomlang mobile-nav searchmenu genindex edit-this-page breadcrumbs
    """
)
"""Classes and ids of these that hold no text even where nothing else does; the others mean something else elsewhere."""
LINE_NUMBERS = word_set(
    """
    linenos lineno linenodiv linenumber linenumbers line-number line-numbers line-numbers-rows line-no ln lnt
    gutter rouge-gutter blob-num hljs-ln-n hljs-ln-numbers source-line-no src-line-numbers
    """
)
"""Classes of line numbers beside code: Pygments, Rouge, Chroma, CodeRay, highlight.js, Doxygen, javadoc, rustdoc."""

HEADINGS = {f"h{n}": n for n in range(1, 7)}
BLOCKS = word_set(
    """
    p div section article main ul ol li dl dt dd blockquote table thead tbody tfoot tr td th pre hr center
    address figure figcaption details summary aside header body caption fieldset legend hgroup dialog search menu dir
    listing xmp nav form footer
    """
)
ELEMENTS = (
    BLOCKS
    | DROP_TAGS
    | word_set(
        """
        a abbr acronym area b base basefont bdi bdo big blink body br canvas center cite code col colgroup data del dfn
        em embed font frame frameset h1 h2 h3 h4 h5 h6 html i ins kbd label link map mark marquee math meta meter nobr
        noembed noframes optgroup option output p param picture plaintext progress q rb rp rt rtc ruby s samp slot small
        source span strike strong sub sup tfoot time track tt u var wbr
        """
    )
)
"""Every element of HTML, those of earlier versions too."""
_RAW = word_set("script style")  # their content is no markup, and to the end of the text if they are never closed
_NOT_HERE = word_set("img input head form")  # no end tag, or none needed; a form may hold the whole page
_TAG = re.compile(r"<(/?)([A-Za-z][\w.:-]*)([^>]*)>")
_POWER = re.compile(r"[-+\u2212]?\d+")
_ONLY_NUMBERS = re.compile(r"[\d\s.:|]*")


def are_line_numbers(classes: str | None, text: Iterable[str]) -> bool:
    """Whether an element holds the line numbers of code, and nothing else.

    Args:
        classes: the element's `class` attribute.
        text: the pieces of its text. They decide too, since some highlighters give the code that *has* line numbers
            the same class.
    """
    named = classes and not LINE_NUMBERS.isdisjoint(classes.split())
    return bool(named) and _ONLY_NUMBERS.fullmatch("".join(text)) is not None


def is_power(text: str) -> bool:
    """Whether raised text after a digit is a power, which is a number."""
    return _POWER.fullmatch(text.strip()) is not None


def shown_tags(tags: Collection[str]) -> set[str]:
    """Those of the tags amid a text that are meant to be read, as `<your-name>` and the end of `Set<String>` are.

    Those have nothing but a name, which HTML does not have or whose element would be dropped, or are of a script or a
    style; and the text has no other half of them.

    Args:
        tags: start tags, end tags and comments.
    """
    found = {tag: match.groups() for tag in tags if (match := _TAG.fullmatch(tag)) is not None}
    halves = {(slash, name.lower()) for slash, name, _ in found.values()}
    return {
        tag
        for tag, (slash, name, rest) in found.items()
        if ("" if slash else "/", name.lower()) not in halves
        and (name.lower() in _RAW or ((name.lower() not in ELEMENTS or _goes(name.lower())) and not rest.strip()))
    }


def text_of(markup: str) -> str:
    """The text of HTML, in one piece: without dropped elements, with a space for a line break or a block's edge.

    It builds no tree, so that the depth of the markup does not matter.
    """
    reader = _Text()
    reader.feed(markup)
    reader.close()
    return reader.text()


@dataclass
class _Open:
    """An element that is open and whose text may have to go: its tag and classes, and where its text begins."""

    tag: str
    classes: str
    start: int
    depth: int = 1  # itself, and elements of the same name in it


class _Text(HTMLParser):
    """Collects the text. That of a dropped element which is never closed stays, unless it is a script or a style."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._ended = ""  # the element that ended right here
        self._raised = 0  # where the text of the last `sup` begins
        self._open: list[_Open] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._edge(tag)
        if "-" in tag and "-" in self._ended:  # custom elements one after the other are blocks
            self._parts.append(" ")
        self._raised = len(self._parts) if tag == "sup" else self._raised
        classes = dict(attrs).get("class") or ""
        if self._open and self._open[-1].tag == tag:
            self._open[-1].depth += 1
        elif _goes(tag) or not LINE_NUMBERS.isdisjoint(classes.split()):
            self._open.append(_Open(tag, classes, len(self._parts)))

    def handle_endtag(self, tag: str) -> None:
        before = "".join(self._parts[max(0, self._raised - 1) : self._raised])
        if tag == "sup" and before[-1:].isdigit() and is_power("".join(self._parts[self._raised :])):
            self._parts.insert(self._raised, "^")
        if tag in (one.tag for one in self._open):
            while self._open[-1].tag != tag:
                self._open.pop()
            self._open[-1].depth -= 1
            if not self._open[-1].depth:
                self._close(self._open.pop())
        self._edge(tag)
        self._ended = tag

    def handle_data(self, data: str) -> None:
        self._ended = ""
        self._parts.append(data)

    def text(self) -> str:
        """The text so far."""
        if self._open and self._open[-1].tag in _RAW:
            self._close(self._open.pop())
        return "".join(self._parts)

    def _close(self, element: _Open) -> None:
        if _goes(element.tag) or are_line_numbers(element.classes, self._parts[element.start :]):
            del self._parts[element.start :]

    def _edge(self, tag: str) -> None:
        if tag == "br" or tag in BLOCKS or tag in HEADINGS:
            self._parts.append(" ")


def _goes(tag: str) -> bool:
    return tag in DROP_TAGS and tag not in _NOT_HERE
