"""Stage 1 has two keys: `stage1` holds its numbers, `stage1_from` the folder of a finished stage-1 student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Tmkd

from tmkd.config.load import load_recipe, parse_recipe
from tmkd.config.sections import Stage1
from tmkd.core.errors import RecipeError

PATH = "workspace/runs/demo/stage1"


def test_a_path_on_the_command_line_replaces_the_numbers_of_the_file(recipe_file: Path) -> None:
    assert load_recipe(recipe_file).stage1.batch_size == 8
    recipe = load_recipe(recipe_file, [f"stage1_from={PATH}"])
    assert recipe.stage1_from == PATH
    assert recipe.stage1 == Stage1(learning_rate=3e-4, epochs=4)  # the default: nothing is trained by it
    assert load_recipe(recipe_file, ["stage1_from=null"]).stage1.batch_size == 8


def test_the_old_spelling_is_refused_with_the_new_one(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=rf"stage1: .*stage1_from={PATH}"):
        load_recipe(recipe_file, [f"stage1={PATH}"])
    lines = [line for line in recipe_file.read_text().splitlines(True) if not line.startswith("stage1:")]
    recipe_file.write_text("".join([*lines, f"stage1: {PATH}\n"]))
    with pytest.raises(RecipeError, match=rf"stage1: .*stage1_from={PATH}"):
        load_recipe(recipe_file)


@pytest.mark.parametrize(
    "overrides",
    [
        ["stage1={learning_rate: 1.0e-3, epochs: 1}", f"stage1_from={PATH}"],
        [f"stage1_from={PATH}", "stage1.epochs=2"],
    ],
)
def test_numbers_and_a_path_together_are_refused(recipe_file: Path, overrides: list[str]) -> None:
    with pytest.raises(RecipeError, match=f"give stage1 or stage1_from, not both: stage1_from={PATH}"):
        load_recipe(recipe_file, overrides)
    recipe_file.write_text(recipe_file.read_text() + f"stage1_from: {PATH}\n")
    with pytest.raises(RecipeError, match="give stage1 or stage1_from, not both"):
        load_recipe(recipe_file)


def test_a_recipe_that_was_written_out_is_read_again(recipe_file: Path) -> None:
    for overrides in ([], [f"stage1_from={PATH}"]):
        recipe = load_recipe(recipe_file, overrides)
        assert parse_recipe(recipe.model_dump(mode="json"), "again") == recipe


def test_evaluate_reads_a_run_from_before_there_were_two_keys(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    tmkd("distill", recipe_file, "methods=[finetune]", "take=finetune")
    run = tmp_path / "workspace" / "runs" / "tiny"
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["recipe"]["stage1_from"]
    manifest["recipe"]["stage1"] = PATH
    (run / "manifest.json").write_text(json.dumps(manifest))
    done = tmkd("evaluate", run, "--pairs", tmp_path / "test.jsonl", "--no-speed", "--json", "-")
    assert json.loads(done.stdout)["rows"] == 32
