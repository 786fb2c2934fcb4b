"""Scores in a file of their own, joined to pairs by id, by names or by texts."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl

from tmkd.core.errors import DataError
from tmkd.core.logits import log_odds
from tmkd.data.arrow_file import ArrowFile, write_arrow
from tmkd.data.pairs import Pairs
from tmkd.teachers.score_file import ScoreFileTeacher

PAIRS = Pairs.build(["a?", "a?", "b?"], ["x", "y", "x"], qids=["1", "1", "2"], pids=["x", "y", "x"])
SCORES = (2.5, -1.0, 0.25)


def written(folder: Path, *names: str, scores: tuple[object, ...] = SCORES) -> ScoreFileTeacher:
    columns = {"pair_id": PAIRS.pair_ids, "qid": PAIRS.qids, "pid": PAIRS.pids, "question": PAIRS.questions,
               "passage": PAIRS.passages}  # fmt: skip
    rows = [{**{name: columns[name][row] for name in names}, "score": value} for row, value in enumerate(scores)]
    return ScoreFileTeacher(write_jsonl(folder / "judge.jsonl", rows[::-1]), "score", "logit", "judge")


@pytest.mark.parametrize("names", [("pair_id",), ("qid", "pid"), ("question", "passage")], ids=" ".join)
def test_rows_are_joined_by_what_the_file_has(tmp_path: Path, names: tuple[str, ...]) -> None:
    teacher = written(tmp_path, *names)
    assert log_odds(teacher.logits(PAIRS)).tolist() == list(SCORES)
    assert log_odds(teacher.logits(PAIRS.take([2, 0]))).tolist() == [0.25, 2.5]


def test_numbers_that_begin_anew_in_each_file_do_not_name_a_pair(tmp_path: Path) -> None:
    """The scores are of the training pairs, whose qid and pid the test pairs have, too."""
    test = Pairs.build(["c?"], ["u"], qids=["1"], pids=["x"])
    by_numbers = written(tmp_path, "qid", "pid")
    by_numbers.of_run({"train": PAIRS})
    with pytest.raises(
        DataError,
        match=r"the same qid and pid stand for two pairs: 'a\?' with 'x' \(train\), and 'c\?' with 'u' \(test",
    ):
        by_numbers.of_run({"train": PAIRS, "test": test})
    twice = Pairs.build(["a?", "a?"], ["x", "other"], qids=["1", "1"], pids=["x", "x"])
    with pytest.raises(DataError, match=r"'a\?' with 'x' \(train\), and 'a\?' with 'other' \(train\)"):
        by_numbers.of_run({"train": twice})
    by_texts = written(tmp_path, "qid", "pid", "question", "passage")
    by_texts.of_run({"train": PAIRS, "test": test})
    assert not by_texts.can_label(test), "texts say which pair it is, whatever the numbers are"
    assert log_odds(by_texts.logits(PAIRS)).tolist() == list(SCORES)


TWICE = Pairs.build(["a?", "a?", "b?"], ["x", "x", "x"], qids=["1", "1", "2"], pids=["A", "B", "A"])
"""A passage that stands in two documents."""


def by_documents(folder: Path, scores: dict[tuple[str, str], float], *, partial: bool = False) -> ScoreFileTeacher:
    rows = [{"qid": qid, "pid": pid, "score": score} for (qid, pid), score in scores.items()]
    return ScoreFileTeacher(write_jsonl(folder / "judge.jsonl", rows), "score", "logit", "judge", partial=partial)


def test_a_passage_in_two_documents_has_one_score(tmp_path: Path) -> None:
    """They are one pair, and labels are stored by pair: one of the scores would count for both."""
    other = Pairs.build(["a?"], ["x"], qids=["1"], pids=["C"])
    teacher = by_documents(tmp_path, {("1", "A"): 2, ("1", "B"): -2, ("2", "A"): 1})
    with pytest.raises(
        DataError,
        match=r"jsonl:2: 'a\?' with 'x' \(train\) stands under several qid and pid, and has two scores, 2 and -2; "
        r"the first is at .*jsonl:1",
    ):
        teacher.of_run({"train": TWICE})
    with pytest.raises(DataError, match="two scores, 2 and -2"):
        teacher.logits(TWICE)
    across = by_documents(tmp_path, {("1", "A"): 2, ("1", "B"): 2, ("2", "A"): 1, ("1", "C"): -1.5})
    assert log_odds(across.of_run({"train": TWICE}).logits(TWICE)).tolist() == [2, 2, 1]
    with pytest.raises(DataError, match=r"'a\?' with 'x' \(train\) .* two scores, 2 and -1\.5"):
        across.of_run({"train": TWICE, "pool": other})


def test_a_score_counts_for_every_row_of_its_pair(tmp_path: Path) -> None:
    teacher = by_documents(tmp_path, {("1", "B"): 2, ("2", "A"): 1}, partial=True).of_run({"train": TWICE})
    assert teacher.known(TWICE).tolist() == [0, 1, 2]
    assert log_odds(teacher.logits(TWICE.distinct())).tolist() == [2, 1]
    elsewhere = Pairs.build(["a?", "c?"], ["x", "x"], qids=["1", "3"], pids=["C", "C"])
    assert teacher.can_label(elsewhere)
    assert teacher.known(elsewhere).tolist() == [0]
    whole = by_documents(tmp_path, {("1", "B"): 2, ("2", "A"): 1}).of_run({"train": TWICE, "pool": elsewhere})
    assert not whole.can_label(elsewhere), "it has scores of train alone"


def test_what_rows_get_from_other_rows_is_in_the_fingerprint(tmp_path: Path) -> None:
    """That depends on the other pairs of the run; a score under a row's own qid and pid does not."""
    whole = by_documents(tmp_path, {("1", "A"): 2, ("1", "B"): 2, ("2", "A"): 1})
    assert whole.of_run({"train": TWICE}).fingerprint == whole.fingerprint
    partial = by_documents(tmp_path, {("1", "B"): 2, ("2", "A"): 1}, partial=True)
    alone = partial.of_run({"train": TWICE.take([0, 2])}).fingerprint
    assert alone == partial.fingerprint
    joined = partial.of_run({"train": TWICE}).fingerprint
    assert joined != alone
    assert partial.of_run({"pool": TWICE.take([2, 1]), "train": TWICE.take([0])}).fingerprint == joined


def test_integers_of_csv_and_json_name_the_same_passage(tmp_path: Path) -> None:
    (tmp_path / "judge.csv").write_text("qid,pid,p\n7,01,0.5\n7,2,0.9\n")
    teacher = ScoreFileTeacher(tmp_path / "judge.csv", "p", "probability", "judge")
    pairs = Pairs.build(["q", "q"], ["x", "y"], qids=["7", "7"], pids=["2", "01"])
    np.testing.assert_allclose(log_odds(teacher.logits(pairs)), [np.log(9), 0], atol=1e-5)


def test_missing_scores_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    teacher = written(tmp_path, "pair_id", scores=(2.5, None, ""))
    assert teacher.can_label(PAIRS)
    assert not teacher.can_label(PAIRS.take([1]))
    with pytest.raises(
        DataError, match=r"teacher judge: .*no score for 2 of 3 pool pairs, first 'a\?' with 'y'"
    ) as got:
        teacher.require_all(PAIRS, "pool")
    assert got.value.path == tmp_path / "judge.jsonl"
    with pytest.raises(DataError, match="no score for 2 of 3"):
        teacher.logits(PAIRS)
    assert teacher.unknown([PAIRS.take([1, 2])]) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"pair_id": "1", "other": 1}], r"has no column 'score'; its columns are pair_id, other"),
        ([{"id": "1", "score": 1}], r"has no column pair_id, no question and passage, and no qid and pid"),
        ([{"pair_id": "1", "score": "high"}], r"jsonl:1: 'score' is the score 'high', it must be a number"),
        ([{"pair_id": "1", "score": True}], r"jsonl:1: 'score' is the score True, it must be a number"),
        ([{"pair_id": "1", "score": "1_0"}], r"jsonl:1: 'score' is the score '1_0', it must be a number"),
        ([{"pair_id": "1", "score": 1e39}], r"jsonl:1: 'score' is the score 1e\+39, which 32 bits cannot hold"),
        ([{"pair_id": "1", "score": 10**400}], r"jsonl:1: 'score' is the score 1000"),
        (
            [{"pair_id": "1", "score": 1}, {"pair_id": "2", "score": 1}, {"pair_id": "1", "score": 2}],
            r"jsonl:3: a pair has two scores, 1 and 2; the first is at .*jsonl:1",
        ),
        ([{"qid": 1, "pid": 2, "score": 1}, {"qid": None, "pid": 2, "score": 1}], r"jsonl:2: 'qid' is empty"),
        ([{"pair_id": "1", "score": 1}, {"qid": 1, "pid": 2, "score": 1}], r"jsonl:2: 'pair_id' is empty"),
        ([{"question": "a?", "passage": 7, "score": 1}], r"jsonl:1: 'passage' is int, it must be text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    teacher = ScoreFileTeacher(write_jsonl(tmp_path / "judge.jsonl", rows), "score", "logit", "judge")
    with pytest.raises(DataError, match=message):
        teacher.can_label(PAIRS)


def test_a_probability_is_one_and_a_file_is_there(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "judge.jsonl", [{"pair_id": "1", "score": 1.5}])
    with pytest.raises(DataError, match=r"'score' is the score 1\.5, a probability is within 0 and 1"):
        ScoreFileTeacher(path, "score", "probability", "judge").can_label(PAIRS)
    with pytest.raises(DataError, match="no such file"):
        ScoreFileTeacher(tmp_path / "none.csv", "score", "logit", "judge").can_label(PAIRS)
    before = ScoreFileTeacher(path, "score", "logit", "judge").fingerprint
    write_jsonl(path, [{"pair_id": "1", "score": 2}])
    assert ScoreFileTeacher(path, "score", "logit", "judge").fingerprint != before


def test_a_score_that_comes_again_counts_once(tmp_path: Path) -> None:
    teacher = written(tmp_path, "question", "passage", scores=(*SCORES,))
    rows = [{"question": q, "passage": p, "score": s} for (q, p), s in zip(PAIRS.texts(), SCORES, strict=True)]
    write_jsonl(tmp_path / "judge.jsonl", [*rows, *rows])
    assert teacher.unknown([PAIRS.take([1])]) == (3, 2)
    assert log_odds(teacher.logits(PAIRS)).tolist() == list(SCORES)


@pytest.mark.parametrize("names", [("pair_id",), ("qid", "pid")], ids=" ".join)
def test_scores_of_many_pairs_take_little_memory(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Python's objects would take more than 400 bytes a pair."""
    count = 100_000
    built = Pairs.build([f"question {row // 10}" for row in range(count)], [f"passage {row}" for row in range(count)])
    file = tmp_path / "pairs.arrow"
    write_arrow(file, built.table.schema, iter([built.table]))
    pairs, path = Pairs.mapped(ArrowFile(file)), tmp_path / "scores.parquet"
    named = {"pair_id": built.pair_ids, "qid": built.qids, "pid": built.pids}
    table = {**{name: named[name] for name in names}, "score": np.arange(count) % 7}
    pq.write_table(pa.table(table), path, row_group_size=8192)
    del built, named, table
    teacher = ScoreFileTeacher(path, "score", "logit", "judge")
    tracemalloc.start()
    try:
        found = np.concatenate([raw for _, raw in teacher.scored(pairs)])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[:, 0].tolist() == (np.arange(count) % 7).tolist()
    assert most < 250 * count, f"{most / count:.0f} bytes a pair"
