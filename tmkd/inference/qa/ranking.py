"""Rank retrieved passages by the student's score and by how well they were retrieved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmkd.data.documents.index import Found
from tmkd.inference.qa.retrieval import Retrieved
from tmkd.inference.qa.windows import Span


@dataclass(frozen=True)
class Scored:
    """The student's score of a passage.

    Attributes:
        log_odds: The score of its best window.
        window: Character span of that window; None where the student read the passage whole.
    """

    log_odds: float
    window: Span | None


@dataclass(frozen=True)
class Weights:
    """What retrieval counts beside the student's log-odds.

    Attributes:
        bm25: Log-odds for each point of BM25.
        cosine: Log-odds for a whole cosine.
    """

    bm25: float = 0.0
    cosine: float = 0.0


@dataclass(frozen=True)
class Ranked:
    """A retrieved passage with its scores.

    Attributes:
        retrieved: The passage, and how it was retrieved.
        retrieval_rank: Its place among the candidates before ranking, from 1.
        scored: The student's score.
        score: The score that it is ranked by.
    """

    retrieved: Retrieved
    retrieval_rank: int
    scored: Scored
    score: float

    @property
    def found(self) -> Found:
        """The passage as the index has it, with its BM25 score."""
        return self.retrieved.found


def order(retrieved: Sequence[Retrieved], scored: Sequence[Scored], weights: Weights) -> list[Ranked]:
    """Rank retrieved passages by log-odds, minus what they are behind the best one in BM25 points and in cosine.

    Differences are used because the BM25 scores and the cosines of different questions cannot be compared.

    Args:
        retrieved: The passages, best first.
        scored: The student's score of each.
        weights: Log-odds for each point and for each whole cosine; 0 for both ranks by the student alone.

    Returns:
        The passages, best first; equal ones stay in the order of retrieval.
    """
    points = max((one.found.score for one in retrieved), default=0.0)
    cosine = max((one.cosine for one in retrieved if one.cosine is not None), default=0.0)
    ranked = []
    for place, (one, seen) in enumerate(zip(retrieved, scored, strict=True), start=1):
        behind = weights.bm25 * (points - one.found.score)
        behind += 0.0 if one.cosine is None else weights.cosine * (cosine - one.cosine)
        ranked.append(Ranked(one, place, seen, seen.log_odds - behind))
    return sorted(ranked, key=lambda one: (-one.score, one.retrieval_rank))
