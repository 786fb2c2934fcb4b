"""Passages longer than the student reads, cut into windows of its length that overlap by a quarter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tmkd.models.tokenizer import PairTokenizer

Span = tuple[int, int]
LONGEST_TOKEN = 32  # characters: a question longer than a student can read is cut before its tokens are counted
_SPECIAL = 4  # tokens that a pair may have beside its texts
_PIECE = re.compile(r"[A-Za-z0-9]{1,4}|[^\sA-Za-z0-9]")  # about a token, mostly less
_WORD = 24  # characters: no longer ones in prose
_SURELY = 0.7  # of the room: a passage of fewer pieces fits, so its tokens need not be counted


class Windows:
    """Cuts passages for a student.

    Args:
        max_length: tokens of a pair that the student reads.
        model: the folder of its tokenizer; without one lengths are estimated, cautiously.
    """

    def __init__(self, max_length: int, model: Path | None = None) -> None:
        self.max_length = max_length
        self._tokenizer = None if model is None else PairTokenizer(model, max_length)

    def of(self, question: str, passages: Sequence[str]) -> list[list[Span]]:
        """The windows of each passage as character spans; one, the whole passage, where the student can read it all."""
        usable = self.max_length - _SPECIAL
        question = question[: LONGEST_TOKEN * self.max_length]
        asked = len(_pieces(question))
        pieces = [_pieces(text) for text in passages]
        found = [[(0, len(text))] for text in passages]
        most = _SURELY * max(usable - asked, usable // 2)
        long = [row for row, one in enumerate(pieces) if len(one) + _torn(passages[row]) > most]
        if not long:
            return found
        spans = [pieces[row] for row in long]
        if self._tokenizer is not None:
            of_question, *spans = self._tokenizer.token_spans([question, *(passages[row] for row in long)])
            asked = len(of_question)
        room = max(usable - asked, usable // 2, 1)  # a pair is cut at its longer side
        for row, tokens in zip(long, spans, strict=True):
            if len(tokens) > room:
                found[row] = _cut(tokens, room)
        return found


def _pieces(text: str) -> list[Span]:
    return [match.span() for match in _PIECE.finditer(text)]


def _torn(text: str) -> int:
    """More tokens that a text may have than pieces: keys, hashes and long names fall into single characters, and other
    scripts into bytes."""
    odd = [word for word in text.split() if len(word) > _WORD or (not word.isalpha() and _mixed(word))]
    return sum(map(len, odd)) + len(text.encode("utf-8", "surrogatepass")) - len(text)


def _mixed(word: str) -> bool:
    return any(map(str.isdigit, word)) and any(map(str.isalpha, word))


def _cut(tokens: Sequence[Span], room: int) -> list[Span]:
    """Windows of `room` tokens, each beginning with the last quarter of the one before; the last may be shorter."""
    step = max(1, 3 * room // 4)
    starts = range(0, max(1, len(tokens) - (room - step)), step)
    return [(tokens[start][0], tokens[min(start + room, len(tokens)) - 1][1]) for start in starts]
