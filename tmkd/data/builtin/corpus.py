"""The corpus of the built-in data set: questions, passages and headings of the documentation packages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tmkd.core.console import progress
from tmkd.data.builtin.catalogue import parse_file
from tmkd.data.builtin.debian_packages import Package, fetch
from tmkd.data.documents.passages import Passage, cut
from tmkd.data.documents.reader import Corpora, SourceFile
from tmkd.data.documents.sections import Block, Section
from tmkd.data.documents.text import contains, normalise, question_key, text_hash, unit_hash, word_set

LEAST_WORDS = 8  # shorter passages say nothing by themselves

_ASKING = re.compile(
    r"^(?:how|why|what|which|where|when|who|whose|is|are|am|do|does|did|can|could|should|would|will|has|have|may|must)\b",
    re.IGNORECASE,
)
_STATEMENT = re.compile(r"\b(?:I|I['’]m|My|my|not|doesn't|don't)\b|[.!]$")
_BOILERPLATE = re.compile(
    r"^\((?:contributed|this answer contributed|thanks|from|largely borrowed)[^)]{0,120}\)\s*", re.IGNORECASE
)
_GENERIC = word_set(
    """
    description notes options synopsis examples example see also author authors name overview introduction usage
    summary background history copyright license parameters arguments return value values compatibility
    environment files bugs caveats diagnostics remarks general information miscellaneous other functions
    variables index references contents configuration module directive objects type types documentation and the
    of a further reading more details
    """
)
_UNFINISHED = word_set("a an and at by for from in into of on or the to via with")  # last words of a cut heading


@dataclass
class Question:
    """A FAQ question.

    Attributes:
        qid: a hash of the question (`question_key`).
        text: the question as it is written.
        source: the package that it comes from.
        passages: the places of its answer's passages in `Corpus.passages`, in reading order.
    """

    qid: str
    text: str
    source: str
    passages: list[int] = field(default_factory=list)


@dataclass
class Corpus:
    """Everything that the data set is made of.

    Attributes:
        passages: all passages, each text once.
        questions: the FAQ questions.
        headings: headings that can serve as questions, each with its package.
    """

    passages: list[Passage]
    questions: list[Question]
    headings: list[tuple[str, str]]


def read_corpus(packages: Sequence[Package]) -> Corpus:
    """Parse the packages' files and cut them into passages.

    FAQ files come first, so that a text that is in an answer and elsewhere counts as part of the answer.
    """
    files = [(package, path) for package in packages for path in package.files()]
    files.sort(key=lambda file: not file[0].source.is_faq(file[1]))  # stable: apart from that, the catalogue's order
    reader = _Reader()
    with progress("parse", len(files), "files") as bar:
        for package, path in files:
            reader.read(package, path)
            bar.advance(1, package.source.name)
    return Corpus(reader.passages, list(reader.questions.values()), _worthwhile(reader.headings))


def file_passages(package: Package, path: Path) -> list[Passage]:
    """The passages of one file of a package, each text once; cut as in `read_corpus`."""
    reader = _Reader()
    reader.read(package, path)
    return reader.passages


def source_files() -> list[SourceFile]:
    """The files of the documentation packages, to be indexed; cut as the built-in data set cuts them.

    Raises:
        FetchError: the packages cannot be fetched.
    """
    return [_source_file(package, path) for package in fetch() for path in package.files()]


def _source_file(package: Package, path: Path) -> SourceFile:
    name = f"{package.name}/{path.relative_to(package.root).as_posix()}"
    return SourceFile(path, name, name, path.stat().st_size, lambda _content: file_passages(package, path))


CORPORA: Corpora = {"debian-docs": source_files}
"""What `tmkd index` takes as a name in place of a folder."""


def is_question(heading: str) -> bool:
    """Whether a FAQ's heading is a question, or a complaint in place of one, and not the title of a chapter."""
    words = heading.split()
    if "?" in heading:
        return len(words) > 1
    return len(words) >= 4 and bool(_ASKING.match(heading) or (len(words) >= 5 and _STATEMENT.search(heading)))


class _Reader:
    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.questions: dict[str, Question] = {}
        self.headings: list[tuple[str, str]] = []
        self._numbers: dict[str, int] = {}  # pid to place in `passages`

    def read(self, package: Package, path: Path) -> None:
        sections = parse_file(path)
        place = f"{package.name}/{path.relative_to(package.root).as_posix()}"
        if package.source.is_faq(path):
            for question, section in _answers(sections):
                self._add(section, place, package.source.name, question)
            return
        for section in sections:
            self._add(section, place, package.source.name, None)
            if section.heading and section.blocks:
                self.headings.append((section.heading, package.source.name))

    def _add(self, section: Section, place: str, source: str, question: str | None) -> None:
        headings = (*section.path, section.heading) if section.heading else section.path
        name = text_hash(f"{place} {' '.join(headings)}")
        qid = None if question is None else text_hash(question_key(question))
        entry = None
        if question is not None and qid is not None:
            entry = self.questions.setdefault(qid, Question(qid, question, source))
        for text, code in cut(_clean(section)):
            if len(normalise(text).split()) < LEAST_WORDS:
                continue
            pid = text_hash(text)
            number = self._numbers.setdefault(pid, len(self.passages))
            if number == len(self.passages):
                self.passages.append(Passage(pid, text, section.title, headings, place, name, qid, code))
            if entry is not None and number not in entry.passages:
                entry.passages.append(number)


def _answers(sections: Iterable[Section]) -> list[tuple[str | None, Section]]:
    """(question, section) of a FAQ file. A section below a question belongs to the answer, unless it is a question."""
    found: list[tuple[str | None, Section]] = []
    for section in sections:
        above = next((name for name in reversed(section.path) if is_question(name)), None)
        question = section.heading if is_question(section.heading) else above
        same = found and question is not None and found[-1][0] == question
        if same:  # one answer, cut as one text
            whole = found[-1][1]
            found[-1] = (question, replace(whole, blocks=[*whole.blocks, *section.blocks]))
        elif section.blocks or question is not None:
            found.append((question, section))
    return found


def _clean(section: Section) -> list[Block]:
    """The blocks without notes on who contributed them, and without a first line that only repeats the heading."""
    blocks = [
        block if block.code else replace(block, text=_BOILERPLATE.sub("", block.text)) for block in section.blocks
    ]
    while blocks and section.heading and question_key(blocks[0].text) == question_key(section.heading):
        blocks = blocks[1:]
    return [block for block in blocks if block.text.strip()]


def _worthwhile(headings: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headings that can serve as questions: three words or more, two of them specific, and in two places at most."""
    counts = Counter(question_key(heading) for heading, _ in headings)
    kept: dict[str, tuple[str, str]] = {}
    for heading, source in headings:
        key = question_key(heading)
        words = normalise(heading).split()
        specific = [word for word in words if len(word) > 2 and word not in _GENERIC and not word.isdigit()]
        is_code = "::" in heading or heading.count("_") > 1 or heading.endswith(" Directive")
        whole = words and words[-1] not in _UNFINISHED
        if 3 <= len(words) <= 25 and len(specific) >= 2 and counts[key] <= 2 and whole and not is_code:
            kept.setdefault(key, (heading, source))
    return list(kept.values())


def pick_headings(headings: Sequence[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    """Choose `count` headings: first those that read like questions, then others, in an order that the seed gives."""
    return sorted(headings, key=lambda one: (not is_question(one[0]), unit_hash(one[0], f"heading {seed}")))[:count]


def repeats(passage: Passage, question: str) -> bool:
    """Whether the passage contains the question."""
    return contains(passage.text, question)
