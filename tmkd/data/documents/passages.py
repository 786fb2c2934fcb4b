"""Cut sections into passages of about 60 to 80 words, at the ends of sentences."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from tmkd.data.documents.sections import Block, Section
from tmkd.data.documents.sentences import sentence_spans
from tmkd.data.documents.text import normalise, storable, text_hash
from tmkd.data.documents.words import dense_count, has_unspaced, pieces, word_count

TARGET_WORDS = 70
MOST_WORDS = 95
_CODE_WORDS = 60  # longer code is cut between lines
_COLON_COST = 500.0  # of a cut after "like this:", which would separate it from what it announces
PARSING = 5  # part of every digest: raise it when parsing or cutting give other passages
_LEAST_WORDS = 2  # of a passage, where neither its heading nor the title says what its only word is about
_MOST_JOINED = 25  # words, by length, of a piece with fewer words than that which goes to its neighbour
_CHARACTERS = 7  # in dense code, which has few spaces, this many characters count as a word
_CLAUSE = re.compile(r"[^，、；：,;:]*[，、；：,;:]*")
_PIECE = 40  # characters, of a clause without blanks that is longer than a passage


@dataclass(frozen=True)
class Passage:
    """A piece of a document's text, without its headings.

    Attributes:
        pid: a hash of the text (`text_hash`): passages of the same text have the same pid, wherever they come from.
        text: prose on one line, code on lines of its own.
        title: the document's title.
        heading_path: the headings above the passage, outermost first.
        source: where the passage comes from, as readers see it: a file's path or address, or package and file.
        section: an id of the section (or the answer) that it was cut from.
        answer_of: the id of the question that the section answers; None: it answers no question.
        code: the share of its words that are in code or tables, 0 to 1.
    """

    pid: str
    text: str
    title: str
    heading_path: tuple[str, ...]
    source: str
    section: str
    answer_of: str | None = None
    code: float = 0.0


class _Unit(NamedTuple):
    """A sentence, or lines of code. joint: what stands between it and the unit before."""

    text: str
    code: bool
    joint: str


def size(text: str) -> int:
    """Length in words (`word_count`). Seven characters count as a word at least, since dense code has few spaces."""
    return dense_count(text, _CHARACTERS)


def cut(blocks: Sequence[Block]) -> list[tuple[str, float]]:
    """Cut the blocks of one section into passages.

    Chooses the cuts that bring all passages closest to 70 words (least squares), and avoids cuts after a line that ends
    in a colon. A passage has at most 95 words, except where a single line of code has more.

    Returns:
        For each passage, in order, its text and the share of code in it, 0 to 1.
    """
    units = [unit for block in blocks for unit in _units(block)]
    if not units:
        return []
    sizes = [max(1, size(unit.text)) for unit in units]
    best: list[float] = [0.0] + [float("inf")] * len(units)
    origin = [0] * (len(units) + 1)
    for stop in range(1, len(units) + 1):
        total = 0
        parting = _COLON_COST if stop < len(units) and units[stop - 1].text.endswith((":", "：")) else 0.0
        for start in range(stop - 1, -1, -1):
            total += sizes[start]
            if total > MOST_WORDS and start < stop - 1:
                break
            cost = best[start] + (total - TARGET_WORDS) ** 2 + parting
            if cost < best[stop]:
                best[stop], origin[stop] = cost, start
    cuts = [len(units)]
    while cuts[-1] > 0:
        cuts.append(origin[cuts[-1]])
    cuts.reverse()
    found = []
    for start, stop in pairwise(cuts):
        code = sum(words for unit, words in zip(units[start:stop], sizes[start:stop], strict=True) if unit.code)
        found.append((_join(units[start:stop]), code / sum(sizes[start:stop])))
    return found


def _units(block: Block) -> list[_Unit]:
    if block.code:
        lines = [("\n", line) for line in block.text.split("\n")]
        return [_Unit(text, True, "\n") for _, text in _groups(lines, _CODE_WORDS)]
    units: list[_Unit] = []
    end = -1
    for start, stop in sentence_spans(block.text):
        joint, sentence = "" if start == end else " ", block.text[start:stop]
        end = stop
        parts = [(joint, sentence)] if size(sentence) <= MOST_WORDS else _groups(_parts(sentence, joint), TARGET_WORDS)
        units += [_Unit(text, False, before) for before, text in parts]
    return units


def _parts(sentence: str, joint: str) -> Iterator[tuple[str, str]]:
    """The smallest parts that a long sentence may be cut into, each with what stands before it.

    They are its words; in scripts without blanks, clauses, and pieces of clauses that are too long.
    """
    for word in sentence.split(" "):
        if size(word) <= TARGET_WORDS or not has_unspaced(word):
            yield joint, word
        else:
            for clause in filter(None, _CLAUSE.findall(word)):
                short = size(clause) <= TARGET_WORDS
                for piece in [clause] if short else pieces(clause, _PIECE):
                    yield joint, piece
                    joint = ""
        joint = " "


def _groups(parts: Iterable[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """Join neighbouring parts into texts of at most `most` words. A part that is longer stays whole.

    Args:
        parts: texts, each with what stands before it.
        most: words.

    Returns:
        The same for the joined texts.
    """
    groups: list[list[tuple[str, str]]] = [[]]
    total = 0
    for joint, part in parts:
        words = size(part)
        if groups[-1] and total + words > most:
            groups.append([])
            total = 0
        groups[-1].append((joint, part))
        total += words
    found = []
    for group in filter(None, groups):
        text = (group[0][1] + "".join(joint + part for joint, part in group[1:])).strip("\n")
        if text.strip():
            found.append((group[0][0], text))
    return found


def _join(units: Sequence[_Unit]) -> str:
    text = units[0].text
    for before, unit in pairwise(units):
        text += ("\n" if before.code or unit.code else unit.joint) + unit.text
    return text


def _pieces(blocks: Sequence[Block], least: int) -> list[tuple[str, float]]:
    """The passages of a section as `cut` makes them, where one without two words is added to the one before or after.

    Args:
        blocks: those of the section.
        least: words that the section must have to be a passage, if it has no more than one.
    """
    found: list[tuple[str, float]] = []
    few = False  # whether the last piece found has too few words
    for text, code in cut(blocks):
        short = word_count(normalise(text)) < _LEAST_WORDS
        if found and (few or short) and min(size(text), size(found[-1][0])) <= _MOST_JOINED:
            before, share = found.pop()
            words, more = max(1, size(before)), max(1, size(text))
            code = (share * words + code * more) / (words + more)
            text = before + ("\n" if code else " ") + text
            short = word_count(normalise(text)) < _LEAST_WORDS
        found.append((text, code))
        few = short
    wanted = least if len(found) == 1 else 1
    return [(text, code) for text, code in found if word_count(normalise(text)) >= wanted]


def section_passages(sections: Sequence[Section], title: str, source: str) -> list[Passage]:
    """Cut a document's sections into passages.

    Args:
        sections: the document.
        title: the document's title.
        source: shown as the place of the passages.

    Returns:
        The passages in reading order, each text once under the same headings.
    """
    found: dict[tuple[str, tuple[str, ...]], Passage] = {}
    title = storable(title)
    for section in sections:
        headings = tuple(map(storable, (*section.path, section.heading) if section.heading else section.path))
        name = text_hash(f"{source} {' '.join(headings)}")
        for text, code in _pieces(section.blocks, 1 if headings or title else _LEAST_WORDS):
            text = storable(text)
            passage = Passage(text_hash(text), text, title, headings, source, name, code=code)
            found.setdefault((passage.pid, headings), passage)
    return list(found.values())


def content_digest(*parts: bytes, parsing: int = PARSING) -> str:
    """A hash of a document's content and of how it is parsed and cut, 32 hex digits."""
    digest = hashlib.blake2b(f"{parsing}".encode(), digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
