"""Choose some of a question's passages by a teacher's scores (`pool.sampling`): the best, or some of each quantile.

A question's best passages alone show a student what is relevant. Those of every quantile show it the whole range that
it will have to rank. Hofstätter et al. 2021, "Efficiently teaching an effective dense retriever with balanced topic
aware sampling", choose pairs by bins of the teacher's margin in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.config.pool_sections import Sampling
from tmkd.core.errors import DataError
from tmkd.data.pair_ids import all_numbers_of
from tmkd.data.pairs import Pairs
from tmkd.data.split import share_of

_QUESTIONS = 4096  # whose ids are strings at the same time


@dataclass(frozen=True)
class Sampled:
    """The pairs that were chosen.

    Attributes:
        rows: their places, in their order, [n] int64.
        total: how many pairs there were.
        quantiles: how many of each quantile were chosen, the quantile of the best scores first; empty for `top`.
    """

    rows: NDArray[np.int64]
    total: int
    quantiles: tuple[int, ...]

    def sentence(self, by: str) -> str:
        """How many pairs of how many were chosen, by whose scores, and how many of each quantile."""
        text = f"pool: {len(self.rows):,} of {self.total:,} pairs are kept, by the scores of {by}"
        if not self.quantiles:
            return text
        return f"{text}, {' + '.join(f'{one:,}' for one in self.quantiles)} of the quantiles, best first"


def of_quantiles(names: Sequence[str], keep: int, quantiles: int, seed: int) -> list[list[int]]:
    """Cut an order into quantiles of equal size, and choose the same number from each by a hash of the name.

    Where that does not come out even, the better quantiles are larger by one, and one more of them is chosen.

    Args:
        names: the names of N things, the best first.
        keep: how many are chosen; all, where there are no more.
        quantiles: into how many quantiles they are cut.
        seed: of the hash.

    Returns:
        The places of the chosen ones in `names`, for each quantile, the best first.
    """
    chosen = []
    for number, part in enumerate(np.array_split(np.arange(len(names)), quantiles)):
        most = len(part) if len(names) <= keep else keep // quantiles + (number < keep % quantiles)
        chosen.append(sorted(part.tolist(), key=lambda one: (share_of(names[one], seed), names[one]))[:most])
    return chosen


def sample(pairs: Pairs, scores: NDArray[np.floating[Any]], sampling: Sampling, seed: int = 0) -> Sampled:
    """Choose passages of every question.

    A question's passages are ordered by score, and `of_quantiles` chooses among them by their pair ids.

    Args:
        pairs: N pairs.
        scores: of each, [N]; higher is more relevant.
        sampling: how many of a question are chosen, and from how many quantiles.
        seed: of the hash.

    Returns:
        The choice. It depends on the texts and scores, not on the order of the pairs.

    Raises:
        DataError: a pair has no score.
    """
    if gaps := int((~np.isfinite(scores)).sum()):
        raise DataError(f"pool.sampling: {gaps:,} of {len(pairs):,} pairs have no score; name another teacher (`by`)")
    names, groups = pairs.groups()
    numbers = all_numbers_of(pairs.ids)
    order = np.lexsort((numbers[:, 1], numbers[:, 0], -scores, groups))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=len(names)))])
    if sampling.kind == "top":
        places = np.arange(len(order)) - bounds[groups[order]]  # of each pair among its question's, from 0
        return Sampled(np.sort(order[places < sampling.keep]), len(pairs), ())
    chosen, found = np.zeros(len(pairs), dtype=np.bool_), np.zeros(sampling.quantiles, dtype=np.int64)
    for first in range(0, len(names), _QUESTIONS):
        begins = bounds[first : first + _QUESTIONS + 1]
        rows = order[begins[0] : begins[-1]]
        ids = pairs.ids_at(rows).to_pylist()
        for begin, end in itertools.pairwise((begins - begins[0]).tolist()):
            parts = of_quantiles(ids[begin:end], sampling.keep, sampling.quantiles, seed)
            found += [len(part) for part in parts]
            chosen[[rows[begin + place] for part in parts for place in part]] = True
    return Sampled(np.flatnonzero(chosen), len(pairs), tuple(found.tolist()))
