"""Training steps as CUDA graphs: on a GPU a step of a small model becomes one launch.

A step of 8 pairs is more than a thousand kernels of a few microseconds each, and Python launches every one of them, so
the GPU waits for Python. Therefore forward, loss and backward of every shape of step are recorded once as a CUDA graph
and replayed from then on (docs/performance.md, "On a GPU"). The numbers are those of `tmkd.training.gradients`, up to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tmkd.models.batching import pad
from tmkd.models.encoders.forward import Batch
from tmkd.models.inputs import Rows, TokenInputs
from tmkd.models.student import Student
from tmkd.training.objectives import TotalLoss
from tmkd.training.training_set import TrainingSet

WIDTH = 32  # steps are padded to a multiple of this many tokens: fewer shapes mean fewer graphs
WARM = 3  # how often a step runs before it is recorded: libraries initialise themselves on first use

Work = Callable[[], Tensor]
"""Computes a loss, [], and its gradients, in place."""


class _Shape(NamedTuple):
    """A recorded step.

    Attributes:
        tokens: Its input, ids, mask and segment ids, [3, n, T] int64.
        rows: Its input, rows of the training set, [n] int64.
        run: Runs the step on what `tokens` and `rows` hold.
    """

    tokens: Tensor
    rows: Tensor
    run: Work


class GraphedGradients:
    """The gradients of steps of one training run; each shape of step is recorded when it first occurs.

    Args:
        model: The student, in training mode, on the device.
        data: What it is trained on, as token ids.
        loss: All its tensors lie on the device, and it never copies a number from the device to the CPU.
        bf16: Whether to compute in bfloat16 (autocast).
        record: Turns work into work that replays it; CUDA graphs unless given.
    """

    def __init__(
        self,
        model: Student,
        data: TrainingSet,
        loss: TotalLoss,
        *,
        bf16: bool,
        record: Callable[[Work], Work] | None = None,
    ) -> None:
        if not isinstance(data.inputs, TokenInputs):
            raise ValueError("only steps over token ids are recorded")
        self.inputs = data.inputs
        self.model, self.data, self.loss, self.bf16 = model, data, loss, bf16
        self.record = record or _Recorder()
        self.shapes: dict[tuple[int, int, int], _Shape] = {}  # by pairs, tokens and number of active objectives
        self.learning: list[tuple[torch.nn.Parameter, Tensor]] = []

    def learn_which(self) -> None:
        """Note which parameters have a gradient now, after a step that was not recorded."""
        trained = self.loss.trained(self.model).values()
        self.learning = [(p, torch.zeros_like(p)) for p in trained if p.grad is not None]

    def __call__(self, rows: Rows) -> float:
        """Compute the gradients of one step of a single micro-batch.

        Args:
            rows: Rows of the training set, [n].

        Returns:
            The loss, the mean over the pairs.
        """
        encoded = self.inputs.encoded
        ids, mask, types = pad(encoded.ids, encoded.type_ids, rows, self.inputs.pad_id, WIDTH)
        given = torch.from_numpy(np.stack([ids, mask, types]))
        for parameter, gradient in self.learning:
            parameter.grad = gradient
        key = (given.shape[1], given.shape[2], len(self.loss.active))
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
            # Plain matrix products cost a replay nothing; with a fused kernel one training of some sixty met a NaN.
            with (
                sdpa_kernel(SDPBackend.MATH),
                torch.autocast(device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False),
            ):
                output, auxiliary = self.loss.run(self.model, Batch(tokens[0], tokens[1], tokens[2]), rows)
            loss = self.loss.total(output, auxiliary, rows).sum() / len(rows)
            loss.backward()
            return loss.detach()

        return _Shape(tokens, rows, self.record(work))


class _Recorder:
    """Records CUDA graphs that share their memory: one replay ends before the next begins."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        aside = torch.cuda.Stream()
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
