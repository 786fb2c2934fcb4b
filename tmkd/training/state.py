"""The resumable state of a training run, and its learning curve."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tmkd.core import processes
from tmkd.models.encoders.tensors import write_tensors

SAVE_SECONDS = 30.0
POINTS = 100  # of a learning curve, about

CurvePoint = dict[str, float]
"""step, epoch, loss (mean since the last point), learning_rate, pairs_per_second, pairs (trained on so far)."""


class TrainingState:
    """Weights, AdamW's moments, position and curve of a run, in one safetensors file of a folder.

    A save is written beside the file and renamed, so the file is always whole. Of several processes that train
    together the first one saves, and all of them continue from what it saved, whatever number of them there was then.

    Args:
        trained: The trained parameters by name.
        optimiser: Their optimiser.
        folder: Where the file lies; the caller removes it when it is no longer needed.
    """

    def __init__(self, trained: Mapping[str, torch.nn.Parameter], optimiser: torch.optim.AdamW, folder: Path) -> None:
        self.trained, self.optimiser, self.folder = trained, optimiser, folder
        self.saved = time.monotonic()

    def load(self) -> tuple[int, list[CurvePoint]]:
        """Restore weights and moments where a state was saved.

        Returns:
            How many steps are done, and the curve so far; 0 and an empty curve where nothing was saved.
        """
        path = self.folder / "state.safetensors"
        tensors = processes.broadcast(load_file(path) if path.is_file() else {})
        if not tensors:
            return 0, []
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

    def save_sometimes(self, done: int, curve: list[CurvePoint]) -> None:
        """Save if the last save is `SAVE_SECONDS` ago; arguments as of `save`."""
        if processes.first() and time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save(done, curve)
            self.saved = time.monotonic()

    def save(self, done: int, curve: list[CurvePoint]) -> None:
        """Write the state.

        Args:
            done: How many steps are done.
            curve: The learning curve so far.

        Raises:
            NoRoomError: The disk is full; the state saved before stays.
        """
        position = json.dumps({"done": done, "curve": curve}).encode()
        tensors = {"position": torch.from_numpy(np.frombuffer(position, dtype=np.uint8).copy())}
        for name, parameter in self.trained.items():
            tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
            moments = self.optimiser.state.get(parameter)
            if moments:
                tensors[f"step.{name}"] = moments["step"].reshape(1).cpu()
                tensors[f"first.{name}"] = moments["exp_avg"].cpu()
                tensors[f"second.{name}"] = moments["exp_avg_sq"].cpu()
        write_tensors(tensors, self.folder / "state.safetensors")


class LearningCurve:
    """The learning curve of a run, about `POINTS` points.

    Args:
        points: Those of an interrupted call; new ones are appended.
        total: Steps of the run.
        epochs: Epochs of the run.
        pairs: Pairs of the run, over all epochs.
    """

    def __init__(self, points: list[CurvePoint], *, total: int, epochs: int, pairs: int) -> None:
        self.points, self.total, self.epochs, self.pairs = points, total, epochs, pairs
        self.every = max(1, total // POINTS)
        self.recent: list[float] = []
        self.began, self.counted = time.monotonic(), 0

    def add(self, done: int, loss: float, learning_rate: float, pairs: int) -> None:
        """Note one step.

        Args:
            done: Steps done, this one included.
            loss: Of this step.
            learning_rate: Of this step.
            pairs: Pairs of this step.
        """
        self.recent.append(loss)
        self.counted += pairs
        if done % self.every and done != self.total:
            return
        self.points.append(
            {
                "step": done,
                "epoch": done * self.epochs / self.total,
                "loss": float(np.mean(self.recent)),
                "learning_rate": learning_rate,
                "pairs_per_second": self.counted / max(time.monotonic() - self.began, 1e-9),
                "pairs": self.pairs * done / self.total,
            }
        )
        self.recent = []
