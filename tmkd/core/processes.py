"""Several processes that train one model: `torchrun --nproc-per-node N -m tmkd run RECIPE`.

All processes carry out the same recipe in the same workspace. They take part in the training of every model: each
computes its share of the pairs of an optimiser step, and their gradients are added up. The first process (rank 0) does
everything else and writes every file; the others wait for it.

A process that torchrun did not start, or started alone, is the first of one, and nothing here communicates.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from tmkd.core.errors import TmkdError
from tmkd.core.hardware import device, share_cores

PATIENCE = timedelta(days=30)  # the others wait that long for a step of the first, such as the labels of a large pool
T = TypeVar("T")


def join() -> None:
    """Join the processes that torchrun started.

    Each gets an equal share of its machine's cores, or a GPU of its own. Only the first one logs.

    Raises:
        TmkdError: a machine with GPUs has fewer of them than processes.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1 or dist.is_initialized():
        return
    here, backend = int(os.environ["LOCAL_WORLD_SIZE"]), "gloo"
    if torch.cuda.is_available():
        if here > torch.cuda.device_count():
            have = torch.cuda.device_count()
            raise TmkdError(
                f"{here} processes for {have} GPU(s) on this machine; start torchrun --nproc-per-node {have}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    share_cores(here)
    if not first():
        logging.getLogger("tmkd").setLevel(logging.ERROR)


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this process is the first one, which writes the files."""
    return rank() == 0


def leave() -> None:
    """Part: the first process goes on alone, the others end here, with exit status 0.

    Raises:
        SystemExit: in every process but the first.
    """
    if count() == 1:
        return
    goes_on = first()
    dist.barrier()
    dist.destroy_process_group()
    if not goes_on:
        raise SystemExit(0)
    share_cores(1)


def broadcast(value: T) -> T:
    """The value that the first process gives; that of the others is not read. All processes wait for it."""
    if count() == 1:
        return value
    box: list[Any] = [value if first() else None]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return cast(T, box[0])


def barrier() -> None:
    """Wait until all processes are here."""
    broadcast(None)


def require_same(tensors: Sequence[Tensor], what: str) -> None:
    """Check that every process has the same numbers.

    Raises:
        TmkdError: a process has others than the first.
    """
    if count() == 1:
        return
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    if digest.hexdigest() != broadcast(digest.hexdigest()):
        raise TmkdError(
            f"{what}: process {rank()} begins with other weights than process 0; all of them need the same version of "
            "tmkd, recipe and workspace"
        )


def sum_gradients(parameters: Sequence[torch.nn.Parameter], loss: float, share: float) -> float:
    """Replace each gradient by the sum of all processes' gradients, each weighed by the process's share of the pairs.

    A parameter that has a gradient in no process keeps none.

    Args:
        parameters: those that are trained, in the same order in every process.
        loss: the mean over this process's pairs; their gradients are of this mean.
        share: this process's part of all pairs of the step, from 0 to 1.

    Returns:
        The mean loss over the pairs of all processes.
    """
    has = torch.tensor([float(one.grad is not None) for one in parameters], device=device())
    numbers = [(one.grad if one.grad is not None else torch.zeros_like(one)).float().flatten() for one in parameters]
    total = torch.cat([*numbers, torch.tensor([loss], device=device())]).mul_(share)
    for summed in (has, total):
        dist.all_reduce(summed)
    start = 0
    for one, anywhere in zip(parameters, has.tolist(), strict=True):
        if anywhere:
            part = total[start : start + one.numel()].view_as(one).to(one.dtype)
            one.grad = part if one.grad is None else one.grad.copy_(part)
        start += one.numel()
    return float(total[-1])
