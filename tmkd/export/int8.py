"""int8: an exported fp32 graph with its matrix products in 8 bits, calibrated on real training pairs.

Quantisation is static: the range of every activation is measured once, on relevant and irrelevant pairs. Dynamic
quantisation, which takes ranges from each batch, would let a pair's score depend on the other pairs of the batch.
Ranges of irrelevant pairs alone lose several times as much quality, because activations of relevant pairs are larger.
The result is one ONNX file with quantise and dequantise nodes, which both engines read; in OpenVINO it is as fast and
as accurate as NNCF's own format for OpenVINO.

Weights use 7 of the 8 bits: CPUs without VNNI add two 8-bit products in 16 bits and would clip the sum.

Some products lose more in 8 bits than others. Those whose inputs have a few values far from the rest lose most: the
second feed-forward product, and that of the first layer more than the others. Where the gate refuses the graph with
all products in int8, these stay in float (`FLOAT_STEPS`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import ExportError, MissingExtraError
from tmkd.data.pairs import Pairs
from tmkd.inference.engines import without_telemetry
from tmkd.models.batching import NO_BUDGET, length_sorted_batches, pad
from tmkd.models.tokenizer import PairTokenizer

CALIBRATION_PAIRS = 300
FLOAT_STEPS = 3  # ways to write it. Left in float: 0 nothing, 1 the product that loses most, 2 all of its kind
_BATCH = 8  # pairs of a batch while ranges are measured


def choose_calibration(train: Pairs, count: int = CALIBRATION_PAIRS, seed: int = 0) -> Pairs:
    """Choose about `count` training pairs, the same number of every class as far as there are enough.

    Args:
        train: the training pairs; those without a label count as a class of their own.
        count: how many to choose.
        seed: of the random choice; the same pairs and seed give the same choice.

    Returns:
        The chosen pairs, in the order of `train`.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    labels = train.labels[order]
    classes = np.unique(labels)
    share = -(-count // max(1, len(classes)))
    rows = np.concatenate([order[labels == label][:share] for label in classes]) if len(order) else order
    return train.take(np.sort(rows))


def write_int8(graph: Path, path: Path, tokenizer: PairTokenizer, calibration: Pairs, float_step: int) -> None:
    """Write the int8 form of the fp32 graph of a student that reads question and passage together.

    Args:
        graph: the file that `write_onnx` wrote.
        path: the file to write.
        tokenizer: of the student.
        calibration: pairs on which the ranges of activations are measured (see `choose_calibration`).
        float_step: how much stays in float, from 0 to FLOAT_STEPS - 1.

    Raises:
        MissingExtraError: as `quantise`.
        ExportError: as `quantise`.
    """
    quantise(graph, path, _batches(tokenizer, calibration), lambda model: left_in_float(model, float_step))


def quantise(
    graph: Path, path: Path, calibration: Iterable[Mapping[str, NDArray[Any]]], kept: Callable[[Any], list[str]]
) -> None:
    """Write the int8 form of an fp32 ONNX file.

    Args:
        graph: the fp32 file.
        path: the file to write.
        calibration: inputs of the graph by name, on which the ranges of activations are measured; others are ignored.
        kept: gives the names of the nodes that stay in float, from the ONNX model.

    Raises:
        MissingExtraError: NNCF is not installed.
        ExportError: there are no calibration pairs, or the graph cannot be quantised.
    """
    calibration = list(calibration)
    if not calibration:
        raise ExportError("int8 is calibrated on training pairs and there are none; give some, or do not ask for int8")
    try:
        without_telemetry()
        with _silent_nncf():
            import nncf
            import onnx
    except ImportError as error:
        message = f"writing int8 needs {error.name}; run: pip install 'tmkd[train]'"
        raise MissingExtraError(message, extra="train", package=error.name) from error
    model = onnx.load(graph)
    names = {value.name for value in model.graph.input}
    batches = [{name: value for name, value in given.items() if name in names} for given in calibration]
    options = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE,
        # SmoothQuant would move part of the activations' range into the weights; for these encoders it gains nothing
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
    )
    try:
        with _silent_nncf():
            result = nncf.quantize(
                model,
                nncf.Dataset(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(batches),
                ignored_scope=nncf.IgnoredScope(names=kept(model)),
                advanced_parameters=options,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(result, path)
    except OSError:
        raise  # callers report a full disk
    except Exception as error:  # NNCF and the engine under it raise classes of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"the student cannot be written in int8: {reason}") from error


def left_in_float(model: Any, float_step: int) -> list[str]:
    """Return the names of the matrix products that are not quantised.

    The last attention is never quantised: it computes one query per pair and attention head with weights cut head by
    head (`tmkd.models.encoders.attention.FirstOfPadded`), for which engines have no int8 product. From `float_step` 1
    on, the products after the last attention stay in float too: they compute only the first token of a pair and cost
    next to nothing.

    Args:
        model: an ONNX model whose products are in the order of the forward pass.
        float_step: 0: nothing more; 1: the second feed-forward product of the first layer; 2: that of every layer.

    Returns:
        Names of nodes.
    """
    products = matrix_products(model)
    shapes = [shape for _, shape in products]
    end = max((i + 1 for i, shape in enumerate(shapes) if shape is None), default=0)
    begin = max((i + 1 for i, shape in enumerate(shapes[:end]) if shape is not None), default=0)
    kept = {*range(begin, end)}  # the last attention
    if float_step > 0:
        narrowing = [
            i
            for i, shape in enumerate(shapes)
            if shape is not None and shape[0] > shape[1] and i < len(shapes) - 1  # the last one is the folded head
        ]
        kept |= {*narrowing[: 1 if float_step == 1 else None], *range(end, len(products))}
    return [products[i][0] for i in sorted(kept)]


def matrix_products(model: Any) -> list[tuple[str, tuple[int, ...] | None]]:
    """Return the matrix products of an ONNX model in its order: the name of each node, and the shape of its weights.

    Args:
        model: an ONNX model.

    Returns:
        Names and shapes [inputs, outputs]; None for a product of two activations, which has no weights.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [
        (node.name, next((weights[name] for name in node.input if len(weights.get(name, ())) == 2), None))
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
    ]


def _batches(tokenizer: PairTokenizer, pairs: Pairs) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Yield the pairs as padded inputs of a graph, a few pairs at a time."""
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    for rows in length_sorted_batches(encoded.lengths, NO_BUDGET, max_pairs=_BATCH):
        ids, mask, types = pad(encoded.ids, encoded.type_ids, rows, tokenizer.pad_id)
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@contextmanager
def _silent_nncf() -> Iterator[None]:
    """Silence NNCF: no bars (it prints them to standard output), no notes, no usage statistics."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # read when NNCF is imported: no statistics are sent
    try:
        with redirect_stdout(io.StringIO()):
            import nncf

            nncf.set_log_level(40)  # errors only
            yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
