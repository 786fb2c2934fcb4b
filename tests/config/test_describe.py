"""The documentation of the recipe (`tmkd recipe`): every key with its meaning, its type and its real default."""

from __future__ import annotations

from typing import Any

import pytest

from tmkd.config.load import describe, parse_recipe, set_keys
from tmkd.core.errors import RecipeError

LINES = dict(line.split(": ", 1) for line in describe().splitlines())


@pytest.mark.parametrize(
    ("key", "end"),
    [
        ("classes", "(integer; default: 2)"),
        ("precision", "(auto, bf16 or fp32; default: 'auto')"),
        ("data.builtin", "(debian-docs; default: None)"),
        ("data.labels", "(mapping of text to integer; default: {})"),
        ("teachers.0.name", "(text; required)"),
        ("teachers.0.endpoint.scale", "(list of number; default: None)"),
        ("student.freeze_embeddings", "(true or false; default: True)"),
        ("warm_up.learning_rate", "(number; required)"),
    ],
)
def test_a_key_has_its_type_and_its_default(key: str, end: str) -> None:
    assert LINES[key].endswith(f" {end}")


@pytest.mark.parametrize("section", ["stage1", "stage2", "without_stage1", "cached.stage1", "cached.without_stage1"])
def test_the_defaults_of_a_section_are_those_of_a_recipe_without_it(section: str) -> None:
    least: dict[str, Any] = {"data": {"builtin": "debian-docs"}, "teachers": [{"name": "t1"}, {"name": "t2"}]}
    numbers: Any = parse_recipe(least, "here")
    for name in section.split("."):
        numbers = getattr(numbers, name)
    with_a_part = {**least}
    set_keys(with_a_part, [(f"{section}.batch_size", 8, "here")])
    for key in ("learning_rate", "epochs"):
        assert LINES[f"{section}.{key}"].endswith(
            f"; default: {getattr(numbers, key)!r}; required if {section} is given)"
        )
        with pytest.raises(RecipeError, match=f"{section}.{key}: Field required"):
            parse_recipe(with_a_part, "here")


def test_passes_are_those_over_the_pairs_that_a_stage_reads() -> None:
    assert all("stage 1" in LINES[f"{section}.epochs"] for section in ("stage1", "cached.stage1"))
    assert "pool" in LINES["warm_up.epochs"]
    assert all("training pairs" in LINES[f"{section}.epochs"] for section in ("stage2", "without_stage1", "bilstm"))
