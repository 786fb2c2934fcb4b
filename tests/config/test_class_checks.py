"""What a recipe says of its classes."""

from __future__ import annotations

import pytest

from tmkd.config.class_checks import positive_class, unlike_classes
from tmkd.config.load import validate
from tmkd.config.sections import Data
from tmkd.core.errors import RecipeError


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


@pytest.mark.parametrize("bare", [True, False])
def test_the_positive_class_is_no_switch_of_yaml(bare: bool) -> None:
    """A bare yes is true in YAML, and true would be class 1, which is no here."""
    labels = {"yes": 0, "no": 1}
    assert positive_class(Data(train="a", labels=labels, positive="yes")) == 0
    with pytest.raises(RecipeError, match=r"recipe: positive: YAML reads yes, no, .* as switches; quote them: 'yes'"):
        validate(Data, {"train": "a", "labels": labels, "positive": bare}, "recipe")
