"""Recipes of students that read passages once: which kind a method trains, what is exported, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tmkd.config.load import parse_recipe, read_content, set_keys
from tmkd.config.recipe import Recipe
from tmkd.core.errors import RecipeError


def recipe(**keys: Any) -> Recipe:
    content: dict[str, Any] = {"data": {"train": "train.jsonl"}, "teachers": [{"name": "a"}, {"name": "b"}]}
    set_keys(content, [(name.replace("__", "."), value, name) for name, value in keys.items()])
    return parse_recipe(content, "here")


def kinds(found: Recipe) -> dict[str, str]:
    return {method.name: method.encoder for method in found.chosen_methods}


def test_a_suffix_or_else_the_recipe_says_which_kind_a_method_trains() -> None:
    methods = ["teacher", "finetune", "bilstm", "tmkd@cached", "tmkd@layers"]
    given = {
        "teacher": "whole",
        "finetune": "bottom",
        "bilstm": "lstm",
        "tmkd@cached": "cached",
        "tmkd@layers": "bottom",
    }
    assert kinds(recipe(methods=methods, take="finetune")) == given
    others = recipe(methods=methods, take="finetune", student__kind="cached")
    assert kinds(others) == {**given, "finetune": "cached"}
    assert recipe(take="tmkd@cached", methods=["tmkd@cached"]).take == "tmkd@cached"


def test_the_best_student_can_be_taken() -> None:
    assert recipe(methods=["finetune", "tmkd@cached"], take="best").take == "best"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"methods": ["tmkd@cashed"]}, "'cashed' is not a kind of student; did you mean tmkd@cached?"),
        ({"methods": ["tmdk@cached"]}, "'tmdk@cached' is not a method"),
        ({"methods": ["tmkd", "bilstm@cached"]}, "bilstm has no kinds of students, its student is an LSTM"),
        ({"methods": ["tmkd", "teacher@cached"]}, "teacher has no kinds of students, it trains no student"),
        ({"methods": ["tmkd", "tmkd@layers"]}, "tmkd and tmkd@layers are the same students"),
        ({"methods": ["tmkd", "self-taught@cached"]}, "its stage 1 learns the bi-encoder cosine, which is what a"),
        ({"methods": ["tmkd", "self-taught"], "student__kind": "cached"}, "self-taught has no student of the kind"),
        ({"methods": ["tmkd@cached"]}, "take: 'tmkd' is not among the methods (tmkd@cached)"),
        ({"methods": ["m-o-m@cached", "bilstm"], "take": "best"}, "take: best, but no student of m-o-m@cached, bilstm"),
        ({"student__kind": "cached", "student__start": "spaced"}, "student.start is for layered students"),
        (
            {"student__kind": "cached", "stage1": {"learning_rate": 1e-3, "epochs": 1, "cosine": 0.5}},
            "stage1.cosine is for layered students, and all students here are cached; leave it out (stage1.cosine=0)",
        ),
        ({"student__kind": "cache"}, "student.kind: input should be 'layers' or 'cached', got 'cache'"),
        ({"cached__width": 100}, "width 100 is no multiple of 6 heads"),
        ({"cached__state_size": 0}, "cached.state_size: input should be greater than 0, got 0"),
        ({"cached__layer": 2}, "cached.layer: unknown key; did you mean 'layers'?"),
        (
            {"cached__stage2": {"learning_rate": 1e-4, "epochs": 1, "batch_size": 3}, "loss__kind": "margin_mse"},
            "cached.stage2.batch_size: 3 is too small for loss.kind margin_mse",
        ),
        (
            {"cached__stage1": {"learning_rate": 1e-3, "epochs": 9, "states_until": 0.5}},
            "states_until: 0.5, but states is 0, so there are none to learn; leave it out",
        ),
        (
            {"stage1": {"learning_rate": 1e-3, "epochs": 9, "states_from": "each"}},
            "states_from: each, but states is 0, so there are none to learn; leave it out",
        ),
        (
            {"stage1": {"learning_rate": 1e-3, "epochs": 9, "states_until": 0.0}},
            "stage1.states_until: input should be greater than 0, got 0",
        ),
        (
            {"cached__stage1": {"learning_rate": 1e-3, "epochs": 9}, "cached__stage1_from": "there"},
            "give cached.stage1 or cached.stage1_from, not both: cached.stage1_from=there",
        ),
        (
            {"cached__stage1": {"learning_rate": 1e-3, "epochs": 9}, "stage1_from": "there"},
            "give cached.stage1 or stage1_from, not both",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe(**keys)
    assert message in str(refused.value)


def test_the_keys_of_layered_students_do_not_matter_to_cached_methods_of_the_same_recipe(tmp_path: Any) -> None:
    """One method of a recipe of both kinds can be run alone; a stage-1 student from elsewhere replaces both stages."""
    (tmp_path / "recipe.yaml").write_text(
        "data: {train: a.jsonl}\nteachers: [{name: a}, {name: b}]\nstudent: {start: teacher}\n"
        "stage1: {learning_rate: 1.0e-3, epochs: 1, states: 100.0}\n"
        "cached: {stage1: {learning_rate: 1.0e-3, epochs: 9}}"
    )
    alone = ["methods=[tmkd@cached]", "take=tmkd@cached"]
    content = read_content(tmp_path / "recipe.yaml", alone)
    assert parse_recipe(content, "x").stage1.states == 100
    starts = parse_recipe(read_content(tmp_path / "recipe.yaml", [*alone, "stage1_from=there"]), "x")
    assert starts.stage1_from == "there"
    of_each = parse_recipe(read_content(tmp_path / "recipe.yaml", ["cached.stage1_from=there"]), "x")
    assert (of_each.cached.stage1_from, of_each.stage1_from, of_each.stage1.epochs) == ("there", None, 1)
