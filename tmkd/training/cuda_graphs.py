"""On a GPU a step of a small model waits for its launches, not for its arithmetic: here it is one launch.

A step of 8 pairs is more than a thousand kernels of microseconds each, and Python starts every one of them. So
forward, loss and backward of every shape of step are recorded once as a CUDA graph and from then on replayed
(docs/performance.md, "On a GPU"). The numbers are those of `tmkd.training.trainer`, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tmkd.models.batching import pad
from tmkd.models.encoders.forward import Batch
from tmkd.models.student import Logits, Student
from tmkd.models.tokenizer import Encoded

WIDTH = 32  # steps are padded to a multiple of this: the fewer shapes, the fewer graphs
WARM = 3  # times that a step runs before it is recorded: libraries set themselves up on first use

Work = Callable[[], Tensor]
"""Computes a loss, [], and its gradients, in place."""


class _Shape(NamedTuple):
    """A recorded step: what it reads, int64 (ids, mask and types of tokens, [3, n, T]; rows, [n]), and what runs it."""

    tokens: Tensor
    rows: Tensor
    run: Work


class GraphedGradients:
    """The gradients of whole steps of one training run, each shape of step recorded when it first comes.

    Args:
        loss_of_rows: as in `tmkd.training.trainer.train`; all its tensors lie on the device, and it never asks the
        device for a
            number.
        record: makes of work one that runs it again; CUDA's unless given.
    """

    def __init__(
        self,
        model: Student,
        loss_of_rows: Callable[[Logits, Tensor], Tensor],
        pad_id: int,
        *,
        bf16: bool,
        record: Callable[[Work], Work] | None = None,
    ) -> None:
        self.model, self.loss_of_rows, self.pad_id, self.bf16 = model, loss_of_rows, pad_id, bf16
        self.record = record or _Recorder()
        self.shapes: dict[tuple[int, int], _Shape] = {}
        self.learning: list[tuple[torch.nn.Parameter, Tensor]] = []

    def learn_which(self) -> None:
        """Take those parameters for learned that have a gradient now, after a step that was not recorded."""
        self.learning = [(p, torch.zeros_like(p)) for p in self.model.parameters() if p.grad is not None]

    def __call__(self, encoded: Encoded, rows: NDArray[np.int64]) -> float:
        """The gradients of one step, and its loss, the mean over its pairs."""
        ids, mask, types = pad(encoded.ids, encoded.type_ids, rows, self.pad_id, WIDTH)
        given = torch.from_numpy(np.stack([ids, mask, types]))
        for parameter, gradient in self.learning:
            parameter.grad = gradient
        key = (given.shape[1], given.shape[2])
        if key not in self.shapes:
            self.shapes[key] = self._recorded(given, torch.from_numpy(rows))
        shape = self.shapes[key]
        shape.tokens.copy_(given)
        shape.rows.copy_(torch.from_numpy(rows))
        return float(shape.run())

    def _recorded(self, given: Tensor, rows: Tensor) -> _Shape:
        device = next(self.model.parameters()).device
        tokens, rows = given.to(device, copy=True), rows.to(device, copy=True)
        gradients = [gradient for _, gradient in self.learning]

        def work() -> Tensor:
            torch._foreach_zero_(gradients)
            # Plain products cost a replay nothing; with a fused kernel one training of some sixty met a NaN.
            with (
                sdpa_kernel(SDPBackend.MATH),
                torch.autocast(device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False),
            ):
                logits: Logits = self.model(Batch(tokens[0], tokens[1], tokens[2], rows=rows))
            loss = self.loss_of_rows(logits, rows).sum() / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        return _Shape(tokens, rows, self.record(work))


class _Recorder:
    """Records CUDA graphs. They share memory: one is done before the next begins."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss = work()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay
