"""How fast the models of a run are on this machine, measured once for a set of pairs."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tmkd.core.files import read_json, write_json
from tmkd.core.hardware import batch_tokens, describe, device, use_bf16
from tmkd.data.pairs import Pairs
from tmkd.evaluation.results import ENSEMBLE, ModelOutput
from tmkd.evaluation.speed import measure_speed
from tmkd.models.batching import length_sorted_batches
from tmkd.models.card import has_card, read_card
from tmkd.models.checkpoint import load_student
from tmkd.models.encoders.cached_files import ENCODER_FOLDER, is_cached, question_folder
from tmkd.models.encoders.interaction import InteractionEncoder
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import score
from tmkd.models.text_reader import TextReader
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.finished_run import FinishedRun
from tmkd.pipeline.store.fingerprint import depends_on

SPEED_PAIRS = 256  # how many pairs the speed is measured on


def add_speed(run: FinishedRun, outputs: Sequence[ModelOutput], pairs: Pairs) -> None:
    """Fill in the speed of a run's models, in place.

    One model of every shape is timed: teachers of one encoder are equally fast. The ensemble takes the time of all its
    teachers, where all are timed, and `m-o-m` that of all its students.

    Args:
        run: where the models are.
        outputs: the models' outputs; those that are no cross-encoders of the run get no speed.
        pairs: a sample of them is scored.
    """
    folders = {model.name: [step.folder for step in run.steps(model.steps[: model.each])] for model in run.models}
    shapes = {name: _shape(each[0]) for name, each in folders.items() if each and has_card(each[0])}
    one_of = {shape: folders[name][0] for name, shape in reversed(shapes.items())}
    speeds = _speeds(run, one_of, pairs)
    for output in outputs:
        if output.name in shapes:
            speed = speeds[shapes[output.name]]
            models = len(folders[output.name])
            output.pairs_per_second = speed["pairs_per_second"] / models
            output.milliseconds = {int(size): models * value for size, value in speed["milliseconds"].items()}
    teachers = [output for output in outputs if output.kind == "teacher"]
    for output in outputs:
        if output.name == ENSEMBLE and teachers and all(teacher.pairs_per_second for teacher in teachers):
            output.pairs_per_second = 1 / sum(1 / (teacher.pairs_per_second or 1) for teacher in teachers)
            output.milliseconds = {
                size: sum((teacher.milliseconds or {})[size] for teacher in teachers)
                for size in teachers[0].milliseconds or {}
            }


def speed_sample(pairs: Pairs) -> Pairs:
    """The pairs that speed is measured on: at most SPEED_PAIRS of them, always the same ones."""
    return pairs.take(np.random.default_rng(0).permutation(len(pairs))[:SPEED_PAIRS])


def machine(precision: str) -> list[str]:
    """What a measured time depends on besides models and pairs: the computer's name, and what it computes with."""
    return [platform.node(), describe(precision)]


def _shape(folder: Path) -> str:
    """A text that is the same for models that take the same time."""
    config = read_json(folder / "config.json")
    if is_cached(folder):
        return f"{json.dumps(config, sort_keys=True)} at {read_card(folder).max_length}"
    return (
        f"{config['model_type']}-{config['num_hidden_layers']}x{config['hidden_size']}"
        f"x{config.get('intermediate_size', 0)} at {read_card(folder).max_length}"
    )


def _speeds(run: FinishedRun, one_of: dict[str, Path], pairs: Pairs) -> dict[str, Any]:
    """The speed of one model of every shape, measured side by side."""
    sample, precision = speed_sample(pairs), run.recipe.precision
    content = depends_on(settings={"shapes": sorted(one_of), "machine": machine(precision)}, inputs={"pairs": sample})

    def build(folder: Path) -> None:
        scorers = {shape: _scorer(model, precision, sample.passages) for shape, model in one_of.items()}
        found = measure_speed(scorers, sample.questions, sample.passages)
        write_json(folder / "speed.json", {shape: asdict(speed) for shape, speed in found.items()})

    step = run.workspace.step("speed", content, build, label="measure speed")
    speeds: dict[str, Any] = read_json(step.folder / "speed.json")
    return speeds


def _scorer(folder: Path, precision: str, passages: Sequence[str]) -> Any:
    if is_cached(folder):
        return CachedScorer(folder, precision, passages)
    model = load_student(folder)
    tokenizer = PairTokenizer(folder, read_card(folder).max_length)

    def run(questions: Any, passages: Any) -> NDArray[np.float32]:
        inputs = TokenInputs(tokenizer.encode(questions, passages), tokenizer.pad_id)
        return score(model, inputs, precision=precision)

    return run


class CachedScorer:
    """Scores pairs with a student that reads passages once, as its users do: passages were read beforehand.

    Every distinct question of a call is read once, in the call.

    Args:
        folder: The student's.
        precision: Of the arithmetic, as in a recipe.
        passages: All that will be asked for.
    """

    def __init__(self, folder: Path, precision: str, passages: Sequence[str]) -> None:
        student = load_student(folder).to(device()).eval()
        assert isinstance(student.encoder, InteractionEncoder)
        self.encoder, self.bf16 = student.encoder, use_bf16(precision)
        self.weight, self.bias = student.fold()
        length, asking = read_card(folder).max_length, question_folder(folder)
        reader = TextReader(folder / ENCODER_FOLDER, length, precision, tokenizer=folder)
        self.reader = reader if asking is None else TextReader(asking, length, precision)
        self.passages: dict[str, tuple[Tensor, Tensor]] = {}
        distinct = list(dict.fromkeys(passages))
        with torch.inference_mode():
            for row, (hidden, embedding) in reader.states(distinct):
                states = self.encoder.states(torch.from_numpy(hidden).to(device()).float())
                self.passages[distinct[row]] = states, torch.from_numpy(embedding).to(device())

    def __call__(self, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float32]:
        """The logits of N pairs, [N, C]."""
        distinct = list(dict.fromkeys(questions))
        asked: dict[str, tuple[Tensor, Tensor]] = {}
        for row, (hidden, embedding) in self.reader.states(distinct):
            asked[distinct[row]] = (
                torch.from_numpy(hidden).to(device()).float(),
                torch.from_numpy(embedding).to(device()),
            )
        lengths = np.array([len(self.passages[text][0]) for text in passages])
        found = np.empty((len(passages), len(self.bias)), dtype=np.float32)
        with torch.inference_mode():
            for rows in length_sorted_batches(lengths, batch_tokens()):
                pairs = [(asked[questions[row]], self.passages[passages[row]]) for row in rows]
                found[rows] = self._logits(pairs, alone=len(distinct) == 1)
        return found

    def _logits(
        self, pairs: Sequence[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]], *, alone: bool
    ) -> NDArray[np.float32]:
        """The logits of some pairs, [n, C]; `alone`: all have one question."""
        question, question_mask = _padded([asked[0] for asked, _ in (pairs[:1] if alone else pairs)])
        states, mask = _padded([passage[0] for _, passage in pairs])
        cosine = torch.stack([asked[1] @ passage[1] for asked, passage in pairs])
        with torch.autocast(device().type, torch.bfloat16, enabled=self.bf16):
            h, _ = self.encoder.read(question, question_mask, states, mask, cosine)
        logits: NDArray[np.float32] = (h.float() @ self.weight.T + self.bias).cpu().numpy()
        return logits


def _padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States of n texts in one rectangle, [n, T, k], and which of them are no padding, [n, T]."""
    lengths = torch.tensor([len(one) for one in states])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return pad_sequence(list(states), batch_first=True), mask.float().to(device())
