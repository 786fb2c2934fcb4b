"""Scores in the forms of other tools become one row a pair, which a `scores` teacher reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl

from tmkd.core.errors import DataError
from tmkd.core.logits import log_odds
from tmkd.data.pairs import Pairs, pair_id
from tmkd.data.readers import read_rows
from tmkd.data.scored_rows import import_scores
from tmkd.teachers.score_file import ScoreFileTeacher

LISTS: list[dict[str, Any]] = [
    {"query": "a?", "pos": ["x"], "neg": ["y", "z"], "pos_scores": [2.5], "neg_scores": [-1, 0.25], "type": "normal"},
    {"query": "b?", "pos": ["x", "w"], "neg": [], "pos_scores": [1.0, 3], "neg_scores": [], "type": "normal"},
]
TRIPLES = [
    {"query": "a?", "pos": "x", "neg": "y", "pos_score": 2.5, "neg_score": -1},
    {"query": "a?", "pos": "x", "neg": "z", "pos_score": 2.5, "neg_score": 0.25},
    {"query": "b?", "pos": "w", "neg": "x", "pos_score": 3.0, "neg_score": 1.0},
]
EXPECTED = {("a?", "x"): 2.5, ("a?", "y"): -1.0, ("a?", "z"): 0.25, ("b?", "x"): 1.0, ("b?", "w"): 3.0}


def written(folder: Path, rows: list[dict[str, Any]], extension: str) -> Path:
    path = folder / f"scored{extension}"
    if extension == ".jsonl":
        return write_jsonl(path, rows)
    if extension == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    mark = "\t" if extension == ".tsv" else ","
    cells = [[json.dumps(one) if isinstance(one, list) else str(one) for one in row.values()] for row in rows]
    quoted = [mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [list(rows[0]), *cells]]
    path.write_text("\n".join(quoted) + "\n")
    return path


@pytest.mark.parametrize("extension", [".jsonl", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("rows", [LISTS, TRIPLES], ids=["lists", "triples"])
def test_every_pair_is_one_row_that_a_teacher_reads(tmp_path: Path, rows: list[dict[str, Any]], extension: str) -> None:
    found = import_scores([written(tmp_path, rows, extension)], tmp_path / "judge.csv")
    assert (found.rows, found.pairs, found.lowest, found.highest) == (len(rows), 5, -1.0, 3.0)
    assert found.merged == (1 if rows is TRIPLES else 0)
    assert found.unread == (("type",) if rows is LISTS else ())
    table = {(row["question"], row["passage"]): row for row in read_rows(tmp_path / "judge.csv")}
    assert {key: float(row["score"]) for key, row in table.items()} == EXPECTED
    assert all(row["pair_id"] == pair_id(*key) for key, row in table.items())
    pairs = Pairs.build(*zip(*EXPECTED, strict=True))
    teacher = ScoreFileTeacher(tmp_path / "judge.csv", "score", "logit", "judge")
    assert log_odds(teacher.logits(pairs)).tolist() == list(EXPECTED.values())


def test_files_are_put_together_and_equal_scores_merged(tmp_path: Path) -> None:
    files = [written(tmp_path, LISTS, ".jsonl"), written(tmp_path, TRIPLES, ".csv")]
    found = import_scores(files, tmp_path / "judge.parquet")
    assert (found.rows, found.pairs, found.merged) == (5, 5, 6)
    assert pq.read_table(tmp_path / "judge.parquet").column_names == ["pair_id", "question", "passage", "score"]


def test_two_scores_of_a_pair_are_counted_and_refused(tmp_path: Path) -> None:
    other = [{**TRIPLES[0], "pos_score": 2.0, "neg_score": -2.0}]
    path = write_jsonl(tmp_path / "scored.jsonl", [*TRIPLES, *other])
    with pytest.raises(DataError, match="2 pairs have two different scores, the first 'a\\?' with 'x'") as caught:
        import_scores([path], tmp_path / "judge.jsonl")
    assert f"2.5 ({path}:1) and 2 ({path}:4)" in str(caught.value)
    assert (caught.value.path, caught.value.line) == (path, 4)
    assert not (tmp_path / "judge.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pos_scores": ["high"]}, "'pos_scores' is the score 'high', it must be a number"),
        ({"pos_scores": [float("nan")]}, "'pos_scores' is the score nan, it must be finite"),
        ({"neg_scores": [float("inf"), 1]}, "'neg_scores' is the score inf, it must be finite"),
        ({"pos_scores": [True]}, "'pos_scores' is the score True, it must be a number"),
        ({"pos_scores": [None]}, "'pos_scores' is the score None, it must be a number"),
        ({"pos_scores": None}, "'pos_scores' is absent, it must be a list"),
        ({"pos_scores": 2.5}, "'pos_scores' is float, it must be a list"),
        ({"neg_scores": [1]}, "'neg_scores' has 1 scores for the 2 texts of 'neg'"),
        ({"pos": "x"}, "'pos' is str, it must be a list"),
        ({"neg": ["y", " "]}, "'neg' is empty"),
        ({"query": ""}, "'query' is empty"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named_by_file_and_line(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = write_jsonl(tmp_path / "scored.jsonl", [LISTS[1], {**LISTS[0], **change}])
    with pytest.raises(DataError) as caught:
        import_scores([path], tmp_path / "judge.jsonl")
    assert f"{path}:2: {expected}" in str(caught.value)
    assert (caught.value.path, caught.value.line) == (path, 2)


def test_rows_of_two_forms_in_one_file_are_named(tmp_path: Path) -> None:
    pair = {"pair_id": pair_id("a?", "x"), "score": 2.5}
    for rows, line, expected in (
        ([*TRIPLES, pair], 4, "of one pair (pair_id), and other rows of the file are a scored triple"),
        ([TRIPLES[0], *LISTS], 1, "a scored triple (pos_score, neg_score), and other rows of the file are with lists"),
    ):
        with pytest.raises(DataError) as caught:
            import_scores([write_jsonl(tmp_path / "mixed.jsonl", rows)], tmp_path / "judge.jsonl")
        assert f"mixed.jsonl:{line}: the row is {expected}" in str(caught.value)
        assert caught.value.line == line


def test_errors_of_csv_and_parquet_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('query,pos,neg,pos_score,neg_score\na?,x,"y\nz",1,2\nb?,x,y,much,1\n')
    with pytest.raises(DataError, match=r"a\.csv:4: 'pos_score' is the score 'much', it must be a number"):
        import_scores([tmp_path / "a.csv"], tmp_path / "judge.jsonl")
    (tmp_path / "b.csv").write_text("query,pos,neg,pos_scores,neg_scores\na?,x,[],[1],[]\n")
    with pytest.raises(DataError, match=r"b\.csv:2: 'pos' is 'x', it must be a list as JSON"):
        import_scores([tmp_path / "b.csv"], tmp_path / "judge.jsonl")
    path = written(tmp_path, [LISTS[0], {**LISTS[1], "pos_scores": [1.0]}], ".parquet")
    with pytest.raises(DataError, match=r"scored\.parquet, row 2: 'pos_scores' has 1 scores for the 2 texts"):
        import_scores([path], tmp_path / "judge.jsonl")


@pytest.mark.parametrize(
    "names", [["pair_id", "score"], ["question", "passage", "p"], ["qid", "pid", "score"]], ids=str
)
def test_a_file_of_pairs_needs_no_import(tmp_path: Path, names: list[str]) -> None:
    path = write_jsonl(tmp_path / "scored.jsonl", [dict.fromkeys(names, "1")])
    with pytest.raises(
        DataError, match=r"one row a pair already, which needs no import: name it .*file: .*scored\.jsonl"
    ):
        import_scores([path], tmp_path / "judge.jsonl")


def test_other_columns_files_and_formats_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "scored.jsonl", [{"query": "a?", "pos": ["x"], "neg": ["y"]}])
    with pytest.raises(DataError, match=r"its columns are query, pos, neg\. Scored triples have"):
        import_scores([path], tmp_path / "judge.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        import_scores([tmp_path / "gone.jsonl"], tmp_path / "judge.jsonl")
    with pytest.raises(DataError, match=r"unknown extension '\.xlsx'"):
        import_scores([path], tmp_path / "judge.xlsx")
    with pytest.raises(ValueError, match="no file"):
        import_scores([], tmp_path / "judge.jsonl")
    write_jsonl(path, [{**LISTS[0], "pos": [], "neg": [], "pos_scores": [], "neg_scores": []}])
    with pytest.raises(DataError, match="the rows hold no pair"):
        import_scores([path], tmp_path / "judge.jsonl")


def test_the_output_is_none_of_the_files(tmp_path: Path) -> None:
    path = tmp_path / "scored.jsonl"
    path.write_text('{"query": "a", "pos": ["b"], "neg": [], "pos_scores": [1], "neg_scores": []}\n')
    (tmp_path / "linked.jsonl").hardlink_to(path)
    before = path.read_text()
    for output in (path, tmp_path / "linked.jsonl"):
        with pytest.raises(DataError, match=r"is one of the files to be imported, which would be lost"):
            import_scores([path], output)
    assert path.read_text() == before
