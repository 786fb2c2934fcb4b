"""Where sentences end, in the scripts of the world."""

from __future__ import annotations

import re
from functools import lru_cache

from tmkd.data.documents.words import sentence_starts

_START = r"A-Z0-9$@%/_-"
_END = re.compile(rf"""(?<=[.!?])(["')\]]*)\s+(?=["'(\[]*[{_START}])""")
_CLOSERS, _OPENERS = r"""["'”’»)\]」』）】》]""", r"""(?:«\s|["'“‘«„(\[¿¡])"""
_WIDE = "。！？｡"  # of Chinese and Japanese; no blank follows
_STOPS = "।॥።៕។။།"  # of Indic scripts, Amharic, Khmer, Burmese and Tibetan; they mean nothing else
_THAI = "\u0e01-\u0e45\u0e47-\u0e4e\u0e81-\u0ec4\u0ec8-\u0ece"  # and Lao, without the sign that repeats a word
_SHORT = r"e\.g|i\.e|etc|vs|cf|resp|approx|Mr|Mrs|Dr|St|No|Fig|Sec|Ch|ca|al|Inc|Ltd"
_SHORT_ABROAD = r"ул|им|см|рис|стр|проф|акад|т\.е|(?<!\d )г|डॉ|प्रो|श्री"
_ABBREVIATION = re.compile(rf"(?:\b(?:{_SHORT})|\b[A-Z])\.$")


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Where sentences of any script end, and abbreviations that end none. Group 1, 2, ... is what closes a sentence.

    In Thai and Lao nothing but a blank ends a sentence; it may end less than that.
    """
    letters = sentence_starts()
    begins = letters + _START
    ends = (
        rf"(?<=\w…)({_CLOSERS}*)\s+(?={_OPENERS}*[A-Z{letters}])",  # other dots leave something out of a line of code
        rf"(?<=[.!?؟۔։])({_CLOSERS}*)\s+(?={_OPENERS}*[{begins}])",
        rf"(?<=[{_WIDE}])(?![{_WIDE}])((?:{_CLOSERS}+(?![と、，])|(?!{_CLOSERS})))\s*",  # 「はい。」と is one sentence
        rf"(?<=[{_STOPS}])(?![{_STOPS}])({_CLOSERS}*)\s*",
        rf"(?<=[{_THAI}])()\s+(?={_OPENERS}*[{_THAI}])",
    )
    short = rf"(?:\b(?:{_SHORT}|{_SHORT_ABROAD})|(?<!\w)[A-Z{letters}])\.$"
    return re.compile("|".join(ends)), re.compile(short)


def sentences(text: str) -> list[str]:
    """Cut prose into sentences.

    They end at `.`, `!`, `?` or their like before a new sentence, not after abbreviations and initials; at the signs of
    other scripts (`。`, `।`), after which no blank need be; and in Thai and Lao at blanks.
    """
    return [text[start:stop] for start, stop in sentence_spans(text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The start and stop of each of the `sentences` in the text, in characters."""
    end, abbreviation = (_END, _ABBREVIATION) if text.isascii() else _patterns()
    ends: list[tuple[int, int]] = []  # where a sentence ends, and where the next one begins
    start = 0
    for match in end.finditer(text):
        if not abbreviation.search(text, max(start, match.start() - 10), match.start()):
            ends.append((match.end(match.lastindex or 0), match.end()))
            start = match.end()
    starts = [0, *(begin for _, begin in ends)]
    stops = [*(stop for stop, _ in ends), len(text)]
    return [
        span for begin, stop in zip(starts, stops, strict=True) if (span := _stripped(text, begin, stop)) is not None
    ]


def _stripped(text: str, start: int, stop: int) -> tuple[int, int] | None:
    """The span without white space at its ends; None if nothing is left."""
    piece = text[start:stop]
    if not piece.strip():
        return None
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
