"""The loop: teachers, stage 1 and stage 2 are three uses of it.

A step is N pairs whatever their lengths; a micro-batch of n_i pairs weighs n_i / N. The whole state (weights, AdamW's
moments, position, curve) is saved at intervals as safetensors; data order and dropout depend only on (seed, step), so
a killed run that is started again ends in the same weights.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from tmkd.config.sections import Training
from tmkd.core.console import progress
from tmkd.core.errors import Diverged
from tmkd.core.files import replacing
from tmkd.core.hardware import batch_tokens, device, use_bf16
from tmkd.models.batching import epoch_steps, grouped_epoch_steps, micro_batches, replayed_steps
from tmkd.models.predict import forward
from tmkd.models.student import Logits, Student
from tmkd.models.tokenizer import Encoded
from tmkd.training.cuda_graphs import GraphedGradients

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0

LossOfRows = Callable[[Logits, Tensor], Tensor]
"""(logits of n pairs, their rows [n] int64) -> loss of each pair, [n]."""


@dataclass(frozen=True)
class Fit:
    """The numbers of one training run (METHOD.md, "Defaults")."""

    learning_rate: float
    epochs: int
    batch_size: int
    seed: int
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: str = "auto"
    replayed: int = 0  # of batch_size, from the rows behind `own` (see `train`)

    @classmethod
    def of(cls, numbers: Training, seed: int, precision: str, replayed: int = 0) -> Fit:
        """A recipe's numbers as this loop takes them."""
        return cls(
            numbers.learning_rate, numbers.epochs, numbers.batch_size, seed,
            numbers.warmup, numbers.weight_decay, numbers.clip, precision, replayed,
        )  # fmt: skip

    def steps(
        self, lengths: NDArray[np.int64], own: int, epoch: int, questions: NDArray[np.int64] | None = None
    ) -> list[NDArray[np.int64]]:
        """The rows of every step of one epoch. Arguments as in `train`."""
        if questions is not None:
            return grouped_epoch_steps(questions, self.batch_size, epoch, self.seed)
        if self.replayed:
            return replayed_steps(lengths, own, self.batch_size, self.replayed, epoch, self.seed)
        return epoch_steps(lengths, self.batch_size, epoch, self.seed)


def train(
    model: Student,
    encoded: Encoded,
    pad_id: int,
    loss_of_rows: LossOfRows,
    fit: Fit,
    *,
    name: str,
    state_folder: Path,
    own: int | None = None,
    questions: NDArray[np.int64] | None = None,
) -> list[dict[str, float]]:
    """Train in place; resumes from `state_folder` where an interrupted call left its state.

    Args:
        encoded: token ids of every row.
        loss_of_rows: the loss of each pair of a micro-batch.
        state_folder: holds the resumable state; the caller removes it with its step.
        own: an epoch is a pass over so many rows, from the first; those behind them are replayed (`Fit.replayed`).
        questions: the question of each row, [N], for a loss that compares the passages of one question: steps then keep
            a question's rows together (`grouped_epoch_steps`), and the loss is given a whole step at once. Nothing is
            replayed then.

    Returns:
        The learning curve: [{"step", "epoch", "loss", "learning_rate", "pairs_per_second", "pairs"}], about 100 points.

    Raises:
        Diverged: a loss that is not finite.
    """
    lengths = np.array([len(row) for row in encoded.ids])
    own = len(lengths) if own is None else own
    first = fit.steps(lengths, own, 0, questions)
    total = fit.epochs * len(first)
    if questions is not None:  # they fill the steps of every epoch anew
        total = sum(len(fit.steps(lengths, own, epoch, questions)) for epoch in range(fit.epochs))
    model.to(device())
    optimiser = _optimiser(model, fit)
    state = _State(model, optimiser, state_folder)
    done, curve = state.load()
    every = max(1, total // 100)
    gradients = _gradients_of(model, encoded, pad_id, loss_of_rows, fit, grouped=questions is not None)
    logger.info(f"{name}: {model.encoder.path}")
    model.train()
    pairs_total = fit.epochs * sum(len(rows) for rows in first)  # the same in every epoch
    with progress(name, pairs_total, done=min(done * fit.batch_size, pairs_total)) as bar:
        recent: list[float] = []
        began, counted = time.monotonic(), 0
        step = -1
        for epoch in range(fit.epochs):
            for rows in fit.steps(lengths, own, epoch, questions):
                step += 1
                if step < done:
                    continue
                rate = _schedule(step, total, fit)
                _prepare(optimiser, rate)
                loss = gradients(rows, (fit.seed << 32) + step)
                torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], fit.clip)
                optimiser.step()
                if not np.isfinite(loss):
                    raise Diverged(f"{name}: the loss is {loss} at step {step}; lower the learning rate")
                recent.append(loss)
                counted += len(rows)
                if (step + 1) % every == 0 or step + 1 == total:
                    speed = counted / max(time.monotonic() - began, 1e-9)
                    point = {"step": step + 1, "epoch": (step + 1) * fit.epochs / total, "loss": float(np.mean(recent))}
                    curve.append(
                        {
                            **point,
                            "learning_rate": rate,
                            "pairs_per_second": speed,
                            "pairs": pairs_total * (step + 1) / total,
                        }
                    )
                    recent = []
                state.save_sometimes(step + 1, curve)
                bar.advance(len(rows), f"loss {loss:.4f}")
    model.eval()
    return curve


def _optimiser(model: Student, fit: Fit) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": fit.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=fit.learning_rate, fused=True)


def _schedule(step: int, total: int, fit: Fit) -> float:
    """Linear warm-up over the first `warmup` share, then linear decay to 0."""
    warm = max(1, round(fit.warmup * total))
    if step < warm:
        return fit.learning_rate * (step + 1) / warm
    return fit.learning_rate * max(0.0, (total - step) / max(1, total - warm))


def _prepare(optimiser: torch.optim.AdamW, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)


def _parts(encoded: Encoded, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of a step, micro-batch by micro-batch."""
    lengths = np.array([len(encoded.ids[row]) for row in rows])
    return [rows[batch] for batch in micro_batches(lengths, batch_tokens())]


def _gradients_of(
    model: Student, encoded: Encoded, pad_id: int, loss_of_rows: LossOfRows, fit: Fit, *, grouped: bool
) -> Callable[[NDArray[np.int64], int], float]:
    """What computes the gradients and the loss of the rows of a step: as graphs where a GPU can replay them.

    Packed batches and graphs ask the same of an encoder: our forward, no dropout, no bias by distance.
    """
    eager = partial(_whole_step_gradients if grouped else _gradients, model, encoded, pad_id, loss_of_rows, fit)
    if grouped or device().type != "cuda" or not model.encoder.packs:
        return eager
    return graphed(GraphedGradients(model, loss_of_rows, pad_id, bf16=use_bf16(fit.precision)), encoded, eager)


def graphed(
    graphs: GraphedGradients, encoded: Encoded, eager: Callable[[NDArray[np.int64], int], float]
) -> Callable[[NDArray[np.int64], int], float]:
    """A run's first step tells which parameters learn, and a step of several micro-batches is none for a graph."""

    def take(rows: NDArray[np.int64], seed: int) -> float:
        parts = _parts(encoded, rows)
        if graphs.learning and len(parts) == 1:
            return graphs(encoded, parts[0])
        loss = eager(rows, seed)
        if not graphs.learning:
            graphs.learn_which()
        return loss

    return take


def _gradients(
    model: Student,
    encoded: Encoded,
    pad_id: int,
    loss_of_rows: LossOfRows,
    fit: Fit,
    rows: NDArray[np.int64],
    seed: int,
) -> float:
    """The step's gradients, and its loss. `seed`: of this step's dropout, so that it is the same after a resume."""
    torch.manual_seed(seed)
    total = 0.0
    for part in _parts(encoded, rows):
        logits = forward(model, encoded, pad_id, part, bf16=use_bf16(fit.precision))
        loss = loss_of_rows(logits, torch.from_numpy(part).to(device())).sum() / len(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _whole_step_gradients(
    model: Student,
    encoded: Encoded,
    pad_id: int,
    loss_of_rows: LossOfRows,
    fit: Fit,
    rows: NDArray[np.int64],
    seed: int,
) -> float:
    """As `_gradients`, for a loss that must see all pairs of the step: what is in which micro-batch does not matter.

    The logits of all micro-batches are computed, the loss is taken over all of them, and its gradient with respect to
    the logits goes back through a second forward of each micro-batch (Gao et al. 2021, gradient cache). Memory is that
    of one micro-batch; the price is that second forward, where a step has more than one.
    """
    parts = _parts(encoded, rows)
    if len(parts) == 1:
        return _gradients(model, encoded, pad_id, loss_of_rows, fit, rows, seed)
    bf16 = use_bf16(fit.precision)
    torch.manual_seed(seed)
    first = [Logits(*(t.detach() for t in forward(model, encoded, pad_id, part, bf16=bf16))) for part in parts]
    whole = Logits(*(torch.cat(tensors).requires_grad_() for tensors in zip(*first, strict=True)))
    loss = loss_of_rows(whole, torch.from_numpy(np.concatenate(parts)).to(device())).sum() / len(rows)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)  # the same dropout as in the first forward
    start = 0
    for part in parts:
        again = forward(model, encoded, pad_id, part, bf16=bf16)
        there = slice(start, start + len(part))
        used = [(t, w.grad[there]) for t, w in zip(again, whole, strict=True) if w.grad is not None and t.numel()]
        torch.autograd.backward([tensor for tensor, _ in used], [gradient for _, gradient in used])
        start += len(part)
    return float(loss.detach())


class _State:
    """Weights, moments, position and curve of a run in one folder; a save is written beside and renamed."""

    def __init__(self, model: Student, optimiser: torch.optim.AdamW, folder: Path) -> None:
        self.model, self.optimiser, self.folder = model, optimiser, folder
        self.saved = time.monotonic()
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def load(self) -> tuple[int, list[dict[str, float]]]:
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return 0, []
        tensors = load_file(path)
        position: dict[str, Any] = json.loads(bytes(tensors["position"].numpy()).decode())
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"weight.{name}"])
                if f"first.{name}" in tensors:
                    self.optimiser.state[parameter] = {
                        "step": tensors[f"step.{name}"].reshape(()).to(parameter.device),
                        "exp_avg": tensors[f"first.{name}"].to(parameter.device),
                        "exp_avg_sq": tensors[f"second.{name}"].to(parameter.device),
                    }
        return int(position["done"]), position["curve"]

    def save_sometimes(self, done: int, curve: list[dict[str, float]]) -> None:
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save(done, curve)
            self.saved = time.monotonic()

    def save(self, done: int, curve: list[dict[str, float]]) -> None:
        position = json.dumps({"done": done, "curve": curve}).encode()
        tensors = {"position": torch.from_numpy(np.frombuffer(position, dtype=np.uint8).copy())}
        for name, parameter in self.trained.items():
            tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
            moments = self.optimiser.state.get(parameter)
            if moments:
                tensors[f"step.{name}"] = moments["step"].reshape(1).cpu()
                tensors[f"first.{name}"] = moments["exp_avg"].cpu()
                tensors[f"second.{name}"] = moments["exp_avg_sq"].cpu()
        with replacing(self.folder / "state.safetensors") as temporary:
            save_file(tensors, temporary)
