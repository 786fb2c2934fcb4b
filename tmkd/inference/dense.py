"""Dense search: the passages whose embeddings are nearest to a question's.

Embeddings have length 1, so the nearest is the one with the largest dot product, which is the cosine. All cosines are
computed, which is one matrix product, unless there is a graph over the embeddings (`tmkd.inference.dense_graph`), which
finds nearly all of the nearest ones in a fraction of the time. `tmkd index` writes one from 200,000 embeddings on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from tmkd.inference.dense_graph import Graph
from tmkd.models.text_states import of_unit_length

_BLOCK = 65_536  # rows that are converted at once

Floats = NDArray[np.float32]


class DenseSearch:
    """Finds the passages nearest to a question. Threads may share it.

    Args:
        embeddings: [N, d] float16, each of length 1. They may be memory-mapped.
        pids: The passage of each row, N ids. A passage may have several rows; its nearest one counts. A row whose id is
            the empty text is never found.
        graph: A graph over the first rows. Without one, every row is compared, in float32 in memory.

    Attributes:
        damaged: How many rows are not of length 1; they are never found. With a graph, only the rows that it lacks are
            counted.
    """

    def __init__(self, embeddings: NDArray[np.float16], pids: Sequence[str], graph: Graph | None = None) -> None:
        self._embeddings, self._graph = embeddings, graph
        self._pids = np.array(pids, dtype=np.bytes_).reshape(len(pids))
        self._order = np.argsort(self._pids, kind="stable")
        self._first = 0 if graph is None else graph.rows  # the first row that is compared here
        self._rest = _in_float32(embeddings[self._first :])
        self._whole = of_unit_length(self._rest)
        self._rest[~self._whole] = 0
        self.damaged = int((~self._whole & (self._pids[self._first :] != b"")).sum())

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self._embeddings.shape[1])

    def search(self, question: Floats, k: int) -> dict[str, float]:
        """The k nearest passages with their cosines, nearest first. Of equal ones the first row comes first.

        Args:
            question: The question's embedding, [d] float32 of length 1.
            k: How many passages.
        """
        reach = k + k // 4  # some rows belong to the same passage or to none; comparing all rows twice costs most
        while True:
            rows, cosines = self._nearest(question, min(reach, len(self._pids)))
            found: dict[str, float] = {}
            for pid, cosine in zip(self._pids[rows].tolist(), cosines.tolist(), strict=True):
                if pid and cosine > -np.inf:
                    found.setdefault(pid.decode(), cosine)
            if len(found) >= k or reach >= len(self._pids):
                return dict(list(found.items())[:k])
            reach *= 2

    def _nearest(self, question: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
        """The rows nearest to the question, and their cosines; -inf where a row is damaged."""
        cosines = np.where(self._whole, self._rest @ question, -np.inf).astype(np.float32)
        most = min(count, len(cosines))
        rows = np.argpartition(-cosines, most - 1)[:most] if most else np.empty(0, dtype=np.int64)
        cosines, rows = cosines[rows], rows + self._first
        if self._graph is not None:
            near = self._graph.search(question, count)
            rows, cosines = np.concatenate([near, rows]), np.concatenate([self._compare(near, question), cosines])
        best = np.lexsort((rows, -cosines))[:count]
        return rows[best], cosines[best]

    def _compare(self, rows: NDArray[np.int64], question: Floats) -> Floats:
        """The cosines of some rows; -inf where a row is damaged."""
        vectors = self._embeddings[rows].astype(np.float32)
        whole = of_unit_length(vectors)
        vectors[~whole] = 0
        return np.where(whole, vectors @ question, -np.inf).astype(np.float32)

    def cosines(self, question: Floats, pids: Collection[str]) -> dict[str, float]:
        """The cosine of each of these passages: of its nearest row. Passages without a row are left out.

        Args:
            question: As for `search`.
            pids: Ids of passages.
        """
        asked = np.array(sorted(pids), dtype=np.bytes_)
        starts, stops = (np.searchsorted(self._pids, asked, side, self._order) for side in ("left", "right"))
        spans = [self._order[start:stop] for start, stop in zip(starts, stops, strict=True)]
        if not spans:
            return {}
        values = iter(self._compare(np.concatenate(spans), question).tolist())
        nearest = {
            pid.decode(): max((next(values) for _ in rows), default=-np.inf)
            for pid, rows in zip(asked.tolist(), spans, strict=True)
        }
        return {pid: cosine for pid, cosine in nearest.items() if cosine > -np.inf}


def _in_float32(embeddings: NDArray[np.float16]) -> Floats:
    found = np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, len(found), _BLOCK):
        found[start : start + _BLOCK] = embeddings[start : start + _BLOCK]
    return found
