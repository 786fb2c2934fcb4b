"""One training loop: teachers, stage 1 and stage 2 are three uses of it.

A step has N pairs whatever their lengths; a micro-batch of n_i pairs weighs n_i / N. The whole state (weights, AdamW's
moments, position, curve) is saved at intervals as safetensors. Data order and dropout depend only on (seed, step), so
a run that was killed and is started again ends with the same weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from tmkd.config.sections import Training
from tmkd.core import processes
from tmkd.core.console import progress
from tmkd.core.errors import Diverged
from tmkd.core.hardware import device, use_bf16
from tmkd.models.inputs import Rows
from tmkd.models.student import Student
from tmkd.training.gradients import Gradients, SharedGradients, dropout_seed, gradients_of
from tmkd.training.objectives import AuxiliaryObjective, PairLoss, TotalLoss
from tmkd.training.state import CurvePoint, LearningCurve, TrainingState
from tmkd.training.training_set import TrainingSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerConfig:
    """The numbers of one training run (METHOD.md, "Defaults").

    Attributes:
        learning_rate: AdamW's learning rate at its peak.
        epochs: Passes over the training set.
        batch_size: Pairs of one optimiser step.
        seed: Seed of data order and dropout.
        warmup: Share of the steps with a rising learning rate.
        weight_decay: Of matrices; vectors (biases, norms) have none.
        clip: The gradient norm over all parameters is clipped at this.
        precision: `auto`, `bf16` or `fp32`, as in a recipe.
        part: The parameters whose names begin with this have a learning rate of their own; none unless given.
        part_rate: That learning rate, at its peak.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    seed: int
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: str = "auto"
    part: str | None = None
    part_rate: float = 0.0

    @classmethod
    def of(
        cls, numbers: Training, seed: int, precision: str, *, part: str | None = None, part_rate: float = 0.0
    ) -> TrainerConfig:
        """Take the numbers from a section of a recipe; the other arguments are those of the class."""
        return cls(
            learning_rate=numbers.learning_rate,
            epochs=numbers.epochs,
            batch_size=numbers.batch_size,
            seed=seed,
            warmup=numbers.warmup,
            weight_decay=numbers.weight_decay,
            clip=numbers.clip,
            precision=precision,
            part=part,
            part_rate=part_rate,
        )

    def schedule(self, total: int, peak: float | None = None) -> Callable[[int], float]:
        """Build the learning-rate schedule: a linear rise over the first `warmup` share, then a linear fall to 0.

        Args:
            total: Steps of the run.
            peak: The learning rate at its peak; `learning_rate` unless given.

        Returns:
            A function from a step, counted from 0, to its learning rate.
        """
        peak, rising = self.learning_rate if peak is None else peak, max(1, round(self.warmup * total))

        def rate(step: int) -> float:
            if step < rising:
                return peak * (step + 1) / rising
            return peak * max(0.0, (total - step) / max(1, total - rising))

        return rate


class Loop:
    """The optimiser steps of one training run: AdamW, schedule, curve, and the resumable state.

    Args:
        trained: The trained parameters by name.
        steps: The rows of every step of an epoch: a pure function, so that a resumed run repeats it.
        gradients: Adds the gradients of one step.
        config: The numbers of the run.
        name: What the log and the progress bar call the run.
        state_folder: Holds the resumable state; the caller removes it when it is no longer needed.
        begin_step: Is called before each step with the share of the steps that are behind.
    """

    def __init__(
        self,
        trained: Mapping[str, torch.nn.Parameter],
        steps: Callable[[int], Sequence[Rows]],
        gradients: Gradients,
        config: TrainerConfig,
        *,
        name: str,
        state_folder: Path,
        begin_step: Callable[[float], None] = lambda done: None,
    ) -> None:
        self.steps, self.gradients, self.config, self.name = steps, gradients, config, name
        self.begin_step = begin_step
        self.parameters = list(trained.values())
        self.peaks: list[float] = []  # of the optimiser's groups
        self.optimiser = self._optimiser(trained)
        self.state = TrainingState(trained, self.optimiser, state_folder)

    def fit(self, model: torch.nn.Module) -> list[CurvePoint]:
        """Train for all epochs, or for what an interrupted call left of them.

        Args:
            model: Holds the parameters; it is in training mode meanwhile.

        Returns:
            The learning curve, about 100 points.

        Raises:
            Diverged: The loss of a step is not finite.
        """
        config = self.config
        total = sum(len(self.steps(epoch)) for epoch in range(config.epochs))
        pairs = config.epochs * sum(len(rows) for rows in self.steps(0))  # the same number in every epoch
        done, points = self.state.load()
        processes.require_same(self.parameters, self.name)
        curve = LearningCurve(points, total=total, epochs=config.epochs, pairs=pairs)
        schedule = self._scheduler(total, done)
        model.train()
        with progress(self.name, pairs, done=min(done * config.batch_size, pairs)) as bar:
            for step, rows in self._remaining(done):
                rate = float(schedule.get_last_lr()[0])
                self.begin_step(step / total)
                loss = self._step(rows, step)
                schedule.step()
                curve.add(step + 1, loss, rate, len(rows))
                self.state.save_sometimes(step + 1, curve.points)
                bar.advance(len(rows), f"loss {loss:.4f}")
        model.eval()
        return curve.points

    def _remaining(self, done: int) -> Iterator[tuple[int, Rows]]:
        """Number and rows of every step after the first `done` ones."""
        step = 0
        for epoch in range(self.config.epochs):
            for rows in self.steps(epoch):
                if step >= done:
                    yield step, rows
                step += 1

    def _step(self, rows: Rows, step: int) -> float:
        """Make one optimiser step, and return its loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.gradients(rows, dropout_seed(self.config.seed, step))
        torch.nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], self.config.clip)
        self.optimiser.step()
        if not np.isfinite(loss):
            raise Diverged(f"{self.name}: the loss is {loss} at step {step}; lower the learning rate", step=step)
        return loss

    def _optimiser(self, trained: Mapping[str, torch.nn.Parameter]) -> torch.optim.AdamW:
        config, groups = self.config, []
        parts = {name: config.part is not None and name.startswith(config.part) for name in trained}
        for part in (False, True) if any(parts.values()) else (False,):
            own = [parameter for name, parameter in trained.items() if parts[name] == part]
            matrices, vectors = ([p for p in own if (p.ndim > 1) == wide] for wide in (True, False))
            groups += [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ]
            self.peaks += [config.part_rate if part else config.learning_rate] * 2
        return torch.optim.AdamW(groups, lr=1.0, fused=True)  # the schedule gives the whole rate, not a factor

    def _scheduler(self, total: int, done: int) -> LambdaLR:
        """The schedule, at the step after the first `done` ones."""
        for group in self.optimiser.param_groups:
            group["initial_lr"] = 1.0
        schedules = [self.config.schedule(total, peak) for peak in self.peaks]
        return LambdaLR(self.optimiser, schedules, last_epoch=done - 1)


class Trainer:
    """Trains a student in place on a training set, and resumes where an interrupted call left its state.

    Args:
        model: A student, or a teacher (a student with a golden head only). It is moved to the device.
        data: What it is trained on.
        loss: The main loss of each pair; see `tmkd.training.losses`.
        config: The numbers of the run.
        objectives: Auxiliary objectives that are added to the main loss.
        name: What the log and the progress bar call the run.
        state_folder: Holds the resumable state; the caller removes it when it is no longer needed.

    Example:
        >>> trainer = Trainer(  # doctest: +SKIP
        ...     model, TrainingSet(TokenInputs(encoded, tokenizer.pad_id)), GoldenLoss(labels),
        ...     TrainerConfig(1e-4, 3, 32, seed=0), name="finetune", state_folder=folder / "state",
        ... )
        >>> curve = trainer.fit()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Student,
        data: TrainingSet,
        loss: PairLoss,
        config: TrainerConfig,
        *,
        objectives: Sequence[AuxiliaryObjective] = (),
        name: str,
        state_folder: Path,
    ) -> None:
        self.model = model
        total = TotalLoss(loss, objectives)
        for module in (model, *objectives):
            module.to(device())
        trained = total.trained(model)
        gradients = gradients_of(model, data, total, bf16=use_bf16(config.precision))
        if processes.count() > 1 and data.questions is None:  # a loss over whole steps: every process computes all
            gradients = SharedGradients(gradients, list(trained.values()), data)
        self._loop = Loop(
            trained,
            lambda epoch: data.steps(config.batch_size, epoch, config.seed),
            gradients,
            config,
            name=name,
            state_folder=state_folder,
            begin_step=total.begin_step,
        )
        self.parameters = self._loop.parameters

    def fit(self) -> list[CurvePoint]:
        """Train for all epochs, or for what an interrupted call left of them; as `Loop.fit`."""
        logger.info(f"{self._loop.name}: {self.model.encoder.path}")
        return self._loop.fit(self.model)
