"""Plain-text comparisons: what counts as the same text, and as nearly the same."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_WORD = re.compile(r"[^\W_]+")


def word_set(text: str) -> frozenset[str]:
    """The words of a list written as one string."""
    return frozenset(text.split())


def storable(text: str) -> str:
    """Text that can be written: half a surrogate pair (escapes can carry one) becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def normalise(text: str) -> str:
    """Lower-case letters and digits, one space between words: what is left when layout and punctuation go."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).lower()))


def tokens(text: str) -> frozenset[str]:
    """The distinct words of a text, normalised."""
    return frozenset(normalise(text).split())


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared words over all words, 0 to 1; 0 where both are empty."""
    both = len(first & second)
    return both / (len(first) + len(second) - both) if both else 0.0


def contains(text: str, phrase: str) -> bool:
    """Whether `text` has the words of `phrase` in a row, whatever the punctuation. An empty phrase is in nothing."""
    words = normalise(phrase)
    return bool(words) and f" {words} " in f" {normalise(text)} "


def text_hash(text: str, size: int = 8) -> str:
    """2 x `size` hex digits that name a text, the same for texts that normalise to the same words.

    A text without any word (a line of symbols) is named by itself.
    """
    return hashlib.blake2b((normalise(text) or text).encode(), digest_size=size).hexdigest()


def unit_hash(text: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the normalised text and the salt alone."""
    digest = hashlib.blake2b(f"{salt}\n{normalise(text)}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
