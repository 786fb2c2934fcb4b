"""Work on a real Ray cluster of two nodes: nothing lost where a worker, a node or the cluster ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cluster_fixtures import ROOT, Dies, ReadsFolder, Refuses, Slow, add_node, tables, two_nodes

from tmkd.cli.options import with_ray_value
from tmkd.core.cluster import Cluster
from tmkd.core.errors import ClusterError, LabelError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with two_nodes() as found:
        yield found


@pytest.fixture
def cluster(nodes: Any) -> Iterator[Cluster]:
    with Cluster(nodes.address) as found:
        yield found


def column(found: list[pa.Table], name: str) -> list[Any]:
    return [value for one in found for value in one[name].to_pylist()]


def test_every_table_comes_back_from_both_nodes_and_in_order_where_asked(cluster: Cluster) -> None:
    assert cluster.workers == 2
    found = list(cluster.map(Slow(0.2), tables(12), ordered=True))
    assert column(found, "twice") == [2 * number for number in range(36)]
    assert len(set(column(found, "node"))) == 2


def test_a_killed_worker_and_a_killed_node_cost_what_they_had_in_hand(cluster: Cluster, nodes: Any) -> None:
    found = []
    for one in cluster.map(Slow(0.3), tables(40)):
        found.append(one)
        if len(found) == 4:
            os.kill(one["process"][0].as_py(), signal.SIGKILL)
        if len(found) == 12:
            node = next(n for n in nodes.worker_nodes if n.node_id == one["node"][0].as_py())
            nodes.remove_node(node, allow_graceful=False)
    assert sorted(column(found, "twice")) == [2 * number for number in range(120)]  # each once
    assert len(set(column(found, "process"))) > 2
    add_node(nodes)


def test_an_error_of_the_work_is_raised_as_it_is(cluster: Cluster) -> None:
    with pytest.raises(LabelError, match=r"^the teacher gives no number$") as raised:
        list(cluster.map(Refuses(), tables(2)))
    assert raised.value.not_finite == 3


def test_work_that_kills_its_workers_is_given_up(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="workers of the Ray cluster have started and nothing came back"):
        list(cluster.map(Dies(), tables(2)))


def test_a_folder_that_a_node_lacks_is_sent_to_it_or_must_be_seen(cluster: Cluster, tmp_path: Path) -> None:
    folder = Path("model")  # the nodes work elsewhere, so they do not see it
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights.safetensors").write_text(f"of {tmp_path}")
    found = list(cluster.map(ReadsFolder(folder), tables(2)))
    assert set(column(found, "read")) == {f"of {tmp_path}"}
    (copy,) = set(column(found, "where"))
    assert Path(copy).is_absolute()
    shutil.rmtree(copy)
    with pytest.raises(ClusterError, match="does not see model; put it where all nodes of the cluster see it"):
        list(cluster.map(ReadsFolder(folder, sent=False), tables(2)))
    seen = ReadsFolder(folder.resolve(), sent=False)
    assert set(column(list(cluster.map(seen, tables(2))), "where")) == {str(folder.resolve())}


def test_another_version_on_a_node_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmkd.core.cluster.version", lambda name: "9.9")
    with pytest.raises(ClusterError, match=r"a node of the Ray cluster has tmkd 0\.1\.0, this machine 9\.9"):
        list(cluster.map(Slow(0), tables(2)))


def test_what_is_no_cluster_is_said_at_once(cluster: Cluster) -> None:
    script = "from tmkd.core.cluster import Cluster\nCluster({!r}, {})"
    for given, message in (
        (("127.0.0.1:1", 1), "there is no Ray cluster at '127.0.0.1:1' ([Errno 111] Connection refused)"),
        (("ray://10.0.0.1:10001", 1), "an address is HOST:PORT, of the head's port 6379"),
        ((cluster._address, 3), "a worker needs 3"),
    ):
        code = script.format(*given) + (".workers" if given[1] == 3 else "")
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment()
        )
        assert done.returncode == 1
        assert message in done.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


GONE = """
import sys, time
from cluster_fixtures import Slow, tables, two_nodes
from tmkd.core import cluster
from tmkd.core.errors import ClusterError
with two_nodes() as nodes, cluster.Cluster(nodes.address) as found:
    came = 0
    try:
        for one in found.map(Slow(0.3), tables(200)):
            came += 1
            if came == 3:
                began = time.monotonic()
                nodes.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
                for node in list(nodes.worker_nodes):
                    node.kill_all_processes(check_alive=False, allow_graceful=False)
    except ClusterError as error:
        print("said", error, flush=True)
        import os
        os._exit(3 if time.monotonic() - began < 60 else 4)
"""


def test_a_cluster_that_goes_away_is_an_error_within_a_minute() -> None:
    done = subprocess.run([sys.executable, "-c", GONE], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 3, done.stderr[-3000:]
    assert "said the Ray cluster went away. What came back before is kept" in done.stdout


def test_the_address_may_be_left_out() -> None:
    assert with_ray_value(["r.yaml", "--ray"]) == ["r.yaml", "--ray", "local"]
    assert with_ray_value(["r.yaml", "--ray", "seeds=[0]"]) == ["r.yaml", "--ray", "local", "seeds=[0]"]
    for address in ("auto", "local", "10.0.0.1:6379"):
        assert with_ray_value(["r.yaml", "--ray", address, "-q"]) == ["r.yaml", "--ray", address, "-q"]


def test_a_cluster_of_this_machine_starts_when_it_is_needed() -> None:
    code = (
        "import ray\nfrom tmkd.core.cluster import Cluster\nfrom cluster_fixtures import Slow, tables\n"
        "with Cluster() as found:\n    assert not ray.is_initialized()\n"
        "    assert len(list(found.map(Slow(0), tables(3)))) == 3\nassert not ray.is_initialized()\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert time.monotonic() - began < 120
