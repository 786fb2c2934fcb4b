"""Overrides of a recipe and of a study, and what YAML itself would pass over in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tmkd.config.load import load_other, load_recipe, parse_recipe, parse_recorded_recipe
from tmkd.core.errors import RecipeError
from tmkd.pipeline.study.plan import load_study

OTHER = """
name: other
data: {train: their-train.jsonl, dev: their-dev.jsonl, test: their-test.jsonl}
teachers: [{name: a}, {name: b}]
stage1: {learning_rate: 1.0e-3, epochs: 6, batch_size: 8}
"""
MAIN = """
name: main
data: {train: train.jsonl, dev: dev.jsonl}
teachers: [{name: a}, {name: b}]
pool:
  sources: [{task: {recipe: other.yaml, keys: {name: another}}}]
"""
STUDY = """
name: study
tasks: [{recipe: other.yaml, keys: {take: tmkd, stage1.epochs: 4}}]
variants: {one: {stage1.epochs: 2}, two: {}}
seeds: [0]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in {"other": OTHER, "main": MAIN, "study": STUDY}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.train=mine.jsonl"], ["mine.jsonl", "their-dev.jsonl", "their-test.jsonl"]),
        (["data={train: whole.jsonl, dev: d.jsonl}", "data.dev=mine.jsonl"], ["whole.jsonl", "mine.jsonl", None]),
        (["data.dev=mine.jsonl", "data={train: whole.jsonl, dev: d.jsonl}"], ["whole.jsonl", "d.jsonl", None]),
        (["data.dev=x", "data={train: whole.jsonl, dev: d.jsonl}", "data.dev=y"], ["whole.jsonl", "y", None]),
    ],
)
def test_an_override_changes_one_key_of_another_recipe_and_keeps_its_section(
    folder: Path, overrides: list[str], parts: list[str | None]
) -> None:
    keys = [f"pool.sources.0.task.keys.{override}" for override in overrides]
    source = load_recipe("main.yaml", keys).pool.sources[0].task  # type: ignore[union-attr]
    assert source is not None
    other = load_other(source)
    assert other.name == "another"
    assert [other.data.train, other.data.dev, other.data.test] == parts


@pytest.mark.parametrize(
    ("override", "epochs"),
    [
        ("tasks.0.keys.stage1.epochs=3", [2, 3]),
        ("variants.two.stage1.epochs=5", [2, 5]),
        ("tasks.0.keys.stage1={learning_rate: 1.0e-3, epochs: 7, batch_size: 8}", [2, 7]),
    ],
)
def test_an_override_of_a_study_changes_one_key_of_its_recipes(folder: Path, override: str, epochs: list[int]) -> None:
    numbers = [cell.recipe.stage1 for cell in load_study(folder / "study.yaml", [override]).cells]
    assert [one.epochs for one in numbers] == epochs
    assert {one.batch_size for one in numbers} == {8}


def test_an_override_adds_a_key_to_the_grid_of_a_study(folder: Path) -> None:
    plan = load_study(folder / "study.yaml", ["variants={}", "grid.stage1.epochs=[1, 2]"])
    assert [cell.recipe.stage1.epochs for cell in plan.cells] == [1, 2]


def test_an_override_of_a_grid_changes_a_key_or_a_value_and_keeps_their_order(folder: Path) -> None:
    whole = "grid={stage1.epochs: [1, 2], loss.alpha: [0.5]}"
    plan = load_study(folder / "study.yaml", ["variants={}", whole, "grid.stage1.epochs.1=4", "grid.loss.alpha=[1]"])
    assert [cell.variant for cell in plan.cells] == ["epochs=1, alpha=1", "epochs=4, alpha=1"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("stage1: {learning_rate: 1.0e-3, epochs: 1}\n", "'stage1' stands twice in one section, in lines 5 and 6"),
        ("loss: {alpha: 0.5,\n  kind: kl, alpha: 0.6}\n", "'alpha' stands twice in one section, in lines 6 and 7"),
        ("pool:\n  sampling: {keep: 4, keep: 4}\n", "'keep' stands twice in one section, in line 7"),
        ("bilstm: {epochs: 2, epochs: 3}", "'epochs' stands twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused(folder: Path, more: str, message: str) -> None:
    (folder / "other.yaml").write_text(OTHER + more)
    with pytest.raises(RecipeError, match=rf"other\.yaml: the key {message}"):
        load_recipe("other.yaml")
    with pytest.raises(RecipeError, match=f"the key {message}"):
        load_study(folder / "study.yaml")


def test_a_key_that_stands_twice_in_an_override_is_refused(folder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"override 'loss=.*': the key 'alpha' stands twice in one section, in line 1"
    ):
        load_recipe("other.yaml", ["loss={alpha: 0.5, alpha: 0.6}"])


def test_a_merge_key_may_be_overridden_and_a_label_is_there_once(folder: Path) -> None:
    rates = "  <<: *rates\n  epochs: 3\n"
    (folder / "other.yaml").write_text(OTHER.replace("stage1: ", "stage1: &rates ") + "without_stage1:\n" + rates)
    found = load_recipe("other.yaml").without_stage1
    assert (found.epochs, found.batch_size) == (3, 8)
    with pytest.raises(RecipeError, match="1 stands there as a number and as a text"):
        load_recipe("main.yaml", ["data.labels={1: 1, '1': 0, 2: 0}"])


SEARCH = {"questions": "own", "passages": "texts.jsonl"}
CHAT = {"url": "http://x", "form": "chat", "model": "m", "prompt": "p", "answers": {"y": 1, "n": 0}, "request_size": 3}
NOTHING: list[tuple[dict[str, Any], str]] = [
    ({"pool": {"passages_per_question": 5}}, "pool: passages_per_question: 5 would have no effect"),
    ({"pool": {"seed": 3}}, "pool: seed: 3 would have no effect"),
    ({"pool": {"sources": [{"pairs": {"file": "p.jsonl", "split": "train[:9]"}}]}}, "split: 'train[:9]' would"),
    ({"pool": {"sources": [{**SEARCH, "passages": {"file": "p.txt", "config": "x"}}]}}, "config: 'x' would have no"),
    ({"pool": {"sources": [{"pairs": "p.jsonl", "ask": "passages"}]}}, "ask: 'passages' would have no effect"),
    ({"pool": {"sources": [{**SEARCH, "questions": {"file": "own", "column": "x"}}]}}, "own has no columns"),
    (
        {"pool": {"sources": [{**SEARCH, "passages": {"file": "a.txt.gz", "quoting": "none"}}]}},
        "quoting: 'none' would have no effect, since it is of CSV",
    ),
    ({"pool": {"sources": [{"pairs": {"hub": "x/y", "quoting": "none"}}]}}, "quoting: 'none' would have no effect"),
    ({"data": {"train": "a.jsonl", "config": "mnli"}}, "data: config: 'mnli' would have no effect"),
    ({"data": {"train": "t", "columns": {"question": "x", "passage": "x"}}}, "question and passage are both the colu"),
    ({"data": {"train": "t", "columns": {"label": "qid"}}}, "qid and label are both the column 'qid'"),
    ({"loss": {"kind": "mse", "temperature": 2}}, "temperature: 2.0 would have no effect, since the loss mse has none"),
    ({"teachers": [{"name": "a", "endpoint": CHAT, "seed": 3}]}, "request_size: 3 would have no effect"),
]


@pytest.mark.parametrize(("keys", "message"), NOTHING)
def test_a_key_that_does_nothing_is_refused_but_not_in_the_recipe_of_a_finished_run(
    keys: dict[str, Any], message: str
) -> None:
    content = {"data": {"train": "t"}, "teachers": [{"name": "a"}], "methods": ["tkd"], "take": "tkd", **keys}
    with pytest.raises(RecipeError) as caught:
        parse_recipe(content, "r")
    assert message in str(caught.value)
    recorded = parse_recorded_recipe(content, "manifest.json").model_dump(mode="json")
    assert parse_recorded_recipe(recorded, "manifest.json").model_dump(mode="json") == recorded


def test_the_keys_of_a_pool_of_pairs_that_do_something_are_taken() -> None:
    content = {"data": {"train": "t", "pool": "p"}, "teachers": [{"name": "a"}], "methods": ["tkd"], "take": "tkd"}
    for drawn in ({"size": 5}, {"sampling": {"keep": 4}}):
        assert parse_recipe({**content, "pool": {**drawn, "seed": 3}}, "r").pool is not None
    pool = {"sources": [{"pairs": {"file": "x", "question": "text", "passage": "text"}}]}
    with pytest.raises(RecipeError, match="question and passage are both the column 'text'"):
        parse_recipe({**content, "pool": pool}, "r")
