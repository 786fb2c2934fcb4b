"""Compare texts: when two count as the same, and how similar they are."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from tmkd.data.documents.words import bigrams, folded, words

_LETTERS = re.compile(r"[^\W_]+")
_QUOTES = "\"'`´‘’‚‛“”„‟«»‹›「」『』"
_BEFORE = _QUOTES + "¿¡"  # never a dot or a sign: ".NET" and "-5" are not "NET" and "5"
_AFTER = _QUOTES + ".,;:!?…。、؟؛।॥"  # never "#" or "+": "C#" is not "C"


def word_set(text: str) -> frozenset[str]:
    """The set of words in a string."""
    return frozenset(text.split())


def storable(text: str) -> str:
    """Text that can be encoded: a question mark for each half of a surrogate pair, which JSON escapes may contain."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def same_text(text: str) -> str:
    """The form in which two texts are compared: two texts are the same if this is equal.

    Only the Unicode form (NFC) and white space do not count: every run of white space is one blank, none at the ends.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def distinct(texts: Iterable[str]) -> list[str]:
    """Return the texts without repetitions, in their order; of texts that are the same (`same_text`), the first."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(same_text(text), text)
    return list(found.values())


def question_key(text: str) -> str:
    """The form in which two questions are the same question, for splits and for decontamination.

    Unicode form (NFKC), case, white space, characters that are not seen, the form of quotes and dashes, and quotes and
    sentence marks at the ends do not count. Signs do: `C#` and `C++`, `5` and `-5` are different.
    """
    plain = " ".join(folded(text).split())
    return plain.lstrip(_BEFORE + " ").rstrip(_AFTER + " ") or plain


def normalise(text: str) -> str:
    """The words of a text (`tmkd.data.documents.words`) with single spaces between them: no layout, no punctuation."""
    return " ".join(words(text))


def tokens(text: str) -> frozenset[str]:
    """The distinct words of a text; where words are not set apart by blanks, pairs of neighbouring letters."""
    return frozenset(bigrams(words(text)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard similarity: the number of shared words over that of all words, 0 to 1; 0 if both are empty."""
    both = len(first & second)
    return both / (len(first) + len(second) - both) if both else 0.0


def contains(text: str, phrase: str) -> bool:
    """Whether `text` has the words of `phrase` in a row, whatever the punctuation; never for an empty phrase."""
    asked = normalise(phrase)
    return bool(asked) and f" {asked} " in f" {normalise(text)} "


def text_hash(text: str, size: int = 8) -> str:
    """A hash of a text, 2 x `size` hex digits: equal for texts that are the same (`same_text`), and for no others."""
    return hashlib.blake2b(same_text(text).encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


def unit_hash(text: str, salt: str = "") -> float:
    """A number in [0, 1) that depends only on the letters and digits of a text, and on the salt."""
    # not `normalise`: when that changes, no question may move from one side of a split to the other
    plain = " ".join(_LETTERS.findall(unicodedata.normalize("NFKC", text).lower()))
    digest = hashlib.blake2b(f"{salt}\n{plain}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
