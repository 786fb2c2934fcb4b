"""The gradients of one optimiser step: micro-batch by micro-batch, or over a whole step for a grouped loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tmkd.core import processes
from tmkd.core.hardware import device
from tmkd.models.inputs import Rows
from tmkd.models.student import Student, StudentOutput
from tmkd.training.cuda_graphs import GraphedGradients
from tmkd.training.objectives import TotalLoss
from tmkd.training.training_set import TrainingSet

Gradients = Callable[[Rows, int], float]
"""(rows of a step, seed of its dropout) -> the step's loss, the mean over its pairs. Adds to the gradients in place.

The seed is given step by step, so that dropout is the same after a resume."""


def dropout_seed(seed: int, step: int) -> int:
    """The seed of one step's dropout: a hash of both numbers, 63 bits.

    PyTorch's generator on a CPU keeps the low 32 bits of a seed. So both numbers have to reach every bit.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest(), "big") >> 1


class MicroBatchGradients:
    """Forward and backward of one micro-batch after another; a micro-batch of n_i pairs weighs n_i / N in a step of N.

    Args:
        model: The student, in training mode.
        data: What it is trained on.
        loss: A loss of each pair that depends on no other pair.
        bf16: Whether to compute in bfloat16 (autocast).
    """

    def __init__(self, model: Student, data: TrainingSet, loss: TotalLoss, *, bf16: bool) -> None:
        self.model, self.data, self.loss, self.bf16 = model, data, loss, bf16

    def __call__(self, rows: Rows, seed: int) -> float:
        """See `Gradients`."""
        torch.manual_seed(seed)
        total = 0.0
        for part in self.data.micro_batches(rows):
            places = on_device(part)
            output, auxiliary = self.run(part, places, self.loss)
            loss = self.loss.total(output, auxiliary, places).sum() / len(rows)
            loss.backward()
            total += float(loss.detach())
        return total

    def run(self, part: Rows, places: Tensor, loss: TotalLoss) -> tuple[StudentOutput, list[Tensor]]:
        """Run the model on one micro-batch.

        Args:
            part: Rows of the training set, [n].
            places: The same as a tensor on the device.
            loss: Names the hidden states that are read, and computes the auxiliary losses.

        Returns:
            As `TotalLoss.run`.
        """
        batch = self.data.inputs.batch(self.model, part, bf16=self.bf16)
        with torch.autocast(device().type, torch.bfloat16, enabled=self.bf16):
            return loss.run(self.model, batch, places)


def on_device(rows: Rows) -> Tensor:
    """Copy rows to the device, [n] int64."""
    return torch.from_numpy(rows).to(device())


class SharedGradients:
    """The gradients of a step whose pairs are shared out among several processes (`tmkd.core.processes`).

    Args:
        own: Computes the gradients of this process's pairs.
        parameters: Those that are trained.
        data: Shares the pairs out.
    """

    def __init__(self, own: Gradients, parameters: Sequence[torch.nn.Parameter], data: TrainingSet) -> None:
        self.own, self.parameters, self.data = own, parameters, data

    def __call__(self, rows: Rows, seed: int) -> float:
        """See `Gradients`. The dropout of each process has a seed of its own."""
        mine = self.data.share(rows, processes.rank(), processes.count())
        loss = self.own(mine, dropout_seed(seed, processes.rank())) if len(mine) else 0.0
        return processes.sum_gradients(self.parameters, loss, len(mine) / len(rows))


class WholeStepGradients:
    """The gradients of a main loss that must see all pairs of a step, whatever the micro-batches.

    The logits of all micro-batches are computed, and the main loss over all of them. Its gradient with respect to the
    logits then goes back through a second forward of each micro-batch, where auxiliary objectives join in (Gao et al.
    2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", gradient cache). Memory is that of
    one micro-batch. The price is the second forward, in steps that have more than one micro-batch.

    Args:
        micro: Computes micro-batches.
    """

    def __init__(self, micro: MicroBatchGradients) -> None:
        self.micro = micro
        self.main_only = TotalLoss(micro.loss.main)

    def __call__(self, rows: Rows, seed: int) -> float:
        """See `Gradients`."""
        parts = self.micro.data.micro_batches(rows)
        if len(parts) == 1:
            return self.micro(rows, seed)
        torch.manual_seed(seed)
        places = [on_device(part) for part in parts]
        with torch.no_grad():  # otherwise the activations of every micro-batch would stay in memory
            first = [self.micro.run(part, place, self.main_only)[0] for part, place in zip(parts, places, strict=True)]
        golden = torch.cat([output.golden for output in first]).requires_grad_()
        soft = torch.cat([output.soft for output in first]).requires_grad_()
        loss = self.micro.loss.main(StudentOutput(golden, soft), torch.cat(places)).sum() / len(rows)
        loss.backward()
        total = float(loss.detach())
        torch.manual_seed(seed)  # the same dropout as in the first forward
        start = 0
        for part, place in zip(parts, places, strict=True):
            again, auxiliary = self.micro.run(part, place, self.micro.loss)
            inside = slice(start, start + len(part))
            roots: list[Tensor] = []
            upstream: list[Tensor | None] = []
            for tensor, whole in ((again.golden, golden), (again.soft, soft)):
                if whole.grad is not None and tensor.numel():
                    roots.append(tensor)
                    upstream.append(whole.grad[inside])
            for term in auxiliary:
                roots.append(term.sum() / len(rows))
                upstream.append(None)
                total += float(roots[-1].detach())
            torch.autograd.backward(roots, upstream)
            start += len(part)
        return total


class GraphsWhereTheyFit:
    """CUDA graphs for every step that consists of one micro-batch, after the first step of a run.

    The first step shows which parameters get a gradient, and is not recorded.

    Args:
        graphs: Computes recorded steps.
        eager: Computes the others.
    """

    def __init__(self, graphs: GraphedGradients, eager: Gradients) -> None:
        self.graphs, self.eager = graphs, eager

    def __call__(self, rows: Rows, seed: int) -> float:
        """See `Gradients`."""
        parts = self.graphs.data.micro_batches(rows)
        if self.graphs.learning and len(parts) == 1:
            return self.graphs(parts[0])
        loss = self.eager(rows, seed)
        if not self.graphs.learning:
            self.graphs.learn_which()
        return loss


def gradients_of(model: Student, data: TrainingSet, loss: TotalLoss, *, bf16: bool) -> Gradients:
    """Choose how the gradients of a run are computed.

    Args:
        model: As in `MicroBatchGradients`.
        data: As in `MicroBatchGradients`; with `questions` the main loss is computed over whole steps.
        loss: The loss of each pair.
        bf16: As in `MicroBatchGradients`.
    """
    eager = MicroBatchGradients(model, data, loss, bf16=bf16)
    if data.questions is not None:
        return WholeStepGradients(eager)
    # Packed batches and graphs need the same of an encoder: our forward, no dropout, no bias by distance.
    if device().type != "cuda" or not model.encoder.packs:
        return eager
    return GraphsWhereTheyFit(GraphedGradients(model, data, loss, bf16=bf16), eager)
