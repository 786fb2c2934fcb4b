"""Runs that are compared with each other (`tmkd evaluate --beside`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tmkd.config.recipe import Recipe
from tmkd.core.errors import TmkdError
from tmkd.pipeline.steps.evaluate import require_comparable
from tmkd.pipeline.steps.finished_run import FinishedRun


def run(name: str, **data: Any) -> FinishedRun:
    recipe = Recipe.model_validate(
        {
            "name": name,
            "classes": 3,
            "data": {"train": "train.jsonl", **data},
            "teachers": [{"name": "a"}, {"name": "b"}],
        }
    )
    return cast(FinishedRun, SimpleNamespace(recipe=recipe))


def test_runs_whose_classes_are_in_another_order_are_refused() -> None:
    first = run("first", labels={"entailment": 0, "neutral": 1, "contradiction": 2})
    require_comparable(first, [run("same", labels={"Entailment": 0, "neutral": 1, "contradiction": 2, "-": None})])
    require_comparable(first, [run("nameless")])
    turned = run("turned", labels={"contradiction": 0, "entailment": 1, "neutral": 2})
    with pytest.raises(TmkdError, match=r"runs first and turned are not the same: contradiction is class 2 in one"):
        require_comparable(first, [turned])
