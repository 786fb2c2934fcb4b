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
_PIECE = re.compile(r"[A-Za-z0-9]{1,4}|[^\sA-Za-z0-9]")  # roughly a token, and mostly shorter than one
_WORD = 24  # characters; longer words do not occur in prose
_SURELY = 0.7  # a passage whose pieces are fewer than this share of the room fits, so nobody counts its tokens


class Windows:
    """Cuts passages into windows for a student.

    Args:
        max_length: Tokens of a pair that the student reads; of each of its two texts where it reads them apart.
        model: The folder of its tokenizer. Without one the lengths are estimated, on the safe side.
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
        if self.apart and self._tokenizer is not None:  # all are counted: what is stored of them must be all of them
            spans, room = self._tokenizer.token_spans(passages), max(self.max_length - _SPECIAL_APART, 1)
            for row, tokens in enumerate(spans):
                if len(tokens) > room:
                    found[row] = _cut(tokens, room, self._fitting(passages[row], room))
            return found
        usable = self.max_length - (_SPECIAL_APART if self.apart else _SPECIAL)
        question = "" if self.apart else question[: LONGEST_TOKEN * self.max_length]
        asked = len(_pieces(question))
        pieces = [_pieces(text) for text in passages]
        most = _SURELY * max(usable - asked, usable // 2)
        long = [row for row, one in enumerate(pieces) if len(one) + _torn(passages[row]) > most]
        if not long:
            return found
        spans = [pieces[row] for row in long]
        if self._tokenizer is not None:
            of_question, *spans = self._tokenizer.token_spans([question, *(passages[row] for row in long)])
            asked = len(of_question)
        room = max(usable - asked, usable // 2, 1)  # a tokenizer cuts the longer text of a pair
        for row, tokens in zip(long, spans, strict=True):
            if len(tokens) > room:
                found[row] = _cut(tokens, room)
        return found

    def _fitting(self, text: str, room: int) -> Callable[[Sequence[Span], int, int], int]:
        """What finds the end of a window that has no more than `room` tokens as a text of its own.

        A word that a window cuts in two may have more tokens than it has as a whole.
        """
        assert self._tokenizer is not None
        count = self._tokenizer.token_spans

        def fitting(tokens: Sequence[Span], start: int, stop: int) -> int:
            while (
                stop > start + 1 and (over := len(count([text[tokens[start][0] : tokens[stop - 1][1]]])[0]) - room) > 0
            ):
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
        tokens = len(_pieces(question)) + _torn(question)
        if self._tokenizer is not None and tokens > _SURELY * half:
            tokens = len(self._tokenizer.token_spans([question])[0])
        return tokens > half


def _pieces(text: str) -> list[Span]:
    return [match.span() for match in _PIECE.finditer(text)]


def _torn(text: str) -> int:
    """How many more tokens than pieces a text may have.

    A tokenizer splits keys, hashes and long names into single characters, and other scripts into bytes.
    """
    odd = [word for word in text.split() if len(word) > _WORD or (not word.isalpha() and _mixed(word))]
    return sum(map(len, odd)) + len(text.encode("utf-8", "surrogatepass")) - len(text)


def _mixed(word: str) -> bool:
    return any(map(str.isdigit, word)) and any(map(str.isalpha, word))


def _cut(
    tokens: Sequence[Span], room: int, fitting: Callable[[Sequence[Span], int, int], int] | None = None
) -> list[Span]:
    """Windows of `room` tokens. Each begins with the last quarter of the one before; the last one may be shorter.

    Args:
        tokens: The characters of each token of the text.
        room: Most tokens of a window.
        fitting: Gives of a window's first token and of the one after its last where it has to end.
    """
    found, start, overlap = list[Span](), 0, room - max(1, 3 * room // 4)
    while True:
        stop = min(start + room, len(tokens))
        stop = stop if fitting is None else fitting(tokens, start, stop)
        found.append((tokens[start][0], tokens[stop - 1][1]))
        if stop == len(tokens):
            return found
        start = max(start + 1, stop - overlap)
