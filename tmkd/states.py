"""In stage 1 a student that begins with a teacher's layers also learns what the teacher's tokens look like (ours).

Each of n layers stands for a run of the teacher's: of three for six, the first for the first two. So after each of
them every token is to look as it does in the teacher after that run (hidden states: Jiao et al. 2020, "TinyBERT",
section 3; the layers: Sanh et al. 2019, "DistilBERT", section 3). A soft label is a number a pair, these are hundreds
of numbers a token, and pairs go further (docs/results.md, "What the teacher's hidden states add"). They are too many to
be stored (gigabytes), so this one teacher, cut after the last layer that is read, runs beside the student. Labels are
read from the store as ever.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tmkd.comparing import Comparing, keep_states
from tmkd.encoder.checkpoint import depth, load_encoder, spaced
from tmkd.encoder.forward import FirstTokenEncoder, Packing, PairEncoder
from tmkd.hardware import device, use_bf16
from tmkd.progress import say
from tmkd.student import Logits


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
        soft_headers: int = 0,
        *,
        width: int,
        teacher: Path,
        precision: str = "auto",
        use_golden: bool = True,
    ) -> None:
        super().__init__(encoder, classes, soft_headers, width=width, use_golden=use_golden)
        self.own: list[Tensor] = []
        self.taught: list[Tensor] = []
        self.teacher: tuple[FirstTokenEncoder, ...] = ()  # in a tuple: a module would be saved with the student
        if not isinstance(encoder, FirstTokenEncoder) or encoder.layers == 1:
            say("the teacher's states are not learned: there is no layer below the last to read from")
            return
        nexts = spaced(depth(teacher), encoder.layers)[1:]  # what goes into these is what it is to give its next layer
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

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        packing: Packing | None = None,
    ) -> Logits:
        """As `Comparing.forward`, with the distance of the states."""
        self.own.clear()
        logits = super().forward(input_ids, attention_mask, token_type_ids, packing)
        if not self.training or not self.teacher:
            return logits
        self.taught.clear()
        with torch.no_grad():
            self.teacher[0](input_ids, attention_mask, token_type_ids, packing)
        apart = torch.stack(
            [
                (own.float() - taught.float()).square().mean(dim=-1) / scale
                for own, taught, scale in zip(self.own, self.taught, self.scales, strict=True)
            ]
        ).mean(dim=0)  # [n, T]; packed: [tokens]
        return logits._replace(states=_mean_of_pairs(apart, attention_mask, packing))


def _mean_of_pairs(values: Tensor, attention_mask: Tensor | None, packing: Packing | None) -> Tensor:
    """The mean over each pair's tokens, [n]."""
    if packing is not None:
        lengths = packing.starts.diff().long()
        pairs = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
        return values.new_zeros(len(lengths)).index_add_(0, pairs, values) / lengths
    if attention_mask is None:
        return values.mean(dim=1)
    return (values * attention_mask).sum(dim=1) / attention_mask.sum(dim=1)
