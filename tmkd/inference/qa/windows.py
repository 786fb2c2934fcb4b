"""Cut passages that are longer than the student reads into windows of its length, which overlap by a quarter.

A cross-encoder reads question and passage together, so a long question leaves a passage less room. A student that reads
passages once cuts the two apart from each other: there the windows of a passage are the same for every question, and
their states are stored (`tmkd.inference.state_update`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tmkd.models.tokenizer import PairTokenizer

Span = tuple[int, int]
LONGEST_TOKEN = 32  # characters; no question of more than this times the student's length is read to its end
_SPECIAL = 4  # most tokens of a pair that are not of its texts
_SPECIAL_APART = 2  # of a text alone
_PIECE = re.compile(r"[A-Za-z0-9]{1,4}|[^\sA-Za-z0-9]")  # roughly a token of English, and mostly shorter than one


class Windows:
    """Cuts passages into windows for a student.

    Args:
        max_length: Tokens of a pair that the student reads; of each of its two texts where it reads them apart.
        model: The folder of its tokenizer. Without one the lengths are estimated, for English on the safe side.
        apart: Whether the student reads question and passage each without the other.
    """

    def __init__(self, max_length: int, model: Path | None = None, *, apart: bool = False) -> None:
        self.max_length, self.apart = max_length, apart
        self._tokenizer = None if model is None else PairTokenizer(model, max_length)

    def of(self, question: str, passages: Sequence[str]) -> list[list[Span]]:
        """The windows of each passage as character spans; a passage that the student can read whole has one window.

        Args:
            question: The question, which takes a part of the student's length, unless it is read apart.
            passages: The passages.
        """
        found = [[(0, len(text))] for text in passages]
        question = "" if self.apart else question[: LONGEST_TOKEN * self.max_length]
        asked, *counts = self._counts([question, *passages])
        usable = self.max_length - (_SPECIAL_APART if self.apart else _SPECIAL)
        room = max(usable - asked, usable // 2, 1)  # a tokenizer cuts the longer text of a pair
        long = [row for row, count in enumerate(counts) if count > room]
        for row, tokens in zip(long, self._spans([passages[row] for row in long]), strict=True):
            found[row] = _cut(tokens, room, self._fitting(passages[row], room))
        return found

    def _counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has; without a tokenizer an estimate."""
        return [*map(len, map(_pieces, texts))] if self._tokenizer is None else self._tokenizer.token_counts(texts)

    def _spans(self, texts: Sequence[str]) -> list[list[Span]]:
        """The characters of each token of each text; without a tokenizer an estimate."""
        return [*map(_pieces, texts)] if self._tokenizer is None else self._tokenizer.token_spans(texts)

    def _fitting(self, text: str, room: int) -> Callable[[Sequence[Span], int, int], int]:
        """What finds the end of a window that has no more than `room` tokens as a text of its own.

        A word that a window cuts in two may have more tokens than it has as a whole. What is stored of a text must be
        all of it. Of a text that is read with a question only the last window must be read to its end: each of the
        others ends with what the next one begins with.
        """

        def fitting(tokens: Sequence[Span], start: int, stop: int) -> int:
            while (self.apart or stop == len(tokens)) and stop > start + 1:
                over = self._counts([text[tokens[start][0] : tokens[stop - 1][1]]])[0] - room
                if over <= 0:
                    break
                stop = max(start + 1, stop - over)
            return stop

        return fitting

    def cuts(self, question: str) -> bool:
        """Whether a question takes more than half of the student's length: a long passage leaves it no more.

        A question that is read apart has the whole length.

        Args:
            question: The question.
        """
        half = self.max_length - _SPECIAL_APART if self.apart else (self.max_length - _SPECIAL) // 2
        if len(question) > LONGEST_TOKEN * self.max_length:
            return True
        return self._counts([question])[0] > half


def _pieces(text: str) -> list[Span]:
    return [match.span() for match in _PIECE.finditer(text)]


def _cut(tokens: Sequence[Span], room: int, fitting: Callable[[Sequence[Span], int, int], int]) -> list[Span]:
    """Windows of `room` tokens. Each begins with the last quarter of the one before; the last one may be shorter.

    Args:
        tokens: The characters of each token of the text.
        room: Most tokens of a window.
        fitting: Gives of a window's first token and of the one after its last where it has to end.
    """
    found, start, overlap = list[Span](), 0, room - max(1, 3 * room // 4)
    while True:
        stop = fitting(tokens, start, min(start + room, len(tokens)))
        found.append((tokens[start][0], tokens[stop - 1][1]))
        if stop == len(tokens):
            return found
        start = max(start + 1, stop - overlap)
