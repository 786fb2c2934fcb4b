"""The interface of every teacher.

A teacher reads the raw text of pairs, with a tokenizer and a maximum length of its own if it has them, and only its
logits travel on (METHOD.md, "Teachers"). Kinds of teachers so far:

- `tmkd.teachers.encoder.EncoderTeacher`: a sequence-classification checkpoint.
- `tmkd.teachers.cross_encoder.CrossEncoderTeacher`: a finished cross-encoder that sentence-transformers runs.
- `tmkd.teachers.bi_encoder.BiEncoderTeacher`: an embedding model.
- `tmkd.teachers.served.ServedTeacher`: an HTTP endpoint.
- `tmkd.teachers.scores.ScoresTeacher`: a column of scores made elsewhere.
- `tmkd.teachers.score_file.ScoreFileTeacher`: a file of scores made elsewhere.

Logits of all kinds come onto one scale with `tmkd.teachers.calibration`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.core.cluster import Cluster
from tmkd.data.pairs import Pairs

Scored = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Indices of n pairs, and their raw scores, [n, width] float32."""


class TeacherLike(Protocol):
    """Anything that gives logits for pairs. A class needs no common base to be a teacher, only these members."""

    @property
    def name(self) -> str:
        """What messages and reports call the teacher."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that changes whenever the teacher's logits for the same pairs do. The name is no part of it."""
        ...

    def logits(self, pairs: Pairs) -> NDArray[np.float32]:
        """The teacher's logits.

        Args:
            pairs: N pairs.

        Returns:
            [N, C] float32 in the order of the pairs, in the task's order of classes.

        Raises:
            DataError: the pairs lack something that the teacher reads.
        """
        ...


class StoredTeacher(ABC):
    """A teacher whose raw scores are stored as it gives them, some pairs at a time: it can be interrupted.

    Attributes:
        name: what messages and reports call the teacher.
        width: how many numbers it gives for a pair.
    """

    name: str
    width: int = 1

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes whenever the teacher's scores for the same pairs do. The name is no part of it."""

    @property
    def logits_fingerprint(self) -> str:
        """A text that changes whenever `from_raw` gives other logits, too: what is learned from them depends on it."""
        return self.fingerprint

    @property
    def by_texts(self) -> bool:
        """Whether its scores of a pair depend on the two texts alone: those of other sets of pairs can be taken."""
        return True

    @abstractmethod
    def scored(self, pairs: Pairs, cluster: Cluster | None = None) -> Iterator[Scored]:
        """Score pairs, in an order of its own.

        Args:
            pairs: N different pairs.
            cluster: the workers that run the teacher's model, if it has one; this process unless given.

        Yields:
            Indices of n of the pairs, and their raw scores, [n, width] float32. What was yielded is stored before the
            next pairs are asked for.
        """

    def keep_in(self, folder: Path, whole: int) -> None:  # noqa: B027
        """Keep what scoring makes beside the scores, and later scoring can use again, in a folder; most make nothing.

        Args:
            folder: of this teacher alone; it may be removed at any time that the teacher is not in use.
            whole: how many pairs the set has that is labelled next, those whose scores are stored included.
        """

    def can_label(self, pairs: Pairs) -> bool:
        """Whether it has scores for these pairs; a model has them for any."""
        return True

    @abstractmethod
    def from_raw(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits that belong to raw scores, before they are calibrated.

        Args:
            raw: [N, width].

        Returns:
            [N, C] float32 in the task's order of classes.
        """

    def raw(self, pairs: Pairs) -> NDArray[np.float32]:
        """The raw scores of N pairs, [N, width] float32."""
        found = np.full((len(pairs), self.width), np.nan, dtype=np.float32)
        for rows, raw in self.scored(pairs):
            found[rows] = raw
        return found

    def logits(self, pairs: Pairs) -> NDArray[np.float32]:
        """The teacher's logits, before they are calibrated: as `TeacherLike` has them."""
        return self.from_raw(self.raw(pairs))
