"""Learning rates and epochs of single methods (`rates`), which come before the sections that all methods share.

A comparison of methods is fair where each has its own, chosen on the development set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from tmkd.config.methods import Method, StudentKind, chosen_method
from tmkd.config.sections import Part, Positive, Rate, Training

STAGES = ("stage1", "stage2", "without_stage1")
# Keys of a stage's section that the paper's method has not.
EXTRAS = ("states", "states_until", "states_from", "cosine", "replay")


class StageRates(Part):
    """The learning rate and the epochs of one stage of one method."""

    learning_rate: Rate | None = Field(None, description="peak learning rate; that of the section unless given")
    epochs: Positive | None = Field(None, description="passes over the pairs; those of the section unless given")


class MethodRates(Part):
    """How one method's students are trained, where that differs from the recipe's sections."""

    stage1: StageRates | None = Field(
        None, description="in place of those of stage1 (of a cached student cached.stage1)"
    )
    stage2: StageRates | None = Field(None, description="in place of those of stage2 (cached.stage2)")
    without_stage1: StageRates | None = Field(
        None, description="in place of those of without_stage1 (cached.without_stage1)"
    )

    def given(self) -> dict[str, dict[str, float]]:
        """The numbers that are there, by stage."""
        stages = {key: getattr(self, key) for key in STAGES}
        dumped = {key: one.model_dump(exclude_none=True) for key, one in stages.items() if one is not None}
        return {key: numbers for key, numbers in dumped.items() if numbers}


def stages_of(method: Method) -> tuple[str, ...]:
    """The sections of a recipe that train a method's students."""
    return STAGES[:2] if method.stage1 else STAGES[2:]


def require_rates(rates: Mapping[str, MethodRates], kind: StudentKind) -> None:
    """Every entry of `rates` is for a method that reads it.

    Args:
        rates: a recipe's.
        kind: of the students, where a method's name does not say it (`student.kind`).

    Raises:
        ValueError: no such method, one that trains by another section, the same students under two names, a stage that
            the method does not have, or no number.
    """
    seen: dict[tuple[str, str], str] = {}
    for name, own in rates.items():
        method = chosen_method(name, kind)
        if not method.trains:
            raise ValueError(f"{name} trains no student; leave it out (teachers have their own numbers, in `teachers`)")
        if method.encoder == "lstm":
            raise ValueError(
                f"{name} has a section of its own, `{name}`; set {name}.learning_rate, {name}.epochs there"
            )
        if method.students == "K":
            one = name.replace("m-o-m", "1-o-1")
            raise ValueError(f"{name} is several students of {one}; give the numbers of {one}")
        if (other := seen.setdefault(_students(method), name)) != name:
            raise ValueError(f"{other} and {name} are the same students; leave one of them out")
        given, stages = own.given(), stages_of(method)
        for stage in given:
            if stage not in stages:
                raise ValueError(f"{name} has no {stage}; its students are trained by {' and '.join(stages)}")
        if not given:
            raise ValueError(f"{name}: there is no number; give learning_rate or epochs under {' or '.join(stages)}")


def unread_rates(rates: Mapping[str, MethodRates], methods: Sequence[Method], kind: StudentKind) -> list[str]:
    """The names in `rates` of which none of the methods is; arguments as of `require_rates`."""
    read = {_students(method) for method in methods}
    return [name for name in rates if _students(chosen_method(name, kind)) not in read]


def _students(method: Method) -> tuple[str, str]:
    """Which students a method trains, whatever name a recipe gives it."""
    return "1-o-1" if method.students == "K" else method.name.partition("@")[0], method.encoder


def own_numbers(
    sections: Mapping[str, Training], rates: Mapping[str, MethodRates], method: Method, kind: StudentKind
) -> dict[str, Training]:
    """Those sections that are others for one method, as they are for it.

    Args:
        sections: the recipe's, by stage.
        rates: as of `require_rates`.
        method: the method; one without extras has soft labels alone in stage 1, and no replay in stage 2.
        kind: as of `require_rates`.
    """
    found = {} if method.extras else {stage: _without_extras(numbers) for stage, numbers in sections.items()}
    for name, own in rates.items():
        if _students(chosen_method(name, kind)) == _students(method):
            given = own.given()
            found |= {stage: found.get(stage, sections[stage]).model_copy(update=given[stage]) for stage in given}
    return found


def _without_extras(numbers: Training) -> Training:
    """The section with soft and golden labels alone."""
    fields = type(numbers).model_fields
    extras = {key: fields[key].default for key in EXTRAS if key in fields}
    return numbers.model_copy(update=extras)
