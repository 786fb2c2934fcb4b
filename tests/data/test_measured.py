"""What a run is evaluated on: labels are read as the run read those of its own files, never the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from pairs_fixtures import refused

from tmkd.config.load import parse_recipe
from tmkd.config.sections import Data
from tmkd.core.errors import DataError, RecipeError
from tmkd.data.measured import read_measured, spelled_rows
from tmkd.data.pairs import Pairs, Reference
from tmkd.data.row_counts import RowCounts
from tmkd.data.rows import Columns, read_pairs
from tmkd.data.tasks import load_task
from tmkd.data.writers import write_rows
from tmkd.evaluation.comparison import labelled_questions
from tmkd.evaluation.metrics import ranking_metrics


def file_of(path: Path, *labels: Any) -> Path:
    write_rows(path, [{"question": f"q{n}", "passage": "p", "label": label} for n, label in enumerate(labels)])
    return path


def manifest_of_a_run(folder: Path, data: Data) -> None:
    about = {"models": [], "recipe": {"data": data.model_dump(mode="json")}}
    (folder / "manifest.json").write_text(json.dumps(about))


def task(labels: dict[Any, Any], **keys: Any) -> Data:
    return Data.model_validate({"train": "train", "labels": labels, **keys})


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({0: 1, 1: 0}, 2),
        ({1: 0, 2: 0, 3: 0, 4: 1, 5: 1}, 2),
        ({"entailment": 1, "not_entailment": 0}, 2),
        ({"a": 2, "b": 0, "c": 1, "-": None}, 3),
        ({1: 0, 2: 1, -1: None}, 2),
    ],
)
def test_the_same_file_is_read_alike_in_the_run_and_in_evaluate(
    tmp_path: Path, labels: dict[Any, Any], classes: int
) -> None:
    data = task(labels)
    for extension in (".jsonl", ".csv"):
        path = file_of(tmp_path / f"test{extension}", *labels)
        in_the_run = read_pairs(path, classes=classes, labels=data.labels, need_labels=True)
        assert read_measured(data, classes, path, {}).labels.tolist() == in_the_run.labels.tolist()
        write_rows(tmp_path / "back.jsonl", spelled_rows(in_the_run, data))
        back = read_measured(data, classes, tmp_path / "back.jsonl", {})
        assert back.labels.tolist() == in_the_run.labels.tolist()
        assert back.pair_ids == in_the_run.pair_ids


def test_a_grade_that_the_map_does_not_name_is_refused_as_in_the_run(tmp_path: Path) -> None:
    data = task({1: 0, 2: 0, 3: 1})
    refused(lambda: read_measured(data, 2, file_of(tmp_path / "a.jsonl", 1, 0), {}), "a.jsonl:2:", "does not map")


def test_numbers_under_names_of_a_hub_data_set_are_refused(tmp_path: Path) -> None:
    """The hub's QNLI calls entailment 0, the recipe calls it 1: a file of the hub's numbers would be read inverted."""
    data = task({"entailment": 1, "not_entailment": 0}, hub="nyu-mll/glue")
    refused(lambda: read_measured(data, 2, file_of(tmp_path / "a.jsonl", 0, 1), {}), "nyu-mll/glue", "write the names")
    assert read_measured(data, 2, file_of(tmp_path / "b.jsonl", "entailment"), {}).labels.tolist() == [1]


def test_numbers_under_names_of_files_are_classes_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tmkd")
    data = task({"yes": 1, "no": 0})
    assert read_measured(data, 2, file_of(tmp_path / "a.jsonl", 1, 0), {}).labels.tolist() == [1, 0]
    assert "numbers in 'label' are read as the task's classes: 1 is yes, 0 is no" in caplog.text


def test_a_runs_test_set_of_an_earlier_version_is_not_read_inverted(tmp_path: Path) -> None:
    data = task({0: 1, 1: 0})
    manifest_of_a_run(tmp_path, data)
    refused(lambda: read_measured(data, 2, file_of(tmp_path / "test.jsonl", 0, 1), {}), "earlier version", "tmkd run")
    assert read_measured(data, 2, file_of(tmp_path / "test.jsonl", "0", "1"), {}).labels.tolist() == [1, 0]


def test_a_runs_test_set_is_not_measured_against_labels_that_its_reference_made(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": f"q{n}", "passage": "p", "judge": n / 4} for n in range(4)]
    write_rows(tmp_path / "train.jsonl", rows)
    data = Data(train="train", scores={"judge": "probability"}, reference="judge")
    reference = Reference("judge", "probability")
    pairs = read_pairs(tmp_path / "train.jsonl", scores=data.scores).with_reference(reference)
    assert all("label" not in row for row in spelled_rows(pairs, data))
    manifest_of_a_run(tmp_path, data)
    of_earlier_versions = [{**row, "label": int(row["judge"] >= 0.5)} for row in rows]
    for written in (spelled_rows(pairs, data), of_earlier_versions):
        write_rows(tmp_path / "test.jsonl", written)
        measured = read_measured(data, 2, tmp_path / "test.jsonl", {})
        assert (measured.reference, measured.labels.tolist()) == (reference, [0, 0, 1, 1])
    write_rows(tmp_path / "mine.jsonl", [{**row, "label": 1} for row in rows])  # labels of their own
    assert read_measured(data, 2, tmp_path / "mine.jsonl", {}).reference is None
    write_rows(tmp_path / "test.jsonl", [{**row, "label": 0, "gold": 1} for row in rows])
    assert read_measured(data, 2, tmp_path / "test.jsonl", {"label": "gold"}).labels.tolist() == [1] * 4
    manifest_of_a_run(tmp_path, task({}))  # another run, whose rows have labels of their own
    assert read_measured(data, 2, tmp_path / "test.jsonl", {}).labels.tolist() == [0] * 4


def test_a_file_beside_a_manifest_of_something_else_is_read_by_the_names_of_the_recipe(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [{"question": "-", "passage": "-", "a": "asked", "b": "answered", "label": 1}])
    data = task({}, columns={"question": "a", "passage": "b"})
    for manifest in ("{}", "[]", '{"recipe": {"data": {}}}', "x"):
        (tmp_path / "manifest.json").write_text(manifest)
        pairs = read_measured(data, 2, tmp_path / "test.jsonl", {})
        assert (pairs.questions, pairs.passages) == (["asked"], ["answered"])


def test_a_runs_test_set_is_read_by_the_names_that_it_is_written_with(tmp_path: Path) -> None:
    write_rows(tmp_path / "mine.jsonl", [{"passage": "asked", "question": "answered", "label": 7, "qid": 1}])
    data = task({}, columns={"question": "passage", "passage": "question", "label": "qid", "qid": "label"})
    pairs = read_measured(data, 2, tmp_path / "mine.jsonl", {})
    assert (pairs.questions, pairs.passages, pairs.qids, pairs.labels.tolist()) == (["asked"], ["answered"], ["7"], [1])
    manifest_of_a_run(tmp_path, data)
    write_rows(tmp_path / "test.jsonl", spelled_rows(pairs, data))
    assert read_measured(data, 2, tmp_path / "test.jsonl", {}).digest() == pairs.digest()


def test_one_column_is_not_both_texts(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.jsonl", 0, 1)
    refused(lambda: read_measured(task({}), 2, path, {"question": "passage"}), "'passage' is read as the question and")


def test_numbers_that_pandas_wrote_with_a_point_are_the_same_labels(tmp_path: Path) -> None:
    data = task({1: 0, 2: 1})
    assert read_measured(data, 2, file_of(tmp_path / "a.jsonl", 1.0, 2.0, None), {}).labels.tolist() == [0, 1, -1]


# --- graded labels


def graded(path: Path, *grades: Any) -> Path:
    write_rows(path, [{"question": f"q{n // 4}", "passage": f"p{n}", "label": label} for n, label in enumerate(grades)])
    return path


def test_grades_become_classes_for_training_and_stay_gains_for_ndcg(tmp_path: Path) -> None:
    train = graded(tmp_path / "train.jsonl", 0, 1, 2, 3, -1, 0, 3, 2)
    test = graded(tmp_path / "test.csv", "0", "1", "2", "3", "", "-2", "1.0", "2")
    data = Data.model_validate({"train": str(train), "grades": {"relevant_from": 2}, "hold_out": {"dev": 0.5}})
    expected: Any = {"classes": 2, "need_labels": True, "relevant_from": 2}
    pairs = read_pairs(train, **expected)
    assert pairs.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert pairs.gains is not None
    assert pairs.gains.tolist() == [0, 1, 2, 3, 0, 0, 3, 2]
    measured = read_measured(data, 2, test, {})
    assert measured.labels.tolist() == [0, 0, 1, 1, -1, 0, 0, 1]
    assert measured.grades == [0, 1, 2, 3, None, -2, 1, 2]
    write_rows(tmp_path / "back.jsonl", spelled_rows(measured, data))
    assert "relevance_grade" not in (tmp_path / "back.jsonl").read_text()
    assert read_measured(data, 2, tmp_path / "back.jsonl", {}).digest() == measured.digest()
    assert read_pairs(graded(tmp_path / "plain.jsonl", 0, 1), classes=2, need_labels=True).gains is None


@pytest.mark.parametrize("bad", ["high", 1.5, True, "1_0", float("inf")])
def test_a_grade_that_is_no_integer_is_refused(tmp_path: Path, bad: Any) -> None:
    write_rows(tmp_path / "a.parquet", [{"question": "q", "passage": "p", "label": bad}])
    refused(lambda: read_pairs(tmp_path / "a.parquet", need_labels=True, relevant_from=1), "'label'", "integer")


def test_ndcg_of_grades_is_that_of_trec_eval() -> None:
    drawn = np.random.default_rng(0)
    grades, scores = drawn.integers(-1, 4, (30, 15)), drawn.permutation(450).reshape(30, 15).astype(np.float64)
    grades[:, 0], grades[:, 1] = 3, 0
    pairs = Pairs.build(
        [f"q{n:02}" for n in range(30) for _ in range(15)],
        [f"p{n}" for n in range(450)],
        labels=(grades >= 2).astype(int).ravel().tolist(),
        grades=grades.ravel().tolist(),
    )
    known, questions = labelled_questions(pairs)
    found = ranking_metrics(questions, scores.ravel()[known])
    qrels = {f"q{n:02}": {str(p): int(grades[n, p]) for p in range(15)} for n in range(30)}
    runs = {f"q{n:02}": {str(p): float(scores[n, p]) for p in range(15)} for n in range(30)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(runs)
    assert found["ndcg@10"] == pytest.approx([theirs[name]["ndcg_cut_10"] for name in questions.names])
    at_two = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank", "map"}, relevance_level=2).evaluate(runs)
    assert found["mrr"] == pytest.approx([at_two[name]["recip_rank"] for name in questions.names])
    assert found["map"] == pytest.approx([at_two[name]["map"] for name in questions.names])


def test_a_recipe_takes_grades_or_a_label_map_and_two_classes() -> None:
    with pytest.raises(ValueError, match="give grades or labels, not both"):
        task({"a": 0, "b": 1}, grades={"relevant_from": 1})
    with pytest.raises(RecipeError, match=r"data\.grades makes two classes of the grades, and there are 3"):
        parse_recipe(
            {"name": "x", "classes": 3, "data": {"train": "t", "grades": {"relevant_from": 1}},
             "teachers": [{"name": "a"}, {"name": "b"}]}, "r"
        )  # fmt: skip


def test_the_labels_of_a_pool_are_not_read_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tmkd")
    rows = [{"question": f"q{n}", "passage": f"p{n}", "label": n % 2} for n in range(40)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "pool.jsonl", [{"question": f"r{n}", "passage": "p", "label": 7} for n in range(3)])
    data = Data.model_validate({name: str(tmp_path / f"{name}.jsonl") for name in ("train", "pool")})
    pool = load_task(data, 2).pool
    assert pool is not None
    assert not pool.has_labels
    assert "the labels of pool pairs (column 'label') are not read" in caplog.text


def test_a_column_that_is_asked_for_is_there(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.jsonl", 0, 1)
    for what in ("qid", "question", "label"):
        given = {what: "topci"}
        with pytest.raises(DataError, match=r"there is no column .topci."):
            read_measured(task({}), 2, path, given)


@pytest.mark.parametrize("what", ["question", "passage", "label"])
def test_the_error_of_an_absent_column_says_what_the_recipe_calls_it(tmp_path: Path, what: str) -> None:
    row = {"question": "q", "passage": "p", "label": 1}
    write_rows(tmp_path / "a.jsonl", [{key: cell for key, cell in row.items() if key != what}])
    data = task({}, columns={what: "topic"})
    with pytest.raises(DataError, match=r"there is no column .topic."):
        read_measured(data, 2, tmp_path / "a.jsonl", {})


def test_an_absent_id_column_of_a_recipe_is_warned_of(tmp_path: Path) -> None:
    data = task({}, columns={"qid": "topic", "pid": "doc"})
    counts = RowCounts("test")
    read_measured(data, 2, file_of(tmp_path / "a.jsonl", 0, 1), {}, counts)
    assert counts.warnings == [
        "there is no column 'topic', which data.columns.qid names; pairs are grouped by the question's text",
        "there is no column 'doc', which data.columns.pid names; passages are identified by their text",
    ]
    own = tmp_path / "test.jsonl"  # as a run writes its test set
    write_rows(own, [{"qid": "1", "pid": "2", "question": "q", "passage": "p", "label": 1}])
    counts = RowCounts("test")
    read_measured(data, 2, own, {}, counts)
    assert not counts.warnings


def test_the_files_of_a_recipe_are_warned_of_too(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.jsonl", 0, 1)
    for label, said in (("label", 1), (None, 0)):  # a pool need not have ids
        counts = RowCounts("train")
        read_pairs(path, columns=Columns(label=label, qid="topic"), counts=counts)
        assert len(counts.warnings) == said
