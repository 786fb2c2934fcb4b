"""A real Ray cluster of two nodes on this machine, and work for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from tmkd.core.cluster import Do, Work
from tmkd.core.errors import LabelError

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A head without cores, and two nodes of one core each, which see this folder's modules."""
    from ray.cluster_utils import Cluster

    before, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", ""), f"{ROOT}:{ROOT / 'tests'}"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20})
    for _ in range(2):
        add_node(nodes)
    try:
        yield nodes
    finally:
        os.environ["PYTHONPATH"] = before
        nodes.shutdown()


def add_node(nodes: Any) -> Any:
    return nodes.add_node(num_cpus=1, object_store_memory=100 << 20)


def tables(count: int, rows: int = 3) -> list[pa.Table]:
    return [pa.table({"number": list(range(start * rows, (start + 1) * rows))}) for start in range(count)]


class Slow(Work):
    """Doubles numbers, `seconds` a table; says which process of which node did it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def open(self, folder: Path | None) -> Do:
        node = ray.get_runtime_context().get_node_id()

        def do(table: pa.Table) -> pa.Table:
            time.sleep(self.seconds)
            twice = [2 * number for number in table["number"].to_pylist()]
            return pa.table({"twice": twice, "process": [os.getpid()] * len(twice), "node": [node] * len(twice)})

        return do


class Refuses(Work):
    def open(self, folder: Path | None) -> Do:
        def do(table: pa.Table) -> pa.Table:
            raise LabelError("the teacher gives no number", not_finite=3)

        return do


class Dies(Work):
    def open(self, folder: Path | None) -> Do:
        def do(table: pa.Table) -> pa.Table:
            os.kill(os.getpid(), signal.SIGKILL)
            return table

        return do


class ReadsFolder(Work):
    def __init__(self, folder: Path, *, sent: bool = True) -> None:
        self.folder, self.sent = folder, sent

    def open(self, folder: Path | None) -> Do:
        assert folder is not None
        content = (folder / "sub" / "weights.safetensors").read_text()
        return lambda table: pa.table({"read": [content] * len(table), "where": [str(folder)] * len(table)})
