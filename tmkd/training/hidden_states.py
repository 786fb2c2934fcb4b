"""In stage 1 a student that begins with a teacher's layers also learns what the teacher's tokens look like (ours).

Each of n layers stands for a run of the teacher's: of three for six, the first for the first two. So after each of
them every token is to look as it does in the teacher after that run (hidden states: Jiao et al. 2020, "TinyBERT",
section 3; the layers: Sanh et al. 2019, "DistilBERT", section 3). A soft label is a number a pair, these are hundreds
of numbers a token, and pairs go further (docs/results.md, "What the teacher's hidden states add"). They are too many to
be kept for good (gigabytes), so this one teacher, cut after the last layer that is read, runs beside the student in the
first pass over the pairs; where there are more passes, these read what it gave from a file that goes when the stage is
done. Labels are read from the store as ever.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmkd.core.hardware import device, use_bf16
from tmkd.models.checkpoint import depth, load_encoder
from tmkd.models.encoders.forward import Batch, FirstTokenEncoder, PairEncoder
from tmkd.models.layers import spaced_layers
from tmkd.models.student import Logits
from tmkd.training.token_cosine import Comparing, keep_states

logger = logging.getLogger(__name__)

SHARE_OF_DISK = 0.25  # of what is free there, that kept states may take


class KeptStates:
    """The states of pairs that the teacher has read, in a file, token after token and pair after pair, as float16.

    A pair counts as read once all of it is written: a stage that was killed goes on with the same numbers.

    Args:
        folder: of the stage's resumable state.
        lengths: tokens of each pair, [N].
        width: numbers of a token.
    """

    def __init__(self, folder: Path, lengths: NDArray[np.int64], width: int) -> None:
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        shape = (int(self.starts[-1]), width)
        self.values = np.memmap(_reserved(folder / "states.f16", shape[0] * width * 2), np.float16, "r+", shape=shape)
        self.read = np.memmap(_reserved(folder / "states.read", len(lengths)), np.bool_, "r+")

    def of(self, rows: list[int], longest: int) -> NDArray[np.float16] | None:
        """The states of these pairs, [n, longest, width], zeros behind a pair's end; None where one is not read yet."""
        if not self.read[rows].all():
            return None
        found = np.zeros((len(rows), longest, self.values.shape[1]), dtype=np.float16)
        for line, row in enumerate(rows):
            one = self.values[self.starts[row] : self.starts[row + 1]]
            found[line, : len(one)] = one
        return found

    def keep(self, rows: list[int], states: NDArray[np.float16]) -> None:
        """Write the states of these pairs, [n, T, width]."""
        for line, row in enumerate(rows):
            start, end = self.starts[row : row + 2]
            self.values[start:end] = states[line, : end - start]
        self.read[rows] = True


def _reserved(path: Path, size: int) -> Path:
    """A file of so many bytes that the disk has room for, so that no write through memory can fail; zeros at first."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return path


class Following(Comparing):
    """A student in stage 1 that tells how far its tokens are from those of the teacher that it began with.

    `Logits.states`, [n]: the squared error between states, by the teacher's scale, meaned over the pair's tokens and
    over the layers but the last, of which only the first token is computed. Empty outside training, for a student of
    one layer, and where the transformers module runs the encoder. The teacher is no part of what is trained or saved.

    Args:
        teacher: the checkpoint whose evenly spaced layers the student began with.
        precision: of the teacher's arithmetic, as in a recipe.
        width: as in `Comparing`.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        classes: int,
        soft_heads: int = 0,
        *,
        width: int,
        teacher: Path,
        precision: str = "auto",
        use_golden: bool = True,
    ) -> None:
        super().__init__(encoder, classes, soft_heads, width=width, use_golden=use_golden)
        self.own: list[Tensor] = []
        self.taught: list[Tensor] = []
        self.kept: KeptStates | None = None
        self.teacher: tuple[FirstTokenEncoder, ...] = ()  # in a tuple: a module would be saved with the student
        if not isinstance(encoder, FirstTokenEncoder) or encoder.layers == 1:
            logger.warning("the teacher's states are not learned: there is no layer below the last to read from")
            return
        nexts = spaced_layers(depth(teacher), encoder.layers)[
            1:
        ]  # what goes into these is what it is to give its next layer
        frozen = load_encoder(teacher, classes, layers=nexts[-1] + 1).requires_grad_(False).eval()
        assert isinstance(frozen, FirstTokenEncoder)
        if use_bf16(precision):  # once, rather than at every step
            for module in frozen.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        self.teacher = (frozen.to(device()),)
        keep_states(encoder, list(range(encoder.layers - 1)), self.own)
        norms = keep_states(frozen, [layer - 1 for layer in nexts], self.taught)
        self.scales = [float(norm.weight.square().mean()) for norm in norms]  # mean squares of their outputs

    def keep(self, folder: Path, lengths: NDArray[np.int64]) -> None:
        """From here on the teacher reads a pair once. Not where a GPU runs it, nor where the disk has little room.

        Args: as of `KeptStates`.
        """
        if not self.teacher or device().type != "cpu":
            return
        width = len(self.scales) * self.encoder.hidden_size
        size = int(lengths.sum()) * width * 2
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if not (folder / "states.f16").is_file() and size > SHARE_OF_DISK * free:
            logger.info(
                f"the teacher's states would take {size / 1e9:.1f} GB of {free / 1e9:.1f}: it runs in every pass"
            )
            return
        logger.info(
            f"the teacher's states are kept from the first pass on: {size / 1e9:.1f} GB until the stage is done"
        )
        self.kept = KeptStates(folder, lengths, width)

    def forward(self, batch: Batch) -> Logits:
        """As `Comparing.forward`, with the distance of the states."""
        self.own.clear()
        logits = super().forward(batch)
        if not self.training or not self.teacher:
            return logits
        apart = torch.stack(
            [
                (own.float() - taught.float()).square().mean(dim=-1) / scale
                for own, taught, scale in zip(self.own, self._taught(batch), self.scales, strict=True)
            ]
        ).mean(dim=0)  # [n, T]; packed: [tokens]
        return logits._replace(states=_mean_of_pairs(apart, batch))

    def _taught(self, batch: Batch) -> list[Tensor]:
        """The teacher's states, each [n, T, d]; packed: [tokens, d]."""
        if self.kept is None or batch.packing is not None or batch.rows is None:
            return self._run_teacher(batch)
        rows, longest = batch.rows.tolist(), batch.input_ids.shape[1]
        found = self.kept.of(rows, longest)
        if found is None:
            found = torch.cat(self._run_teacher(batch), dim=-1).half().numpy()
            self.kept.keep(rows, found)
        return list(torch.from_numpy(found).chunk(len(self.scales), dim=-1))

    def _run_teacher(self, batch: Batch) -> list[Tensor]:
        self.taught.clear()
        with torch.no_grad():
            self.teacher[0](batch)
        return self.taught


def _mean_of_pairs(values: Tensor, batch: Batch) -> Tensor:
    """The mean over each pair's tokens, [n]."""
    if batch.packing is not None:
        lengths = batch.packing.starts.diff().long()
        pairs = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
        return values.new_zeros(len(lengths)).index_add_(0, pairs, values) / lengths
    if batch.attention_mask is None:
        return values.mean(dim=1)
    return (values * batch.attention_mask).sum(dim=1) / batch.attention_mask.sum(dim=1)
