"""Words of any script: to compare texts, to search them, and to measure their length.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no blanks between words. There every letter with its marks stands
for itself, and two neighbours together (a bigram) do what a word does elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

MOST_CHARACTERS = 128  # of a search term; longer ones (encoded data) are not indexed

# Letters of scripts without blanks: two of the first, or four of the second, are about as long as a word.
_IDEOGRAPHS = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3041-\u3096\u309b-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00017000-\U0001b2ff\U00020000-\U0003ffff"
)
_SYLLABLES = (
    "\u0e01-\u0e2e\u0e30-\u0e3a\u0e40-\u0e45\u0e47-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u109f"
    "\u1780-\u17d3"
)
_HANGUL = "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb"
_OLD_SCRIPTS, _EMOJI = "\U00010000-\U00016fef", "\U0001f000-\U0001f3fa\U0001f400-\U0001faff"
_UNSPACED = _IDEOGRAPHS + _SYLLABLES

_INVISIBLE = "\u00ad\u034f\u061c\u0640\u180e\ufeff" + "".join(
    chr(code)
    for first, last in ((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
    for code in range(first, last + 1)
)  # soft hyphens, zero-width characters, directions, variants of a character's shape, the Arabic line that stretches
_PLAIN = str.maketrans({
    **dict.fromkeys(_INVISIBLE, None), **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
    **dict.fromkeys("\u00b4\u2018\u2019\u201a\u201b", "'"),
    **dict.fromkeys("\u00ab\u00bb\u201c\u201d\u201e\u201f", '"'),
})  # fmt: skip

_NOT_PLAIN = re.compile(f"[{''.join(map(chr, _PLAIN))}]")

_BEFORE_SIGN = r"""\s(\[{<>=,;:"'/*"""  # "-5" is a word, the hyphen of "10-5" is none
_SIGNED = rf"(?:(?<![^{_BEFORE_SIGN}])[-+](?=[0-9]))?"
_SIGNED_ANYWHERE = rf"(?:(?<![^{_BEFORE_SIGN}{_IDEOGRAPHS}])[-+](?=\d))?"
_SUFFIX = r"(?:\+\+|#(?![^\W_]))?"  # C++ and C#
_OPERATORS = r"[$+<=>]{2,}|(?<!\S)[$+<=>](?!\S)"  # "<=" is a word; the brackets of "<name>" are none
_ASCII = re.compile(rf"{_SIGNED}[A-Za-z0-9]+{_SUFFIX}|{_OPERATORS}")
_ASCII_SIGNED = re.compile(rf"{_SIGNED}[A-Za-z0-9]+{_SUFFIX}")
_ASCII_PLAIN = re.compile(r"[A-Za-z0-9]+")  # faster by half
_OPERATOR = re.compile(r"[$+<=>]")
_ANY_SIGN = re.compile(r"[-+][0-9]|[A-Za-z0-9](?:\+\+|#)")


@lru_cache(maxsize=1)
def _ranges() -> dict[str, str]:
    """For each category of Unicode, and each first letter of one (L, M, N, S), the characters that are spaced.

    Beyond ASCII and up to U+FFFF, without Hangul and the scripts without blanks, as `[...]` takes them.
    """
    unspaced = re.compile(f"[{_UNSPACED}{_HANGUL}]")
    spans: dict[str, list[list[int]]] = {}
    for code in (*range(0x80, 0x3400), *range(0xA000, 0xAC00), *range(0xFB00, 0xFFFF)):
        category = unicodedata.category(chr(code))
        if category[0] == "L" and unspaced.match(chr(code)):
            continue
        for name in (category, category[0]):
            found = spans.setdefault(name, [])
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return {name: "".join(f"{chr(a)}-{chr(b)}" for a, b in found) for name, found in spans.items()}


@lru_cache(maxsize=3)
def _pattern(unspaced: str, symbols: bool) -> re.Pattern[str]:
    """Words of any script; a letter of the `unspaced` scripts with its marks is one, group 1 unless `symbols`."""
    spaced = _ranges()
    letters = "A-Za-z0-9" + spaced["L"] + spaced["N"] + ("" if _HANGUL in unspaced else _HANGUL) + _OLD_SCRIPTS
    signs = f"|{_OPERATORS}|[{spaced['Sm']}{spaced['Sc']}{spaced['So']}{_EMOJI}]" if symbols else ""
    marks = spaced["M"]
    single = f"({'?:' if symbols else ''}[{unspaced}][{marks}]*)|" if unspaced else ""
    return re.compile(rf"{single}{_SIGNED_ANYWHERE}[{letters}][{letters}{marks}]*{_SUFFIX}{signs}")


def sentence_starts() -> str:
    """The characters beyond ASCII that begin a sentence: capital letters and letters of scripts without them."""
    return "".join(_ranges()[name] for name in ("Lu", "Lt", "Lo", "Nd")) + _UNSPACED + _HANGUL


def folded(text: str) -> str:
    """The form in which letters are compared.

    NFKC and case folding; without characters that are not seen (soft hyphen, zero-width space); with plain hyphens and
    quotes.
    """
    if text.isascii():
        return text.lower()
    if _NOT_PLAIN.search(text):
        text = text.translate(_PLAIN)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def words(text: str) -> list[str]:
    """The words of a text, folded. In scripts without blanks every letter, with its marks, is one.

    Signs are words or parts of words: `c++`, `c#`, `-5`, `<=`, emoji. Punctuation is left out.
    """
    text = folded(text)
    if text.isascii():
        return (_ASCII if _ANY_SIGN.search(text) or _OPERATOR.search(text) else _ASCII_PLAIN).findall(text)
    return _pattern(_UNSPACED, True).findall(text)


def bigrams(found: Sequence[str]) -> list[str]:
    """Words, with two neighbouring letters of a script without blanks joined in place of single ones.

    Args:
        found: words as `words` gives them.
    """
    if max(found, default="") < _FIRST_UNSPACED:
        return list(found)
    unspaced = [word >= _FIRST_UNSPACED and _LETTER.match(word) is not None for word in found]
    kept = []
    for place, word in enumerate(found):
        after = place + 1 < len(found) and unspaced[place + 1]
        if not unspaced[place] or (not after and (place == 0 or not unspaced[place - 1])):
            kept.append(word)
        elif after:
            kept.append(word + found[place + 1])
    return kept


_FIRST_UNSPACED = "\u0e01"
_LETTER = re.compile(f"[{_UNSPACED}]")
_RUN = re.compile(f"[{_UNSPACED}{_HANGUL}]")


def terms(text: str, *, asked: bool = False) -> list[str]:
    """The terms of a text that are indexed, or searched for.

    Words are folded; signs are kept beside the bare word (`c++` and `c`). In scripts without blanks and in Korean,
    neighbouring letters make bigrams. Single letters are indexed too, and searched for where they stand alone.

    Args:
        text: any text.
        asked: whether the text is a question, not a text to index.
    """
    text = folded(text)
    if text.isascii():
        return _with_bare((_ASCII_SIGNED if _ANY_SIGN.search(text) else _ASCII_PLAIN).findall(text))
    if not _RUN.search(text):
        return _with_bare(_pattern("", False).findall(text))
    found: list[str] = []
    run: list[str] = []
    end = -1
    for match in _pattern(_UNSPACED + _HANGUL, False).finditer(text):
        if run and (match.start() != end or not match[1]):
            found += _run_terms(run, asked)
            run = []
        if match[1]:
            run.append(match.group())
            end = match.end()
        else:
            found += _with_bare([match.group()])
    return found + _run_terms(run, asked)


def _run_terms(run: Sequence[str], asked: bool) -> list[str]:
    pairs = [first + second for first, second in pairwise(run)]
    return pairs or list(run) if asked else [*run, *pairs]


def _with_bare(found: list[str]) -> list[str]:
    """Words, those with a sign followed by the bare word, without those that are too long."""
    every = "".join(found)
    if any(sign in every for sign in "+-#"):
        pairs = ((word, word.strip("+-#")) for word in found)
        found = [term for word, bare in pairs for term in ((word,) if word == bare else (word, bare))]
    return found if len(every) <= MOST_CHARACTERS else [word for word in found if len(word) <= MOST_CHARACTERS]


_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_SYLLABLE = re.compile(f"[{_SYLLABLES}]")


def word_count(text: str) -> int:
    """Length in words. Where words are not set apart, two ideographs or kana, or four letters of Thai, count as one."""
    return _count(text)[0]


def dense_count(text: str, characters_a_word: int) -> int:
    """Length in words, where as many characters as given count as a word at least: code and data have few blanks."""
    count, unspaced, rest = _count(text)
    return max(count, unspaced + rest // characters_a_word)


def has_unspaced(text: str) -> bool:
    """Whether a text has a letter of a script without blanks."""
    return not text.isascii() and _LETTER.search(text) is not None


def pieces(text: str, length: int) -> list[str]:
    """Cut a text without blanks into pieces of at most about `length` characters, never before a combining mark."""
    return re.findall(rf".{{1,{length}}}(?![{_ranges()['M']}])|.+", text, flags=re.DOTALL)


def _count(text: str) -> tuple[int, int, int]:
    """The number of words, of these the ones in scripts without blanks, and the characters in other scripts."""
    if text.isascii() or not _LETTER.search(text):
        parts = text.split()
        return len(parts), 0, sum(map(len, parts))
    text, ideographs = _IDEOGRAPH.subn(" ", text)
    text, syllables = _SYLLABLE.subn(" ", text)
    unspaced = -(-ideographs // 2) - (-syllables // 4)
    parts = [part for part in text.split() if any(map(str.isalnum, part))]
    return len(parts) + unspaced, unspaced, sum(map(len, parts))
