"""Measure the models of a run on labelled pairs, and write the report.

The bridge between the pipeline's steps and `tmkd.evaluation`, which knows nothing of training.
"""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.config.load import parse_recorded_recipe
from tmkd.config.recipe import Recipe
from tmkd.core.console import progress
from tmkd.core.errors import TmkdError
from tmkd.core.files import write_json
from tmkd.core.hardware import describe, prepare
from tmkd.data.pairs import Pairs
from tmkd.evaluation.comparison import ComparisonOptions, compare
from tmkd.evaluation.components import agreement, measure_components
from tmkd.evaluation.results import ENSEMBLE, ModelOutput, Results
from tmkd.evaluation.speed import measure
from tmkd.inference.engines import installed
from tmkd.inference.scorer import Scorer, read_manifest
from tmkd.models.bi_encoder import cosine_logits
from tmkd.models.checkpoint import load_student, read_card
from tmkd.models.encoders.families import last_linear
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.encoders.lstm import is_lstm
from tmkd.models.predict import score
from tmkd.models.student import COMBINATIONS
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.teach import column_logits, made_reference, method_logits
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.ensemble import ensemble_logits

logger = logging.getLogger(__name__)

SPEED_PAIRS = 256  # test pairs that the speed is measured on


@dataclass(frozen=True)
class RunModels:
    """What a run's manifest says: its recipe and the folders of every model."""

    folder: Path
    recipe: Recipe
    models: list[dict[str, Any]]
    take: str
    stage1: list[str]
    workspace: Workspace

    @classmethod
    def read(cls, run: Path, workspace: Workspace | None = None) -> RunModels:
        """Read runs/NAME/manifest.json, in the workspace that holds it; TmkdError where there is none."""
        path = run / "manifest.json"
        if not path.is_file():
            raise TmkdError(
                f"{run} is not a finished run (no manifest.json); give a folder such as workspace/runs/demo"
            )
        if not (place := run.resolve().parent.parent / "steps").is_dir():
            raise TmkdError(f"{run} lies in no workspace: its models are in {place}, which is not there")
        content = json.loads(path.read_text())
        return cls(
            run, parse_recorded_recipe(content["recipe"], str(path)), content["models"], content["take"],
            content.get("stage1", []), workspace or Workspace(run.resolve().parent.parent),
        )  # fmt: skip

    def steps(self, names: list[str]) -> list[Step]:
        """Finished steps by their folders' names, such as a model's: one per seed."""
        steps = []
        for name in names:
            kind, _, mark = name.rpartition("-")
            folder = self.workspace.root / "steps" / name
            if not folder.is_dir():
                raise TmkdError(f"{folder} is gone; run the recipe again to make it anew")
            steps.append(Step(kind, mark, folder))
        return steps


def outputs(run: RunModels, pairs: Pairs, *, timed: bool) -> list[ModelOutput]:
    """Every model of a run on the pairs: teachers, their ensemble, baselines, students."""
    workspace, recipe = run.workspace, run.recipe
    columns = {teacher.name: teacher for teacher in recipe.all_teachers if teacher.scores}
    found: list[ModelOutput] = []
    teachers: list[NDArray[np.float64]] = []
    folders: dict[str, list[Path]] = {}  # what one seed of a model runs
    for model in run.models:
        name = model["name"]
        column = columns.get(name.removeprefix("teacher:"))
        if column is not None:
            if column.scores not in pairs.score_names:
                continue  # rows of another set have no such column
            if made_reference(column, pairs):
                logger.info(
                    f"{name} made the reference {column.scores!r}: it is not measured, nor is an ensemble with it"
                )
                continue
            logits = column_logits(recipe, column, pairs, "evaluation")[None].astype(np.float64)
            sizes: dict[str, Any] = {"parameters": None, "bytes": None, "layers": None}
        else:
            steps = run.steps(model["steps"])
            how = "logit" if model["kind"] == "teacher" else recipe.combination
            each = model.get("each", 1)
            logits = method_logits(workspace, steps, pairs, how, each=each, name=name, precision=recipe.precision)
            folders[name] = [step.folder for step in steps[:each]]
            sizes = _sizes(folders[name])
        if model["kind"] == "teacher":
            teachers.append(logits[0])
        found.append(ModelOutput(name=name, kind=model["kind"], logits=logits, **sizes))
    if len(teachers) > 1:
        alone = [output for output in found if output.kind == "teacher"]
        found.insert(len(alone), _ensemble(teachers, alone))
    if "cosine" in recipe.methods and recipe.classes == 2:
        logits = _cosine(workspace, recipe, pairs)[None].astype(np.float64)
        first = next((n for n, output in enumerate(found) if output.kind in ("baseline", "student")), len(found))
        found.insert(first, ModelOutput("cosine", "baseline", logits))
    if timed:
        _time(workspace, found, folders, pairs, recipe.precision)
    return found


def _cosine(workspace: Workspace, recipe: Recipe, pairs: Pairs) -> NDArray[np.float32]:
    """What the encoder says with nothing trained, [N, 2], stored once."""
    source = find_encoder(recipe.encoder)
    length, precision = recipe.max_length, recipe.precision
    header = {"cosine of": encoder_fingerprint(source), "max_length": length, "precision": precision, "classes": 2}

    def build(folder: Path) -> None:
        store = LabelStore.open(folder, header=header)
        missing = set(pairs.pair_ids) - store.done_ids()
        unique = pairs.take(np.unique(np.array(pairs.pair_ids), return_index=True)[1])
        rows = unique.take(np.flatnonzero([name in missing for name in unique.pair_ids]))
        if len(rows):
            store.append(rows.pair_ids, cosine_logits(source, rows.questions, rows.passages, length, precision))

    step = workspace.step("cosine", {**header, "pairs": pairs.digest()}, build, label="cosine of embeddings")
    return LabelStore.open(step.folder, header=header).logits_for(pairs.pair_ids)


def _sizes(folders: list[Path]) -> dict[str, Any]:
    """Of all models that run for one output."""
    parameters = 0
    for folder in folders:
        student = load_student(folder)
        # Our headers replace the module's own last layer.
        unused = set() if is_lstm(folder) else {id(p) for p in last_linear(student.encoder.model).parameters()}
        parameters += sum(p.numel() for p in student.parameters() if id(p) not in unused)
    return {
        "parameters": parameters,
        "bytes": sum((folder / "model.safetensors").stat().st_size for folder in folders),
        "layers": read_card(folders[0])["layers"],
    }


def _ensemble(logits: list[NDArray[np.float64]], teachers: list[ModelOutput]) -> ModelOutput:
    trained = [part for part in teachers if part.parameters is not None]
    return ModelOutput(
        name=ENSEMBLE,
        kind="ensemble",
        logits=ensemble_logits(logits)[None],
        parameters=sum(part.parameters or 0 for part in trained) or None,
        bytes=sum(part.bytes or 0 for part in trained) or None,
        layers=max((part.layers or 0 for part in trained), default=0) or None,
    )


def _time(
    workspace: Workspace, found: list[ModelOutput], folders: dict[str, list[Path]], pairs: Pairs, precision: str
) -> None:
    """Speed of one model per shape (teachers of one encoder are alike), interleaved; the ensemble runs all teachers,
    m-o-m all its students."""
    shapes: dict[str, str] = {}
    for name, (folder, *_) in folders.items():
        config = json.loads((folder / "config.json").read_text())
        shapes[name] = (
            f"{config['model_type']}-{config['num_hidden_layers']}x{config['hidden_size']}"
            f"x{config.get('intermediate_size', 0)} at {read_card(folder)['max_length']}"
        )
    one_of = {shape: folders[name][0] for name, shape in reversed(shapes.items())}
    speeds = _speeds(workspace, one_of, pairs, precision)
    for output in found:
        if output.name in shapes:
            speed = speeds[shapes[output.name]]
            runs = len(folders[output.name])
            output.pairs_per_second = speed["pairs_per_second"] / runs
            output.milliseconds = {int(size): runs * value for size, value in speed["milliseconds"].items()}
    timed = [output for output in found if output.kind == "teacher" and output.pairs_per_second]
    for output in found:
        if output.name == ENSEMBLE and timed:
            output.pairs_per_second = 1 / sum(1 / (part.pairs_per_second or 1) for part in timed)
            output.milliseconds = {
                size: sum((part.milliseconds or {})[size] for part in timed) for size in timed[0].milliseconds or {}
            }


def _speeds(workspace: Workspace, one_of: dict[str, Path], pairs: Pairs, precision: str) -> dict[str, Any]:
    """Speed of one model per shape, measured once for these rows on this machine."""
    sample = pairs.take(np.random.default_rng(0).permutation(len(pairs))[:SPEED_PAIRS])
    depends = {"shapes": sorted(one_of), "pairs": sample.digest(), "machine": [platform.node(), describe(precision)]}

    def build(folder: Path) -> None:
        scorers = {shape: _scorer(model, precision) for shape, model in one_of.items()}
        found = measure(scorers, sample.questions, sample.passages)
        write_json(folder / "speed.json", {shape: asdict(speed) for shape, speed in found.items()})

    step = workspace.step("speed", depends, build, label="measure speed")
    speeds: dict[str, Any] = json.loads((step.folder / "speed.json").read_text())
    return speeds


def _scorer(folder: Path, precision: str) -> Any:
    model = load_student(folder)
    tokenizer = PairTokenizer(folder, read_card(folder)["max_length"])

    def run(questions: Any, passages: Any) -> NDArray[np.float32]:
        return score(model, tokenizer.encode(questions, passages), tokenizer.pad_id, precision=precision)

    return run


def evaluate(run: RunModels, pairs: Pairs, *, timed: bool = True, task: str | None = None) -> Results:
    """Compare every model of a run on labelled pairs."""
    if not pairs.has_labels:
        raise TmkdError("these pairs have no labels; `tmkd evaluate` needs a label column, `tmkd score` does not")
    if int(pairs.labels.max()) >= run.recipe.classes:
        raise TmkdError(f"label {int(pairs.labels.max())} is out of range: the run has {run.recipe.classes} classes")
    prepare(attention=run.recipe.attention)
    return compare_outputs(run, pairs, outputs(run, pairs, timed=timed), task=task or run.recipe.name)


def compare_outputs(run: RunModels, pairs: Pairs, found: list[ModelOutput], *, task: str) -> Results:
    """The comparison of models that were already run, what each teacher adds, each way to combine the headers, and how
    often each small model decides as the ensemble does."""
    classes = run.recipe.classes
    results = compare(pairs, found, classes=classes, task=task, options=ComparisonOptions(taken=run.take))
    by_name = {output.name: output for output in found}
    if ENSEMBLE in by_name:
        results.leave_one_out = measure_components(pairs, by_name[ENSEMBLE], _without_each(found), classes=classes)
    ways = _combinations(run, pairs)
    if ways:
        results.combinations = measure_components(pairs, ways["logit"], ways, classes=classes)
    top, taken = by_name.get(results.relative_to), by_name[run.take]
    others = [output for output in found if output.kind in ("student", "baseline") and output is not taken]
    if top is not None:
        results.agreement = agreement(pairs, top, taken, others, classes=classes)
    return results


def _without_each(found: list[ModelOutput]) -> dict[str, ModelOutput]:
    """The ensemble without each of its teachers, by teacher."""
    teachers = [output for output in found if output.kind == "teacher"]
    without = {}
    for left_out in teachers:
        rest = [output.logits[0] for output in teachers if output is not left_out]
        name = left_out.name.removeprefix("teacher:")
        without[name] = ModelOutput(f"{ENSEMBLE} without {name}", "ensemble", ensemble_logits(rest)[None])
    return without


def _combinations(run: RunModels, pairs: Pairs) -> dict[str, ModelOutput]:
    """The student that the run takes under every combination of its headers; empty where it has one header."""
    model = next(model for model in run.models if model["name"] == run.take)
    steps = run.steps(model["steps"])
    if not steps or not read_card(steps[0].folder)["soft_headers"]:
        return {}
    found = {}
    for how in COMBINATIONS:
        logits = method_logits(run.workspace, steps, pairs, how, name=run.take, precision=run.recipe.precision)
        found[str(how)] = ModelOutput(f"{run.take} ({how})", "student", logits)
    return found


def measure_exports(workspace: Workspace, export: Step, pairs: Pairs, *, classes: int) -> list[dict[str, Any]]:
    """Every back end of an export on labelled pairs, through the runtime, done once for these rows on this machine.

    Returns:
        One entry per backend: backend, the metrics that are defined for the task (as in `ModelResult`, without
        intervals), pairs_per_second (tokenizing included, measured in turn on the same pairs).
    """
    depends = {"export": export.fingerprint, "pairs": pairs.digest(), "machine": [platform.node(), describe("auto")]}

    def build(folder: Path) -> None:
        write_json(folder / "exports.json", _measured_exports(export.folder / "export", pairs, classes))

    step = workspace.step("exports", depends, build, label="measure the export")
    rows: list[dict[str, Any]] = json.loads((step.folder / "exports.json").read_text())
    return rows


def _measured_exports(folder: Path, pairs: Pairs, classes: int) -> list[dict[str, Any]]:
    scorers = {name: Scorer(folder, backend=name) for name in read_manifest(folder).backends if installed(name)}
    some = pairs.take(np.random.default_rng(0).permutation(len(pairs))[:SPEED_PAIRS])
    timed = {name: scorer.logits for name, scorer in scorers.items()}
    speeds = measure(timed, some.questions, some.passages, sizes=())
    found: list[dict[str, Any]] = []
    for name, scorer in scorers.items():
        with progress(f"{name} on the test rows", len(pairs)) as bar:
            logits = scorer.logits(pairs.questions, pairs.passages, bar.advance)
        compared = compare(
            pairs,
            [ModelOutput(name, "student", logits[None])],
            classes=classes,
            task="",
            options=ComparisonOptions(resamples=1),
        )
        metrics = {metric: value.mean for metric, value in compared.methods[0].metrics.items()}
        found.append({"backend": name, **metrics, "pairs_per_second": speeds[name].pairs_per_second})
    return found


def curves(run: RunModels) -> dict[str, list[dict[str, float]]]:
    """The learning curve of every model's first seed, by name; stage 1 beside its student."""
    found = {}
    for name, names in [*((model["name"], model["steps"]) for model in run.models), ("stage 1", run.stage1)]:
        for step in run.steps(names[:1]):
            path = step.folder / "curve.json"
            if path.is_file():
                found[name] = json.loads(path.read_text())
    return found
