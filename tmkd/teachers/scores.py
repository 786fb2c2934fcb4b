"""A teacher whose scores were made elsewhere (by an LLM judge, another team's model): a column of the pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tmkd.config.sections import Data
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import DataError
from tmkd.core.logits import even_logits, odds_of
from tmkd.data.pair_ids import StoredIds, all_numbers_of
from tmkd.data.pairs import Pairs

ScoreKind = Literal["logit", "probability"]
COLUMN = "column "  # before the name of a score column in the fingerprint of such a teacher
CLIP = 1e-6  # probabilities are clipped to [CLIP, 1 - CLIP] before they become log-odds (METHOD.md, "Teachers")


@dataclass(frozen=True)
class ScoresTeacher:
    """A teacher of two classes that reads its scores from a column of the pairs.

    Example:
        >>> from tmkd.data.pairs import Pairs
        >>> pairs = Pairs.build(["How do I copy a file?"], ["Use cp."], scores={"judge": [3.0]})
        >>> ScoresTeacher("judge", "logit").logits(pairs).tolist()
        [[-1.5, 1.5]]

    Attributes:
        column: the score column.
        kind: what the column holds: log-odds (`logit`) or the probability of class 1 (`probability`).
        name: what messages and reports call the teacher; the column's name unless given.
        partial: whether pairs may be without a score; their logits are nan.

    Raises:
        ValueError: a kind that does not exist.
    """

    column: str
    kind: ScoreKind
    name: str = ""
    partial: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("logit", "probability"):
            raise ValueError(f"a score is of kind `logit` or `probability`, not {self.kind!r}")
        if not self.name:
            object.__setattr__(self, "name", self.column)

    @classmethod
    def of(cls, teacher: Teacher, data: Data) -> ScoresTeacher:
        """The teacher that a recipe describes with `scores: COLUMN`.

        Args:
            teacher: the recipe's teacher; its `scores` is set.
            data: the recipe's data, which declares what the column holds.
        """
        assert teacher.scores is not None
        return cls(teacher.scores, data.scores[teacher.scores], teacher.name, teacher.partial)

    @property
    def fingerprint(self) -> str:
        """The column and what it holds. Its values are part of the pairs, and so of their digest."""
        return f"{COLUMN}{self.column} ({self.kind})"

    def can_label(self, pairs: Pairs) -> bool:
        """Whether the pairs carry the column, and any of them a score in it if it is partial."""
        if self.column not in pairs.score_names:
            return False
        return not self.partial or not np.isnan(pairs.score(self.column)).all()

    def is_reference_of(self, pairs: Pairs) -> bool:
        """Whether the labels of the pairs are this teacher's own scores.

        Such a teacher is not measured on these pairs (METHOD.md, "Teachers").
        """
        return pairs.reference is not None and pairs.reference.column == self.column

    def contradicted(self, pairs: Pairs) -> NDArray[np.int64]:
        """The rows whose question and passage have another score in a later row, [n]; the pairs carry the column."""
        scores, numbers = pairs.score(self.column), all_numbers_of(pairs.ids)
        known: NDArray[np.int64] = np.flatnonzero(~np.isnan(scores))
        latest = known[StoredIds(numbers[known]).find(numbers[known])]
        other: NDArray[np.int64] = known[scores[known] != scores[latest]]
        return other

    def logits(self, pairs: Pairs, where: str = "given") -> NDArray[np.float32]:
        """The teacher's logits.

        Args:
            pairs: N pairs that carry the column.
            where: which pairs they are, for the error message, such as `train`.

        Returns:
            [N, 2] float32 in the order of the pairs.

        Raises:
            DataError: the column is absent, or some pairs have no score in it.
        """
        if self.column not in pairs.score_names:
            message = f"teacher {self.name}: the {where} rows have no column {self.column!r}"
            raise DataError(message, column=self.column)
        scores = pairs.score(self.column)
        if (missing := int(np.isnan(scores).sum())) and not self.partial:
            message = (
                f"teacher {self.name}: {missing} {where} rows have no {self.column!r}; add these scores, or list the "
                "teacher with `partial: true`"
            )
            raise DataError(message, column=self.column)
        return imported_logits(scores, self.kind).astype(np.float32)


def imported_logits(scores: NDArray[np.float64], kind: ScoreKind) -> NDArray[np.float64]:
    """Two logits for each score: (-z/2, z/2), where z is the log-odds of class 1 (METHOD.md, "Teachers").

    Args:
        scores: [N] log-odds (`logit`), or probabilities of class 1, which are clipped to [1e-6, 1 - 1e-6].
        kind: what the scores are.

    Returns:
        [N, 2] float64.

    Raises:
        ValueError: a kind that does not exist.
    """
    if kind not in ("logit", "probability"):
        raise ValueError(f"a score is of kind `logit` or `probability`, not {kind!r}")
    if kind == "probability":
        scores = odds_of(np.clip(scores, CLIP, 1 - CLIP))
    return even_logits(scores)
