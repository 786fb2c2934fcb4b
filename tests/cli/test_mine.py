"""tmkd mine from the command line: what it writes and says, options that it refuses, a signal in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import TOPICS, Tmkd, pool_rows, write_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "queries.txt").write_text("".join(f"{question}\n" for question, _ in TOPICS.values()))
    return write_jsonl(tmp_path / "corpus.jsonl", [{"key": name, "body": answer}
                                                   for name, (_, answer) in TOPICS.items()])  # fmt: skip


NAMES = ("--text-field", "body", "--id-field", "key", "--questions", "queries.txt")


def test_a_pool_with_its_counts(tmkd: Tmkd, texts: Path) -> None:
    done = tmkd("mine", texts, *NAMES, "-o", "pool.parquet", "--passages", "2")
    rows = pq.read_table("pool.parquet").to_pylist()
    assert rows[0]["passage"] == TOPICS["copy"][1]
    assert rows[0]["pid"] == "copy"
    assert done.stdout == ""
    assert "pool.index: 8 added, 0 changed, 0 deleted, 0 unchanged documents; 8 passages" in done.stderr
    assert f"pool.parquet: {len(rows)} pairs of 8 questions and an index of 8 passages" in done.stderr
    assert "mine: 8/8 questions, " in done.stderr
    assert " s left" in done.stderr
    said = json.loads(tmkd("mine", "-i", "pool.index", *NAMES, "-o", "again.jsonl", "--passages", "2", "--json").stdout)
    assert (said["pairs"], said["questions"], said["read"], said["indexed"]) == (len(rows), 8, 8, None)
    assert said["left_out"].keys() == {"contains_question", "same_text", "nearly_same", "held_out", "over_most"}
    assert [json.loads(line) for line in Path("again.jsonl").read_text().splitlines()] == rows
    quiet = tmkd("mine", texts, *NAMES, "-o", "pool.parquet", "-q", "--json", "counts.json")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert json.loads(Path("counts.json").read_text())["output"] == "pool.parquet"


def test_every_choice_reaches_the_pool(tmkd: Tmkd, texts: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"query": row["question"]} for row in pool_rows()])
    write_jsonl(texts, [{"key": str(n), "body": row["passage"]} for n, row in enumerate(pool_rows())])
    held = pool_rows()[:1]
    write_jsonl(tmp_path / "dev.jsonl", [{"q": row["question"], "p": row["passage"], "y": 1} for row in held])
    said = json.loads(tmkd(
        "mine", texts, *NAMES[:4], "--questions", "rows.jsonl", "--question-column", "query", "-o", "pool.parquet",
        "--sampling", "stratified", "--passages", "4", "--quantiles", "2", "--depth", "8", "--seed", "3", "--most", "4",
        "--without", "dev.jsonl", "--without-question", "q", "--without-passage", "p", "--without-label", "y", "--json",
    ).stdout)  # fmt: skip
    rows = pq.read_table("pool.parquet").to_pylist()
    passages = [row["passage"] for row in rows]
    assert said["held_out"] == 1
    assert said["duplicates"] == 24
    assert said["pairs"] == len(rows) > 12
    assert max(map(passages.count, passages)) <= 4
    assert held[0]["passage"] not in passages
    assert max(row["rank"] for row in rows) > 4


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--passages", "300"], "depth is 200, passages 300"), (["--sampling", "best"], "'best' is not one of"),
     (["--sampling", "stratified", "--passages", "3"], "quantiles is 4")],
)  # fmt: skip
def test_options_that_do_not_fit_are_a_wrong_command_line(tmkd: Tmkd, texts: Path, more: list[str], said: str) -> None:
    done = tmkd("mine", texts, *NAMES, "-o", "pool.parquet", *more, check=False)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_errors_name_file_and_line(tmkd: Tmkd, texts: Path) -> None:
    with texts.open("a") as file:
        file.write('{"body": "half a line\n')
    done = tmkd("mine", texts, *NAMES, "-o", "pool.parquet", check=False)
    assert done.returncode == 1
    assert f"tmkd: {texts}:9: not valid JSON" in done.stderr
    done = tmkd("mine", texts, "--questions", texts, "-o", "pool.parquet", check=False)
    assert f"tmkd: {texts}:1: there is no column 'question'; there are: key, body (--question-column" in done.stderr
    assert not Path("pool.parquet").exists()


def test_an_interrupted_call_keeps_its_parts_and_says_so(tmkd: Tmkd, texts: Path, tmp_path: Path) -> None:
    with (tmp_path / "queries.txt").open("a") as file:
        file.writelines(f"How do I copy file number {number}?\n" for number in range(20_000))
    command = ["mine", str(texts), *NAMES, "-o", "pool.parquet"]
    call = subprocess.Popen([sys.executable, "-m", "tmkd", *command], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
                            stderr=subprocess.PIPE, text=True)  # fmt: skip
    parts = tmp_path / "pool.parquet.parts"
    until = time.monotonic() + 60
    while not (parts / "part-00001.parquet").exists() and time.monotonic() < until:
        time.sleep(0.01)
    call.send_signal(signal.SIGTERM)
    said = call.communicate()[1]
    assert call.returncode == 143
    assert "tmkd: interrupted; finished work is kept, the same command continues" in said
    assert not (tmp_path / "pool.parquet").exists()
    (tmp_path / "queries.txt").write_text("".join(f"{question}\n" for question, _ in TOPICS.values()))
    done = tmkd(*command, check=False)
    assert "pool.parquet.parts holds parts of a pool that was begun otherwise: questions was" in done.stderr
