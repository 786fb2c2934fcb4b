"""What a recipe says of its classes."""

from __future__ import annotations

import pytest

from tmkd.config.class_checks import unlike_classes
from tmkd.config.sections import Data


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ({"entailment": 0, "neutral": 1, "-": None}, {"entailment": 1, "neutral": 0}, "entailment is class 0 in one"),
        ({"no": 0, "yes": 1}, {"No": 0, "YES": 1, "true": 1}, ""),
        ({"no": 0, "yes": 1}, {"wrong": 0, "right": 1}, ""),
        ({"no": 0, "yes": 1}, {"false": 0, "no": 1}, "no is class 0 in one and class 1 in the other"),
        ({"0": 1, "1": 0}, {"0": 0, "1": 1}, "0 is class 1 in one and class 0 in the other"),
        ({"1": 0, "2": 1}, {"0": 0, "1": 1}, ""),  # other numbers of other files
        ({"no": 0, "yes": 1}, {}, ""),
    ],
)
def test_classes_of_two_recipes(mine: dict[str, int | None], theirs: dict[str, int | None], said: str) -> None:
    found = unlike_classes(Data(train="a", labels=mine), Data(train="b", labels=theirs))
    assert found.startswith(said)
    assert bool(found) == bool(said)
