"""tmkd.inference.score_file: rows as they were, in their order, with the scores added; no torch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from export_fixtures import exported, texts

from tmkd.core.errors import DataError, ExportError
from tmkd.data.readers import read_rows
from tmkd.data.writers import write_rows
from tmkd.inference.score_file import score_file
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
    assert score_file(folder, tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl") == 40
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
        exported("mpnet") / "out", tmp_path / "pairs.csv", tmp_path / "o.csv", question="query", passage="text"
    )  # fmt: skip
    with pytest.raises(DataError, match="there is no column 'question'; there are: query, text"):
        score_file(exported("mpnet") / "out", tmp_path / "pairs.csv", tmp_path / "o.csv")


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
