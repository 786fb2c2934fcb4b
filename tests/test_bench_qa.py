"""`tmkd bench qa`: metrics of both orders of the same candidates, by hand; the command on files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import Tmkd, write_jsonl
from export_fixtures import exported
from qa_fixtures import TEXTS, index_of

from tmkd.bench.qa import compare
from tmkd.corpus.passages import Passage
from tmkd.corpus.store import Found
from tmkd.pairs.record import Pairs
from tmkd.qa.answer import Ranked
from tmkd.qa.cases import Asked, Case, Material


def asked(qid: str, retrieved: str, ranked: str, right: str) -> Asked:
    """A question whose passages are letters."""
    present = [
        Ranked(Found(Passage(pid, "", "", (), "", ""), "", 0.0), retrieved.index(pid) + 1, 0.0, None) for pid in ranked
    ]
    return Asked(Case(qid, qid, frozenset(right), frozenset()), list(retrieved), present, [])


def test_both_orders_are_measured_on_the_same_questions() -> None:
    material = Material("m", Pairs.build([], []), [], True)
    found = compare(
        material, [asked("q1", "abcd", "dcba", "dx"), asked("q2", "abcd", "abcd", "b"), asked("q3", "", "", "z")]
    )
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


def test_the_command_measures_files(tmp_path: Path, tmkd: Tmkd) -> None:
    index_of(tmp_path / "index")
    rows = [
        {"question": f"What does the {name} do?", "passage": text, "label": 1}
        for name, text in (("cp command", TEXTS["copy.md"]), ("mount command", TEXTS["mount.md"]))
    ]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [*rows, {**rows[0], "passage": "Other words.", "label": 0}])
    model = exported("minilm") / "out"
    done = tmkd("bench", "qa", "--model", model, "--index", "index", "--pairs", pairs, "--json", "qa.json")
    assert "nDCG@10" in done.stdout
    assert "retrieve" in done.stdout
    content = json.loads((tmp_path / "qa.json").read_text())
    assert (content["questions"], content["passages"], content["candidates"]) == (2, 3, 100)
    assert content["quality"]["success@1"]["bm25"]["mean"] == 1
    times = content["milliseconds"]
    assert np.isclose(
        sum(times[stage]["max"] for stage in ("retrieve", "rank", "mark")), times["total"]["max"], rtol=0.5
    )
    refused = tmkd("bench", "qa", "--model", model, "--pairs", pairs, check=False)
    assert "--pairs needs --index" in refused.stderr
