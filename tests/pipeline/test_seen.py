"""A run knows the pairs that its models have seen, and says so where it is measured on them."""

from __future__ import annotations

from pathlib import Path

from tmkd.data.pairs import Pairs
from tmkd.data.row_counts import RowCounts
from tmkd.pipeline.seen import save_seen, warn_of_seen


def warnings(folder: Path, questions: list[str], passages: list[str]) -> list[str]:
    counts = RowCounts("measured.jsonl")
    warn_of_seen(folder, Pairs.build(questions, passages), counts)
    return counts.warnings


def test_figures_on_pairs_that_a_run_has_seen_get_a_word(tmp_path: Path) -> None:
    save_seen(
        tmp_path, [Pairs.build(["How?"], ["so"]), Pairs.build(["why"], ["thus"])], Pairs.build(["when"], ["then"])
    )
    assert warnings(tmp_path, ["where"], ["there"]) == []
    trained, asked = warnings(tmp_path, ["how ", "Why?", "where"], ["So.", "not thus", "there"])
    assert trained.startswith("1 of 3 rows are training pairs of this run")
    assert trained.endswith("for example 'how '")
    assert asked.startswith(
        "1 of 3 rows ask questions that the training pairs of this run ask, too, for example 'Why?'"
    )
    [chosen] = warnings(tmp_path, ["when"], ["then"])
    assert chosen.startswith("1 of 1 rows are development pairs of this run")


def test_an_older_run_says_that_it_does_not_know(tmp_path: Path) -> None:
    assert "is not known" in warnings(tmp_path, ["q"], ["p"])[0]
