"""Baselines that train nothing: which of them there are on which pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmkd.config.load import load_recipe
from tmkd.data.pairs import Pairs
from tmkd.pipeline.steps.free_baselines import free_baselines
from tmkd.pipeline.store.workspace import Workspace

FOUND = [("how to sort a list", "sort the list by its keys"), ("how to mount a disk", "use option to mount the disk")]


def names(recipe: Path, pairs: Pairs, folder: Path) -> list[str]:
    return [one.name for one in free_baselines(Workspace(folder), load_recipe(recipe), pairs, [])]


def test_ranks_are_fused_where_questions_have_several_passages(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tmkd")
    several = Pairs.build([question for question, _ in FOUND for _ in FOUND], [passage for _, passage in FOUND] * 2)
    assert names(tiny_recipe, several, tmp_path / "workspace") == ["bm25", "cosine", "bm25+cosine"]
    assert "is not fused" not in caplog.text


def test_ranks_of_questions_with_one_passage_are_not_fused(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every such passage is the first of its question, so the fusion would call them all equal: a ROC-AUC of 0.5."""
    caplog.set_level("INFO", "tmkd")
    questions = [*(question for question, _ in FOUND), FOUND[0][0], "why is the sky blue", "who wrote it"]
    alone = Pairs.build(questions, [*(passage for _, passage in FOUND), "the list", "light", "a poet"])
    assert names(tiny_recipe, alone, tmp_path / "workspace") == ["bm25", "cosine"]
    assert "BM25 is not fused with cosines: 3 of the 5 pairs are the only one of their question" in caplog.text
