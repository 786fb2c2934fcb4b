"""Pairs that the workers of a Ray cluster score, and texts that they embed, some at a time.

Only what has no scores yet is sent, and what comes back is joined by the pair's id, never by its place.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tmkd.core.cluster import Cluster, Do, Work
from tmkd.core.errors import ClusterError
from tmkd.core.hardware import prepare
from tmkd.data.pairs import Pairs
from tmkd.teachers.interface import Scored

BLOCK = 512  # pairs or texts that a worker gets at a time: what its death costs
_EACH = 128  # blocks a worker in one job: all that the cluster holds at once
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""What embeds n texts: [n, d] float32."""
Embedded = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Places of n texts, and their embeddings, [n, d] float32."""
FEWEST = 4096  # pairs that are worth a job


class ScorePairs(Work):
    """A model that scores pairs."""

    @abstractmethod
    def open_model(self, folder: Path) -> Callable[[Pairs], NDArray[np.float32]]:
        """Read the model from a folder; returns what gives the raw scores of n pairs, [n, width] float32."""

    def open(self, folder: Path | None) -> Do:
        """See `Work`: the pairs' ids and their scores, of ids and texts."""
        assert folder is not None
        _prepare_worker()
        score = self.open_model(folder)

        def do(table: pa.Table) -> pa.Table:
            return pa.table({"pair_id": table["pair_id"], "scores": to_arrow(score(Pairs(table)))})

        return do


class EmbedTexts(Work):
    """An embedding model."""

    @abstractmethod
    def open_model(self, folder: Path) -> Callable[[str], Embed]:
        """Read the model from a folder; returns what gives, for a side, what embeds texts of that side."""

    def open(self, folder: Path | None) -> Do:
        """See `Work`: the rows and their embeddings, of rows, sides and texts."""
        assert folder is not None
        _prepare_worker()
        model = self.open_model(folder)

        def do(table: pa.Table) -> pa.Table:
            found = embed_sides(model, table["side"].to_pylist(), table["text"].to_pylist())
            return pa.table({"row": table["row"], "embedding": to_arrow(found)})

        return do


def embed_sides(model: Callable[[str], Embed], sides: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts of both sides.

    Args:
        model: gives, for a side, what embeds texts of that side.
        sides: of N texts: `query` or `document`.
        texts: N texts.

    Returns:
        [N, d] float32.
    """
    of_side = np.array(sides)
    found: NDArray[np.float32] | None = None
    for side in dict.fromkeys(sides):
        rows = np.flatnonzero(of_side == side)
        some = model(side)([texts[row] for row in rows.tolist()])
        found = np.empty((len(texts), some.shape[1]), np.float32) if found is None else found
        found[rows] = some
    assert found is not None
    return found


def _prepare_worker() -> None:
    """Set a worker up for tensor work, with as many threads as Ray gave it cores."""
    prepare(int(os.environ.get("OMP_NUM_THREADS") or 1))


def score_on(cluster: Cluster, work: ScorePairs, pairs: Pairs) -> Iterator[Scored]:
    """Score pairs on a cluster, the longest first.

    Args:
        cluster: the cluster.
        work: the model.
        pairs: N different pairs.

    Yields:
        As `StoredTeacher.scored`.

    Raises:
        ClusterError: the cluster went away; what was yielded stays good.
    """
    sizes = [np.empty(0, dtype=np.int32)]
    for batch in pairs.batches(["question", "passage"]):
        sizes.append(pc.add(pc.utf8_length(batch["question"]), pc.utf8_length(batch["passage"])).to_numpy())
    order = np.argsort(-np.concatenate(sizes), kind="stable")

    def taken(rows: NDArray[np.int64]) -> pa.Table:
        return pairs.take(rows).table.select(["pair_id", "question", "passage"])

    for rows in _jobs(order, cluster):
        place = dict(zip(pairs.ids_at(rows).to_pylist(), rows.tolist(), strict=True))
        for found in cluster.map(work, _blocks(taken, rows)):
            ids = [name for name in found["pair_id"].to_pylist() if name in place]
            if len(ids) != len(found):
                raise ClusterError(f"the cluster gave scores of {len(found) - len(ids)} pairs that were not asked for")
            yield np.array([place.pop(name) for name in ids], dtype=np.int64), from_arrow(found["scores"])
        if place:
            raise ClusterError(f"the cluster gave no scores of {len(place):,} of {len(rows):,} pairs")


def embed_on(cluster: Cluster, work: EmbedTexts, texts: Sequence[tuple[str, str]]) -> Iterator[Embedded]:
    """Embed texts on a cluster, the longest first.

    Args:
        cluster: the cluster.
        work: the model.
        texts: N texts, the side before each.

    Yields:
        Some of the texts; every text once.

    Raises:
        ClusterError: the cluster went away; what was yielded stays good.
    """
    order = np.argsort([-len(text) for _, text in texts], kind="stable")
    sides, contents = zip(*texts, strict=True)
    table = pa.table({"row": np.arange(len(texts)), "side": sides, "text": contents})
    got = np.zeros(len(texts), dtype=np.bool_)
    for rows in _jobs(order, cluster):
        for some in cluster.map(work, _blocks(lambda rows: table.take(pa.array(rows)), rows)):
            new = ~got[places := some["row"].to_numpy()]
            got[places] = True
            yield places[new], from_arrow(some["embedding"])[new]
    if not got.all():
        raise ClusterError(f"the cluster gave no embedding of {int((~got).sum()):,} of {len(texts):,} texts")


def _jobs(order: NDArray[np.int64], cluster: Cluster) -> Iterator[NDArray[np.int64]]:
    most = BLOCK * _EACH * cluster.workers
    for start in range(0, len(order), most):
        yield order[start : start + most]


def _blocks(taken: Callable[[NDArray[np.int64]], pa.Table], rows: NDArray[np.int64]) -> list[pa.Table]:
    return [taken(rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK)]


def to_arrow(numbers: NDArray[np.float32]) -> pa.Array:
    """[n, d] float32 as a column of lists."""
    flat = pa.array(np.ascontiguousarray(numbers, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, numbers.shape[1])


def from_arrow(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """What `to_arrow` was given."""
    lists = column.combine_chunks()
    flat: NDArray[np.float32] = lists.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), lists.type.list_size)
