"""The engines that run an exported student. Each is one function from a graph's inputs to its outputs.

An engine runs one micro-batch on one thread, and `tmkd.inference.scorer.Scorer` runs as many micro-batches at once as
it has threads. This is faster than one micro-batch on all cores, whose threads wait for one another after every matrix
product, and the result of a micro-batch never depends on the others.

An engine is imported when it is opened, so importing this module is cheap.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import ExportError, MissingExtraError
from tmkd.models.batching import WIDTH_STEP

_ALONE = threading.Lock()
_started: set[int] = set()  # the process that opened OpenVINO first; one that was forked from it holds only its parent

Inputs = Mapping[str, NDArray[np.int64]]
"""`input_ids`, `attention_mask` and `token_type_ids`, each [n, T]; a student may leave some of them unread."""
Engine = Callable[[Inputs], NDArray[np.float32]]
"""From inputs to the graph's logits, [n, L]: L is 1 for a student of two classes, in exports of format 1 always C.
Several threads may call it at once."""
Arrays = Mapping[str, NDArray[Any]]
Graph = Callable[[Arrays], list[NDArray[np.float32]]]
"""From a graph's inputs by name to the outputs that were asked for. Several threads may call it at once."""


def token_batch(count: int, width: int) -> Inputs:
    """A batch of `count` texts or pairs of `width` tokens, to open a graph and to prepare its shapes."""
    ones = np.ones((count, width), dtype=np.int64)
    return {"input_ids": ones, "attention_mask": ones, "token_type_ids": np.zeros_like(ones)}


def installed(backend: str) -> bool:
    """Whether the package that runs a backend is installed. It is not imported."""
    return importlib.util.find_spec(_package(backend)) is not None


def open_engine(backend: str, path: Path, threads: int) -> Engine:
    """Open the graph of a student that reads question and passage together; see `open_graph`."""
    graph = open_graph(backend, path, threads, ["logits"], token_batch(1, WIDTH_STEP))
    return lambda inputs: graph(inputs)[0]


def open_graph(
    backend: str, path: Path, threads: int, outputs: Sequence[str], sample: Arrays, *, kept: int | None = None
) -> Graph:
    """Open a file with the engine of a backend.

    Args:
        backend: One of KNOWN_BACKENDS.
        path: The ONNX file, already checked.
        threads: How many micro-batches may run at once.
        outputs: Names of the outputs that a call gives.
        sample: Inputs of a first call, the smaller the better.
        kept: Kernels of each kind that OpenVINO keeps for a thread: it makes some for every shape, and keeps thousands
            unless given. Give it for a graph that is called with many shapes.

    Raises:
        MissingExtraError: The engine is not installed.
        ExportError: The engine cannot open the file.
    """
    if not installed(backend):
        raise MissingExtraError(
            f"backend {backend} needs {_package(backend)}, which is not installed; run: pip install 'tmkd[fast]'",
            extra="fast",
            package=_package(backend),
        )
    try:
        if _package(backend) == "openvino":
            settings = {} if kept is None else {"CPU_RUNTIME_CACHE_CAPACITY": kept}
            return _OpenVino(path, threads, outputs, sample, settings)
        return _OnnxRuntime(path, outputs)
    except ExportError:
        raise
    except Exception as error:  # each engine raises its own classes, which have no public base class in common
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{path} cannot be opened by {_package(backend)} ({reason}); export again") from error


def operation_seconds(path: Path, batches: Iterable[Inputs]) -> dict[str, float]:
    """Seconds that OpenVINO, on one thread, spends in each kind of operation, as its own counters say.

    Args:
        path: The ONNX file.
        batches: The micro-batches to run.

    Returns:
        Seconds by node type, such as `FullyConnected`. `Reorder` is an operation that OpenVINO adds to change a layout
        or a precision.
    """
    seconds = dict[str, float]()
    engine = _OpenVino(path, 1, ["logits"], token_batch(1, WIDTH_STEP), {"PERF_COUNT": True})
    for inputs in batches:
        engine(inputs)
        for kind, spent in engine.counted():
            seconds[kind] = seconds.get(kind, 0.0) + spent
    return seconds


def without_telemetry() -> None:
    """Keep openvino and nncf from sending an event over the network when they are imported. Call it before the import.

    They send nothing where the package that sends is missing, so this makes it look missing in this process.
    """
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))


def require_no_fork() -> None:
    """Refuse to go on with OpenVINO in a process that was forked from one that had opened it: it would hang.

    Its threads are gone there, and a model that is opened anew waits for them too.

    Raises:
        ExportError: This is such a process.
    """
    if _started and os.getpid() not in _started:
        raise ExportError(
            "OpenVINO was opened before this process was forked, and does not work in it. Make the first Scorer after "
            "the fork, start processes with the method `spawn` or `forkserver`, or score with backend='onnx-fp32'"
        )


def _package(backend: str) -> str:
    return "openvino" if backend.startswith("openvino-") else "onnxruntime"


class _OnnxRuntime:
    """A session of ONNX Runtime. Each call runs on one thread."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = tuple(value.name for value in self._session.get_inputs())
        self._outputs = list(outputs)

    def __call__(self, inputs: Arrays) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = self._session.run(
            self._outputs, {name: inputs[name] for name in self._names}
        )
        return found


class _OpenVino:
    """A model compiled by OpenVINO, with one stream of one thread for each call that may run at once.

    Operations that are not int8 run in bf16 where the CPU has bf16 arithmetic, else in fp32. Threads are not pinned to
    cores, because other processes on the machine would be pinned to the same ones.
    """

    def __init__(
        self, path: Path, streams: int, outputs: Sequence[str], sample: Arrays, settings: Mapping[str, Any]
    ) -> None:
        require_no_fork()
        without_telemetry()
        import openvino

        _started.add(os.getpid())
        core = openvino.Core()
        threads = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams, "ENABLE_CPU_PINNING": False}
        settings = {**threads, **settings}
        native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        try:
            compiled = core.compile_model(
                str(path), "CPU", {**settings, "INFERENCE_PRECISION_HINT": "bf16" if native else "f32"}
            )
        except RuntimeError:  # a CPU limited to an older instruction set claims bf16 and has no kernels for it
            if not native:
                raise
            compiled = core.compile_model(str(path), "CPU", {**settings, "INFERENCE_PRECISION_HINT": "f32"})
        self._names, self._outputs = tuple(value.get_any_name() for value in compiled.inputs), tuple(outputs)
        self._free: SimpleQueue[Any] = SimpleQueue()  # each request serves one call at a time
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())
        # The first call initialises OpenVINO's Python bindings; two threads in it at once can deadlock.
        with _ALONE:
            self(sample)

    def __call__(self, inputs: Arrays) -> list[NDArray[np.float32]]:
        require_no_fork()
        request = self._free.get()
        try:
            request.infer({name: inputs[name] for name in self._names})
            found = [request.get_tensor(name).data for name in self._outputs]
            return [np.array(data, dtype=np.float32) for data in found]  # copies: the request is used again
        finally:
            self._free.put(request)

    def counted(self) -> list[tuple[str, float]]:
        """Kind and seconds of every node of the last call; for an engine with `PERF_COUNT` and one stream."""
        request = self._free.get()
        try:
            return [(node.node_type, node.real_time.total_seconds()) for node in request.get_profiling_info()]
        finally:
            self._free.put(request)
