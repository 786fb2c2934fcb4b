"""What each named method of METHOD.md is: one table, no word of how it is trained.

`tmkd` is one row: `base` and `large` are the same method with a stage-1 pool of another size, which is a key of the
recipe (`pool.size`) and no column here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        stage1: whether distillation pre-training comes first; without soft labels (`self-taught`, ours) on the
            encoder's own cosine: what the teachers must add to.
        targets: the soft labels: none, those of the best teacher on development data, their mean, or each teacher's.
        heads: `golden`: one header, which learns golden and soft labels alike; `golden+soft`: one more for each
            teacher's soft labels.
        students: how many are trained for a seed: 0 (the teachers alone are measured), 1, or one for each of the K
            teachers.
        encoder: `whole` (a teacher's), `bottom` (the student's layers), or a bidirectional `lstm`.
        alone: of a method that needs two teachers or more, the one that is its like for a single teacher.
        text: what `tmkd recipe` says of it.
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
        """Whether a student is trained at all."""
        return self.students != 0

    @property
    def self_taught(self) -> bool:
        """Whether its stage 1 learns from no teacher."""
        return self.stage1 and self.targets == "none"

    @property
    def exportable(self) -> bool:
        """Whether its student can be folded into one transformers checkpoint and written for serving."""
        return self.students == 1 and self.encoder == "bottom"


_BOTH: Literal["golden+soft"] = "golden+soft"
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # name, stage 1, targets, headers, students, encoder
        Method("teacher", False, "none", "golden", 0, "whole", "each deep teacher alone"),
        Method("teacher-ensemble", False, "none", "golden", 0, "whole", "mean of the teachers' probabilities"),
        Method("cosine", False, "none", "golden", 0, "whole", "the encoder's own embeddings compared, nothing trained"),
        Method("finetune", False, "none", "golden", 1, "bottom", "the shallow student on golden labels only"),
        Method("self-taught", True, "none", "golden", 1, "bottom", "both stages without a teacher"),
        Method("bilstm", False, "one", "golden", 1, "lstm", "bidirectional LSTM student of the best teacher"),
        Method("1-o-1", False, "one", "golden", 1, "bottom", "student of the best teacher, one header, no stage 1"),
        Method("1avg-o-1", False, "mean", "golden", 1, "bottom", "the same, of the averaged teachers", alone="1-o-1"),
        Method("m-o-m", False, "each", "golden", "K", "bottom", "a 1-o-1 of each teacher, averaged", alone="1-o-1"),
        Method("mkd", False, "each", _BOTH, 1, "bottom", "a header per teacher, no stage 1", alone="1-o-1"),
        Method("tkd", True, "one", _BOTH, 1, "bottom", "both stages, the best teacher only"),
        Method("1avg-tkd", True, "mean", _BOTH, 1, "bottom", "both stages, the averaged teachers", alone="tkd"),
        Method("tmkd", True, "each", _BOTH, 1, "bottom", "both stages, a header per teacher", alone="tkd"),
    )
}
