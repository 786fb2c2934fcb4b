"""int8: an exported fp32 graph with its matrix products in 8 bits, calibrated on real training pairs.

Static: the range of every activation is measured once, on relevant and irrelevant pairs. Ranges taken from the batch at
hand (dynamic quantisation) let a pair's score depend on its neighbours; ranges of irrelevant pairs alone lose several
times as much, since relevant pairs reach further. The result is one ONNX file with quantise and dequantise nodes,
which both engines read: in OpenVINO it is as fast and as near as NNCF's own format for OpenVINO.

Weights use 7 of the 8 bits: CPUs without VNNI add two products of 8 bits in 16 and would clip the sum.

Not every product bears 8 bits equally well. What follows an activation function with a few values far from the rest
loses most: the second feed-forward product, that of the first layer above all. Where the gate refuses the whole graph
in int8, these stay in float (`FLOAT_STEPS`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
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
FLOAT_STEPS = 3  # how much stays in float: 0 nothing, 1 the product that loses most, 2 all products of its kind
_BATCH = 8  # pairs that are run at once while ranges are measured


def choose_calibration(train: Pairs, count: int = CALIBRATION_PAIRS, seed: int = 0) -> Pairs:
    """About `count` training pairs, as many of every class as there are; the same ones for the same rows and seed.

    Pairs without a label count as a class of their own.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    labels = train.labels[order]
    classes = np.unique(labels)
    share = -(-count // max(1, len(classes)))
    rows = np.concatenate([order[labels == label][:share] for label in classes]) if len(order) else order
    return train.take(np.sort(rows))


def write_int8(graph: Path, path: Path, tokenizer: PairTokenizer, calibration: Pairs, float_step: int = 0) -> None:
    """Write the int8 form of an fp32 ONNX file.

    Args:
        graph: what `write_onnx` wrote. path: the file to write.
        calibration: pairs that the ranges of activations are measured on (see `choose_calibration`).
        float_step: how much stays in float, from 0 to FLOAT_STEPS - 1.

    Raises:
        MissingExtraError: NNCF is not installed. ExportError: no calibration pairs, or the graph cannot be quantised.
    """
    if len(calibration) == 0:
        raise ExportError("int8 is calibrated on training pairs and there are none; give some, or leave int8 out")
    try:
        without_telemetry()
        with _silent_nncf():
            import nncf
            import onnx
    except ImportError as error:
        raise MissingExtraError(f"writing int8 needs {error.name}; run: pip install 'tmkd[train]'") from error
    model = onnx.load(graph)
    names = {value.name for value in model.graph.input}
    batches = [
        {name: value for name, value in given.items() if name in names} for given in _batches(tokenizer, calibration)
    ]
    options = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE,
        # SmoothQuant would move the range of activations into the weights; for these encoders it gains nothing
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
    )
    try:
        with _silent_nncf():
            result = nncf.quantize(
                model,
                nncf.Dataset(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(batches),
                ignored_scope=nncf.IgnoredScope(names=left_in_float(model, float_step)),
                advanced_parameters=options,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(result, path)
    except OSError:
        raise  # a full disk is the caller's to name
    except Exception as error:  # NNCF and the engine under it raise classes of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"the student cannot be written in int8: {reason}") from error


def left_in_float(model: Any, float_step: int) -> list[str]:
    """Names of the products that are not quantised: of a graph with products in the order of the forward.

    Always the last attention: of every pair one row a head passes there, against weights cut head by head, for which
    an engine has no int8 product (tmkd/models/encoders/attention.py). Beside the second feed-forward products go
    those behind
    the last attention: only the first token passes there, so they cost nothing.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    shapes = [
        next((weights[name] for name in node.input if len(weights.get(name, ())) == 2), None) for node in products
    ]
    end = max((i + 1 for i, shape in enumerate(shapes) if shape is None), default=0)
    begin = max((i + 1 for i, shape in enumerate(shapes[:end]) if shape is not None), default=0)
    kept = {*range(begin, end)}  # the last attention
    if float_step > 0:
        narrowing = [
            i
            for i, shape in enumerate(shapes)
            if shape is not None and shape[0] > shape[1] and i < len(shapes) - 1  # the last one is the classifier
        ]
        kept |= {*narrowing[: 1 if float_step == 1 else None], *range(end, len(products))}
    return [products[i].name for i in sorted(kept)]


def _batches(tokenizer: PairTokenizer, pairs: Pairs) -> Iterator[dict[str, NDArray[np.int64]]]:
    """The pairs as padded inputs of a graph, a few rows at a time."""
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    for rows in length_sorted_batches(encoded.lengths, NO_BUDGET, max_pairs=_BATCH):
        ids, mask, types = pad(encoded.ids, encoded.type_ids, rows, tokenizer.pad_id)
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@contextmanager
def _silent_nncf() -> Iterator[None]:
    """NNCF without its bars (they go to standard output, which is the caller's), notes and usage statistics."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # as read when it is imported: no statistics are sent
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
