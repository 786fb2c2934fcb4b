"""Baselines that train nothing: which of them there are on which pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tmkd.config.load import load_recipe
from tmkd.config.recipe import Recipe
from tmkd.core.logits import log_odds
from tmkd.data.pairs import Pairs
from tmkd.models.encoders.find import find_encoder
from tmkd.pipeline.steps.free_baselines import free_baselines
from tmkd.pipeline.store.workspace import Workspace

BARE: dict[str, Any] = {
    "name": "r",
    "data": {"builtin": "debian-docs"},
    "teachers": [{"name": "t1", "seed": 1}, {"name": "t2", "seed": 2}],
}
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


def test_an_encoder_that_pools_by_its_first_token_is_also_measured_as_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The mean of the tokens' vectors is not what somebody has who uses such an embedding model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(str(find_encoder("builtin:minilm-l6")))
    first = Pooling(words.get_embedding_dimension(), pooling_mode="cls")
    model = SentenceTransformer(modules=[words, first], device="cpu", prompts={"query": "question: "})
    model.save(str(tmp_path / "first"))
    pairs = Pairs.build([question for question, _ in FOUND for _ in FOUND], [passage for _, passage in FOUND] * 2)
    cosine = (model.encode_query(pairs.questions, normalize_embeddings=True)
              * model.encode_document(pairs.passages, normalize_embeddings=True)).sum(axis=1)  # fmt: skip
    recipe = Recipe.model_validate({**BARE, "encoder": str(tmp_path / "first")})
    found = {one.name: one for one in free_baselines(Workspace(tmp_path / "workspace"), recipe, pairs, [])}
    assert list(found) == ["bm25", "cosine", "own similarity", "bm25+cosine", "bm25+own similarity"]
    np.testing.assert_allclose(log_odds(found["own similarity"].logits[0], 1), 10 * (cosine - 0.5), atol=1e-3)
    assert np.abs(log_odds(found["cosine"].logits[0], 1) - 10 * (cosine - 0.5)).max() > 0.1

    settings = tmp_path / "first" / "config_sentence_transformers.json"
    before = settings.read_text()
    settings.write_text('{"prompts": ["question: "]}')
    names = [one.name for one in free_baselines(Workspace(tmp_path / "workspace"), recipe, pairs, [])]
    assert names == ["bm25", "cosine", "bm25+cosine"]
    assert "own similarity of" in caplog.text
    assert "prompts is ['question: '], not an object" in caplog.text
    settings.write_text(before)

    itself = {"name": "itself", "kind": "bi_encoder", "model": str(tmp_path / "first")}
    recipe = Recipe.model_validate(
        {**BARE, "encoder": str(tmp_path / "first"), "teachers": [*BARE["teachers"], itself]}
    )
    names = [one.name for one in free_baselines(Workspace(tmp_path / "workspace"), recipe, pairs, [])]
    assert "own similarity" not in names, "the teacher is that row"
