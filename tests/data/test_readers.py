"""Pairs files: every format read and written, every file that cannot be used refused with its place and the fix."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pairs_fixtures import EXTENSIONS, ROWS, refused

from tmkd.core.errors import DataError
from tmkd.data.pairs import pair_id
from tmkd.data.readers import line_of, read_rows, stream_rows
from tmkd.data.rows import Columns, Row, read_pairs, rows_to_pairs
from tmkd.data.writers import write_rows


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- reading and writing files


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_gives_back_the_pairs_that_were_written(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"pairs{extension}"
    write_rows(path, ROWS)
    assert path.read_bytes()[:2] == b"\x1f\x8b" if extension.endswith(".gz") else path.read_bytes()[:2] != b"\x1f\x8b"
    pairs = read_pairs(path, classes=2, need_labels=True)
    assert pairs.questions == [row["question"] for row in ROWS]
    assert pairs.passages == [row["passage"] for row in ROWS]
    assert pairs.labels.tolist() == [1, 0, 1]
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("extension", [".jsonl", ".csv", ".parquet"])
def test_rows_with_different_columns_lose_none(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"rows{extension}"
    write_rows(path, [{"a": "1"}, {"a": "2", "b": "3"}])
    assert read_rows(path)[1] == {"a": "2", "b": "3"}


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "nli.jsonl", {"premise": "p", "hypothesis": "h", "gold": 2, "prompt": 7, "doc": "d"})
    pairs = read_pairs(path, columns=Columns("premise", "hypothesis", "gold", "prompt", "doc"), classes=3)
    assert (pairs.questions, pairs.passages, pairs.labels.tolist()) == (["p"], ["h"], [2])
    assert (pairs.qids, pairs.pids) == (["7"], ["d"])


def test_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes("\ufeffquestion,passage\r\nq,p\r\n\r\nr,s\r\n".encode())
    assert read_pairs(path).questions == ["q", "r"]


def test_labels_may_be_absent_row_by_row() -> None:
    rows = [{"question": "q", "passage": "p", "label": ""}, {"question": "q", "passage": "r", "label": "1"}]
    assert rows_to_pairs(rows, "s").labels.tolist() == [-1, 1]
    assert not rows_to_pairs(rows, "s", columns=Columns(label=None)).has_labels


def test_rows_without_qid_stand_for_themselves() -> None:
    rows: list[Row] = [
        {"question": "q", "passage": "p", "qid": None, "pid": ""},
        {"question": "r", "passage": "p", "qid": 4, "pid": 5},
    ]
    pairs = rows_to_pairs(rows, "s")
    assert pairs.qids == ["q", "4"]
    assert pairs.pids == [pair_id("q", "p"), "5"]


def test_json_lines_hold_what_only_parquet_has_a_type_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"when": datetime.datetime(2020, 1, 2, 3, 4), "raw": b"\xff", "half": "\ud800"}
    write_rows(tmp_path / "rows.jsonl", [row])
    assert read_rows(tmp_path / "rows.jsonl") == [{"when": "2020-01-02T03:04:00", "raw": "/w==", "half": "\ud800"}]
    write_rows("-", [row])
    assert json.loads(capsys.readouterr().out)["raw"] == "/w=="


def test_lists_become_json_in_csv(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", [{"logits": [0.5, -1.0], "id": 3}])
    assert read_rows(tmp_path / "rows.csv") == [{"logits": "[0.5, -1.0]", "id": "3"}]


# --- files that cannot be used


def test_missing_file_folder_and_unwritable_target(tmp_path: Path) -> None:
    refused(lambda: read_pairs(tmp_path / "no.jsonl"), "no.jsonl", "no such file")
    (tmp_path / "folder.csv").mkdir()
    refused(lambda: read_pairs(tmp_path / "folder.csv"), "folder.csv", "directory")
    refused(lambda: write_rows(tmp_path / "no" / "out.csv", ROWS), "out.csv", "cannot be written")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_empty_file(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"empty{extension}"
    path.write_bytes(gzip.compress(b"") if extension.endswith(".gz") else b"")
    refused(lambda: read_pairs(path), path.name, "is empty")


@pytest.mark.parametrize("passage", ["\u200b", "\ufeff \u200d\n", "\x00\x01"])
def test_characters_that_show_nothing_are_no_text(tmp_path: Path, passage: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"question": "q", "passage": passage}))
    refused(lambda: read_pairs(path), "pairs.jsonl:1: 'passage' is", "characters that show nothing")


@pytest.mark.parametrize("name", ["pairs.txt", "pairs.xlsx", "pairs", "pairs.gz", "pairs.txt.gz"])
def test_wrong_extension_names_the_right_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    refused(lambda: read_pairs(tmp_path / name), name, ".jsonl", ".csv", ".tsv", ".parquet")


def test_header_alone_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,passage\n")
    refused(lambda: read_pairs(tmp_path / "a.csv"), "a.csv", "no rows")


@pytest.mark.parametrize("column", ["question", "passage", "label"])
def test_missing_column_names_the_ones_there_are(tmp_path: Path, column: str) -> None:
    kept = {name: value for name, value in ROWS[0].items() if name != column}
    path = jsonl(tmp_path / "a.jsonl", {**kept, "query": "x"})
    refused(lambda: read_pairs(path, need_labels=True), f"no column '{column}'", "query", *kept)


def test_score_column_that_is_needed_and_not_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS[0])
    assert read_pairs(path, scores={"judge": "logit"}).score_names == []
    refused(
        lambda: read_pairs(path, scores={"judge": "logit"}, need_scores=True), "'judge'", "question, passage, label"
    )


def test_label_column_with_nothing_in_it(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q", "passage": "p", "label": None})
    assert not read_pairs(path).has_labels
    refused(lambda: read_pairs(path, need_labels=True), "a.jsonl", "'label'", "empty in every row")


@pytest.mark.parametrize("label", [2, -1, "2", 10**30])
def test_label_out_of_range(tmp_path: Path, label: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS[0], {"question": "q", "passage": "p", "label": label})
    refused(lambda: read_pairs(path, classes=2), "a.jsonl:2:", "'label'", str(label), "0 to 1")


@pytest.mark.parametrize("label", ["yes", 0.5, "0.5", True, [1], "1_0", float("nan"), float("inf")])
def test_label_that_is_no_integer(tmp_path: Path, label: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q", "passage": "p", "label": label})
    refused(lambda: read_pairs(path, classes=2), "a.jsonl:1:", "'label'", repr(label), "integer")


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf"), "nan"])
def test_score_that_is_not_finite(tmp_path: Path, score: Any, kind: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q", "passage": "p", "judge": score})
    refused(lambda: read_pairs(path, scores={"judge": kind}), "a.jsonl:1:", "'judge'", "finite")


@pytest.mark.parametrize("score", [1.5, -0.1])
def test_probability_outside_its_range(tmp_path: Path, score: float) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q", "passage": "p", "judge": score})
    refused(lambda: read_pairs(path, scores={"judge": "probability"}), "a.jsonl:1:", str(score), "within 0 and 1")
    assert read_pairs(path, scores={"judge": "logit"}).score("judge").tolist() == [score]


def test_score_that_is_no_number_and_score_that_is_absent(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q", "passage": "p", "judge": "high"})
    refused(lambda: read_pairs(path, scores={"judge": "logit"}), "a.jsonl:1:", "'high'", "number")
    path = jsonl(tmp_path / "b.jsonl", {"question": "q", "passage": "p", "judge": None})
    assert np.isnan(read_pairs(path, scores={"judge": "logit"}).score("judge")[0])


@pytest.mark.parametrize("side", ["question", "passage"])
@pytest.mark.parametrize(
    ("value", "said"), [("", "empty"), (" \t", "empty"), (None, "absent"), (3, "int"), ("\ud800", "surrogate")]
)
def test_side_that_is_no_text(tmp_path: Path, side: str, value: Any, said: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS[0], {"question": "q", "passage": "p", side: value})
    refused(lambda: read_pairs(path), "a.jsonl:2:", f"'{side}'", said)


@pytest.mark.parametrize("extension", [".jsonl", ".csv", ".tsv", ".csv.gz"])
def test_undecodable_bytes(tmp_path: Path, extension: str) -> None:
    content = b'{"question": "a"}\n{"question": "caf\xe9"}\n'
    path = tmp_path / f"latin{extension}"
    path.write_bytes(gzip.compress(content) if extension.endswith(".gz") else content)
    refused(lambda: read_pairs(path), f"{path}:2:", "0xe9", "UTF-8", "iconv")


@pytest.mark.parametrize(
    "bad", ['{"question": ', "nonsense", "[1]", '"text"', '{"a": 1, "a": 2}', "{} {}", f'{{"a": {"9" * 5000}}}']
)
def test_malformed_json(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n{bad}\n")
    refused(lambda: read_pairs(path), f"{path}:3:")


def test_json_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n")
    refused(lambda: read_pairs(tmp_path / "a.jsonl"), "a.jsonl:1:")


def test_malformed_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,passage\nq,p\nonly one\n")
    refused(lambda: read_pairs(path), "a.csv:3:", "1 fields", "2")
    path.write_text('question,passage\nq,"p"x\n')
    refused(lambda: read_pairs(path), "a.csv:2:", "malformed")
    path.write_text("\nquestion,passage\n")
    refused(lambda: read_pairs(path), "a.csv:1:", "blank")


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".parquet"])
def test_header_that_names_a_column_twice(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    if extension == ".parquet":
        pq.write_table(pa.table([pa.array(["q"]), pa.array(["p"])], names=["question", "question"]), path)
    else:
        path.write_text("question,question\nq,p\n".replace(",", "\t" if extension == ".tsv" else ","))
    refused(lambda: read_pairs(path), path.name, "twice", "'question'")


@pytest.mark.parametrize("extension", [".jsonl.gz", ".parquet.gz"])
def test_truncated_gzip(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    write_rows(path, ROWS)
    path.write_bytes(path.read_bytes()[:-12])
    refused(lambda: read_pairs(path), path.name, "truncated gzip")
    path.write_text("this is plain")
    refused(lambda: read_pairs(path), path.name, "gzip")


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rows(path, ROWS)
    path.write_bytes(path.read_bytes()[:-12])
    refused(lambda: read_pairs(path), "a.parquet", "not a readable Parquet")


def test_lines_are_counted_through_blank_lines_and_quoted_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,passage,label\n"two\nlines",p,1\n\nq,p,7\n')
    refused(lambda: read_pairs(path, classes=2), f"{path}:5:", "7")
    assert line_of(path, 0) == f"{path}:3"
    write_rows(tmp_path / "a.parquet", [*ROWS, {**ROWS[0], "label": 7}])
    refused(lambda: read_pairs(tmp_path / "a.parquet", classes=2), "a.parquet, row 4")


def test_rows_that_do_not_fit_parquet(tmp_path: Path) -> None:
    refused(lambda: write_rows(tmp_path / "a.parquet", [{"x": 1}, {"x": "one"}]), "'x'", ".jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", [".csv", ".tsv"])
def test_every_line_end_inside_a_cell_comes_back(tmp_path: Path, extension: str) -> None:
    rows = [{"question": "one\rline", "passage": "two\nlines"}, {"question": "q", "passage": "three\r\nlines"}]
    write_rows(tmp_path / f"rows{extension}", rows)
    assert [dict(row) for row in read_rows(tmp_path / f"rows{extension}")] == rows


# --- files as people have them


def test_a_json_array_of_objects_is_read_with_the_lines_of_its_objects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tmkd")
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=2))
    assert list(read_rows(path)) == ROWS
    assert "one JSON array of objects" in caplog.text
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS))
    assert list(read_rows(tmp_path / "a.jsonl")) == ROWS
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert list(read_rows(tmp_path / "lines.json")) == ROWS
    path.write_text(json.dumps([ROWS[0], {**ROWS[0], "label": 7}], indent=2))
    refused(lambda: read_pairs(path, classes=2), f"{path}:11:", "7")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', 3, "not valid JSON"),
        ('[\n{"a": 1}\n{"a": 2}\n]', 2, "neither a comma nor ]"),
        ('[\n{"a": 1},\n]', 3, "no element"),
        ('[\n{"a": 1}\n]\n{"a": 2}', 2, "text follows"),
        ('[\n{"a": 1},\n[1]\n]', 3, "a row is a JSON object, this is list"),
        ('[\n{"a": 1},\n\n{"a": 1, "a": 2}]', 4, "twice"),
        ('{\n"a": 1\n}', 1, "one array of objects, or one object a line"),
        ('[{"a": 1}', 1, "neither a comma nor ]"),
    ],
)
def test_a_json_array_that_is_damaged_names_the_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    refused(lambda: read_rows(tmp_path / "a.json"), f"a.json:{line}:", said)


def test_an_empty_json_array_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" [ ] ")
    refused(lambda: read_rows(tmp_path / "a.json"), "a.json", "no rows")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("extension", [".csv", ".jsonl", ".tsv"])
def test_utf_16_with_its_mark_is_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str, extension: str
) -> None:
    caplog.set_level("INFO", "tmkd")
    write_rows(tmp_path / f"a{extension}", [{"question": "öl?", "passage": "日本"}])
    text = (tmp_path / f"a{extension}").read_text()
    (tmp_path / f"a{extension}").write_bytes(text.encode(encoding))
    assert read_pairs(tmp_path / f"a{extension}").passages == ["日本"]
    assert encoding.upper() in caplog.text


def test_utf_16_without_a_mark_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("question,passage\nq,p\n".encode("utf-16-le"))
    refused(lambda: read_rows(tmp_path / "a.csv"), "a.csv:1:", "UTF-16", "iconv -f utf-16le")


def test_lines_of_json_end_at_a_line_feed_alone(tmp_path: Path) -> None:
    row = {"question": "one\u2028two\u2029three\x85four", "passage": "p"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", newline="")
    assert read_pairs(tmp_path / "a.jsonl").questions == [row["question"]]


def test_times_with_nanoseconds_are_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    stamp = pa.array([1_600_000_000_123_456_789, None], pa.timestamp("ns", tz="UTC"))
    hour = pa.array([1, None], pa.time64("ns"))
    pq.write_table(pa.table({"question": ["q", "r"], "at": stamp, "hour": hour}), path)
    first, second = read_rows(path)
    assert first["at"].startswith("2020-09-13T12:26:40.123456789")
    assert first["hour"] == "00:00:00.000000001"
    assert second["at"] is None


def test_numbers_that_json_does_not_have_become_null_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"a": float("nan"), "b": [1.0, float("inf")], "c": "NaN"}, {"a": 0.5, "b": [], "c": ""}]
    write_rows(tmp_path / "a.jsonl", rows)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines == [{"a": None, "b": [1.0, None], "c": "NaN"}, rows[1]]
    assert "null: 1 in column 'a', 1 in column 'b'" in caplog.text


STREAMED = {
    "mark.jsonl": b'\xef\xbb\xbf{"a": "\xe2\x80\xa8 one"}\r\n\n  \n{"a": "two"}\n',
    "end.ndjson": b'{"a": 1}\n{"b": [2]}',
    "returns.jsonl": b'{"a": 1}',
    "array.json": b'\n [{"a": 1},\n {"a": 2}]\n',
    "lines.json": b'{"a": 1}\n{"a": 2}\n',
    "wide.jsonl": '{"a": "ü"}\n{"a": "one"}\n'.encode("utf-16"),
    "cells.csv": b'a,b\n1,"2\n3"\n',
    "cells.tsv": b'a\tb\n1\t"2\n',
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("packed", [False, True])
def test_a_stream_has_the_rows_and_places_of_the_whole_file(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(STREAMED[name]) if packed else STREAMED[name])
    whole = read_rows(path)
    assert whole.lines is not None
    places = [f"{path}:{line}" for line in whole.lines]
    assert list(stream_rows(path)) == list(zip(places, whole, strict=True))


def test_a_stream_of_parquet_has_every_row(tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.parquet", [{"a": f"text {number}", "b": number} for number in range(2500)]
    write_rows(path, rows)
    assert list(stream_rows(path)) == [(f"{path}, row {number + 1}", row) for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b'{"a": 1}\n{"a": \n'), ("a.jsonl", b'{"a": 1}\n[1]\n'), ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n'),
     ("a.jsonl", b'{"a": 1, "a": 2}\n'), ("a.jsonl", '{"a": 1}'.encode("utf-16-le")), ("a.parquet", b"PAR1 or not"),
     ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9999)[:-20]), ("a.xml", b"<a/>")],
)  # fmt: skip
def test_a_stream_refuses_what_the_whole_file_refuses(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as whole:
        read_rows(path)
    with pytest.raises(DataError) as streamed:
        list(stream_rows(path))
    assert str(streamed.value) == str(whole.value)
    assert streamed.value.line == whole.value.line


def test_a_stream_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    for path, said in ((tmp_path / "a.jsonl", "has no rows"), (tmp_path / "b.jsonl", "no such file")):
        with pytest.raises(DataError, match=said):
            list(stream_rows(path))
