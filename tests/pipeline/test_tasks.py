"""Every task's recipe reads its data set in the hub's own layout; labels, shares held out, and references."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tmkd, pair_rows, write_jsonl
from encoder_fixtures import tiny
from pairs_fixtures import refused

from tmkd.config.load import load_recipe, parse_recipe
from tmkd.config.pool_sections import ReadyPairs, Texts
from tmkd.config.sections import Data
from tmkd.core.errors import RecipeError
from tmkd.data.documents.text import question_key
from tmkd.data.hub import read_hub
from tmkd.data.measured import read_measured
from tmkd.data.pairs import Reference
from tmkd.data.pool_sources import read_ready, read_texts
from tmkd.data.rows import Columns, rows_to_pairs
from tmkd.data.tasks import TaskData, load_task
from tmkd.training.losses import golden_loss

RECIPES = Path(__file__).parents[2] / "recipes"
ROWS = 120  # of a split, two for each question
NLI = ["entailment", "neutral", "contradiction"]
QA = ["entailment", "not_entailment"]
# name: columns of question and passage, class names of the hub, splits with (rows, hidden labels), configuration
LAYOUTS: dict[str, Any] = {
    "mnli": ("premise", "hypothesis", NLI, {"train": False, "validation_matched": False, "test_matched": True}, "mnli"),
    "qnli": ("question", "sentence", QA, {"train": False, "validation": False, "test": True}, "qnli"),
    "rte": ("sentence1", "sentence2", QA, {"train": False, "validation": False, "test": True}, "rte"),
    "snli": ("premise", "hypothesis", NLI, {"train": False, "validation": False, "test": False}, "plain_text"),
    "wikiqa": ("question", "answer", ["0", "1"], {"train": False, "validation": False, "test": False}, "default"),
}
LAYOUTS["wikiqa-small"] = LAYOUTS["wikiqa"]


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's cache, inside the test's folder."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")


@pytest.fixture
def hub(tmp_path: Path) -> Callable[..., Path]:
    """A data set in the hub's layout: a card that names configurations, Parquet files of every split.

    `of` sets the texts apart from another one's of the same name.
    """
    from datasets import ClassLabel, Dataset, Features, Value

    def make(name: str, of: str = "") -> Path:
        question, passage, classes, splits, config = LAYOUTS[name]
        folder = tmp_path / "hub" / f"{name}{of}"
        features = Features({question: Value("string"), passage: Value("string"), "label": ClassLabel(names=classes)})
        files = ""
        for part, hidden in splits.items():
            rows = [
                {question: f"{part}{of} text {n // 2}", passage: f"{part}{of} other {n}", "label": n % len(classes)}
                for n in range(ROWS)
            ]
            if hidden:
                rows = [{**row, "label": -1} for row in rows]
            if name == "snli":
                rows[3]["label"] = -1
            path = folder / config / f"{part}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows, features=features).to_parquet(path)
            files += f"  - split: {part}\n    path: {config}/{part}-*\n"
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n")
        return folder

    return make


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_recipe_reads_its_hub_data_set(
    hub: Callable[..., Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml", [f"data.hub={hub(name)}"])
    task = load_task(recipe.data, recipe.classes)
    classes = LAYOUTS[name][2]
    turned = [1, 0] if name == "qnli" else list(range(len(classes)))  # 1 is relevant, which the hub calls entailment: 0
    for part, pairs in {"train": task.train, "dev": task.dev, "test": task.test}.items():
        assert len(pairs) > 0, part
        for passage, label in zip(pairs.passages, pairs.labels.tolist(), strict=True):
            assert label == turned[int(passage.split()[-1]) % len(classes)]
    assert len(task.test) == ROWS - (name == "snli")
    assert not set(task.train.questions) & set(task.dev.questions)
    if name == "snli":
        assert len(task.train) == ROWS - 1
        assert f"1 of {ROWS} rows are left out: no label" in " ".join(caplog.text.split())


def test_the_labels_of_a_hidden_split_are_no_golden_labels(hub: Callable[..., Path]) -> None:
    folder = hub("rte")
    recipe = load_recipe(RECIPES / "rte.yaml", [f"data.hub={folder}", "data.test=test"])
    refused(lambda: load_task(recipe.data, 2), "rte:rte[test]", "'label'", "hidden", "another split")
    hidden = read_hub(str(folder), "test", config="rte", columns=Columns("sentence1", "sentence2"), classes=2)
    assert set(hidden.labels) == {-1}  # as a pool such rows are welcome
    refused(lambda: read_hub(str(folder), "train", config="mnli"), "rte:mnli[train]")


@pytest.mark.parametrize("name", [*LAYOUTS, "webqa", "webqa-small"])
def test_every_recipe_reads_files_of_ones_own(tmp_path: Path, name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    if name.startswith("webqa"):
        assert "data.train=" in text
        rows = [{**row, "label": None, "score": 0.8 if row["label"] else 0.3} for row in pair_rows(3)]
        write_jsonl(tmp_path / "my-train.jsonl", rows)
        override = ["data.train=my-train.jsonl", "data.test=null", "data.hold_out.test=0.2"]
    else:
        assert "'data={train: my-train.jsonl, " in text
        rows = [{**row, "label": n % recipe.classes} for n, row in enumerate(pair_rows(3))]
        write_jsonl(tmp_path / "my-train.jsonl", rows)
        override = ["data={train: my-train.jsonl, hold_out: {dev: 0.1, test: 0.2}}"]
    task = load_task(load_recipe(RECIPES / f"{name}.yaml", override).data, recipe.classes)
    parts = [set(part.questions) for part in (task.train, task.dev, task.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 24


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT."""
    return tiny("bert", tmp_path_factory.mktemp("encoder") / "bert", vocab_size=30522)


def at_hand(hub: Callable[..., Path], name: str) -> list[str]:
    """Overrides that put folders in the place of every hub data set that a recipe names."""
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    overrides = [f"data.hub={hub(name)}"]
    assert recipe.pool is not None
    for number, source in enumerate(recipe.pool.sources):
        if source.pairs is not None and source.pairs.hub is not None:
            names = {"stanfordnlp/snli": "snli", "microsoft/wiki_qa": "wikiqa"}
            folder = hub(source.pairs.config or names[source.pairs.hub], f"-pool{number}")
            key = f"pool.sources.{number}.pairs"
            overrides += [f"{key}.hub={folder}", f"{key}.split=train"]
    return overrides


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_recipe_trains_on_tiny_data(tmkd: Tmkd, hub: Callable[..., Path], encoder: Path, name: str) -> None:
    done = tmkd(
        "distill", RECIPES / f"{name}.yaml", *at_hand(hub, name), f"encoder={encoder}", "student.layers=1",
        "teachers=[{name: a, epochs: 1}]", "warm_up.teacher=null", "ensemble=mean", "methods=[tkd]", "take=tkd",
        "stage1={learning_rate: 1e-3, epochs: 1}", "stage2.epochs=1", "pool.passages_per_question=2", "max_length=32",
    )  # fmt: skip
    assert "mine the pool: done" in done.stderr
    card = json.loads(Path(f"workspace/runs/{name}/student/tmkd.json").read_text())
    assert card["classes"] == len(LAYOUTS[name][2])


def test_a_pool_reads_hub_data_sets(hub: Callable[..., Path]) -> None:
    train = rows_to_pairs(pair_rows(1), "t")
    texts = Texts(hub=str(hub("rte")), config="rte", split="test[:10]", column="sentence1")
    assert read_texts(texts, train, "question", "k", list) == [f"test text {n}" for n in range(5)]
    ready = ReadyPairs(hub=str(hub("qnli")), config="qnli", split="test", question="question", passage="sentence")
    assert len(read_ready(ready, train, "k")) == ROWS


# --- shares held out


def held_out(tmp_path: Path, **keys: object) -> TaskData:
    write_jsonl(tmp_path / "many.jsonl", [{"question": f"q{n}", "passage": "p", "label": n % 2} for n in range(1000)])
    return load_task(Data.model_validate({"train": str(tmp_path / "many.jsonl"), **keys}), 2)


def test_shares_held_out(tmp_path: Path) -> None:
    both = held_out(tmp_path, hold_out={"dev": 0.1, "test": 0.2})
    assert [round(len(part) / 1000, 1) for part in (both.train, both.dev, both.test)] == [0.7, 0.1, 0.2]
    assert "note" not in both.info
    more_dev = held_out(tmp_path, hold_out={"dev": 0.3, "test": 0.2})
    assert more_dev.test.digest() == both.test.digest()  # test does not move with the share of dev
    only_test = held_out(tmp_path, hold_out={"test": 0.2})
    assert round(len(only_test.dev) / 1000, 1) == 0.2
    before = held_out(tmp_path)
    assert before.test.digest() == before.dev.digest()
    assert held_out(tmp_path, hold_out={"dev": 0.2}).dev.digest() == before.dev.digest()


def test_spellings_of_a_question_are_never_held_out_apart(tmp_path: Path) -> None:
    rows = [{"question": f"How is {n} done", "passage": f"p {n}", "label": n % 2} for n in range(60)]
    rows += [{**row, "question": f" how is\u00a0{n} done ?", "label": 1 - n % 2} for n, row in enumerate(rows)]
    task = load_task(Data(train=str(write_jsonl(tmp_path / "t.jsonl", rows)), hold_out={"dev": 0.2, "test": 0.2}), 2)
    parts = [set(map(question_key, part.questions)) for part in (task.train, task.dev, task.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_pairs_of_two_parts_are_refused_or_removed_in_every_spelling(tmp_path: Path) -> None:
    """Test pairs stay; dev and train lose them. What is removed is counted."""
    test = [{"question": f"Is {n} odd?", "passage": f"{n} is.", "label": n % 2} for n in range(8)]
    spelled = [{**row, "question": f" is\u00a0{n} ODD ?"} for n, row in enumerate(test)]
    dev = [{"question": f"Is it {n}?", "passage": "It is.", "label": n % 2} for n in range(8)]
    train = [{"question": f"Why {n}?", "passage": "So.", "label": n % 2} for n in range(8)]
    signs = [{**test[5], "question": "Is -5 odd?"}, {**test[5], "question": "Is 5 odd", "passage": "5 is not."}]
    files = {"train": [*train, *spelled[:3], dev[0], *signs], "dev": [*dev, spelled[7]], "test": test}
    data = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name, rows in files.items()}
    refused(lambda: load_task(Data(**data), 2), "1 dev pairs are test pairs too", "ODD ?", "data.shared_pairs: remove")
    task = load_task(Data(**data, shared_pairs="remove"), 2)
    assert (len(task.train), len(task.dev), len(task.test)) == (10, 8, 8)
    assert {"Is -5 odd?", "Is 5 odd"} <= set(task.train.questions)
    assert task.counts["train"].left_out == {"they are dev or test pairs too": 4}
    assert task.counts["dev"].left_out == {"they are test pairs too": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": "t", "dev": "d", "hold_out": {"dev": 0.1}}, "give dev or hold_out.dev, not both"),
        ({"train": "t", "hold_out": {"dev": 0.6, "test": 0.4}}, "dev 0.6 and test 0.4 leave nothing to train on"),
        ({"train": "t", "hold_out": {"test": 0.9}}, "dev 0.2 and test 0.9 leave nothing to train on"),
        ({"train": "t", "hold_out": {"test": 1.5}}, "less than 1, got 1.5"),
        ({"train": "t", "reference": "score"}, "'score' is not in scores"),
        ({"train": "t", "labels": {"yes": 2, "no": 0}}, "data.labels: 'yes' is class 2; there are 2"),
        ({"train": "t", "labels": {"yes": 1}}, "data.labels: no name stands for class 0 of 2"),
        ({"train": "t", "labels": {"yes": "one"}}, "got 'one'"),
        ({"train": "t", "positive": 2}, "data.positive: 2 is not a class; the two classes are 0 and 1"),
        (
            {"train": "t", "positive": "yes"},
            "data.positive: 'yes' is not a class that data.labels names, which is empty",
        ),
        (
            {"train": "t", "labels": {"a": 0, "b": 1, "-": None}, "positive": "-"},
            "data.positive: '-' is not a class that data.labels names; it maps a, b",
        ),
    ],
)
def test_keys_that_do_not_fit(data: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"data": data, "teachers": [{"name": "a"}, {"name": "b"}]}, "r")
    assert message in str(caught.value)


def test_the_positive_class_of_a_task_is_a_key() -> None:
    """In RTE class 0 is entailment: its hypotheses are the answers."""
    assert load_recipe(RECIPES / "rte.yaml").positive_class == 0
    assert load_recipe(RECIPES / "qnli.yaml").positive_class == 1
    assert load_recipe(RECIPES / "rte.yaml", ["data.positive=1"]).positive_class == 1


# --- label maps of data


def test_labels_are_mapped_from_text_and_rows_without_one_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, object]] = [
        {"question": f"q{n}", "passage": "p", "label": label}
        for n, label in enumerate(["neutral", "entailment", "-", "contradiction", 7])
    ]
    labels = {"entailment": 0, "neutral": 1, "contradiction": 2, "-": None, 7: 0}
    data = Data.model_validate({"train": str(write_jsonl(tmp_path / "t.jsonl", rows)), "labels": labels})
    assert data.labels["7"] == 0
    pairs = rows_to_pairs(rows, "t", labels=data.labels, classes=3, need_labels=True)
    assert pairs.labels.tolist() == [1, 0, 2, 0]
    assert "1 of 5 rows are left out: their label stands for no class" in caplog.text
    del data.labels["neutral"]
    refused(lambda: load_task(data, 3), "t.jsonl:1: 'label' is 'neutral'", "does not map", "entailment, contradiction")


def test_evaluation_takes_the_tasks_classes_and_the_recipes_names(tmp_path: Path) -> None:
    data = Data.model_validate({"train": "t", "labels": {"entailment": 1, "not_entailment": 0}})
    for label in (1, "1", "entailment"):
        path = write_jsonl(tmp_path / "e.jsonl", [{"question": "q", "passage": "p", "label": label}])
        assert read_measured(data, 2, path, {}).labels.tolist() == [1]
    path = write_jsonl(tmp_path / "e.jsonl", [{"question": "q", "passage": "p", "label": "maybe"}])
    refused(lambda: read_measured(data, 2, path, {}), "e.jsonl:1", "'maybe'")


# --- a reference in place of golden labels


def test_a_reference_stands_for_labels_and_keeps_its_probability(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "passage": "p", "score": score} for n, score in enumerate([0.9, 0.5, 0.49, None])]
    pairs = rows_to_pairs(rows, "t", scores={"score": "probability"}).with_reference(Reference("score", "probability"))
    assert pairs.labels.tolist() == [1, 1, 0, -1]
    assert np.allclose(pairs.golden, [[0.1, 0.9], [0.5, 0.5], [0.51, 0.49], [0.0, 0.0]])
    assert pairs.take([3, 0]).golden.tolist() == pairs.golden[[3, 0]].tolist()
    odds = rows_to_pairs([{**rows[0], "score": -2.0}], "t", scores={"score": "logit"})
    found = odds.with_reference(Reference("score", "logit"))
    assert found.reference_probabilities == pytest.approx([1 / (1 + np.exp(2))])
    assert found.labels.tolist() == [0]
    refused(lambda: found.with_reference(Reference("score", "logit")), "there are labels")
    refused(lambda: odds.with_reference(Reference("gone", "logit")), "no score column 'gone'")
    reference = pairs.reference
    assert reference is not None
    refused(lambda: pairs.take([3]).with_reference(reference), "empty")


def test_cross_entropy_against_a_probability_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    log_p = torch.log_softmax(logits[0], 0)
    loss = golden_loss(logits, torch.tensor([[0.3, 0.7], [0.0, 0.0]]))
    assert loss.tolist() == pytest.approx([float(-0.3 * log_p[0] - 0.7 * log_p[1]), 0.0])


def test_data_with_golden_labels_takes_no_reference(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{**row, "score": 0.5} for row in pair_rows(1)]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    data = Data(train=str(path), scores={"score": "probability"}, reference="score")
    refused(lambda: load_task(data, 2), "t.jsonl", "there are labels")
    assert read_measured(data, 2, path, {}).reference is None  # to be measured on, labels are better
    write_jsonl(path, [{"question": "q", "passage": "p"}])
    refused(lambda: read_measured(data, 2, path, {}), "no labels (column 'label') and no reference 'score'")
