"""Split pairs by a hash of their question, so that all pairs of a question are in the same part.

Every choice here depends on texts and seeds only, not on the order of the pairs, and a smaller share is always part of
a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError, needs_extra
from tmkd.data.documents.text import question_key
from tmkd.data.pairs import Pairs, grouped

# Seeds, all different, so that one choice says nothing about another (`split` uses 0). STAGE1: the questions that
# students see in stage 1. BAGS and above: the questions of each teacher.
_SUBSAMPLE, _FOLDS, STAGE1, BAGS = 1, 2, -1, 3


def share_of(text: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends only on the text and the seed."""
    digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split(pairs: Pairs, fractions: Sequence[float], seed: int = 0) -> tuple[Pairs, ...]:
    """Cut pairs into parts that hold about these shares of the questions.

    Pairs stay together if they share a question, in any spelling (`tmkd.data.documents.text.question_key`), or its qid.

    Args:
        pairs: the pairs.
        fractions: the share of each part, above 0; they add up to 1.
        seed: another seed gives another split.

    Returns:
        The parts, each with its pairs in their order.

    Raises:
        ValueError: the shares are not positive or do not add up to 1.
    """
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"shares of a split must be above 0 and add up to 1, not {tuple(fractions)}")
    bounds = np.cumsum(fractions)[:-1]
    names, groups = together(pairs)
    part = np.searchsorted(bounds, np.array([share_of(name, seed) for name in names]), side="right")[groups]
    return tuple(pairs.take(np.flatnonzero(part == number)) for number in range(len(fractions)))


def subsample(pairs: Pairs, share: float, seed: int = _SUBSAMPLE, *, none: str = "") -> NDArray[np.int64]:
    """Choose about this share of the questions.

    Args:
        pairs: the pairs.
        share: above 0, at most 1.
        seed: another seed chooses other questions.
        none: the error's message if no pair is left; empty: that is no error.

    Returns:
        The places of the chosen pairs, in their order, [n] int64.

    Raises:
        DataError: no pair is left.
    """
    if share == 1:
        return np.arange(len(pairs))
    names, groups = together(pairs)
    rows = np.flatnonzero(np.array([share_of(name, seed) < share for name in names])[groups])
    if none and len(rows) == 0:
        raise DataError(none)
    return rows


def folds(pairs: Pairs, count: int) -> NDArray[np.int64]:
    """Assign every pair to a fold of a cross-validation split: questions ordered by a hash, cut into equal parts.

    Pairs stay together as in `split`.

    Args:
        pairs: the pairs, [N].
        count: the number of folds.

    Returns:
        The fold of every pair, [N] int64 in [0, count).

    Raises:
        DataError: there are fewer questions than folds.
    """
    names, groups = together(pairs)
    if len(names) < count:
        raise DataError(f"{count} folds of {len(names)} training questions; `folds` can be that number at most")
    order = sorted(range(len(names)), key=lambda group: (share_of(names[group], _FOLDS), names[group]))
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) * count // len(names)
    return fold[groups]


def together(pairs: Pairs) -> tuple[list[str], NDArray[np.int64]]:
    """Find the pairs that belong together: the name of each group, and the group of each pair, [N] int64.

    Two pairs are in one group if they share a question in any spelling (`question_key`) or a qid, or if other pairs
    connect them. A group's name is the first of its questions in alphabetical order.
    """
    with needs_extra("train"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

    texts, text = pairs.groups("question")
    keys, key = grouped(question_key(one) for one in texts)  # of each distinct text
    ids, qid = pairs.groups("qid")
    nodes = len(keys) + len(ids)
    edges = coo_array((np.ones(len(text), dtype=bool), (key[text], len(keys) + qid)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    _, first, group = np.unique(component[key], return_index=True, return_inverse=True)  # of each distinct text
    return [texts[place] for place in first.tolist()], group[text]
