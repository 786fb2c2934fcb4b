"""Work on a Ray cluster: tables go to workers on its nodes, and what they make of them comes back.

A worker holds one model (an actor of Ray Data). If a worker or its whole node ends, the tables in its hands go to the
others. What came back is the caller's to keep: nothing hangs on a checkpoint of Ray's. The caller sends what is still
missing, some tables at a time, so that neither side has all of a large job in memory.

The nodes need the same version of tmkd and nothing else: the folder of a model is sent to those that do not have it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import queue
import re
import socket
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from tmkd.core.cpu import usable_cores
from tmkd.core.errors import ClusterError, TmkdError, needs_extra

logger = logging.getLogger(__name__)

LOCAL = "local"  # the address that means a cluster of this machine alone
_STARTS = 8  # workers, beside one for each core, that may start before a table comes back
_PATIENCE = 5.0  # seconds between two looks whether the cluster is there
_GONE = 4  # so many looks in a row must fail
_MEMORY = 1 << 30  # bytes of a local cluster's object store
_UNUSED = frozenset([".onnx", ".bin", ".h5", ".msgpack", ".ot", ".pt", ".pth", ".pkl", ".gguf"])
"""Endings of files beside a model's safetensors that no worker reads."""

Do = Callable[[pa.Table], pa.Table]
_ERROR = "tmkd error"  # the column of what a worker gives in place of a result
_END = object()


class Work(ABC):
    """What a worker does. It is pickled and sent to the workers, so it holds no model.

    Attributes:
        folder: the folder that a worker reads, such as that of a model; None if it needs none.
        sent: whether the folder is sent to nodes that do not have it; if not, all nodes must see it.
    """

    folder: Path | None = None
    sent: bool = True

    @abstractmethod
    def open(self, folder: Path | None) -> Do:
        """Called once in a worker.

        Args:
            folder: where the worker finds the content of `folder`.

        Returns:
            What makes a table of a table.
        """


class Cluster:
    """A Ray cluster that this process is connected to. One of this machine alone is started when it is first needed."""

    def __init__(self, address: str = LOCAL, cores: int = 1) -> None:
        """Connect to a cluster that is there.

        Args:
            address: `local`, or that of a cluster's head, such as 10.0.0.1:6379, or `auto`: the one that this machine
                is a node of.
            cores: of one worker, where the cluster has no GPUs.

        Raises:
            ClusterError: there is no cluster, or it has no room for a worker.
            MissingExtraError: Ray is not installed.
        """
        with needs_extra("ray"):
            import ray.data
            import ray.util.scheduling_strategies
        self._ray: Any = ray
        self._address, self._cores = address, cores
        if address != LOCAL:
            self._connect()

    @functools.cached_property
    def workers(self) -> int:
        """How many workers there are at a time: one for each GPU, else one for each `cores` cores.

        Raises:
            ClusterError: as of the constructor.
        """
        self._connect()
        has = self._ray.cluster_resources()
        found = int(has["GPU"]) if self._gpu else int(has.get("CPU", 0)) // self._cores
        if not found:
            raise ClusterError(
                f"the Ray cluster {self._address} has {has.get('CPU', 0):g} cores and no GPU; a worker needs "
                f"{self._cores} (--ray-cores)"
            )
        nodes = sum(bool(node["Alive"]) for node in self._ray.nodes())
        place = "on this machine" if self._local else f"on {nodes} nodes of {self._address}"
        each = "a GPU" if self._gpu else f"{self._cores} core{'s' * (self._cores > 1)}"
        logger.info(f"Ray: {found} workers {place}, {each} each")
        return found

    @property
    def _local(self) -> bool:
        return self._address == LOCAL

    @functools.cached_property
    def _gpu(self) -> bool:
        return bool(self._ray.cluster_resources().get("GPU", 0) >= 1)

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._local:
            quiet |= {"num_cpus": usable_cores(), "object_store_memory": _MEMORY, "include_dashboard": False}
        with _sockets(self._address):
            if self._address not in (LOCAL, "auto"):
                _reach(self._address)  # Ray itself would try for minutes
            self._ray.init(address=self._address, **quiet)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self._ray.data.DataContext.get_current().enable_progress_bars = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def map(self, work: Work, tables: Sequence[pa.Table], *, ordered: bool = False) -> Iterator[pa.Table]:
        """Let the workers make a table of each table.

        Args:
            work: what they do.
            tables: what they get, one at a time. All of them are in the cluster's memory at once.
            ordered: give the results in the order of `tables`; else as they come.

        Yields:
            The results.

        Raises:
            ClusterError: the cluster went away, or a worker kept dying.
            TmkdError: that of `work`.
        """
        yield from _watched(self._results(work, tables, ordered), self._require_head)

    def _results(self, work: Work, tables: Sequence[pa.Table], ordered: bool) -> Iterator[pa.Table]:
        ray, workers = self._ray, min(self.workers, len(tables))
        ray.data.DataContext.get_current().execution_options.preserve_order = ordered
        folder = work.folder if work.sent else None
        digest = None if folder is None else digest_of_folder(folder)
        files = {} if self._local or folder is None else _packed(folder)
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = affinity(ray.get_runtime_context().get_node_id(), soft=False)
        office = ray.remote(_Office).options(num_cpus=0, scheduling_strategy=here).remote(files)
        data = ray.data.from_arrow(list(tables)).map_batches(
            _Worker,
            fn_constructor_args=(version("tmkd"), work, digest, office),
            batch_format="pyarrow",
            batch_size=None,  # a table at a time
            compute=ray.data.ActorPoolStrategy(size=workers),
            **({"num_gpus": 1} if self._gpu else {"num_cpus": self._cores}),
        )
        try:
            for result in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                if _ERROR in result.column_names:
                    raise pickle.loads(result[_ERROR][0].as_py())  # of our own worker
                office.came_back.remote()
                yield result
        except ray.exceptions.RayError as error:
            raise _plain(error) from error
        finally:
            ray.kill(office)

    def _require_head(self) -> None:
        """Look whether the head is there.

        Raises:
            OSError: it is not.
        """
        if not self._local:
            _reach(str(self._ray.get_runtime_context().gcs_address))


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        raise ValueError("an address is HOST:PORT, of the head's port 6379")
    socket.create_connection((host, int(port)), timeout=_PATIENCE).close()


class _Office:
    """Has the model's files for nodes that lack them, and counts how many workers started since something came back.

    It runs on the node of the process that made it.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files, self._starts = files, 0

    def files(self) -> dict[str, bytes]:
        return self._files

    def starts(self) -> int:
        self._starts += 1
        return self._starts

    def came_back(self) -> None:
        self._starts = 0


class _Worker:
    """One worker; Ray makes it on a node, and again if it dies. It does not raise an error of tmkd, but returns it."""

    def __init__(self, tmkd: str, work: Work, digest: str | None, office: Any) -> None:
        try:
            self._do = self._opened(tmkd, work, digest, office)
        except TmkdError as error:
            self._do = _raises(error)

    def _opened(self, tmkd: str, work: Work, digest: str | None, office: Any) -> Do:
        import ray

        if (here := version("tmkd")) != tmkd:
            raise ClusterError(f"a node of the Ray cluster has tmkd {here}, this machine {tmkd}")
        if (starts := ray.get(office.starts.remote())) > _STARTS + int(ray.cluster_resources().get("CPU", 0)):
            raise ClusterError(
                f"{starts} workers of the Ray cluster have started and nothing came back, so they die at their work; "
                f"is there memory for the model? Their logs are in /tmp/ray/session_latest/logs. {_AGAIN}"
            )
        folder = work.folder
        if digest is None and folder is not None and not folder.is_dir():
            node = ray.util.get_node_ip_address()
            raise ClusterError(f"the node {node} does not see {folder}; put it where all nodes of the cluster see it")
        if digest is not None and not (folder and folder.is_dir() and digest_of_folder(folder) == digest):
            folder = _unpacked(digest, office)
        return work.open(folder)

    def __call__(self, table: pa.Table) -> pa.Table:
        try:
            return self._do(table)
        except TmkdError as error:
            return pa.table({_ERROR: [_pickled(error)]})


def _raises(error: TmkdError) -> Do:
    def do(table: pa.Table) -> pa.Table:
        raise error

    return do


def _pickled(error: TmkdError) -> bytes:
    try:
        found = pickle.dumps(error)
        pickle.loads(found)
    except Exception:  # an error whose constructor takes more than its message
        return pickle.dumps(ClusterError(str(error)))
    return found


def _model_files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a folder that workers read, by their names in it."""
    found = [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(name, path) for name, path in found if path.suffix not in _UNUSED and not name.startswith("state/")]


def digest_of_folder(folder: Path) -> str:
    """A hash over names and contents of the files that workers read, 16 hex digits."""
    digest = hashlib.sha256()
    for name, path in _model_files(folder):
        with path.open("rb") as file:
            digest.update(f"{name}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _packed(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in _model_files(folder)}


def _unpacked(digest: str, office: Any) -> Path:
    """The folder of this node with the files; its workers share it, and the first that needs it makes it."""
    import ray

    target = Path(tempfile.gettempdir()) / f"tmkd-{digest}"
    if target.is_dir() and digest_of_folder(target) == digest:
        return target
    fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}-"))
    for name, content in ray.get(office.files.remote()).items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with suppress(OSError):  # another worker was first
        fresh.rename(target)
        return target
    return fresh


def _plain(error: BaseException) -> ClusterError:
    """An error of Ray's, or one that the work did not raise on purpose, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line) and "ray.exceptions" not in line]
    said = (raised or lines or [type(error).__name__])[-1]
    return ClusterError(f"Ray: {said}. {_AGAIN}")


_AGAIN = "What came back before is kept: the same command continues, on this cluster, another one or without --ray"


@contextmanager
def _sockets(address: str) -> Iterator[None]:
    """Turn what Ray raises where it finds no cluster into one error."""
    try:
        yield
    except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClusterError(
            f"there is no Ray cluster at {address!r} ({reason}); start one with `ray start --head`, name its head as "
            "HOST:6379, or leave the address out for a cluster of this machine alone. If it wants a token (the default "
            "of Ray 2.61), set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on its head"
        ) from error


def _watched(results: Iterator[pa.Table], require: Callable[[], None]) -> Iterator[pa.Table]:
    """The same results, and an error when the cluster goes away, for which Ray itself waits without end."""
    box: queue.Queue[Any] = queue.Queue(maxsize=4)
    stop = threading.Event()

    def put(one: Any) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                return box.put(one, timeout=1)

    def pump() -> None:
        try:
            for one in results:
                put(one)
                if stop.is_set():
                    return
            put(_END)
        except BaseException as error:  # raised by the caller's thread below
            put(error)

    threading.Thread(target=pump, daemon=True).start()
    failed = 0
    try:
        while True:
            try:
                one = box.get(timeout=_PATIENCE)
            except queue.Empty:
                failed = failed + 1 if _fails(require) else 0
                if failed == _GONE:
                    raise ClusterError(f"the Ray cluster went away. {_AGAIN}") from None
                continue
            if one is _END:
                return
            if isinstance(one, BaseException):
                raise one
            yield one
    finally:
        stop.set()


def _fails(require: Callable[[], None]) -> bool:
    try:
        require()
    except OSError:
        return True
    return False
