"""Ready checkpoints: one logit is two classes, their scale, and the names of their classes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import pair_rows
from encoder_fixtures import reranker, tiny, transformers_logits

from tmkd.config.load import parse_recipe
from tmkd.core.errors import EncoderError, RecipeError
from tmkd.core.logits import log_odds
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_encoder, name_classes, save_student
from tmkd.models.encoders.find import find_encoder
from tmkd.models.label_map import find_label_map, unlike_order
from tmkd.models.ready import head_classes, require_log_odds
from tmkd.models.student import Student
from tmkd.serve.worker import Teacher as ServedTeacher
from tmkd.teachers.encoder import EncoderTeacher

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
ROWS = pair_rows(2)
PAIRS = Pairs.build([str(row["question"]) for row in ROWS], [str(row["passage"]) for row in ROWS])


def test_a_students_classes_get_the_names_that_the_recipe_has_now(tmp_path: Path) -> None:
    source = tiny("bert", tmp_path / "tiny")
    for classes, first, then in ((2, ["no", "yes"], ["wrong", "right"]), (3, ["a", "b", "c"], ["x", "y", "z"])):
        for before, after in ((first, then), (first, None), (None, then)):
            folders = [tmp_path / f"{classes} {names} {kind}" for kind, names in (("old", before), ("new", after))]
            student = Student(load_encoder(source, classes, layers=1), classes)
            for folder, names in zip(folders, (before, after), strict=True):
                save_student(student, folder, source, 64, {} if names is None else {"labels": names})
            name_classes(folders[0], after)
            for file in ("config.json", "tmkd.json"):
                old, new = (json.loads((folder / file).read_text()) for folder in folders)
                assert old == new, file


def test_one_logit_is_the_log_odds_of_class_1(tmp_path: Path) -> None:
    """A real encoder with a head of one logit, as nearly every published reranker has it."""
    folder = reranker(tmp_path / "minilm", source=find_encoder("builtin:minilm-l6"))
    assert head_classes(folder) == 2
    logits = EncoderTeacher(folder, max_length=128, precision="fp32").logits(PAIRS)
    expected = transformers_logits(folder, PAIRS)
    assert expected.shape == (len(PAIRS), 1)
    assert np.ptp(expected) > 0.1
    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(logits[:, 1], expected[:, 0], atol=1e-5)


def test_a_server_takes_a_one_logit_checkpoint_of_another_tool_as_its_teacher(tmp_path: Path) -> None:
    folder = reranker(tmp_path / "theirs")
    served = ServedTeacher(folder, threads=1)
    assert (served.classes, served.max_length) == (2, 128)
    scores = log_odds(served.score_pairs(PAIRS.questions, PAIRS.passages).logits)
    np.testing.assert_allclose(scores, transformers_logits(folder, PAIRS)[:, 0], atol=0.05)  # bf16 where it is native


@pytest.mark.parametrize(
    ("logits", "config", "newest"),
    [
        (1, {}, None),
        (1, {"sentence_transformers": {"activation_fn": SIGMOID, "version": "5.0"}}, None),
        (1, {"sentence_transformers": {"activation_fn": IDENTITY}}, None),
        (1, {"sbert_ce_default_activation_function": IDENTITY}, None),
        (1, {}, SIGMOID),
        (1, {"problem_type": "regression"}, SIGMOID),
        (1, {"problem_type": "multi_label_classification"}, None),
        (3, {"problem_type": "single_label_classification"}, IDENTITY),
    ],
)
def test_a_sigmoid_on_one_logit_leaves_the_logit_the_log_odds(
    tmp_path: Path, logits: int, config: dict[str, Any], newest: str | None
) -> None:
    require_log_odds(described(tmp_path, logits, config, newest))


@pytest.mark.parametrize(
    ("logits", "config", "newest", "why"),
    [
        (1, {"problem_type": "regression"}, None, "trained by regression"),
        (1, {"problem_type": "regression"}, IDENTITY, "trained by regression"),
        (1, {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, None, "activation.Tanh"),
        (1, {}, "torch.nn.modules.activation.ReLU", "activation.ReLU"),
        (2, {"problem_type": "multi_label_classification"}, None, "a probability of its own"),
        (3, {}, SIGMOID, "activation.Sigmoid"),
    ],
)
def test_scores_on_another_scale_are_refused_and_the_key_is_named(
    tmp_path: Path, logits: int, config: dict[str, Any], newest: str | None, why: str
) -> None:
    folder = described(tmp_path, logits, config, newest)
    for use in (lambda: require_log_odds(folder), lambda: EncoderTeacher(folder)):
        with pytest.raises(EncoderError) as caught:
            use()
        assert why in str(caught.value)
        assert "`calibrate`" in str(caught.value)
        assert "platt or isotonic" in str(caught.value)


def described(place: Path, logits: int, config: dict[str, Any], newest: str | None) -> Path:
    """A checkpoint with these keys in config.json, and the file in which sentence-transformers 6 names a function."""
    folder = reranker(place / "described", logits)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    if newest is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"activation_fn": newest}))
    return folder


def order_of(
    folder: Path,
    names: list[str],
    labels: dict[str, int],
    label_map: dict[str, int] | None = None,
    classes: int = 2,
    positive: int = 1,
) -> list[int]:
    folder.joinpath("config.json").write_text(json.dumps({"id2label": {str(n): name for n, name in enumerate(names)}}))
    teacher: dict[str, Any] = {"name": "b", "checkpoint": str(folder), "label_map": label_map}
    data = {"train": "t", "labels": labels, "positive": positive}
    recipe = parse_recipe({"data": data, "classes": classes, "teachers": [{"name": "a"}, teacher]}, "r")
    return find_label_map(folder, recipe.teachers[1], recipe)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["not_relevant", "relevant"], [0, 1]),
        (["relevant", "not_relevant"], [1, 0]),
        (["Relevant", "Irrelevant"], [1, 0]),
        (["entailment", "not entailment"], [1, 0]),
        (["NO", "YES"], [0, 1]),
        (["true", "false"], [1, 0]),
        (["LABEL_0", "LABEL_1"], [0, 1]),
    ],
)
def test_two_named_classes_of_a_task_without_names_are_mapped_by_meaning(
    tmp_path: Path, names: list[str], expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert order_of(tmp_path, names, {}) == expected
    assert "teacher b: " in caplog.text  # never without a word


@pytest.mark.parametrize("names", [["spam", "ham"], ["entailment", "neutral", "contradiction"]])
def test_names_without_a_counterpart_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"the task's \(data.labels\) have no names.*label_map: \{.*: \?"):
        order_of(tmp_path, names, {}, classes=len(names))
    by_name = {name: len(names) - 1 - place for place, name in enumerate(names)}
    assert order_of(tmp_path, names, {}, by_name, classes=len(names)) == list(range(len(names)))[::-1]


def test_several_spellings_of_a_class_are_all_its_names(tmp_path: Path) -> None:
    labels = {"no": 0, "nein": 0, "yes": 1, "ja": 1}
    assert order_of(tmp_path, ["Nein", "Ja"], labels) == [0, 1]
    with pytest.raises(RecipeError, match=r"label_map: \{Ja: 1, Nein: 0\}"):
        order_of(tmp_path, ["Ja", "Nein"], labels)


def test_an_only_logit_that_is_named_as_class_0_is_refused(tmp_path: Path) -> None:
    task = {"not_relevant": 0, "relevant": 1}
    for name in ("relevant", "LABEL_0", "score"):
        assert order_of(tmp_path, [name], task) == [0, 1]
        assert order_of(tmp_path, [name], {}) == [0, 1]
    for labels in (task, {}):
        with pytest.raises(RecipeError, match=r"is named Not relevant, which (is|means) class 0 of the task"):
            order_of(tmp_path, ["Not relevant"], labels)
    assert order_of(tmp_path, ["Not relevant"], task, {"0": 1, "1": 0}) == [1, 0]


def test_an_only_logit_needs_a_map_where_class_0_is_right(tmp_path: Path) -> None:
    """Nearly every reranker's logit is of the right passages."""
    task = {"relevant": 0, "not_relevant": 1}
    for name, labels in (("LABEL_0", {}), ("LABEL_0", task), ("score", task), ("relevant", {})):
        with pytest.raises(RecipeError, match=r"data.positive says that class 0 is right.*label_map: \{0: 1, 1: 0\}"):
            order_of(tmp_path, [name], labels, positive=0)
    assert order_of(tmp_path, ["LABEL_0"], {}, {"0": 1, "1": 0}, positive=0) == [1, 0]
    (tmp_path / "config.json").write_text('{"num_labels": 1}')  # it names no class
    pair = [{"name": "a"}, {"name": "b", "seed": 1}]
    recipe = parse_recipe({"data": {"train": "t", "positive": 0}, "teachers": pair}, "r")
    with pytest.raises(RecipeError, match=r"its only logit has no name, and data.positive says"):
        find_label_map(tmp_path, recipe.teachers[0], recipe)
    assert order_of(tmp_path, ["Not relevant"], task, positive=0) == [0, 1]


@pytest.mark.parametrize(
    ("names", "labels", "positive", "said"),
    [
        (["relevant", "not_relevant"], {"not_relevant": 0, "relevant": 1}, 1, ""),  # turned by its names, as it labels
        (["no", "yes"], {"not_relevant": 0, "relevant": 1}, 1, ""),  # other names that mean the same
        (["spam", "ham"], {"ham": 0, "spam": 1}, 1, "its classes are spam, ham in that order"),
        (["LABEL_0", "LABEL_1"], {"ham": 0, "spam": 1}, 1, ""),
        (["spam", "ham"], {}, 1, ""),
        (["Ham"], {"ham": 0, "spam": 1}, 1, "its only logit is named Ham, which is class 0 of the task"),
        (["not_relevant"], {}, 1, "its only logit is named not_relevant, which means class 0 of the task"),
        (["LABEL_0"], {"ham": 0, "spam": 1}, 0, "its only logit has no name, and data.positive says"),
        (["spam"], {"ham": 0, "spam": 1}, 0, ""),
    ],
)
def test_classes_of_a_teacher_of_the_pool(
    tmp_path: Path, names: list[str], labels: dict[str, int], positive: int, said: str
) -> None:
    tmp_path.joinpath("config.json").write_text(
        json.dumps({"id2label": {str(n): name for n, name in enumerate(names)}})
    )
    data = {"train": "t", "labels": labels, "positive": positive}
    found = unlike_order(
        tmp_path, parse_recipe({"data": data, "teachers": [{"name": "a"}, {"name": "b", "seed": 1}]}, "r")
    )
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_teacher_without_a_recipe_puts_the_negative_class_first(tmp_path: Path) -> None:
    """`tmkd serve --teacher` ranks by class 1 minus class 0, whatever order the checkpoint has."""
    names = {0: "relevant", 1: "not_relevant"}
    folder = reranker(tmp_path / "turned", 2, id2label=names, label2id={name: n for n, name in names.items()})
    teacher = EncoderTeacher(folder, max_length=128, precision="fp32")
    assert teacher.class_order == [1, 0]
    np.testing.assert_allclose(teacher.logits(PAIRS), transformers_logits(folder, PAIRS)[:, [1, 0]], atol=1e-5)


@pytest.mark.parametrize(("classes", "labels"), [(2, ["no", "yes"]), (3, ["a", "b", "c"]), (2, None), (3, None)])
def test_a_new_head_forgets_the_names_and_the_scale_of_the_old_one(
    tmp_path: Path, classes: int, labels: list[str] | None
) -> None:
    names = {place: f"old_{place}" for place in range(classes)}
    old = reranker(tmp_path / "old", classes, id2label=names, problem_type="regression")
    content = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**content, "sentence_transformers": {"activation_fn": SIGMOID}}))
    model = Student(load_encoder(old, classes, layers=1), classes)
    save_student(model, tmp_path / "new", old, 64, {"labels": labels} if labels else {})
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    if classes == 2:
        assert config["id2label"] == {"0": labels[1] if labels else "relevant"}
    else:
        assert list(config["id2label"].values()) == (labels or ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert config.get("problem_type") is None
    recorded = config.get("sentence_transformers", {}).get("activation_fn")
    assert recorded == (IDENTITY if classes == 2 else None)
