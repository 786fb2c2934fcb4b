"""The methods of METHOD.md as one table: what each consists of, not how it is trained.

METHOD.md's `base` and `large` are one row here, `tmkd`: they differ only in the size of the pool, which is a key of the
recipe (`pool.size`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal, get_args

StudentKind = Literal["layers", "cached"]
"""What a student is: some layers of an encoder, or one that reads passages once."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: the method's name in recipes and reports, with the kind of its student where the recipe writes it so.
        stage1: whether stage 1 comes before stage 2. If `targets` is `none` (`self-taught`, which is ours), stage 1
            learns the bi-encoder cosine instead of soft labels.
        targets: whose soft labels the student learns: nobody's, those of the teacher that is best on the development
            set, the mean of all teachers', or each teacher's.
        heads: `golden`: one head, which learns labels and soft labels; `golden+soft`: besides that one a soft head for
            each teacher.
        students: how many students are trained for each seed: 0 (only teachers are evaluated), 1, or one for each of
            the K teachers.
        encoder: `whole` (all layers, as a teacher has), `bottom` (the student's layers), a bidirectional `lstm`, or
            `cached`: the row `bottom` with a student that reads passages once (`chosen_method`).
        text: how `tmkd recipe` describes it.
        alone: for a method that needs two or more teachers: the method to use with a single teacher.
        extras: whether its students have what recipes add to the paper's method (hidden states, token cosine, another
            loss, a start from a teacher's layers, replay); `tmkd-paper` has none.
        warm: whether its students start from the encoder's warm start (`warm_up`), by evenly spaced layers.
        stage2: whether the student learns the task's labels: in stage 2, or in its only stage. False of `stage1-only`,
            the general student, which has soft heads only.
    """

    name: str
    stage1: bool
    targets: Literal["none", "one", "mean", "each"]
    heads: Literal["golden", "golden+soft"]
    students: Literal[0, 1, "K"]
    encoder: Literal["whole", "bottom", "lstm", "cached"]
    text: str
    alone: str | None = None
    extras: bool = True
    warm: bool = False
    stage2: bool = True

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
        """Whether it gives one student for each seed, which can be folded and exported."""
        return self.students == 1 and self.encoder in ("whole", "bottom", "cached")

    @property
    def cached(self) -> bool:
        """Whether its student reads passages once."""
        return self.encoder == "cached"

    def require_stage1(self, finished: str | None, combination: str) -> None:
        """Check that a method which is stage 1 alone trains it, and that its heads give the output.

        Args:
            finished: the folder of the stage-1 student that the recipe names; None where stage 1 is trained.
            combination: the recipe's.

        Raises:
            ValueError: stage 1 is finished elsewhere, or the output is that of the golden head.
        """
        if self.stage2:
            return
        if finished is not None:
            raise ValueError(
                f"methods: {self.name} is what stage 1 makes, and stage1_from names a finished one, {finished}; leave "
                "one of them out"
            )
        if combination == "golden":
            raise ValueError(f"combination: golden, but {self.name} learns no labels and has no golden head; use logit")


TEACHERS = ("teacher", "teacher-ensemble")  # the methods by which a report shows teachers
_BOTH: Literal["golden+soft"] = "golden+soft"
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # name, stage 1, targets, heads, students, encoder
        Method("teacher", False, "none", "golden", 0, "whole", "each teacher alone"),
        Method("teacher-ensemble", False, "none", "golden", 0, "whole", "all teachers together (`ensemble`)"),
        Method("cosine", False, "none", "golden", 0, "whole", "bi-encoder cosine of the encoder, nothing trained"),
        Method("finetune", False, "none", "golden", 1, "bottom", "the student on labels only"),
        Method("finetune-whole", False, "none", "golden", 1, "whole", "an encoder of whole depth on labels only"),
        Method("finetune-warm", False, "none", "golden", 1, "bottom", "finetune from the warm start", warm=True),
        Method("self-taught", True, "none", "golden", 1, "bottom", "both stages without a teacher"),
        Method("bilstm", False, "one", "golden", 1, "lstm", "bidirectional LSTM student of the best teacher"),
        Method("1-o-1", False, "one", "golden", 1, "bottom", "student of the best teacher, one head, no stage 1"),
        Method("1avg-o-1", False, "mean", "golden", 1, "bottom", "1-o-1 of the teacher ensemble", alone="1-o-1"),
        Method("m-o-m", False, "each", "golden", "K", "bottom", "mean of a 1-o-1 for each teacher", alone="1-o-1"),
        Method("mkd", False, "each", _BOTH, 1, "bottom", "a head for each teacher, no stage 1", alone="1-o-1"),
        Method("tkd", True, "one", _BOTH, 1, "bottom", "both stages, the best teacher only"),
        Method("1avg-tkd", True, "mean", _BOTH, 1, "bottom", "both stages, the teacher ensemble", alone="tkd"),
        Method("tmkd", True, "each", _BOTH, 1, "bottom", "both stages, a head for each teacher", alone="tkd"),
        Method("tmkd-paper", True, "each", _BOTH, 1, "bottom", "tmkd as the paper has it", alone="tkd", extras=False),
        Method("stage1-only", True, "each", _BOTH, 1, "bottom", "stage 1 alone: the general student", stage2=False),
    )
}


def chosen_method(name: str, kind: StudentKind) -> Method:
    """The method that a recipe names.

    Args:
        name: a name of the table, or NAME@KIND with a kind of student.
        kind: of the student, where the name does not say it (`student.kind`).

    Raises:
        ValueError: there is no such method or kind, or the method has no student of that kind.
    """
    base, at, suffix = name.partition("@")
    if base not in METHODS:
        raise ValueError(f"{name!r} is not a method; there are: {', '.join(METHODS)}")
    method = METHODS[base]
    if not at:
        return _cached(method) if kind == "cached" and method.encoder == "bottom" else method
    kinds: tuple[StudentKind, ...] = get_args(StudentKind)
    if suffix not in kinds:
        near = difflib.get_close_matches(suffix, kinds, n=1, cutoff=0.4)
        hint = (
            f"did you mean {base}@{near[0]}?" if near else f"there are: {', '.join(f'{base}@{one}' for one in kinds)}"
        )
        raise ValueError(f"{name!r}: {suffix!r} is not a kind of student; {hint}")
    if method.encoder != "bottom":
        what = "its student is an LSTM" if method.encoder == "lstm" else "it trains no student"
        what = "its student is a whole encoder" if method.trains and method.encoder == "whole" else what
        raise ValueError(f"{name!r}: {base} has no kinds of students, {what}; write {base}")
    return replace(_cached(method) if suffix == "cached" else method, name=name)


def _cached(method: Method) -> Method:
    """The method with a student that reads passages once."""
    if method.self_taught:
        raise ValueError(
            f"{method.name} has no student of the kind cached: its stage 1 learns the bi-encoder cosine, which is what "
            f"a cached student starts as; take {method.name}@layers, or finetune@cached"
        )
    if method.warm:
        raise ValueError(
            f"{method.name} has no student of the kind cached: the warm start teaches an encoder to compare two texts "
            f"in one sequence, and cached students read each alone; take {method.name}@layers, or finetune@cached"
        )
    return replace(method, encoder="cached")
