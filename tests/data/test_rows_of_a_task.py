"""What became of a task's rows: read, used, left out and why; rows that cannot be right get a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from tmkd.config.sections import Data
from tmkd.core.errors import DataError
from tmkd.data.pairs import Pairs
from tmkd.data.row_checks import check_groups, counted_once
from tmkd.data.row_counts import RowCounts
from tmkd.data.rows import rows_to_pairs
from tmkd.data.tasks import TaskData, load_task


def loaded(tmp_path: Path, keys: dict[str, Any] | None = None, **parts: list[dict[str, Any]]) -> TaskData:
    """A task whose parts hold these rows."""
    files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name, rows in parts.items()}
    return load_task(Data.model_validate({**files, **(keys or {})}), 2)


def asked(name: str, questions: int = 6) -> list[dict[str, Any]]:
    """Two rows for each question, a right and a wrong passage; the texts begin with the name."""
    return [
        {"question": f"{name} question {n}", "passage": f"{name} passage {n} {label}", "label": label}
        for n in range(questions)
        for label in (1, 0)
    ]


def asked_in_words(name: str, questions: int = 6) -> list[dict[str, Any]]:
    """The same rows with labels yes and no."""
    return [{**row, "label": ["no", "yes"][row["label"]]} for row in asked(name, questions)]


def test_every_part_says_how_many_rows_were_read_used_and_left_out(tmp_path: Path) -> None:
    labels = {"yes": 1, "no": 0, "-": None}
    rows = asked_in_words("train", 200)
    rows[3]["label"] = "-"
    pool = [{"question": "a", "passage": "b"}]
    task = loaded(tmp_path, {"labels": labels, "hold_out": {"dev": 0.1, "test": 0.2}}, train=rows, pool=pool)
    train, dev, test = (task.counts[name] for name in ("train", "dev", "test"))
    assert (train.read, train.used) == (400, len(task.train))
    assert train.left_out == {
        "their label stands for no class": 1,
        "held out as dev": len(task.dev),
        "held out as test": len(task.test),
    }
    assert (dev.read, dev.used) == (len(task.dev), len(task.dev))
    assert (test.read, test.used) == (len(task.test), len(task.test))
    assert task.counts["pool"].to_json() == {"read": 1, "used": 1, "left_out": {}, "warnings": []}


def test_a_row_whose_label_is_true_or_false_and_stands_for_no_class_is_left_out(tmp_path: Path) -> None:
    rows = asked_in_words("train")
    rows[3]["label"] = False
    labels = {"yes": 1, "no": 0, "false": None}
    task = loaded(tmp_path, {"labels": labels}, train=rows, dev=asked_in_words("dev"), test=asked_in_words("test"))
    assert task.counts["train"].left_out == {"their label stands for no class": 1}
    assert len(task.train) == len(rows) - 1
    assert (task.train.labels >= 0).all()


# --- rows that cannot be right


def test_a_pair_that_stands_twice_in_a_measured_set_counts_once(tmp_path: Path) -> None:
    test = asked("test")
    again = [{**test[1], "question": f" {test[1]['question']}"}, test[1], test[4]]
    task = loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=[*test, *again])
    assert task.test.pair_ids == loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=test).test.pair_ids
    assert task.counts["test"].left_out == {"they repeat another row": 3}
    assert (task.counts["test"].read, task.counts["test"].used) == (15, 12)
    alone = loaded(tmp_path, train=asked("train"), dev=[*asked("dev"), asked("dev")[0]])
    assert alone.test is alone.dev
    assert len(alone.dev) == 12


def test_pairs_that_differ_in_a_sign_or_in_case_are_two(tmp_path: Path) -> None:
    rows = [{"question": "q", "passage": passage} for passage in ("x <= 5", "x >= 5", "-5", "+5", "A", "a")]
    pairs = rows_to_pairs(rows, "t")
    assert counted_once(pairs, RowCounts("t")) is pairs


def test_a_pair_with_two_labels_is_not_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    test = [*asked("test"), {**asked("test")[0], "label": 0}]
    task = loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=test)
    assert task.counts["test"].left_out == {"the same pair has another label in another row": 2}
    assert "2 of 13 rows are left out: the same pair has another label in another row, for example" in caplog.text
    assert "'test question 0', 'test passage 0 1'" in caplog.text
    assert "test passage 0 1" not in task.test.passages
    assert "test passage 0 0" in task.test.passages


def test_of_a_repeated_pair_the_labelled_row_is_kept() -> None:
    pairs = Pairs.build(["q", "q", "q"], ["a", "a", "b"], labels=[None, 1, 0])
    assert counted_once(pairs, RowCounts("t", 3)).labels.tolist() == [1, 0]


def test_a_pair_with_two_grades_is_not_measured_although_both_are_of_one_class() -> None:
    rows = [{"question": "q", "passage": passage, "label": grade}
            for passage, grade in (("a", 2), ("a", 3), ("b", 0), ("b", -1), ("c", None), ("c", 1))]  # fmt: skip
    counts = RowCounts("t")
    once = counted_once(rows_to_pairs(rows, "t", relevant_from=1), counts)
    assert (once.passages, once.grades) == (["b", "c"], [0, 1])
    assert counts.left_out == {"they repeat another row": 2, "the same pair has another grade in another row": 2}


def test_one_qid_for_all_questions_is_refused(tmp_path: Path) -> None:
    test = [{**row, "qid": "x"} for row in asked("test")]
    with pytest.raises(DataError, match=r"test.jsonl\): all 12 rows have the qid 'x', and they ask 6 questions"):
        loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=test)
    same = rows_to_pairs([{"question": q, "passage": q, "qid": "1"} for q in ("Why?", "why")], "t")
    check_groups(same, counts := RowCounts("t"))  # two spellings of one question
    assert not counts.warnings


def test_a_qid_of_several_questions_gets_a_word(tmp_path: Path) -> None:
    test = [{**row, "qid": row["question"]} for row in asked("test")]
    test[0]["qid"] = test[2]["qid"]
    counts = loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=test).counts["test"]
    assert any(
        "1 of 6 qids stand for several questions, for example 'test question 1' for" in w for w in counts.warnings
    )


def test_a_qid_for_every_row_gets_a_word(tmp_path: Path) -> None:
    test = [{**row, "qid": n} for n, row in enumerate(asked("test"))]
    counts = loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=test).counts["test"]
    assert any("6 of 6 questions have several rows, each with a qid of its own" in w for w in counts.warnings)


def test_a_question_of_several_qids_and_its_contradictions_get_a_word(tmp_path: Path) -> None:
    test = [{**row, "qid": row["question"]} for row in asked("test")]
    again = [{**row, "qid": f"{row['qid']} again", "label": 1 - row["label"]} for row in test[:2]]
    found = loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=[*test, *again]).counts["test"].warnings
    assert any("1 of 6 questions have several qids, for example 'test question 0'" in one for one in found)
    assert any("2 pairs have several labels, for example 'test question 0'" in one for one in found)


def test_test_questions_of_the_development_set_get_a_word(tmp_path: Path) -> None:
    test = [*asked("test"), *({**row, "passage": f"{row['passage']} Or so."} for row in asked("dev"))]
    found = loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=test).counts["test"].warnings
    assert any("6 questions are development questions too, first 'dev question 0'" in one for one in found)
    assert not any("are training questions too" in one for one in found)


def test_rows_without_a_qid_stay_with_their_question(tmp_path: Path) -> None:
    """Without that, the right passages below would be questions of their own, and the wrong ones not ranked."""
    test: list[dict[str, Any]] = [{**row, "qid": row["question"][-1]} for row in asked("test")]
    for row in test[2::4]:
        del row["qid"]
    task = loaded(tmp_path, train=asked("train"), dev=asked("dev"), test=test)
    assert task.test.qids == [row["question"][-1] for row in asked("test")]
    [warning] = [one for one in task.counts["test"].warnings if "no qid" in one]
    assert warning.startswith("3 of 12 rows have no qid, the first with the question 'test question 1'")
    none = rows_to_pairs([{"question": "a", "passage": "p", "qid": ""}, {"question": "b", "passage": "p"}], "t")
    assert not none.has_qids


def test_an_id_that_is_not_a_number_is_an_empty_cell() -> None:
    """pandas writes an empty cell of a column of numbers as NaN."""
    rows = [{"question": f"q{n // 2}", "passage": f"p{n}", "qid": float(n // 2) if n < 2 else float("nan"),
             "pid": float("nan")} for n in range(6)]  # fmt: skip
    counts = RowCounts("t")
    pairs = rows_to_pairs(rows, "t", counts=counts)
    assert pairs.qids == ["0.0", "0.0", "q1", "q1", "q2", "q2"]
    assert len(set(pairs.pids)) == 6
    assert any("4 of 6 rows have no qid" in one for one in counts.warnings)


# --- parts that can say little


def warnings_of(tmp_path: Path, part: str, rows: list[dict[str, Any]], **keys: Any) -> str:
    parts = {"train": asked("train"), "dev": asked("dev"), "test": asked("test"), part: rows}
    return "; ".join(loaded(tmp_path, keys, **parts).counts[part].warnings)


def test_parts_of_few_rows_or_one_class_get_a_word(tmp_path: Path) -> None:
    assert "only 4 rows have a label: models learn little" in warnings_of(tmp_path, "train", asked("train", 2))
    assert "only 1 row has a label: choices made on them" in warnings_of(tmp_path, "dev", asked("dev", 1)[:1])
    assert "all 1 labelled rows are of class 1" in warnings_of(tmp_path, "dev", asked("dev", 1)[:1])
    positives = [row for row in asked("test") if row["label"]]
    assert "all 6 labelled rows are of class 1: neither ROC-AUC nor" in warnings_of(tmp_path, "test", positives)
    some = [*asked("test", 30), {"question": "unlabelled", "passage": "p", "label": None}]
    assert warnings_of(tmp_path, "test", some) == "1 of 61 rows have no label and are not measured"


def test_a_question_with_a_single_row_gets_a_word(tmp_path: Path) -> None:
    rows = asked("test", 30)[:-1]
    assert warnings_of(tmp_path, "test", rows) == (
        "1 of 30 questions have a single row and are not ranked, for example 'test question 29'"
    )
    assert warnings_of(tmp_path, "test", asked("test", 30)) == ""


def test_grades_declared_as_log_odds_get_a_word(tmp_path: Path) -> None:
    graded = [{**row, "judge": 1 + n % 5} for n, row in enumerate(asked("train", 30))]
    found = warnings_of(tmp_path, "train", graded, scores={"judge": "logit"})
    assert "'judge' is declared `logit`, and every value is a whole number from 1 to 5" in found
    assert "(grade - 1) / 4" in found
    logits = [{**row, "judge": row["judge"] - 2.5} for row in graded]
    assert warnings_of(tmp_path, "train", logits, scores={"judge": "logit"}) == ""


def test_a_set_whose_wrong_passages_all_stand_in_training_gets_a_word(tmp_path: Path) -> None:
    train, test = asked("train", 30), asked("test", 30)
    telling = [{**row, "passage": train[n]["passage"]} if row["label"] == 0 else row for n, row in enumerate(test)]
    said = warnings_of(tmp_path, "test", telling, train=str(write_jsonl(tmp_path / "thirty.jsonl", train)))
    assert '"no training pair has this passage" alone has a ROC-AUC of 1.000: it holds for 100.0% of the pairs' in said
