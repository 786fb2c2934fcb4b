"""`tmkd bench qa`: metrics of both orders of the same candidates, by hand; the command on files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import Tmkd, write_jsonl
from export_fixtures import exported
from qa_fixtures import TEXTS, asked, index_of

from tmkd.bench.qa import compare, wrong_first
from tmkd.inference.qa.calibration import Calibration
from tmkd.inference.qa.retrieval_weights import with_retrieval

QUESTIONS = [asked("q1", "abcd", "dcba", "dx"), asked("q2", "abcd", "abcd", "b"), asked("q3", "", "", "z")]


def test_retrieval_counts_as_much_as_its_weight() -> None:
    found = {weight: compare(QUESTIONS, Calibration(retrieval_weight=weight))["MRR"] for weight in (0.0, 0.9, 10.0)}
    assert found[0.0].ranked.mean == found[0.9].ranked.mean == pytest.approx(0.5)
    assert found[10.0].ranked.mean == found[10.0].bm25.mean == found[0.0].bm25.mean
    assert with_retrieval(QUESTIONS) == Calibration()
    student_knows_nothing = [asked("q1", "abcd", "dcba", "b"), asked("q2", "abcd", "dcba", "a")]
    assert (
        with_retrieval(student_knows_nothing).retrieval_weight == 1.0
    )  # both say the opposite with one voice; ties stay as retrieved
    (first, *_, last) = student_knows_nothing[0].ranked(Calibration(retrieval_weight=3.0))
    assert (first.score, first.retrieval_rank, last.score, last.retrieval_rank) == (-3.0, 1, -9.0, 4)


def test_both_orders_are_measured_on_the_same_questions() -> None:
    found = compare(QUESTIONS, Calibration())
    mrr = found["MRR"]
    assert mrr.bm25.mean == pytest.approx((1 / 4 + 1 / 2 + 0) / 3)
    assert mrr.ranked.mean == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert mrr.difference.mean == pytest.approx(0.25)
    assert mrr.difference.low == 0
    assert mrr.difference.high == pytest.approx(0.75)
    ideal = 1 + 1 / math.log2(3)  # of q1's two right passages one was not found
    assert found["nDCG@10"].ranked.mean == pytest.approx((1 / ideal + 1 / math.log2(3)) / 3)
    assert found["recall@10"].bm25.mean == found["recall@10"].ranked.mean == pytest.approx((1 / 2 + 1) / 3)
    assert found["success@1"].difference.mean == pytest.approx(1 / 3)


def test_what_each_way_of_retrieval_finds_is_measured() -> None:
    questions = [asked("q1", "abcd", "abcdwxyz", "aw", by_dense="wxyz"), asked("q2", "abcd", "abcd", "w")]
    found = compare(questions, Calibration(dense_share=0.5))
    recall, success = found["recall@100"], found["success@100"]
    assert recall.dense is not None
    assert recall.candidates is not None
    assert (recall.bm25.mean, recall.dense.mean, recall.candidates.mean) == pytest.approx((1 / 4, 1 / 4, 1 / 2))
    assert recall.ranked.mean == recall.candidates.mean
    assert success.candidates is not None
    assert (success.bm25.mean, success.candidates.mean) == (1 / 2, 1 / 2)
    assert list(recall.to_json()) == ["bm25", "dense", "bm25 and dense", "retrieve and rank", "difference"]
    assert list(compare(QUESTIONS, Calibration())["MRR"].to_json()) == ["bm25", "retrieve and rank", "difference"]


def test_first_passages_that_are_labelled_wrong_are_listed() -> None:
    found = wrong_first(QUESTIONS, Calibration())  # q1 has d first, which is right, q2 has a, and q3 found nothing
    assert [(row["question"], row["passage"]) for row in found] == [("q2", "a")]
    assert [row["question"] for row in wrong_first(QUESTIONS, Calibration(retrieval_weight=10.0))] == ["q1", "q2"]


def test_the_command_measures_files(tmp_path: Path, tmkd: Tmkd) -> None:
    index_of(tmp_path / "index")
    rows = [
        {"question": f"What does the {name} do?", "passage": text, "label": 1}
        for name, text in (("cp command", TEXTS["copy.md"]), ("mount command", TEXTS["mount.md"]))
    ]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [*rows, {**rows[0], "passage": "Other words.", "label": 0}])
    model = exported("minilm") / "out"
    files = ("--index", "index", "--pairs", pairs, "--json", "qa.json", "--wrong", "wrong.jsonl")
    done = tmkd("bench", "qa", "--model", model, *files)
    assert "nDCG@10" in done.stdout
    assert "retrieve" in done.stdout
    content = json.loads((tmp_path / "qa.json").read_text())
    assert (content["questions"], content["passages"], content["candidates"]) == (2, 3, 100)
    assert content["quality"]["success@1"]["bm25"]["mean"] == 1
    wrong = (tmp_path / "wrong.jsonl").read_text().splitlines()
    assert len(wrong) == round(2 * (1 - content["quality"]["success@1"]["retrieve and rank"]["mean"]))
    times = content["milliseconds"]
    assert np.isclose(
        sum(times[stage]["max"] for stage in ("retrieve", "rank", "mark")), times["total"]["max"], rtol=0.5
    )
    refused = tmkd("bench", "qa", "--model", model, "--pairs", pairs, check=False)
    assert "--pairs needs --index" in refused.stderr
