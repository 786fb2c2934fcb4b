"""Write a folded student as an ONNX graph: our forward (`tmkd.models.encoders.forward`) with the folded head."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd.core.errors import ExportError, MissingExtraError, first_line
from tmkd.models.encoders.families import last_linear, takes_token_types
from tmkd.models.encoders.forward import Batch, encoder_of

OPSET = 20


class _Graph(nn.Module):
    """Padded token ids in, logits [n, L] out; L is 1 for two classes, else C."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = encoder_of(model)
        self.last = last_linear(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Compute logits [n, L]; every argument is [n, T] int64, padded on the right."""
        return self.last(self.encoder(Batch(input_ids, attention_mask, token_type_ids)))  # type: ignore[no-any-return]


def write_onnx(model: Any, path: Path) -> None:
    """Write the graph of a sequence-classification module to one file, weights included.

    The graph's inputs are `input_ids`, `attention_mask` and, where the architecture has them, `token_type_ids`, each
    [n, T] int64 with free n and T. Its output is `logits`, [n, L] float32; L is 1 for
    two classes, else the number of classes.

    Args:
        model: the module.
        path: the file to write; its folder is made.

    Raises:
        MissingExtraError: the packages that write ONNX are not installed.
        ExportError: the graph cannot be written.
    """
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if takes_token_types(model.config) else [])
    sample = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in names)
    axes = {0: "batch", 1: "length"}
    write_graph(_Graph(model).eval(), sample, names, ["logits"], [axes for _ in names], path)


def write_graph(
    module: nn.Module,
    sample: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Sequence[Mapping[int, str]],
    path: Path,
) -> None:
    """Write a module as one ONNX file, weights included.

    Args:
        module: in evaluation mode.
        sample: arguments of its forward.
        inputs: their names.
        outputs: names of what it returns.
        axes: for each argument its free axes and their names.
        path: the file to write; its folder is made.

    Raises:
        MissingExtraError: the packages that write ONNX are not installed.
        ExportError: the graph cannot be written.
    """
    dims = {name: torch.export.Dim(name) for one in axes for name in one.values()}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                module,
                sample,
                str(path),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({axis: dims[name] for axis, name in one.items()} for one in axes),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        message = f"writing ONNX needs {error.name}; run: pip install 'tmkd[train]'"
        raise MissingExtraError(message, extra="train", package=error.name) from error
    except Exception as error:  # the exporter wraps what goes wrong in classes of its own
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError):
                raise cause from error  # callers report a full disk
            cause = cause.__cause__
        raise ExportError(f"the student cannot be written as ONNX: {first_line(error)}") from error


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's notes about its own internals and about packages that it could also use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
