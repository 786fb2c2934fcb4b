"""`rates`: the learning rate and the epochs of single methods, and what is refused there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Tmkd

from tmkd.config.load import describe, load_recipe, parse_recipe
from tmkd.config.methods import METHODS, chosen_method
from tmkd.config.recipe import Recipe
from tmkd.core.errors import RecipeError

KINDS = "methods=[teacher,finetune,tmkd,tmkd@cached,m-o-m]"


def own(recipe: Recipe, name: str) -> Recipe:
    return recipe.of_method(chosen_method(name, recipe.student.kind))


def test_a_method_has_its_own_numbers_and_the_others_those_of_the_sections(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, [
        KINDS,
        "rates.finetune.without_stage1.learning_rate=1e-4",
        "rates={tmkd: {stage1: {epochs: 7}, stage2: {learning_rate: 1.0e-5}}, tmkd@cached: {stage2: {epochs: 9}}}",
        "rates.finetune.without_stage1.learning_rate=1e-4",
    ])  # fmt: skip
    tmkd, cached = own(recipe, "tmkd"), own(recipe, "tmkd@cached")
    assert (tmkd.stage1.epochs, tmkd.stage1.learning_rate, tmkd.stage1.batch_size) == (7, 3e-4, 8)
    assert (tmkd.stage2.epochs, tmkd.stage2.learning_rate) == (1, 1e-5)
    assert cached.cached.stage2.epochs == 9
    assert (cached.stage2, tmkd.cached) == (recipe.stage2, recipe.cached)
    assert own(recipe, "finetune").without_stage1.learning_rate == 1e-4
    assert own(recipe, "mkd") == own(recipe, "finetune@cached") == recipe
    again = parse_recipe(json.loads(recipe.model_dump_json()), "again")
    assert again == recipe


def test_a_name_means_the_students_that_methods_would_train(recipe_file: Path) -> None:
    """`tmkd` is the kind that student.kind says, here as in `methods`; students of m-o-m are those of 1-o-1."""
    text = "rates={tmkd: {stage1: {epochs: 7}}, 1-o-1: {without_stage1: {epochs: 5}}}"
    layered = load_recipe(recipe_file, [text])
    assert own(layered, "tmkd@layers").stage1.epochs == 7
    assert own(layered, "tmkd@cached") == layered
    assert own(layered, "m-o-m").without_stage1.epochs == own(layered, "1-o-1").without_stage1.epochs == 5
    cached = load_recipe(recipe_file, [text, "student.kind=cached"])
    assert own(cached, "tmkd@cached").cached.stage1.epochs == 7
    assert own(cached, "tmkd@layers") == cached


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rates.finetun.stage1.epochs=2"], "rates: 'finetun' is not a method; there are: teacher"),
        (["rates.tmkd@cashed.stage1.epochs=2"], "rates: 'tmkd@cashed': 'cashed' is not a kind of student"),
        (["rates.finetune.stage1.epochs=2"], "finetune has no stage1; its students are trained by without_stage1"),
        (["rates.tmkd.without_stage1.epochs=2"], "tmkd has no without_stage1; its students are trained by stage1"),
        (["rates.teacher.stage1.epochs=2"], "rates: teacher trains no student"),
        (["rates.bilstm.without_stage1.epochs=2"], "rates: bilstm has a section of its own.*bilstm.learning_rate"),
        (["rates.m-o-m.without_stage1.epochs=2"], "m-o-m is several students of 1-o-1; give the numbers of 1-o-1"),
        (["rates={tmkd: {stage1: {epochs: 2}}, tmkd@layers: {stage1: {epochs: 3}}}"], "tmkd@layers are the same"),
        (["rates={tmkd: {stage1: {}}}"], "rates: tmkd: there is no number; give learning_rate or epochs under stage1"),
        (["rates.tmkd.stage1.epochs=0"], "rates.tmkd.stage1.epochs: input should be greater than 0, got 0"),
        (["rates.tmkd.stage1.learning_rate=2"], "rates.tmkd.stage1.learning_rate: input should be less than or equal"),
        (["rates.tmkd.stage1.epoch=2"], "rates.tmkd.stage1.epoch: unknown key; did you mean 'epochs'"),
        (["rates.tmkd.stage3.epochs=2"], "rates.tmkd.stage3: unknown key; did you mean 'stage"),
        (["stage1_from=somewhere", "rates.tmkd.stage1.epochs=2"], "tmkd.stage1 would have no effect: .*somewhere"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused(recipe_file: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe(recipe_file, overrides)


def test_a_finished_stage1_on_the_command_line_replaces_the_numbers_of_the_file(recipe_file: Path) -> None:
    recipe_file.write_text(
        recipe_file.read_text()
        + "rates:\n  tmkd: {stage1: {epochs: 7}}\n  tkd: {stage1: {epochs: 7}, stage2: {epochs: 3}}\n"
        + "  tmkd@cached: {stage1: {epochs: 7}}\n"
    )
    both = load_recipe(recipe_file, ["stage1_from=somewhere"])
    assert {name: one.given() for name, one in both.rates.items()} == {"tkd": {"stage2": {"epochs": 3}}}
    one = load_recipe(recipe_file, ["cached.stage1_from=somewhere"])
    assert list(one.rates) == ["tmkd", "tkd"]


def test_the_documentation_of_the_recipe_names_them() -> None:
    assert "rates.METHOD.without_stage1.learning_rate: peak learning rate" in describe()
    assert all(name in describe() for name in METHODS)


def test_a_run_and_its_report_say_them(tmkd: Tmkd, tiny_recipe: Path) -> None:
    overrides = ["methods=[teacher,finetune,tmkd]", "export.backends=[onnx-fp32]"]
    rates = ["rates.finetune.without_stage1.epochs=2", "rates.tmkd.stage1.learning_rate=7e-4",
             "rates.1-o-1.without_stage1.epochs=4"]  # fmt: skip
    tmkd("distill", tiny_recipe, *overrides)
    done = tmkd("run", tiny_recipe, *overrides, *rates, "--json")
    assert "rates: 1-o-1 is not among the methods of this run (teacher, finetune, tmkd)" in done.stderr
    assert "stage 1 of tmkd, seed 0: done before" not in done.stderr
    assert "teacher a: done before" in done.stderr
    results = json.loads(done.stdout)
    assert results["training"] == {
        "finetune": {"without_stage1": {"learning_rate": 2e-4, "epochs": 2}},
        "tmkd": {"stage1": {"learning_rate": 7e-4, "epochs": 1}, "stage2": {"learning_rate": 3e-5, "epochs": 1}},
    }
    page = Path("workspace/runs/tiny/report/report.html").read_text()
    assert '<th scope="row">tmkd</th><td>0.0007 × 1</td><td>3e-05 × 1</td>' in page
    assert '<th scope="row">finetune</th><td></td><td>0.0002 × 2</td>' in page
    # the first seed's curve of finetune is two passes, by the file of the step that the manifest names
    models = json.loads(Path("workspace/runs/tiny/manifest.json").read_text())["models"]
    step = next(one["steps"][0] for one in models if one["name"] == "finetune")
    depends = json.loads((Path("workspace/steps") / step / "step.json").read_text())
    assert '"epochs": 2' in json.dumps(depends)
