"""Split pairs by a hash of their question, so that a question never straddles two parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.data.pairs import Pairs

# seeds of their own, of which a split (0) says nothing; BAGS and above: one for each teacher
_SUBSAMPLE, _FOLDS, STAGE1, BAGS = 1, 2, -1, 3


def share_of(text: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split(pairs: Pairs, fractions: Sequence[float], seed: int = 0) -> tuple[Pairs, ...]:
    """Parts of about these shares of the questions, rows in their order.

    Rows stay together where they share a question's text or its qid: either one alone can be the finer.

    Raises:
        DataError: shares that are not positive or do not add up to 1.
    """
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"shares of a split must be above 0 and add up to 1, not {tuple(fractions)}")
    bounds = np.cumsum(fractions)[:-1]
    names = _group_names(pairs.questions, pairs.qids)
    share = {name: share_of(name, seed) for name in set(names)}
    part = np.searchsorted(bounds, np.array([share[name] for name in names]), side="right")
    return tuple(pairs.take(np.flatnonzero(part == number)) for number in range(len(fractions)))


def subsample(pairs: Pairs, share: float, seed: int = _SUBSAMPLE, *, none: str = "") -> NDArray[np.int64]:
    """Rows of about this share of the questions, in their order: [n] int64. A smaller share is part of a larger one.

    Args:
        seed: another draws other questions.
        none: what is said where no row is left.

    Raises:
        DataError: no row is left, and there is something to say of it.
    """
    if share == 1:
        return np.arange(len(pairs))
    names = _group_names(pairs.questions, pairs.qids)
    kept = {name: share_of(name, seed) < share for name in set(names)}
    rows = np.flatnonzero([kept[name] for name in names])
    if none and len(rows) == 0:
        raise DataError(none)
    return rows


def folds(pairs: Pairs, count: int) -> NDArray[np.int64]:
    """The fold of every row, [N] int64 in [0, count): questions in the order of a hash, cut into equal parts.

    Rows stay together as in `split`.

    Raises:
        DataError: fewer questions than folds.
    """
    names = _group_names(pairs.questions, pairs.qids)
    ordered = sorted(set(names), key=lambda name: (share_of(name, _FOLDS), name))
    if len(ordered) < count:
        raise DataError(f"{count} folds of {len(ordered)} training questions; `folds` can be that number at most")
    place = {name: number * count // len(ordered) for number, name in enumerate(ordered)}
    return np.array([place[name] for name in names], dtype=np.int64)


def _group_names(questions: Sequence[str], qids: Sequence[str]) -> list[str]:
    """For each row the first question, in order of text, of its group (union-find over questions and qids)."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]
            node = above
        return node

    for question, qid in zip(questions, qids, strict=True):
        first, second = root(("question", question)), root(("qid", qid))
        parent[max(first, second)] = min(first, second)
    lowest: dict[tuple[str, str], str] = {}
    for question in questions:
        group = root(("question", question))
        lowest[group] = min(lowest.get(group, question), question)
    return [lowest[root(("question", question))] for question in questions]
