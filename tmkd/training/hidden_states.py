"""Hidden states: an auxiliary objective of stage 1 for a student that begins with a teacher's layers (ours).

Each of the student's n layers stands for a group of the teacher's layers: with three for six, the first layer stands
for the teacher's first two. So after each layer every token learns the vector that it has in the teacher after that
group (hidden states: Jiao et al. 2020, "TinyBERT", section 3; layers: Sanh et al. 2019, "DistilBERT", section 3). A
soft label is one number for a pair; hidden states are hundreds of numbers for each token, and they make the same pairs
worth more (docs/lab-notes.md, "What the teacher's hidden states add").

They are too many to store for good (gigabytes). So the teacher, cut after the last layer that is read, runs beside the
student in the first pass over the pairs. Further passes read its hidden states from a file that is deleted
when the stage is done. Soft labels are read from the label store as always.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmkd.core.files import disk_errors
from tmkd.core.hardware import device, use_bf16
from tmkd.models.batching import stacked
from tmkd.models.checkpoint import depth, load_encoder
from tmkd.models.encoders.forward import Batch
from tmkd.models.layers import spaced_layers
from tmkd.models.student import AnyBatch, Encoder, StudentOutput
from tmkd.training.objectives import StatesObjective

logger = logging.getLogger(__name__)

SHARE_OF_DISK = 0.25  # most of the free space that stored hidden states may take
VALUES, READ = "states.f16", "states.read"  # files of `StoredStates`
_BLOCK = 1 << 20  # bytes that are written at once


@dataclass(frozen=True)
class HiddenStatesConfig:
    """How hidden states are learned.

    Attributes:
        weight: What the loss is multiplied by.
        precision: Of the teacher's arithmetic: `auto`, `bf16` or `fp32`, as in a recipe.
        until: They are learned in this share of the steps, the first ones.
    """

    weight: float
    precision: str = "auto"
    until: float = 1.0


class StoredStates:
    """The teacher's hidden states of the pairs that it has read, in a file: token after token, as float16.

    A pair counts as read once all of it is written, so a stage that was killed continues with the same numbers.

    Args:
        folder: Where the files are; that of the stage's resumable state.
        lengths: Tokens of each pair, [N].
        width: Numbers of one token, over all layers.
    """

    def __init__(self, folder: Path, lengths: NDArray[np.integer], width: int) -> None:
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        shape = (int(self.starts[-1]), width)
        self.values = np.memmap(_reserved(folder / VALUES, shape[0] * width * 2), np.float16, "r+", shape=shape)
        self.read = np.memmap(_reserved(folder / READ, len(lengths)), np.bool_, "r+")

    def load(self, rows: list[int], longest: int) -> NDArray[np.float16] | None:
        """Read the hidden states of some pairs.

        Args:
            rows: The pairs, n indices.
            longest: T, the width of the batch.

        Returns:
            [n, T, width], zeros after a pair's end; None if one of the pairs is not stored yet.
        """
        if not self.read[rows].all():
            return None
        return stacked([self.values[self.starts[row] : self.starts[row + 1]] for row in rows], longest)

    def store(self, rows: list[int], states: NDArray[np.float16]) -> None:
        """Write the hidden states of some pairs.

        Args:
            rows: The pairs, n indices.
            states: [n, T, width].
        """
        for line, row in enumerate(rows):
            start, end = self.starts[row : row + 2]
            self.values[start:end] = states[line, : end - start]
        self.read[rows] = True


def _reserved(path: Path, size: int) -> Path:
    """Make a file of `size` zero bytes and take its room on the disk now, so that no later write into it can fail."""
    with disk_errors(path, size), path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return path
        while (left := size - file.tell()) > 0:  # macOS and Windows have no such function: zeros are written
            file.write(bytes(min(left, _BLOCK)))
    return path


class HiddenStates(StatesObjective):
    """Every token learns a teacher's hidden states, after each of the student's layers but the last.

    The loss of a pair is the squared error, divided by the teacher's mean square in that layer, and averaged over the
    pair's tokens and over the layers. The teacher is frozen and is not saved.

    Requirements:
        1. A student whose layers are evenly spaced layers of the first teacher (`student.start: teacher`).
        2. An encoder with our forward and at least two layers (`readable_layers` > 0); see `hidden_states_objectives`.

    Inputs:
        | the student's hidden states | the teacher's |
        |---|---|
        | after each layer but the last, [n, T, d] | after the last layer that each of them stands for, [n, T, d] |

    References:
        Jiao et al. 2020, "TinyBERT", equation 8; for the first teacher without its projection.

    Args:
        encoder: The student's.
        teacher: The teacher's checkpoint folder; its width and its depth are those of the first teacher.
        config: Weight, and the precision of the teacher's arithmetic.
        number: Of the teacher, from 0, the one that the student's layers come from.
    """

    def __init__(self, encoder: Encoder, teacher: Path, config: HiddenStatesConfig, number: int = 0) -> None:
        super().__init__(config.weight, range(encoder.readable_layers), config.until, number, encoder.hidden_size)
        # What goes into each of these layers is what the student is to give its own next layer.
        nexts = spaced_layers(depth(teacher), encoder.layers)[1:]
        self.width = len(nexts) * encoder.hidden_size
        self.taught_layers = [layer - 1 for layer in nexts]
        self.teacher = load_encoder(teacher, 2, layers=nexts[-1] + 1).requires_grad_(False).eval()
        if use_bf16(config.precision):  # once, instead of at every step
            for module in self.teacher.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        self.scales = [float(norm.weight.square().mean()) for norm in self._norms()]
        self.stored: StoredStates | None = None

    def _norms(self) -> list[nn.LayerNorm]:
        """The norms whose outputs are read; their weights' mean square is that of the outputs."""
        return [self.teacher.base.encoder.layer[layer].output.LayerNorm for layer in self.taught_layers]

    def store(self, folder: Path, lengths: NDArray[np.integer]) -> None:
        """From now on run the teacher once for each pair, and read its hidden states from a file after that.

        Nothing changes on a GPU, or if the file would take more than `SHARE_OF_DISK` of the free space.

        Args:
            folder: Where the file is; that of the stage's resumable state.
            lengths: Tokens of each pair of the training set, [N].
        """
        if device().type != "cpu":
            return
        size = int(lengths.sum()) * self.width * 2
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if not (folder / VALUES).is_file() and size > SHARE_OF_DISK * free:
            logger.info(
                f"the teacher's hidden states would take {size / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are free: "
                "the teacher runs in every pass"
            )
            return
        logger.info(
            f"the teacher's hidden states are stored in the first pass: {size / 1e9:.1f} GB until the stage is done"
        )
        self.stored = StoredStates(folder, lengths, self.width)

    def loss(self, output: StudentOutput, batch: AnyBatch, rows: Tensor) -> Tensor:
        """See `AuxiliaryObjective.loss`."""
        assert isinstance(batch, Batch)
        errors = torch.stack(
            [
                (self.projected(output.hidden_states[layer]) - taught.float()).square().mean(dim=-1) / scale
                for layer, taught, scale in zip(self.layers, self._taught(batch, rows), self.scales, strict=True)
            ]
        ).mean(dim=0)  # [n, T]; packed: [tokens]
        return _mean_of_pairs(errors, batch)

    def _taught(self, batch: Batch, rows: Tensor) -> list[Tensor]:
        """The teacher's hidden states, for each layer [n, T, d]; packed: [tokens, d].

        They are float16, stored or not: what is learned does not depend on the disk's room for stored states. They fit:
        a norm's output is its weight times sqrt(d) at most, plus its bias.
        """
        if self.stored is None or batch.packing is not None:
            return [states.half() for states in self._run_teacher(batch)]
        pairs = rows.tolist()
        found = self.stored.load(pairs, batch.input_ids.shape[1])
        if found is None:
            found = torch.cat(self._run_teacher(batch), dim=-1).half().numpy()  # autocast joins no float16 on a CPU
            self.stored.store(pairs, found)
        return list(torch.from_numpy(found).chunk(len(self.scales), dim=-1))

    def _run_teacher(self, batch: Batch) -> list[Tensor]:
        """As `_taught`, as the teacher gives them."""
        with torch.no_grad():
            _, states = self.teacher.with_hidden_states(batch, self.taught_layers)
        return [states[layer] for layer in self.taught_layers]


def hidden_states_objectives(
    encoder: Encoder, teachers: Sequence[Path], config: HiddenStatesConfig
) -> list[HiddenStates]:
    """Make the objective of each teacher where the encoder allows it.

    Args:
        encoder: The student's.
        teachers: As in `HiddenStates`, the one that the student's layers come from first.
        config: As in `HiddenStates`; the teachers share the weight.

    Returns:
        An objective for each teacher; an empty list, and a line in the log, if there is no layer to read from.
    """
    if encoder.readable_layers or not teachers:
        shared = replace(config, weight=config.weight / max(1, len(teachers)))
        return [HiddenStates(encoder, one, shared, number) for number, one in enumerate(teachers)]
    logger.warning("the teacher's hidden states are not learned: no layer below the last can be read")
    return []


def _mean_of_pairs(values: Tensor, batch: Batch) -> Tensor:
    """Average over each pair's tokens: values [n, T] (packed: [tokens]) -> [n]."""
    if batch.packing is not None:
        lengths = batch.packing.starts.diff().long()
        pairs = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
        return values.new_zeros(len(lengths)).index_add_(0, pairs, values) / lengths
    if batch.attention_mask is None:
        return values.mean(dim=1)
    return (values * batch.attention_mask).sum(dim=1) / batch.attention_mask.sum(dim=1)
