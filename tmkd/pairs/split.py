"""Split pairs by a hash of their question, so that a question never straddles two parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from tmkd.pairs.record import Pairs


def share_of(text: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split(pairs: Pairs, *, fractions: Sequence[float], seed: int = 0) -> tuple[Pairs, ...]:
    """Parts of about these shares of the questions, rows in their order."""
    bounds = np.cumsum(fractions)[:-1]
    part = np.array([int(np.searchsorted(bounds, share_of(qid, seed), side="right")) for qid in pairs.qids])
    return tuple(pairs.take(np.flatnonzero(part == number)) for number in range(len(fractions)))
