"""Judgements of negatives, made once with a strong bi-encoder and kept in a file beside this module.

A negative that really answers its question is an error in the labels. Two scorers of different kinds show most of them:
BM25 and a bi-encoder both put such a passage above the answer itself. The build computes BM25, the same on every
machine. The bi-encoder's part stands in the file `judgements.json`, which `tools/judge_negatives.py` writes: so the
build needs no model, and another rounding of a model cannot change the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd.core.errors import DataError
from tmkd.core.files import read_json

FILE = Path(__file__).with_name("judgements.json")
_DIGITS = 12  # of a pair's name: with 10,000 pairs in the file, one in 28 billion other pairs has one of their names


def pair_name(question: str, passage: str) -> str:
    """The name of a pair in the file: a hash of the two exact texts."""
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    for text in (question, passage):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Judgements:
    """Which passages the bi-encoder puts above the best positive of a question.

    Attributes:
        above: names of the pairs that it puts above.
        below: names of the pairs that it was asked about and does not put above.
        made_with: encoder, versions and command, for the record.
    """

    above: frozenset[str]
    below: frozenset[str]
    made_with: dict[str, Any]

    @classmethod
    def read(cls, path: Path = FILE) -> Judgements:
        """Read the file.

        Raises:
            DataError: it is not such a file.
        """
        try:
            content = read_json(path)
            return cls(frozenset(content["above"]), frozenset(content["below"]), content["made_with"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); tools/judge_negatives.py writes it") from error

    def above_positive(self, question: str, passage: str) -> bool | None:
        """Whether the bi-encoder puts the passage above the question's best positive; None: it was never asked."""
        name = pair_name(question, passage)
        return True if name in self.above else False if name in self.below else None

    def digest(self) -> str:
        """A hash of all judgements, 16 hex digits."""
        return hashlib.sha256(json.dumps([sorted(self.above), sorted(self.below)]).encode()).hexdigest()[:16]

    def save(self, path: Path = FILE) -> None:
        """Write the file: names sorted, one in a line."""
        content = {"made_with": self.made_with, "above": sorted(self.above), "below": sorted(self.below)}
        path.write_text(json.dumps(content, indent=1) + "\n")


def judge(pairs: Iterable[tuple[str, str, float, float]]) -> tuple[frozenset[str], frozenset[str]]:
    """Name pairs: those whose passage is above the best positive, and the others.

    Args:
        pairs: question, passage, the passage's cosine, and that of the best positive.
    """
    above: set[str] = set()
    below: set[str] = set()
    for question, passage, cosine, best in pairs:
        (above if cosine > best else below).add(pair_name(question, passage))
    return frozenset(above), frozenset(below)
