"""The engines that run an exported student, each as one function from padded token ids to logits.

An engine answers one micro-batch on one thread; `tmkd.inference.scorer.Scorer` runs as many at once as it may use
cores. That
is faster than one micro-batch on all cores, whose threads wait for one another after every matrix product, and the
result of a micro-batch never depends on what runs beside it.

Every engine is imported when it is opened, so that naming them costs nothing.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import ExportError, MissingExtraError
from tmkd.models.batching import WIDTH_STEP

_ALONE = threading.Lock()

Inputs = Mapping[str, NDArray[np.int64]]  # input_ids, attention_mask, token_type_ids: [n, T]; a student may not use all
Engine = Callable[[Inputs], NDArray[np.float32]]  # logits [n, C]; safe to call from several threads at once


def installed(backend: str) -> bool:
    """Whether the package that runs a back end is installed (it is not imported)."""
    return importlib.util.find_spec(_package(backend)) is not None


def open_engine(backend: str, path: Path, threads: int) -> Engine:
    """Open a file with the engine of a back end.

    Args:
        backend: one of KNOWN_BACKENDS.
        path: the ONNX file, already checked.
        threads: how many micro-batches may run at once.

    Raises:
        MissingExtraError: the engine is not installed. ExportError: it cannot open the file.
    """
    if not installed(backend):
        raise MissingExtraError(
            f"back end {backend} needs {_package(backend)}, which is not installed; run: pip install 'tmkd[fast]'",
            extra="fast",
            package=_package(backend),
        )
    try:
        return _OpenVino(path, threads) if _package(backend) == "openvino" else _OnnxRuntime(path)
    except Exception as error:  # both engines raise classes of their own, without a common public base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{path} cannot be opened by {_package(backend)} ({reason}); export again") from error


def operation_seconds(path: Path, batches: Iterable[Inputs]) -> dict[str, float]:
    """Seconds that one thread of OpenVINO spends in each kind of operation over some batches, by its own counters.

    Kinds are its node types, such as FullyConnected; `Reorder` is what it adds to change a layout or precision.
    """
    engine, seconds = _OpenVino(path, 1, counting=True), dict[str, float]()
    for inputs in batches:
        engine(inputs)
        for kind, spent in engine.counted():
            seconds[kind] = seconds.get(kind, 0.0) + spent
    return seconds


def without_telemetry() -> None:
    """Call before importing openvino or nncf: both send an event over the network when they are imported.

    They do without where the package that sends is not installed; this process is told that it is not.
    """
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))


def _package(backend: str) -> str:
    return "openvino" if backend.startswith("openvino-") else "onnxruntime"


class _OnnxRuntime:
    """A session of ONNX Runtime, one thread a call."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = tuple(value.name for value in self._session.get_inputs())

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._session.run(["logits"], {name: inputs[name] for name in self._names})[0]
        return output


class _OpenVino:
    """A model compiled by OpenVINO, a stream of one thread for each call that may run at once.

    What is not int8 runs in bf16 where the CPU computes with it, else in fp32. Threads are not pinned to cores: other
    processes on the machine would be pinned to the same ones.
    """

    def __init__(self, path: Path, streams: int, *, counting: bool = False) -> None:
        without_telemetry()
        import openvino

        core = openvino.Core()
        settings = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams, "ENABLE_CPU_PINNING": False}
        settings |= {"PERF_COUNT": True} if counting else {}
        native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        try:
            compiled = core.compile_model(
                str(path), "CPU", {**settings, "INFERENCE_PRECISION_HINT": "bf16" if native else "f32"}
            )
        except RuntimeError:  # a CPU whose kernels are limited to an older instruction set says bf16 and has none
            if not native:
                raise
            compiled = core.compile_model(str(path), "CPU", {**settings, "INFERENCE_PRECISION_HINT": "f32"})
        self._names = tuple(value.get_any_name() for value in compiled.inputs)
        self._free: SimpleQueue[Any] = SimpleQueue()  # a request serves one call at a time
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())
        # OpenVINO's Python side sets itself up in its first call; two threads in it can lock each other out.
        with _ALONE:
            self({name: np.ones((1, WIDTH_STEP), dtype=np.int64) for name in self._names})

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        request = self._free.get()
        try:
            request.infer({name: inputs[name] for name in self._names})
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)  # a copy: the request is used again
        finally:
            self._free.put(request)

    def counted(self) -> list[tuple[str, float]]:
        """Kind and seconds of every node of the last call; only where it counts, with one stream."""
        request = self._free.get()
        try:
            return [(node.node_type, node.real_time.total_seconds()) for node in request.get_profiling_info()]
        finally:
            self._free.put(request)
