"""The interface of every teacher.

A teacher reads the raw text of pairs, with a tokenizer and a maximum length of its own if it has them, and only its
logits travel on (METHOD.md, "Teachers"). Kinds of teachers so far:

- `tmkd.teachers.encoder.EncoderTeacher`: a sequence-classification checkpoint.
- `tmkd.teachers.scores.ScoresTeacher`: a column of scores made elsewhere.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.data.pairs import Pairs


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
