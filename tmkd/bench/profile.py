"""`tmkd bench profile`: which kinds of operations the time of training and of scoring goes to.

PyTorch's profiler counts training: the operations that the main thread runs or waits for. A clock around tokenizing
and OpenVINO's own counters, on one thread, count scoring. Both run the same code as `tmkd run` and `tmkd score`.
Training and scoring take turns; the table gives medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from torch.autograd.profiler import profile

from tmkd.bench.material import BenchPairs, Subject, Weights
from tmkd.core.console import progress
from tmkd.core.cpu import machine
from tmkd.core.errors import TmkdError
from tmkd.core.hardware import describe, prepare
from tmkd.inference.engines import operation_seconds
from tmkd.inference.manifest import read_manifest
from tmkd.inference.pair_reader import TOKEN_BUDGET
from tmkd.models.batching import engine_batches, pad
from tmkd.models.checkpoint import load_encoder
from tmkd.models.inputs import TokenInputs
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.training.losses import GoldenLoss
from tmkd.training.trainer import Trainer, TrainerConfig
from tmkd.training.training_set import TrainingSet

Seconds = dict[str, float]

OTHER = "everything else"
KINDS = {  # parts of the names of PyTorch's operations and of OpenVINO's node types
    "matrix products": ("mm", "linear", "FullyConnected", "MatMul"),
    "softmax": ("softmax", "Softmax"),
    "attention in one operation": ("attention", "ScaledDotProduct", "Subgraph"),  # OpenVINO fuses it into subgraphs
    "layer norm": ("layer_norm", "MVN", "NormalizeL2"),
    "gelu": ("gelu", "Gelu"),
    "optimiser": ("adamw", "foreach", "clip_grad"),
    "change of precision or layout": ("copy_", "contiguous", "Reorder", "Convert", "FakeQuantize", "Transpose"),
    "sums of the residual stream and biases": ("::add", "::sum", "Add"),
    "embedding": ("index_select", "embedding", "Gather"),
}


@dataclass(frozen=True)
class ProfileFigures:
    """What `run` measured.

    Attributes:
        turns: For training and for scoring, the seconds of each round by kind of operation.
        pairs: Pairs of one turn.
        notes: Where and how training and scoring ran.
    """

    turns: dict[str, list[Seconds]]
    pairs: int
    notes: dict[str, str]

    def shares(self, part: str) -> dict[str, tuple[float, float, float]]:
        """The median, smallest and largest share of the time by kind of operation, largest median first.

        Args:
            part: `training` or `scoring`.
        """
        turns = self.turns[part]
        kinds = {kind for turn in turns for kind in turn}
        found = {kind: [turn.get(kind, 0.0) / sum(turn.values()) for turn in turns] for kind in kinds}
        spreads = {kind: (statistics.median(values), min(values), max(values)) for kind, values in found.items()}
        return dict(sorted(spreads.items(), key=lambda one: -one[1][0]))

    def to_json(self) -> dict[str, Any]:
        """{"bench", "machine", "rows": [{"name", "part", "ours", "unit", "median", "min", "max"}]}."""
        rows = [
            {"name": kind, "part": part, "ours": True, "unit": "share", "median": middle, "min": low, "max": high}
            for part in self.turns
            for kind, (middle, low, high) in self.shares(part).items()
        ]
        return {"bench": "profile", "machine": machine(), "pairs": self.pairs, "notes": self.notes, "rows": rows}

    def shown(self) -> list[RenderableType]:
        """Two tables for a terminal."""
        found: list[RenderableType] = []
        for part, turns in self.turns.items():
            each = 1e6 * statistics.median(sum(turn.values()) for turn in turns) / self.pairs
            shown = Table(title=f"{part}: {each:,.0f} us a pair ({self.notes[part]})", title_justify="left")
            for column in ("", "share", "min", "max"):
                shown.add_column(column, justify="right" if column else "left")
            for kind, values in self.shares(part).items():
                shown.add_row(kind, *(f"{value:.1%}" for value in values))
            found.append(shown)
        return found


def run(subject: Subject, *, count: int = 512, rounds: int = 5, threads: int = 0) -> ProfileFigures:
    """Profile training of the student, and scoring with the fastest of its OpenVINO backends.

    Args:
        subject: The model and the pairs.
        count: Pairs of one turn.
        rounds: Turns after one that warms up.
        threads: Of training; 0 for all usable cores.

    Raises:
        TmkdError: The export has no OpenVINO backend, or the pairs or the model cannot be used.
    """
    material, model = subject.prepare(export=True)
    prepare(threads or None)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # on one thread, as OpenVINO is counted
    manifest = read_manifest(model.export)
    usable = [name for name in manifest.backends if name.startswith("openvino-") and manifest.has(name)]
    if not usable:
        raise TmkdError(f"{model.export} has no OpenVINO backend; scoring is profiled with OpenVINO's counters")
    backend = max(usable, key=manifest.speed)
    exported = model.export / str(manifest.backends[backend]["file"])
    turns: dict[str, list[Seconds]] = {"training": [], "scoring": []}
    with progress("profile", rounds + 1, unit="turns") as bar:
        for number in range(rounds + 1):  # the first warms up
            found = {
                "training": _training(model, material, count),
                "scoring": _scoring(model, material, count, exported),
            }
            for part, seconds in found.items() if number else ():
                turns[part].append(seconds)
            bar.advance(1)
    pairs = len(material.first(count)[0])
    notes = {"training": describe("auto"), "scoring": f"{backend}, one thread"}
    return ProfileFigures(turns, pairs, notes)


def kind_of(operation: str) -> str:
    """The kind of an operation of PyTorch or of a node of OpenVINO, by its name."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), OTHER)


def _training(model: Weights, pairs: BenchPairs, count: int) -> Seconds:
    questions, passages, labels = pairs.first(count)
    tokenizer = PairTokenizer(model.student, model.max_length)
    student = Student(load_encoder(model.student, 2), 2)
    start = time.perf_counter()
    encoded = tokenizer.encode(questions, passages)
    seconds: Seconds = defaultdict(float, tokenizing=time.perf_counter() - start)
    loss, config = GoldenLoss(torch.tensor(labels)), TrainerConfig(1e-5, 1, 32, 0)
    data = TrainingSet(TokenInputs(encoded, tokenizer.pad_id))
    with tempfile.TemporaryDirectory() as state, profile(use_kineto=False) as profiler:
        Trainer(student, data, loss, config, name="profile", state_folder=Path(state)).fit()
    for event in profiler.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return dict(seconds)


def _scoring(model: Weights, pairs: BenchPairs, count: int, exported: Path) -> Seconds:
    questions, passages, _ = pairs.first(count)
    tokenizer = PairTokenizer(model.export, model.max_length)
    start = time.perf_counter()
    encoded = tokenizer.encode(questions, passages)
    tokenized = time.perf_counter()
    batches = [
        dict(zip(("input_ids", "attention_mask", "token_type_ids"), padded, strict=True))
        for batch in engine_batches(encoded.lengths, TOKEN_BUDGET, 1)
        for padded in [pad(encoded.ids, encoded.type_ids, batch, tokenizer.pad_id)]
    ]
    padding = time.perf_counter() - tokenized
    seconds: Seconds = defaultdict(float, {"tokenizing": tokenized - start, "padding": padding})
    for kind, spent in operation_seconds(exported, batches).items():
        seconds[kind_of(kind)] += spent
    return dict(seconds)
