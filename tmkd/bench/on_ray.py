"""`tmkd bench label --ray`: pairs per second of a cross-encoder in this process, and on the workers of a Ray cluster.

Both label the same pairs into a store of their own, in turns. The workers are started anew in every turn, as a run has
it, so the seconds before the first labels came back are shown beside the rate after them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.bench.material import Subject
from tmkd.bench.rounds import Result
from tmkd.bench.speed import SpeedFigures
from tmkd.core.cluster import Cluster
from tmkd.core.errors import TmkdError
from tmkd.core.hardware import prepare
from tmkd.data.pairs import Pairs
from tmkd.pipeline.steps.label import label
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.on_cluster import FEWEST

HERE, CLUSTER = "this process", "Ray"
MOST = 1e-4  # how far the logits of the two may be apart


def run(subject: Subject, address: str, *, count: int, rounds: int, threads: int = 0) -> SpeedFigures:
    """Label on both sides in turns, in fp32.

    Args:
        subject: The model and the pairs.
        address: Of the cluster, as `Cluster` takes it.
        count: Pairs of one turn.
        rounds: Turns of each.
        threads: Threads of this process; 0 for all usable cores.

    Raises:
        TmkdError: The pairs or the model cannot be used, there are too few pairs, or the two differ.
        ClusterError: There is no cluster, or it went away.
    """
    every, weights = subject.prepare(export=False)
    pairs = every.pairs.take(range(min(count, len(every.pairs)))).distinct()
    if len(pairs) < FEWEST:
        raise TmkdError(f"there are {len(pairs):,} pairs; a cluster is used from {FEWEST:,} on (--count, --pairs)")
    prepare(threads or None)
    model = Step("teacher", "bench", weights.student)
    results = {True: Result(CLUSTER, ours=True), False: Result(HERE, ours=True)}
    found: dict[bool, NDArray[np.float32]] = {}
    with Cluster(address) as cluster:
        for number in range(rounds):
            for on_ray in (False, True) if number % 2 else (True, False):
                first, after, logits = _turn(model, pairs, cluster if on_ray else None)
                values = results[on_ray].values
                values.setdefault("pairs/s", []).append(after)
                values.setdefault("seconds to the first labels", []).append(first)
                found[on_ray] = logits
    if (apart := float(np.abs(found[True] - found[False]).max())) > MOST:
        raise TmkdError(f"logits differ by up to {apart:.1e}; {MOST:.0e} is allowed")
    return SpeedFigures("label --ray", [results[False], results[True]], {})


def _turn(model: Step, pairs: Pairs, cluster: Cluster | None) -> tuple[float, float, NDArray[np.float32]]:
    """Seconds to the first labels, pairs/s after them, and the logits."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        store = label(Workspace(Path(folder), cluster=cluster), model, pairs, name="bench", precision="fp32")
        parts = store.manifest["parts"]
        times = [(store.folder / part["file"]).stat().st_mtime for part in parts]
        logits = store.logits_for(pairs.pair_ids)
    return times[0] - began, sum(part["rows"] for part in parts[1:]) / (times[-1] - times[0]), logits
