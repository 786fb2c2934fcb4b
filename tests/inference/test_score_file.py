"""tmkd.inference.score_file: rows as they were, in their order, with the scores added; no torch."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_fixtures import exported, texts

from tmkd.core.errors import DataError, ExportError
from tmkd.data.readers import Rows, read_rows
from tmkd.data.writers import Extended, write_rows
from tmkd.inference.score_file import ADDED, score_columns, score_file
from tmkd.inference.scorer import Scorer


def _rows(count: int = 40) -> list[dict[str, Any]]:
    questions, passages = texts(count)
    return [
        {"passage": p, "note": f"nö {i}", "question": q, "rank": i, "label": "not a label"}
        for i, (q, p) in enumerate(zip(questions, passages, strict=True))
    ]


def test_rows_keep_order_and_columns(tmp_path: Path) -> None:
    rows, folder = _rows(), exported("minilm") / "out"
    write_rows(tmp_path / "pairs.jsonl", rows)
    assert score_file(folder, tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl").rows == 40
    scored = read_rows(tmp_path / "scored.jsonl")
    wanted = Scorer(folder).scores([row["question"] for row in rows], [row["passage"] for row in rows])
    for row, result, score in zip(rows, scored, wanted, strict=True):
        assert {name: result[name] for name in row} == row
        assert list(result) == [*row, "tmkd_score", "tmkd_logits", "tmkd_probabilities", "tmkd_predicted"]
        assert result["tmkd_score"] == pytest.approx(score, abs=1e-6)
        assert result["tmkd_score"] == pytest.approx(result["tmkd_logits"][1] - result["tmkd_logits"][0])
        assert sum(result["tmkd_probabilities"]) == pytest.approx(1)
        assert result["tmkd_predicted"] == int(score > 0)


def test_formats_follow_the_extension(tmp_path: Path) -> None:
    folder = exported("mpnet") / "out"
    write_rows(tmp_path / "pairs.parquet", _rows(7))
    for name in ("scored.csv", "scored.tsv", "scored.jsonl.gz", "scored.parquet"):
        score_file(folder, tmp_path / "pairs.parquet", tmp_path / name)
    with (tmp_path / "scored.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    wanted = read_rows(tmp_path / "scored.jsonl.gz")
    assert [json.loads(row["tmkd_logits"]) for row in cells] == [row["tmkd_logits"] for row in wanted]
    assert [row["passage"] for row in cells] == [row["passage"] for row in wanted]
    assert str(pq.read_schema(tmp_path / "scored.parquet").field("tmkd_logits").type).startswith("list<")


def test_three_classes_have_no_score(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", _rows(3))
    score_file(exported("mpnet", 3) / "out", tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl")
    scored = read_rows(tmp_path / "scored.jsonl")
    assert len(scored) == 3
    for row in scored:
        assert "tmkd_score" not in row
        assert len(row["tmkd_logits"]) == len(row["tmkd_probabilities"]) == 3


def test_columns_of_other_names(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.csv", [{"query": "mount", "text": "use the mount command"}])
    score_file(
        exported("mpnet") / "out", tmp_path / "pairs.csv", tmp_path / "o.csv",
        columns={"question": "query", "passage": "text"},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"no column 'question'; there are: query, text\. Name yours with --quest"):
        score_file(exported("mpnet") / "out", tmp_path / "pairs.csv", tmp_path / "o.csv")


def test_ids_of_the_rows_are_not_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They may be blank in some rows: scores depend on the two texts alone."""
    rows = [{**row, "qid": [None, "1", "1"][number], "pid": " "} for number, row in enumerate(_rows(3))]
    write_rows(tmp_path / "pairs.jsonl", rows)
    score_file(exported("mpnet") / "out", tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl")
    scored = read_rows(tmp_path / "scored.jsonl")
    assert [{name: row[name] for name in rows[0]} for row in scored] == rows
    assert "qid" not in caplog.text


def test_bad_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    folder = exported("mpnet") / "out"
    write_rows(tmp_path / "pairs.jsonl", _rows(3))
    with pytest.raises(DataError, match="unknown extension"):
        score_file(folder, tmp_path / "pairs.jsonl", tmp_path / "scored.xlsx")
    with pytest.raises(DataError, match="does not exist"):
        score_file(folder, tmp_path / "pairs.jsonl", tmp_path / "none" / "scored.jsonl")
    with pytest.raises(ExportError, match="not an export"):
        score_file(exported("mpnet") / "student", tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl")
    score_file(folder, tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl")
    with pytest.raises(DataError, match="already has the column 'tmkd_score'"):
        score_file(folder, tmp_path / "scored.jsonl", tmp_path / "twice.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "passage": "b"}\n{"question": "a", "passage": " "}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: 'passage' is empty"):
        score_file(folder, tmp_path / "bad.jsonl", tmp_path / "x.jsonl")
    with pytest.raises(DataError, match=r"'question' is read as the question and as the passage\. Name yours with --q"):
        score_file(folder, tmp_path / "pairs.jsonl", tmp_path / "x.jsonl", columns={"passage": "question"})
    assert not (tmp_path / "x.jsonl").exists()


def test_scoring_imports_no_torch_and_prints_only_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", _rows(5))
    code = (
        "import sys; from pathlib import Path; from tmkd.inference.score_file import score_file;"
        f"score_file(Path({str(exported('minilm') / 'out')!r}), Path({str(tmp_path / 'pairs.jsonl')!r}));"
        "bad = [n for n in ('torch', 'transformers', 'scipy', 'sklearn', 'safetensors') if n in sys.modules];"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["rank"] for line in done.stdout.splitlines()] == [0, 1, 2, 3, 4]


# --- what the file held stays


def test_parquet_keeps_the_type_of_every_column(tmp_path: Path) -> None:
    table = pa.table(
        {
            "question": ["mount a disk?", "sort a list?"],
            "passage": ["use mount", "use sort"],
            "at": pa.array([1_600_000_000_123_456_789, None], pa.timestamp("ns", tz="Europe/Berlin")),
            "big": pa.array([2**64 - 1, 0], pa.uint64()),
            "map": pa.array([[("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int64())),
            "struct": pa.array([{"x": 1, "at": 5}, None], pa.struct([("x", pa.int8()), ("at", pa.timestamp("s"))])),
            "list": pa.array([[1.5], None], pa.list_(pa.float32())),
            "price": pa.array([Decimal("1.10"), None], pa.decimal128(12, 2)),
            "nan": [float("nan"), None],
            "empty": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "pairs.parquet")
    score_file(exported("mpnet") / "out", tmp_path / "pairs.parquet", tmp_path / "scored.parquet")
    scored = pq.read_table(tmp_path / "scored.parquet")
    assert scored.column_names == [*table.column_names, *ADDED]
    kept, table = scored.select(table.column_names), pq.read_table(tmp_path / "pairs.parquet")
    assert kept.schema.equals(table.schema)
    assert kept.drop_columns(["nan"]).equals(table.drop_columns(["nan"]))
    assert repr(kept["nan"].to_pylist()) == "[nan, None]"


def test_json_keeps_numbers_order_and_spelling(tmp_path: Path) -> None:
    row = '{"b": 1e400, "question": "q", "a": 123456789012345678901234567890, "passage": "p\\u00e4", "x": 1.10}'
    (tmp_path / "pairs.jsonl").write_text(row + "\n")
    score_file(exported("mpnet") / "out", tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl")
    line = (tmp_path / "scored.jsonl").read_text()
    assert line.startswith(row[:-1] + ', "tmkd_score": ')
    (tmp_path / "array.json").write_text(f"[\n  {row}\n]\n")
    score_file(exported("mpnet") / "out", tmp_path / "array.json", tmp_path / "scored.json")
    assert (tmp_path / "scored.json").read_text() == f"[\n{line}]\n"


def test_nan_becomes_null_with_a_warning_before_scoring(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ['{"question": "q", "passage": "p", "x": NaN}', '{"question": "q", "passage": "NaN", "x": 0.50}']
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    score_file(exported("mpnet") / "out", tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl")
    first, second = (tmp_path / "scored.jsonl").read_text().splitlines()
    assert json.loads(first, parse_constant=pytest.fail)["x"] is None
    assert json.loads(second)["passage"] == "NaN"
    assert "JSON has no NaN and no Infinity; such numbers are written as null: 1 in column 'x'" in caplog.text


def test_what_parquet_cannot_hold_is_refused_before_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "logits", lambda *_, **__: pytest.fail("scored"))
    monkeypatch.setattr(Scorer, "_open", lambda *_: "")
    for bad in ('"one"', "1208925819614629174706176"):
        (tmp_path / "pairs.jsonl").write_text(f'{{"question": "q", "passage": "p", "x": 1}}\n'
                                              f'{{"question": "q", "passage": "p", "x": {bad}}}\n')  # fmt: skip
        with pytest.raises(DataError, match="column 'x' does not fit Parquet"):
            score_file(exported("mpnet") / "out", tmp_path / "pairs.jsonl", tmp_path / "scored.parquet")


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("a.csv", "id;question;passage", "7;q, and;p"),
        ("a.csv", "question,passage", '"q, ""x""",p'),
        ("a.tsv", "qid\tquestion\tpassage", '7\t"q\tp"'),
    ],
)
def test_csv_keeps_its_separator_and_its_quotes(tmp_path: Path, name: str, header: str, row: str) -> None:
    (tmp_path / name).write_text(f"{header}\n{row}\n")
    score_file(exported("mpnet") / "out", tmp_path / name, tmp_path / f"scored-{name}")
    found = (tmp_path / f"scored-{name}").read_text().splitlines()
    assert found[0].startswith(header)
    assert found[1].startswith(row)
    assert {key: value for key, value in read_rows(tmp_path / f"scored-{name}")[0].items() if key[:5] != "tmkd_"} == (
        read_rows(tmp_path / name)[0]
    )


def test_pairs_that_are_cut_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = exported("minilm") / "out"
    most = Scorer(folder).max_length
    exact = " ".join(["disk"] * (most - 4))  # with one word of the question and three special tokens
    rows = [{"question": "why", "passage": text} for text in ("short", exact, exact + " disk", exact * 3)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    done = score_file(folder, tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl")
    assert (done.rows, done.cut, done.cut_share, done.max_length) == (4, 2, 0.5, most)
    assert f"2 of 4 pairs (50.0%) are longer than the {most} tokens" in caplog.text
    assert "the first is row 3" in caplog.text


@pytest.mark.parametrize("extension", [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".csv.gz"])
def test_lines_are_not_in_memory_together_when_they_are_written(tmp_path: Path, extension: str) -> None:
    rows = [{"question": f"which {i}", "passage": " ".join(texts(8)[1])} for i in range(2000)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    target = Extended(read_rows(tmp_path / "pairs.jsonl", keep=True), tmp_path / f"scored{extension}")
    logits = np.random.default_rng(0).normal(size=(2000, 2)).astype(np.float32)
    tracemalloc.start()
    target.write(score_columns(logits))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = read_rows(tmp_path / f"scored{extension}")
    assert [row["question"] for row in written] == [row["question"] for row in rows]
    assert peak < 0.5 * sum(len(str(row)) for row in written)


def test_a_compressed_file_holds_the_bytes_of_the_plain_one(tmp_path: Path) -> None:
    for extension in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        write_rows(tmp_path / f"rows{extension}", _rows(300))
        write_rows(tmp_path / f"rows{extension}.gz", _rows(300))
        packed = (tmp_path / f"rows{extension}.gz").read_bytes()
        assert gzip.decompress(packed) == (tmp_path / f"rows{extension}").read_bytes()
        assert packed[10:] == gzip.compress((tmp_path / f"rows{extension}").read_bytes(), mtime=0)[10:]
    write_rows(tmp_path / "none.json", [])
    assert (tmp_path / "none.json").read_bytes() == b"[\n\n]\n"


@pytest.mark.parametrize("extension", [".jsonl", ".csv.gz", ".parquet"])
def test_an_earlier_file_stays_where_writing_fails_midway(tmp_path: Path, extension: str) -> None:
    def added() -> Iterator[dict[str, Any]]:
        yield {"x": 1.5}
        raise OSError(5, "Input/output error")

    path = tmp_path / f"scored{extension}"
    path.write_text("before")
    with pytest.raises(DataError, match="cannot be written: Input/output error"):
        Extended(Rows(_rows(3)), path).write(added())
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(path.name, "before")]
