"""Relative paths of a recipe: from where tmkd was called, then beside the recipe; the hub is asked last."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tmkd.config.load import load_recipe
from tmkd.core.errors import RecipeError


def recipe_file(folder: Path, **keys: object) -> Path:
    content = {"name": "x", "data": {"train": "train.jsonl"}, "teachers": [{"name": "a"}, {"name": "b"}], **keys}
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


@pytest.fixture(autouse=True)
def _called_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_a_model_folder_is_looked_for_beside_the_recipe_too(tmp_path: Path) -> None:
    teachers = [{"name": "a", "checkpoint": "models/a"}, {"name": "b", "encoder": "./models/b"}]
    path = recipe_file(tmp_path / "there", encoder="models/e", teachers=teachers, data={"train": "train.jsonl"})
    for name in ("a", "b", "e"):
        (tmp_path / "there" / "models" / name).mkdir(parents=True)
    (tmp_path / "there" / "train.jsonl").write_text("{}")
    recipe = load_recipe(path)
    found = [recipe.encoder, recipe.teachers[0].checkpoint, recipe.teachers[1].encoder, recipe.data.train]
    wanted = [tmp_path / "there" / name for name in ("models/e", "models/a", "models/b", "train.jsonl")]
    assert [Path(str(one)) for one in found] == wanted


def test_the_place_where_tmkd_was_called_comes_first(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder / "models" / "e").mkdir(parents=True)
    assert load_recipe(recipe_file(tmp_path / "there", encoder="models/e")).encoder == "models/e"


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c"])
def test_a_folder_that_is_in_neither_place_is_refused_with_both(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file(tmp_path / "there", encoder=name))
    assert str(Path("here") / name) in str(caught.value)
    assert str(Path("there") / name) in str(caught.value)
    assert caught.value.key == "encoder"


def test_a_name_of_the_hub_is_said_with_both_places_before_the_hub_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tmkd")
    assert load_recipe(recipe_file(tmp_path / "there", encoder="models/mine")).encoder == "models/mine"
    for place in ("here/models/mine", "there/models/mine", "name on the model hub"):
        assert place in caplog.text
