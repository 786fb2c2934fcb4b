"""Which passages `pool.sampling` keeps, against choices worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tmkd.config.load import parse_recipe
from tmkd.config.pool_sections import Sampling
from tmkd.core.errors import DataError, RecipeError
from tmkd.data.pairs import Pairs
from tmkd.data.sampling import sample
from tmkd.data.split import share_of

# One question with seven passages, one with two. The first, by score: 6 0 | 3 1 | 5 2 | 4, in four quantiles.
PAIRS = Pairs.build(["q"] * 7 + ["r"] * 2, [f"passage {n}" for n in range(9)])
SCORES = np.array([0.8, 0.5, 0.2, 0.6, -3.0, 0.4, 0.9, 1.0, 2.0])
QUANTILES = ((6, 0), (3, 1), (5, 2), (4,))


def _first(rows: tuple[int, ...], seed: int = 0) -> int:
    return min(rows, key=lambda row: share_of(PAIRS.pair_ids[row], seed))


def test_the_best_passages() -> None:
    found = sample(PAIRS, SCORES, Sampling(kind="top", keep=3))
    assert found.rows.tolist() == [0, 3, 6, 7, 8]
    assert found.sentence("minilm") == "pool: 5 of 9 pairs are kept, by the scores of minilm"


def test_one_of_every_quantile() -> None:
    found = sample(PAIRS, SCORES, Sampling(keep=4))
    assert found.rows.tolist() == sorted([*map(_first, QUANTILES), 7, 8])
    assert found.quantiles == (2, 2, 1, 1)  # of the second question: 8 | 7 | none | none
    assert found.sentence("the mean") == (
        "pool: 6 of 9 pairs are kept, by the scores of the mean, 2 + 2 + 1 + 1 of the quantiles, best first"
    )


def test_what_does_not_come_out_even_is_of_the_better_quantiles() -> None:
    found = sample(PAIRS, SCORES, Sampling(keep=6))
    assert found.rows.tolist() == sorted([0, 1, 3, 6, _first((5, 2)), 4, 7, 8])
    assert found.quantiles == (3, 3, 1, 1)


def test_two_quantiles() -> None:
    """6 0 3 1 | 5 2 4: two of the better half, one of the other."""
    found = sample(PAIRS, SCORES, Sampling(keep=3, quantiles=2))
    better = sorted((6, 0, 3, 1), key=lambda row: share_of(PAIRS.pair_ids[row], 0))[:2]
    assert found.rows.tolist() == sorted([*better, _first((5, 2, 4)), 7, 8])


@pytest.mark.parametrize("kind", ["top", "stratified"])
def test_the_choice_does_not_depend_on_the_order_of_the_pairs(kind: str) -> None:
    sampling = Sampling.model_validate({"kind": kind, "keep": 4})
    there = sample(PAIRS, SCORES, sampling).rows
    turned = np.arange(len(PAIRS))[::-1]
    back = sample(PAIRS.take(turned), SCORES[turned], sampling).rows
    assert sorted(turned[back].tolist()) == there.tolist()


def test_another_seed_chooses_others_of_the_same_quantiles() -> None:
    seeds = {tuple(sample(PAIRS, SCORES, Sampling(keep=4), seed).rows.tolist()) for seed in range(8)}
    assert len(seeds) > 1
    assert all(sum(row in part for part in QUANTILES for row in rows) == 4 for rows in seeds)


def test_a_pair_without_a_score_is_refused() -> None:
    with pytest.raises(DataError, match=r"pool\.sampling: 2 of 9 pairs have no score"):
        sample(PAIRS, np.where(SCORES > 0.85, np.nan, SCORES)[[0, 1, 2, 3, 4, 5, 6, 7, 0]], Sampling(keep=4))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keep": 3}, "keep: 3 leaves none of some of 4 quantiles; keep more"),
        ({"keep": 1}, "pool.sampling.keep"),
        ({"keep": 4, "by": "c"}, "pool.sampling.by: 'c' is not one of the teachers, a, b"),
        ({"keep": 4, "kind": "best"}, "pool.sampling.kind"),
    ],
)
def test_what_leaves_nothing_or_names_nobody(keys: dict[str, object], message: str) -> None:
    recipe = {"data": {"train": "t", "pool": "p"}, "teachers": [{"name": "a"}, {"name": "b"}]}
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**recipe, "pool": {"sampling": keys}}, "r")


def test_classes_without_an_order_and_teachers_of_the_pool() -> None:
    recipe = {"data": {"train": "t", "pool": "p"}, "teachers": [{"name": "a"}]}
    with pytest.raises(RecipeError, match="passages have an order in two classes only, and there are 3"):
        parse_recipe({**recipe, "classes": 3, "pool": {"sampling": {"keep": 4}}}, "r")
    with pytest.raises(RecipeError, match="the pool has teachers of its own"):
        parse_recipe({**recipe, "pool": {"teachers": ["x"], "sampling": {"keep": 4}}}, "r")
