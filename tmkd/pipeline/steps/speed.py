"""How fast the models of a run are on this machine, measured once for a set of pairs."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.files import write_json
from tmkd.core.hardware import describe
from tmkd.data.pairs import Pairs
from tmkd.evaluation.results import ENSEMBLE, ModelOutput
from tmkd.evaluation.speed import measure_speed
from tmkd.models.card import read_card
from tmkd.models.checkpoint import load_student
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import score
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.finished_run import FinishedRun
from tmkd.pipeline.store.fingerprint import depends_on

SPEED_PAIRS = 256  # how many pairs the speed is measured on


def add_speed(run: FinishedRun, outputs: Sequence[ModelOutput], pairs: Pairs) -> None:
    """Fill in the speed of a run's models, in place.

    One model of every shape is timed: teachers of one encoder are equally fast. The ensemble takes the time of all its
    teachers, and `m-o-m` that of all its students.

    Args:
        run: where the models are.
        outputs: the models' outputs; those that are not in the run, and columns of scores, get no speed.
        pairs: a sample of them is scored.
    """
    folders = {model.name: [step.folder for step in run.steps(model.steps[: model.each])] for model in run.models}
    shapes = {name: _shape(each[0]) for name, each in folders.items() if each}
    one_of = {shape: folders[name][0] for name, shape in reversed(shapes.items())}
    speeds = _speeds(run, one_of, pairs)
    for output in outputs:
        if output.name in shapes:
            speed = speeds[shapes[output.name]]
            models = len(folders[output.name])
            output.pairs_per_second = speed["pairs_per_second"] / models
            output.milliseconds = {int(size): models * value for size, value in speed["milliseconds"].items()}
    teachers = [output for output in outputs if output.kind == "teacher" and output.pairs_per_second]
    for output in outputs:
        if output.name == ENSEMBLE and teachers:
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
    config = json.loads((folder / "config.json").read_text())
    return (
        f"{config['model_type']}-{config['num_hidden_layers']}x{config['hidden_size']}"
        f"x{config.get('intermediate_size', 0)} at {read_card(folder).max_length}"
    )


def _speeds(run: FinishedRun, one_of: dict[str, Path], pairs: Pairs) -> dict[str, Any]:
    """The speed of one model of every shape, measured side by side."""
    sample, precision = speed_sample(pairs), run.recipe.precision
    content = depends_on(settings={"shapes": sorted(one_of), "machine": machine(precision)}, inputs={"pairs": sample})

    def build(folder: Path) -> None:
        scorers = {shape: _scorer(model, precision) for shape, model in one_of.items()}
        found = measure_speed(scorers, sample.questions, sample.passages)
        write_json(folder / "speed.json", {shape: asdict(speed) for shape, speed in found.items()})

    step = run.workspace.step("speed", content, build, label="measure speed")
    speeds: dict[str, Any] = json.loads((step.folder / "speed.json").read_text())
    return speeds


def _scorer(folder: Path, precision: str) -> Any:
    model = load_student(folder)
    tokenizer = PairTokenizer(folder, read_card(folder).max_length)

    def run(questions: Any, passages: Any) -> NDArray[np.float32]:
        inputs = TokenInputs(tokenizer.encode(questions, passages), tokenizer.pad_id)
        return score(model, inputs, precision=precision)

    return run
