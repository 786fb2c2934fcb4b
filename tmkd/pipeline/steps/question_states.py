"""A teacher's hidden states of the tokens of questions as a step (`tmkd.training.question_states`).

The teacher reads every pair of the pool once, and the students of all seeds learn from the file. A part that was
written stays when the process is killed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.config.recipe import Recipe
from tmkd.core.console import progress
from tmkd.core.errors import EncoderError
from tmkd.core.files import read_json, write_json
from tmkd.core.hardware import batch_tokens, device, use_bf16
from tmkd.data.pairs import Pairs
from tmkd.models.batching import length_sorted_batches
from tmkd.models.checkpoint import depth, load_encoder
from tmkd.models.encoders.forward import Batch, PairEncoder
from tmkd.models.inputs import TokenInputs
from tmkd.models.student import Student
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.models.tokenizer import Encoded, PairTokenizer
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.token_cache import token_inputs
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.training.hidden_states import StoredStates
from tmkd.training.question_states import QuestionTargets, taught_layers

COUNTS, ABOUT = "counts.npy", "about.json"


def question_states_of(workspace: Workspace, recipe: Recipe, taught_by: Step, pairs: Pairs) -> Step:
    """The hidden states that a teacher has for the tokens of every pair's question, computed once.

    Args:
        workspace: Keeps the step.
        recipe: The recipe, whose cached students learn them.
        taught_by: The teacher.
        pairs: N pairs.

    Returns:
        The step; `question_targets` reads it.

    Raises:
        EncoderError: The teacher's hidden states cannot be read.
    """
    teacher = taught_by.folder
    layers, length, precision = recipe.cached.layers, recipe.max_length, recipe.precision

    def build(folder: Path) -> None:
        tokenizer = PairTokenizer(teacher, length)
        inputs = token_inputs(workspace, tokenizer, pairs)
        counts = _question_tokens(TextTokenizer(teacher, length), pairs, inputs.encoded)
        np.save(folder / COUNTS, counts)
        _write(folder, teacher, inputs, counts, layers, precision)

    content = depends_on(
        settings={"layers": layers, "max_length": length, "precision": precision},
        inputs={"teacher": taught_by, "pairs": pairs},
    )
    return workspace.step("question-states", content, build, label="hidden states of the questions in the teacher")


def question_targets(folder: Path) -> QuestionTargets:
    """Open what `question_states_of` wrote, mapped into memory."""
    counts, about = np.load(folder / COUNTS), read_json(folder / ABOUT)
    stored = StoredStates(folder, counts, len(about["scales"]) * about["width"])
    return QuestionTargets(stored, counts, tuple(about["scales"]))


def _question_tokens(tokenizer: TextTokenizer, pairs: Pairs, encoded: Encoded) -> NDArray[np.int64]:
    """How many tokens a pair begins with that are those of its question alone, special ones included, [N]."""
    questions = list(dict.fromkeys(pairs.questions))
    ids = dict(zip(questions, tokenizer.encode(questions).ids, strict=True))
    counts = np.empty(len(pairs), dtype=np.int64)
    for row, (question, pair) in enumerate(zip(pairs.questions, encoded.ids, strict=True)):
        alone = ids[question]
        both = min(len(alone), len(pair))
        differ = np.flatnonzero(alone[:both] != pair[:both])
        counts[row] = differ[0] if len(differ) else both
    return counts


def _write(
    folder: Path, teacher: Path, inputs: TokenInputs, counts: NDArray[np.int64], layers: int, precision: str
) -> None:
    """Run the teacher on the pairs that are not stored yet, and store the vectors of their questions' tokens."""
    wanted = taught_layers(depth(teacher), layers)
    encoder = load_encoder(teacher, 2, layers=wanted[-1] + 2)  # the last layer of all gives no hidden states
    _require_readable(encoder, wanted, teacher)
    norms = [encoder.base.encoder.layer[layer].output.LayerNorm for layer in wanted]
    scales = [float(norm.weight.detach().square().mean()) for norm in norms]  # the mean square of what a norm gives
    write_json(folder / ABOUT, {"teacher_layers": wanted, "scales": scales, "width": encoder.hidden_size})
    stored = StoredStates(folder, counts, len(wanted) * encoder.hidden_size)
    model, bf16 = Student(encoder, 2).to(device()).eval(), use_bf16(precision)
    left = np.flatnonzero(~stored.read)
    with (
        progress("question states", len(counts), done=len(counts) - len(left)) as bar,
        torch.inference_mode(),
        torch.autocast(device().type, torch.bfloat16, enabled=bf16),
    ):
        for places in length_sorted_batches(inputs.lengths[left], batch_tokens()):
            rows = left[places]
            batch = inputs.batch(model, rows, bf16=bf16)
            assert isinstance(batch, Batch)
            _, states = encoder.with_hidden_states(batch, wanted)
            found = torch.cat([states[layer] for layer in wanted], dim=-1).half().cpu()
            for row, one in zip(rows.tolist(), _by_pair(found, batch), strict=True):
                stored.store([row], one[None].numpy())
            bar.advance(len(rows))


def _by_pair(states: Tensor, batch: Batch) -> list[Tensor]:
    """The vectors of each pair's tokens: of a padded batch [n, T, width], of a packed one [tokens, width]."""
    if batch.packing is None:
        return list(states)
    return list(torch.split(states, batch.packing.starts.diff().tolist()))


def _require_readable(encoder: PairEncoder, layers: list[int], teacher: Path) -> None:
    if encoder.readable_layers <= max(layers):
        raise EncoderError(
            f"cached.stage1.states: the hidden states of {teacher} cannot be read: {encoder.path}; set "
            "cached.stage1.states=0",
            source=teacher,
        )
