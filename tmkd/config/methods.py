"""The methods of METHOD.md as one table: what each consists of, not how it is trained.

METHOD.md's `base` and `large` are one row here, `tmkd`: they differ only in the size of the pool, which is a key of the
recipe (`pool.size`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: the method's name in recipes and reports.
        stage1: whether stage 1 comes before stage 2. If `targets` is `none` (`self-taught`, which is ours), stage 1
            learns the bi-encoder cosine instead of soft labels.
        targets: whose soft labels the student learns: nobody's, those of the teacher that is best on the development
            set, the mean of all teachers', or each teacher's.
        heads: `golden`: one head, which learns labels and soft labels; `golden+soft`: besides that one a soft head for
            each teacher.
        students: how many students are trained for each seed: 0 (only teachers are evaluated), 1, or one for each of
            the K teachers.
        encoder: `whole` (all layers, as a teacher has), `bottom` (the student's layers), or a bidirectional `lstm`.
        text: how `tmkd recipe` describes it.
        alone: for a method that needs two or more teachers: the method to use with a single teacher.
    """

    name: str
    stage1: bool
    targets: Literal["none", "one", "mean", "each"]
    heads: Literal["golden", "golden+soft"]
    students: Literal[0, 1, "K"]
    encoder: Literal["whole", "bottom", "lstm"]
    text: str
    alone: str | None = None

    @property
    def trains(self) -> bool:
        """Whether the method trains a student."""
        return self.students != 0

    @property
    def self_taught(self) -> bool:
        """Whether the method has a stage 1 that learns from no teacher."""
        return self.stage1 and self.targets == "none"

    @property
    def exportable(self) -> bool:
        """Whether its student can be folded into one transformers checkpoint and exported."""
        return self.students == 1 and self.encoder == "bottom"


_BOTH: Literal["golden+soft"] = "golden+soft"
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # name, stage 1, targets, heads, students, encoder
        Method("teacher", False, "none", "golden", 0, "whole", "each teacher alone"),
        Method("teacher-ensemble", False, "none", "golden", 0, "whole", "mean of the teachers' probabilities"),
        Method("cosine", False, "none", "golden", 0, "whole", "bi-encoder cosine of the encoder, nothing trained"),
        Method("finetune", False, "none", "golden", 1, "bottom", "the student on labels only"),
        Method("self-taught", True, "none", "golden", 1, "bottom", "both stages without a teacher"),
        Method("bilstm", False, "one", "golden", 1, "lstm", "bidirectional LSTM student of the best teacher"),
        Method("1-o-1", False, "one", "golden", 1, "bottom", "student of the best teacher, one head, no stage 1"),
        Method("1avg-o-1", False, "mean", "golden", 1, "bottom", "1-o-1 of the averaged teachers", alone="1-o-1"),
        Method("m-o-m", False, "each", "golden", "K", "bottom", "mean of a 1-o-1 for each teacher", alone="1-o-1"),
        Method("mkd", False, "each", _BOTH, 1, "bottom", "a head for each teacher, no stage 1", alone="1-o-1"),
        Method("tkd", True, "one", _BOTH, 1, "bottom", "both stages, the best teacher only"),
        Method("1avg-tkd", True, "mean", _BOTH, 1, "bottom", "both stages, the averaged teachers", alone="tkd"),
        Method("tmkd", True, "each", _BOTH, 1, "bottom", "both stages, a head for each teacher", alone="tkd"),
    )
}
