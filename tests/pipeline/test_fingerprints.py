"""Fingerprints: every field of a recipe either changes the steps that read it, or is listed here as not mattering.

No model is trained here: steps leave stubs, and labels are numbers derived from the model's fingerprint and the pair.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from conftest import write_jsonl
from encoder_fixtures import tiny
from pydantic import BaseModel
from safetensors.numpy import save_file

import tmkd.data.builtin.debian_docs as debian_docs
import tmkd.data.hub as hub
import tmkd.pipeline.steps.bi_encoder_cosine as bi_encoder_cosine
import tmkd.pipeline.steps.stored_labels as labelling
from tmkd.config.load import parse_recipe, set_keys
from tmkd.config.recipe import Recipe
from tmkd.config.sections import DebianDocsSizes
from tmkd.config.student_sections import Cached
from tmkd.core import hardware
from tmkd.core.files import digest_of
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import save_student, save_tokenizer
from tmkd.models.encoders.find import find_folder, folder_fingerprint
from tmkd.models.encoders.interaction import InteractionEncoder
from tmkd.models.ready import SETTINGS_FILE
from tmkd.models.student import Student
from tmkd.pipeline.all_labels import label_all
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps.export import export_step
from tmkd.pipeline.steps.student import shape_of
from tmkd.pipeline.store import fingerprint as fingerprints
from tmkd.pipeline.store.fingerprint import STEP_VERSIONS, depends_on, fingerprint, non_defaults
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.bi_encoder import BiEncoderTeacher, TunedBuiltin
from tmkd.teachers.calibration import Calibration
from tmkd.training.token_cosine import TARGETS

ORDER = (
    "pool",
    "token-cosine",
    "warmup",
    "teacher",
    "tuned",
    "labels",
    "calibration",
    "ensemble",
    "states",
    "question-states",
    "stage1",
    "student",
    "export",
)
"""The kinds of steps of a run, each after those that it depends on."""

# every way that a student is trained
ALL_METHODS = [
    "finetune", "finetune-whole", "finetune-warm", "self-taught", "bilstm", "m-o-m", "tkd", "tmkd", "tmkd-paper",
    "finetune@cached", "tmkd@cached",
]  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One field changed.

    Attributes:
        first: the first kind of step in `ORDER` that reads the field: kinds before it stay, this one changes.
        value: another value of the field. `{NAME}` in a string stands for the folder or file of that name.
        within: other keys of the recipe that make the field matter, or allow the value.
        key: the key that is set to the value, if it is not the field itself.
    """

    first: str
    value: Any
    within: dict[str, Any] = field(default_factory=dict)
    key: str = ""


def training(first: str, **within: Any) -> dict[str, Change]:
    """The fields of a `Training`, other values of all of them."""
    values = {"learning_rate": 7e-4, "epochs": 9, "batch_size": 17, "warmup": 0.3, "weight_decay": 0.2, "clip": 0.5,
              "dropout": 0.1}  # fmt: skip
    return {name: Change(first, value, within) for name, value in values.items()}


def under(prefix: str, changes: dict[str, Change]) -> dict[str, Change]:
    return {f"{prefix}.{name}": change for name, change in changes.items()}


HUB = {"data": {"hub": "{train}", "train": "train", "dev": "dev", "test": "test", "pool": "pool"}}
BUILTIN = {"data": {"builtin": "debian-docs"}}
NO_DEV = {"data.dev": None, "data.test": None, "data.hold_out": {"dev": 0.3, "test": 0.3}}
GRADED = {"data.columns.label": "stars", "data.grades": {"relevant_from": 2}}
TWO_SCORES = {"data.scores": {"judge": "probability", "web": "probability"}}
REFERENCE = {**TWO_SCORES, "data.columns.label": "none", "data.reference": "judge"}
BI_ENCODER = {"teachers.0": {"name": "a", "kind": "bi_encoder", "model": "{encoder}", "pooling": "mean"}}
TUNED = {"teachers.0": {**BI_ENCODER["teachers.0"], "tune": {}}}
SERVED = {"teachers.0": {"name": "a", "endpoint": {"url": "http://127.0.0.1:9"}}}
JUDGE = {"teachers.0": {"name": "a", "endpoint": {"url": "http://127.0.0.1:9", "form": "chat", "model": "m",
                                                  "prompt": "{prompt}", "answers": {"yes": 1, "no": 0}}}}  # fmt: skip
SCORE_FILE = {"teachers.0": {"name": "a", "file": "{scores}", "column": "judge", "holds": "probability"}}
CHECKPOINT = {"teachers.0": {"name": "a", "checkpoint": "{encoder}"}}
MINED = {"data.pool": None, "pool": {"sources": [{"questions": "own", "passages": "own"}]}}
TWO_SOURCES = {
    "data.pool": None,
    "pool": {"size": 20, "sources": [{"questions": "own", "passages": "own"}, {"pairs": {"file": "{pool}"}}]},
}
READY = {"data.pool": None, "pool": {"sources": [{"pairs": {"file": "{pool}"}}]}}
HUB_TEXTS = {
    "data.pool": None,
    "pool": {"sources": [{"questions": {"hub": "{pool}"}, "passages": {"hub": "{pool}"}}]},
}
HUB_PAIRS = {"data.pool": None, "pool": {"sources": [{"pairs": {"hub": "{pool}"}}]}}
FILE_TEXTS = {
    "data.pool": None,
    "pool": {"sources": [{"questions": {"file": "{pool}"}, "passages": {"file": "{pool}"}}]},
}
QUOTED_TEXTS = {
    "data.pool": None,
    "pool": {"sources": [{"questions": {"file": "{quoted}"}, "passages": {"file": "{quoted}"}}]},
}
LONG_TEXTS = {
    "data.pool": None,
    "pool": {"sources": [{"questions": {"file": "{long}"}, "passages": {"file": "{long}"}}]},
}
SAMPLED = {"data.columns.qid": "topic", "pool": {"sampling": {"keep": 3, "quantiles": 2}}}
OTHER_TASK = {"data.pool": None, "pool": {"sources": [{"task": {"recipe": "{other}"}}]}}


def source_texts(side: str, column: str) -> dict[str, Change]:
    """The fields of `questions` or `passages` of a source."""
    return {
        "file": Change("pool", "{pool2}", FILE_TEXTS),
        "hub": Change("pool", "{pool2}", HUB_TEXTS),
        "config": Change("pool", "other", HUB_TEXTS),
        "split": Change("pool", "train[:5]", HUB_TEXTS),
        "column": Change("pool", column, FILE_TEXTS),
        "quoting": Change("pool", "none", QUOTED_TEXTS),
        "cut": Change("pool", True, LONG_TEXTS),
    }


ONLY_CACHED = {"methods": ["finetune", "tmkd"], "student.start": "bottom", "stage1.states": 0, "stage1.cosine": 0}

CHANGES: dict[str, Change] = {
    "encoder": Change("token-cosine", "{encoder2}"),
    "classes": Change("pool", 3),
    "max_length": Change("token-cosine", 48),
    "precision": Change("token-cosine", "bf16"),
    "use_teachers": Change("teacher", 1),
    "labels": Change("teacher", "out-of-fold"),
    "folds": Change("teacher", 3, {"labels": "out-of-fold"}),
    "ensemble": Change("teacher", "stacked"),
    "stage1_from": Change("labels", "{stage1}", {"methods": ["finetune", "tmkd"]}),
    "methods": Change("student", [name for name in ALL_METHODS if name != "finetune"]),
    "seeds": Change("stage1", [1]),
    "take": Change("export", "tkd"),
    "data.builtin": Change("pool", {"builtin": "debian-docs"}, key="data"),
    **under(
        "data.debian_docs",
        {
            "pool_per_question": Change("token-cosine", 7, BUILTIN),
            "headings": Change("token-cosine", 7, BUILTIN),
            "pool_per_heading": Change("token-cosine", 7, BUILTIN),
            "train_headings": Change("token-cosine", 7, BUILTIN),
            "max_questions": Change("token-cosine", 7, BUILTIN),
            "packages": Change("token-cosine", ["perl"], BUILTIN),
        },
    ),
    "data.hub": Change("pool", "{train2}", HUB),
    "data.config": Change("pool", "other", HUB),
    "data.train": Change("teacher", "{train2}"),
    "data.dev": Change("pool", "{dev2}"),
    "data.test": Change("pool", "{test2}"),
    "data.hold_out.dev": Change("pool", 0.6, NO_DEV),
    "data.hold_out.test": Change("pool", 0.6, NO_DEV),
    "data.pool": Change("pool", "{pool2}"),
    "data.train_share": Change("labels", 0.5),
    "data.columns.question": Change("pool", "query"),
    "data.columns.passage": Change("pool", "text"),
    "data.columns.label": Change("pool", "label2"),
    "data.columns.qid": Change("pool", "topic"),
    "data.columns.pid": Change("pool", "ref"),
    "data.scores": Change("pool", {"judge": "probability"}),
    "data.quoting": Change("pool", "none", {"data.pool": "{quoted}"}),
    "data.grades.relevant_from": Change("pool", 3, GRADED),
    "data.labels": Change("pool", {"0": 1, "1": 0}),
    "data.positive": Change("pool", 0),
    "data.reference": Change("pool", "web", REFERENCE),
    "pool.size": Change("token-cosine", 9),
    "pool.passages_per_question": Change("pool", 2, MINED),
    "pool.seed": Change("token-cosine", 3, {"pool.size": 9}),
    "pool.teachers": Change("labels", ["{teacher}"], MINED),
    "pool.sampling.kind": Change("token-cosine", "top", SAMPLED),
    "pool.sampling.keep": Change("token-cosine", 2, SAMPLED),
    "pool.sampling.quantiles": Change("token-cosine", 3, SAMPLED),
    "pool.sampling.by": Change("token-cosine", "b", SAMPLED),
    "pool.sources.task.recipe": Change("pool", "{other2}", OTHER_TASK),
    "pool.sources.task.keys": Change("pool", {"data.train": "{test2}"}, OTHER_TASK),
    "pool.sources.share": Change("pool", 0.2, TWO_SOURCES),
    "pool.sources.ask": Change("pool", "passages", MINED),
    **under("pool.sources.questions", source_texts("questions", "query")),
    **under("pool.sources.passages", source_texts("passages", "text")),
    **under(
        "pool.sources.pairs",
        {
            "file": Change("pool", "{pool2}", READY),
            "hub": Change("pool", "{pool2}", HUB_PAIRS),
            "config": Change("pool", "other", HUB_PAIRS),
            "split": Change("pool", "train[:5]", HUB_PAIRS),
            "quoting": Change("pool", "none", {**READY, "pool": {"sources": [{"pairs": {"file": "{quoted}"}}]}}),
            "question": Change("pool", "query", READY),
            "passage": Change("pool", "text", READY),
        },
    ),
    **under(
        "teachers",
        {
            "kind": Change("teacher", CHECKPOINT["teachers.0"], BI_ENCODER, key="teachers.0"),
            "model": Change("labels", "{encoder2}", BI_ENCODER),
            "pooling": Change("labels", "cls", BI_ENCODER),
            "endpoint.url": Change("labels", "http://127.0.0.1:10", SERVED),
            "endpoint.form": Change("labels", "cohere", SERVED),
            "endpoint.holds": Change("labels", "probability", SERVED),
            "endpoint.model": Change("labels", "other", SERVED),
            "endpoint.prompt": Change("labels", "{prompt2}", JUDGE),
            "endpoint.answers": Change("labels", {"yes": 1, "no": 0.1}, JUDGE),
            "endpoint.scale": Change(
                "labels", [0, 4], {**JUDGE, "teachers.0.endpoint.answers": None, "teachers.0.endpoint.scale": [0, 3]}
            ),
            "file": Change("labels", "{scores2}", SCORE_FILE),
            "column": Change("labels", "web", SCORE_FILE),
            "holds": Change("labels", "logit", {**SCORE_FILE}),
            "query_prompt": Change("labels", "query: ", BI_ENCODER),
            "passage_prompt": Change("labels", "passage: ", BI_ENCODER),
            "calibrate": Change("calibration", "isotonic", BI_ENCODER),
            "encoder": Change("teacher", "{encoder2}"),
            "checkpoint": Change("teacher", "{encoder2}", CHECKPOINT),
            "scores": Change("stage1", "web", {**TWO_SCORES, "teachers.0": {"name": "a", "scores": "judge"}}),
            "seed": Change("teacher", 7),
            "learning_rate": Change("teacher", 7e-4),
            "epochs": Change("teacher", 9),
            "batch_size": Change("teacher", 17),
            "dropout": Change("teacher", 0.1),
            "max_length": Change("teacher", 32),
            "share": Change("teacher", 0.5),
            "other_tasks": Change("teacher", True, OTHER_TASK),
            "label_map": Change("teacher", {"0": 1, "1": 0}, CHECKPOINT),
            "pooler": Change("teacher", "keep"),
        },
    ),
    **under("teachers.tune", training("tuned", **TUNED)),
    **under(
        "teachers.tune",
        {
            "seed": Change("tuned", 3, TUNED),
            "negatives": Change("tuned", 5, TUNED),
            "scale": Change("tuned", 10.0, TUNED),
        },
    ),
    "student.kind": Change("states", "cached", ONLY_CACHED),
    "student.layers": Change("stage1", 2),
    "student.start": Change("stage1", "spaced", {"stage1.states": 0}),
    "student.pooler": Change("stage1", "identity"),
    "student.freeze_embeddings": Change("stage1", False),
    **under("warm_up", training("warmup")),
    "warm_up.teacher": Change("warmup", "a", BI_ENCODER),
    "warm_up.share": Change("token-cosine", 0.5),
    **under("stage1", training("stage1")),
    "stage1.cosine": Change("stage1", 0.25),
    "stage1.states": Change("stage1", 3.0),
    "stage1.states_until": Change("stage1", 0.5),
    "stage1.states_from": Change("stage1", "each"),
    "stage1.share": Change("token-cosine", 0.5),
    **under("stage2", training("student")),
    "stage2.replay": Change("student", 0.25),
    **under("without_stage1", training("student")),
    "rates.stage1.learning_rate": Change("stage1", 7e-4),
    "rates.stage1.epochs": Change("stage1", 9),
    "rates.stage2.learning_rate": Change("student", 7e-4),
    "rates.stage2.epochs": Change("student", 9),
    "rates.without_stage1.learning_rate": Change("student", 7e-4, key="rates.finetune.without_stage1.learning_rate"),
    "rates.without_stage1.epochs": Change("student", 9, key="rates.finetune.without_stage1.epochs"),
    **under("bilstm", training("student")),
    "bilstm.width": Change("student", 64),
    "cached.encoder": Change("states", "{encoder2}"),
    "cached.encoder_layers": Change("states", 1),
    "cached.question_encoder": Change("states", "{encoder3}"),
    "cached.encoder_learning_rate": Change("states", 2e-5),
    "cached.trains_in": Change("states", "last", {"cached.encoder_learning_rate": 2e-5}),
    "cached.layers": Change("stage1", 3),
    "cached.heads": Change("stage1", 2),
    "cached.ffn": Change("stage1", 64),
    "cached.width": Change("stage1", 24),
    "cached.state_size": Change("stage1", 8),
    "cached.asks": Change("stage1", "all"),
    "cached.self_attention": Change("stage1", False),
    "cached.stage1_from": Change(
        "labels", "{cached_stage1}", {"methods": ["finetune", "tmkd@cached"], "take": "finetune"}
    ),
    **under("cached.stage1", training("stage1")),
    "cached.stage1.states": Change("question-states", 3.0),
    "cached.stage1.states_until": Change("stage1", 0.5, {"cached.stage1.states": 3.0}),
    "cached.stage1.states_from": Change("question-states", "each", {"cached.stage1.states": 3.0}),
    "cached.stage1.by_passage": Change("stage1", True, {"cached.encoder_learning_rate": 2e-5}),
    **under("cached.stage2", training("student")),
    "cached.stage2.replay": Change("student", 0.25),
    **under("cached.without_stage1", training("student")),
    "loss.kind": Change("stage1", "mse"),
    "loss.temperature": Change("stage1", 2.0),
    "loss.alpha": Change("student", 0.5),
    "loss.weighting": Change("stage1", "confidence"),
    "export.backends": Change("export", ["onnx-fp32", "onnx-int8"]),
}

NOT_MATTERING: dict[str, tuple[Any, str]] = {
    "data.shared_pairs": ("remove", "the parts share no pair here; where they do, the pairs that are left count"),
    "name": ("other", "names the folder under runs/"),
    "export.every": (True, "whether other students are exported, too; an export is a step of its own student"),
    "attention": ("sdpa", "the results are the same, to rounding"),
    "combination": ("probability", "steps keep the logits of every head; they are combined when they are read"),
    "teachers.endpoint.api_key_env": ("HOME", "who pays; the answers are the same"),
    "teachers.endpoint.request_size": (7, "how many passages are sent at once; each gets its score"),
    "teachers.endpoint.concurrency": (2, "how many requests run side by side"),
    "teachers.endpoint.timeout": (5, "how long an answer may take"),
    "teachers.endpoint.retries": (1, "how often a request is sent again"),
    "teachers.endpoint.max_requests": (9, "how many requests are paid for at a time"),
    "teachers.partial": (True, "whether gaps are an error; what the scores are does not change"),
    "teachers.name": ("other", "what the log and the report call the teacher"),
}


def inner(annotation: Any) -> type[BaseModel] | None:
    """The part of a recipe that a field holds, alone, in a tuple or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inside in get_args(annotation) if (found := inner(inside))), None)


def fields_of(part: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The keys of a recipe that hold values, in dots (lists have no index), and the default of each."""
    for name, about in part.model_fields.items():
        held = inner(about.annotation)
        if held is None:
            default = "required" if about.is_required() else repr(about.get_default(call_default_factory=True))
            yield f"{prefix}{name}", default
        else:
            yield from fields_of(held, f"{prefix}{name}.")


FIELDS = dict(fields_of(Recipe))
DEFAULTS = "20912109f803"  # a digest of every default that enters fingerprints by its absence


def rows(part: str, count: int = 12) -> list[dict[str, Any]]:
    """Labelled pairs of made-up words, none of which occurs in another part. All mention a harbour, so all are hits."""
    drawn = random.Random(part)

    def words(number: int) -> list[str]:
        return [part + "".join(drawn.choice("bdfgklmnprst") + drawn.choice("aeiou") for _ in range(4))
                for _ in range(number)]  # fmt: skip

    found = []
    for number in range(count):
        asked = " ".join(words(5))
        for label in (1, 0):
            heard = " ".join(words(8)) + (f", as {asked.split()[0]} says" if label else "")
            found.append({
                "question": f"How is {asked} at the harbour?", "passage": f"The harbour is {heard}.", "label": label,
                "query": f"What of {asked} in that harbour?", "text": f"That harbour was {heard}.", "label2": 1 - label,
                "stars": label * (2 + number % 2), "topic": f"topic {number // 2}", "ref": f"{number}-{label}",
                "judge": 0.3 + 0.4 * label, "web": 0.2 + 0.7 * label,
            })  # fmt: skip
    return found


def model_folder(folder: Path, encoder: Path, **card: Any) -> Path:
    """What a step leaves that is read without loading the model: the card, the tokenizer, the configuration.

    Its weights are the encoder's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(encoder / name, folder)
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors").symlink_to(encoder / "model.safetensors")
    whole = {"format": 1, "max_length": 64, "classes": 2, "layers": 1, "soft_headers": 0, "use_golden": True, **card}
    (folder / "tmkd.json").write_text(json.dumps(whole))
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files and folders that recipes name."""
    root = tmp_path_factory.mktemp("files")
    found = {name: write_jsonl(root / f"{name}.jsonl", rows(name))
             for part in ("train", "dev", "test", "pool") for name in (part, f"{part}2")}  # fmt: skip
    for name in ("prompt", "prompt2"):
        found[name] = root / f"{name}.txt"
        found[name].write_text(f"{name}: {{question}} {{passage}}")
    for name in ("scores", "scores2"):
        every = [row for part in ("train", "dev", "test", "pool") for row in rows(part)]
        found[name] = write_jsonl(root / f"{name}.jsonl", [*every, *rows(name)])
    for name in ("other", "other2"):
        found[name] = root / f"{name}.yaml"
        part = "train2" if name == "other" else "pool2"
        found[name].write_text(
            f"name: elsewhere\ndata: {{train: {found[part]}}}\nteachers: [{{name: x}}]\n"
            "methods: [finetune]\ntake: finetune\n"
        )
    long = [{key: f"{row[key]} " * 20 for key in ("question", "passage")} for row in rows("long")]
    found["long"] = write_jsonl(root / "long.jsonl", long)
    found["quoted"] = root / "quoted.tsv"
    texts = ['"the ""{question}"""\t"the ""{passage}"""\n'.format(**row) for row in rows("quoted")]
    found["quoted"].write_text("question\tpassage\n" + "".join(texts))
    found["encoder"] = tiny("bert", root / "encoder")
    found["encoder2"] = tiny("bert", root / "encoder2", hidden_size=32)
    shape = shape_of(Cached(state_size=16), 48)
    found["cached_stage1"] = root / "cached_stage1"
    first = Student(InteractionEncoder(shape, found["encoder"]), 2, soft_heads=2, use_golden=False)
    save_student(first, found["cached_stage1"], found["encoder"], 64, {"step": "stage1", "teachers": ["a", "b"]})
    found["encoder3"] = tiny("bert", root / "encoder3", num_hidden_layers=2)
    found["teacher"] = model_folder(root / "teacher", found["encoder"], step="teacher")
    found["stage1"] = model_folder(root / "stage1", found["encoder"], step="stage1", soft_headers=2, use_golden=False)
    return found


class Dry:
    """Finds the steps of recipes in one workspace, where nothing is trained.

    Args:
        root: the workspace.
        places: files by name, for `{NAME}` in the values of a recipe.
    """

    def __init__(self, root: Path, places: dict[str, Path]) -> None:
        self.root, self.places = root, places
        self.found: dict[str, dict[str, set[str]]] = {}

    def recipe(self, keys: dict[str, Any]) -> Recipe:
        """The base recipe with other values of some keys."""
        numbers = {"learning_rate": 1e-4, "epochs": 2}
        content: dict[str, Any] = {
            "name": "base",
            "encoder": "{encoder}",
            "max_length": 64,
            "precision": "fp32",
            "data": {part: f"{{{part}}}" for part in ("train", "dev", "test", "pool")},
            "teachers": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}],
            "student": {"layers": 1, "start": "teacher"},
            "cached": {"state_size": 16, "stage1": {**numbers}, "stage2": {**numbers}, "without_stage1": {**numbers}},
            "warm_up": {**numbers},
            "stage1": {**numbers, "cosine": 0.5, "states": 1.0},
            "stage2": {**numbers},
            "without_stage1": {**numbers},
            "methods": ALL_METHODS,
            "export": {"backends": ["onnx-fp32"]},
        }
        set_keys(content, [(key, copy.deepcopy(value), key) for key, value in keys.items()])
        return parse_recipe(self._filled(content), "base")

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._filled(one) for one in value]
        return str(self.places[value[1:-1]]) if isinstance(value, str) and value.startswith("{") else value

    def steps(self, recipe: Recipe) -> dict[str, set[str]]:
        """The fingerprints of all steps of a recipe, by kind; found once for the same recipe."""
        key = recipe.model_dump_json()
        if key not in self.found:
            workspace = Workspace(self.root)
            run_all(recipe, workspace)
            kinds: dict[str, set[str]] = {kind: set() for kind in ORDER}
            for step in workspace.used:
                kinds[step.kind].add(step.fingerprint)
            self.found[key] = kinds
        return self.found[key]


def run_all(recipe: Recipe, workspace: Workspace) -> None:
    """Ask for every student of a recipe, and for its export."""
    run = Run(recipe, workspace)
    label_all(run.labels)
    student, names, positive = run.students.taken().steps[0], recipe.class_names, recipe.positive_class
    export_step(workspace, student, run.data.task, recipe.export.backends, names, positive)


def fill(store: Any, _: Any, pairs: Pairs, *rest: Any) -> None:
    """In place of scoring: numbers by the model's fingerprint and the pair."""
    done = store.done_ids()
    missing = [name for name in pairs.pair_ids if name not in done]
    model = store.manifest["header"]["teacher"]
    seeds = [hashlib.sha256(f"{model} {name}".encode()).digest() for name in missing]
    logits = [np.frombuffer(seed, dtype=np.uint8)[: store.width] / 64.0 - 2.0 for seed in seeds]
    if missing:
        store.append(missing, np.array(logits, dtype=np.float32))


def built_in(sizes: DebianDocsSizes) -> Any:
    """In place of the built-in data set: pairs that depend on every size."""
    parts = {part: rows(part) for part in ("train", "dev", "test")}
    made = {part: Pairs.build(*([str(r[key]) for r in found] for key in ("question", "passage")),
                              labels=[r["label"] for r in found])
            for part, found in parts.items()}  # fmt: skip
    pool = [{**row, "question": f"{row['question']} {sizes.model_dump_json()}"} for row in rows("pool")]
    texts = ([str(row[key]) for row in pool] for key in ("question", "passage"))
    return SimpleNamespace(**made, pool=Pairs.build(*texts), passages=[], info={})


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory, places: dict[str, Path]) -> Iterator[Dry]:
    """Recipes' steps without training: stubs in place of models, exports and scores."""
    build = Workspace._build

    def stub(self: Workspace, step: Step, depends: Any, make: Any, label: str) -> None:
        if step.kind in ("pool", "labels", "token-cosine", "ensemble"):
            build(self, step, depends, make, label)
            return
        settings, inputs = depends["settings"], depends["inputs"]
        if step.kind == "calibration":
            step.folder.mkdir(parents=True)
            line = Calibration("platt", 0.0, 1.0).to_json()
            (step.folder / "calibration.json").write_text(json.dumps({"calibration": line}))
            return
        if step.kind == "tuned":
            model_folder(step.folder / "model", places["encoder"])
            kinds = {"": "Transformer", "1_Pooling": "Pooling"}
            modules = [{"path": at, "type": f"sentence_transformers.models.{kind}"} for at, kind in kinds.items()]
            (step.folder / "model" / "1_Pooling").mkdir()
            (step.folder / "model" / "1_Pooling" / "config.json").write_text("{}")
            (step.folder / "model" / "modules.json").write_text(json.dumps(modules))
            (step.folder / "step.json").write_text(json.dumps({"depends_on": depends}))
            return
        card = {"classes": settings.get("classes", 2), "max_length": settings.get("max_length", 64)}
        if step.kind == "stage1":
            card |= {"soft_headers": len(inputs["targets"]), "use_golden": False, "teachers": inputs["targets"]}
        model_folder(step.folder, places["encoder"], step=step.kind, **card)
        if settings.get("kind") == "cached":
            model_folder(step.folder / "encoder", places["encoder"])
            save_tokenizer(places["encoder"], step.folder, 64)  # stage 2 reads texts as stage 1 did

    def hub_rows(name: str, split: str, config: str | None = None) -> tuple[list[dict[str, Any]], Any, str]:
        return rows(f"{Path(name).stem}{split}{config or ''}"), {}, name

    def cosines(folder: Path, reader: Any, pairs: Pairs) -> None:
        save_file({"cosine": np.linspace(0, 1, len(pairs), dtype=np.float32)}, folder / TARGETS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "_build", stub)
        patch.setattr(labelling, "_fill", fill)
        patch.setattr(hub, "hub_rows", hub_rows)
        patch.setattr(debian_docs, "build", built_in)
        patch.setattr(bi_encoder_cosine, "write_cosine", cosines)
        yield Dry(tmp_path_factory.mktemp("workspace"), places)


def key_of(name: str) -> str:
    """A field as a recipe's key: the first teacher or source, and the rates of `tmkd`."""
    return name.replace("teachers.", "teachers.0.").replace("sources.", "sources.0.").replace("rates.", "rates.tmkd.")


def test_every_field_is_in_one_of_the_tables() -> None:
    unknown = [name for name in FIELDS if name not in CHANGES and name not in NOT_MATTERING]
    assert not unknown, f"not in CHANGES (which step reads it), nor in NOT_MATTERING (and why): {unknown}"
    gone = [name for name in [*CHANGES, *NOT_MATTERING] if name not in FIELDS]
    assert not gone, f"a recipe has no such fields any more: {gone}"
    assert not set(CHANGES) & set(NOT_MATTERING)


def test_a_default_does_not_change_unnoticed() -> None:
    """A field at its default is not in the fingerprint: with a new default, old results would be taken for new ones."""
    found = digest_of({name: default for name, default in FIELDS.items() if name in CHANGES})
    assert found == DEFAULTS, (
        "the defaults of the recipe are others than before. If a default changed, raise the version of the kinds of "
        f"steps that read it (STEP_VERSIONS). Then set DEFAULTS to {found!r}"
    )


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_changes_the_steps_that_read_it_and_none_before(dry: Dry, name: str) -> None:
    change = CHANGES[name]
    before = dry.steps(dry.recipe(change.within))
    after = dry.steps(dry.recipe({**change.within, change.key or key_of(name): change.value}))
    different = [kind for kind in ORDER if before[kind] != after[kind]]
    assert different, f"{name} changes no fingerprint"
    assert different[0] == change.first, f"{name} changes {different}"


@pytest.mark.parametrize("name", NOT_MATTERING)
def test_what_does_not_matter_does_not_enter(dry: Dry, name: str) -> None:
    value, _ = NOT_MATTERING[name]
    within = SERVED if name.startswith("teachers.endpoint.") else SCORE_FILE if "partial" in name else {}
    assert dry.steps(dry.recipe({**within, key_of(name): value})) == dry.steps(dry.recipe(within))


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_an_automatic_precision_is_what_the_machine_computes_with(
    dry: Dry, monkeypatch: pytest.MonkeyPatch, native: bool, precision: str
) -> None:
    """Else a workspace that moves to another machine would take bf16 results for fp32 ones."""
    monkeypatch.setattr(hardware, "native_bf16", lambda: native)
    recipe = dry.recipe({"precision": "auto", "name": f"auto-{precision}"})  # `steps` keeps what it found by recipe
    assert dry.steps(recipe) == dry.steps(dry.recipe({"precision": precision}))


def test_defaults_that_are_spelled_out_give_the_same_fingerprints(dry: Dry) -> None:
    recipe = dry.recipe({})
    spelled = parse_recipe(recipe.model_dump(mode="json"), "spelled")
    assert spelled.model_fields_set == set(Recipe.model_fields)
    workspace = Workspace(dry.root)
    run_all(spelled, workspace)
    assert {step.fingerprint for step in workspace.used} == set().union(*dry.steps(recipe).values())


def test_rates_of_a_method_are_its_sections_numbers_and_nothing_else(dry: Dry) -> None:
    """The steps are named by the numbers in effect, whichever key gives them; other methods keep their steps."""
    for method, part in {"tmkd": "", "tmkd@cached": "cached."}.items():
        alone: dict[str, Any] = {"methods": [method, method.replace("tmkd", "finetune")], "take": method}
        if part:
            alone |= {"student.start": "bottom", "stage1.states": 0, "stage1.cosine": 0}
        stages = {"stage1": 7e-4, "stage2": 6e-5}
        sections = dry.steps(dry.recipe({**alone, **{f"{part}{k}.learning_rate": v for k, v in stages.items()}}))
        rates = {method: {stage: {"learning_rate": value} for stage, value in stages.items()}}
        assert dry.steps(dry.recipe({**alone, "rates": rates})) == sections
        before = dry.steps(dry.recipe(alone))
        assert before["stage1"].isdisjoint(sections["stage1"])
        assert len(before["student"] & sections["student"]) == 1  # finetune
    usual = dry.steps(dry.recipe({}))
    stated = {"finetune": {"without_stage1": {"learning_rate": 1e-4, "epochs": 2}}}  # what the section says
    assert dry.steps(dry.recipe({"rates": stated})) == usual


@pytest.mark.parametrize("kind", ["layers", "cached"])
def test_the_papers_method_is_tmkd_of_a_recipe_without_extras(dry: Dry, kind: str) -> None:
    """Whatever a recipe adds to the paper's method, its students are those of a recipe that adds nothing."""
    of = {name: f"{name}@{kind}" for name in ("tmkd", "tmkd-paper")}
    extras: dict[str, Any] = {"loss.weighting": "confidence", "loss.temperature": 2.0}
    plain: dict[str, Any] = {"loss.kind": "mse"}
    if kind == "layers":
        extras |= {"stage2.replay": 0.25, "stage1.states_until": 0.5, "stage1.states_from": "each"}  # beside the base's
        plain |= {"student.start": "bottom", "stage1.states": 0, "stage1.cosine": 0}
    else:
        without = {"student.start": "bottom", "stage1.states": 0, "stage1.cosine": 0}
        extras |= {**without, "cached.stage1.states": 3.0, "cached.stage1.states_until": 0.5,
                   "cached.stage2.replay": 0.25}  # fmt: skip
        plain |= without
    paper = dry.steps(dry.recipe({**extras, "methods": [of["tmkd-paper"]], "take": of["tmkd-paper"]}))
    tmkd = dry.steps(dry.recipe({**plain, "methods": [of["tmkd"]], "take": of["tmkd"]}))
    ours = dry.steps(dry.recipe({**extras, "methods": [of["tmkd"]], "take": of["tmkd"]}))
    assert paper["stage1"] == tmkd["stage1"] != ours["stage1"]
    assert paper["student"] == tmkd["student"] != ours["student"]
    assert not paper["question-states"]
    own = {"tmkd-paper": {"stage1": {"learning_rate": 9e-4}}} if kind == "layers" else {}
    if own:
        rated = dry.steps(dry.recipe({**extras, "rates": own, "methods": [*of.values()], "take": of["tmkd"]}))
        faster = dry.recipe({**plain, "stage1.learning_rate": 9e-4, "methods": [of["tmkd"]], "take": of["tmkd"]})
        assert rated["stage1"] == ours["stage1"] | dry.steps(faster)["stage1"]


def test_methods_share_what_they_have_in_common(dry: Dry) -> None:
    alone = dry.steps(dry.recipe({"use_teachers": 1, "methods": ["tkd"], "take": "tkd"}))
    with_tmkd = dry.steps(dry.recipe({"use_teachers": 1, "methods": ["tkd", "tmkd"], "take": "tkd"}))
    assert alone["stage1"] == with_tmkd["stage1"]
    assert len(alone["stage1"]) == 1
    one, several = (
        dry.steps(dry.recipe({"methods": [name], "take": "finetune", "methods": ["finetune", name]}))["student"]  # noqa: F601
        for name in ("1-o-1", "m-o-m")
    )
    assert one < several  # one student of m-o-m for each of the two teachers, and finetune
    assert len(several) == 3


def test_labels_of_a_tuned_model_depend_on_who_reads_it(dry: Dry) -> None:
    """tmkd reads a builtin model, sentence-transformers a folder, whose steps say nothing of it, as before."""

    def settings(model: str, **keys: Any) -> Any:
        teacher = {"name": "a", "kind": "bi_encoder", "model": model, "tune": {}, "calibrate": "none", **keys}
        (name,) = dry.steps(dry.recipe({"teachers.0": teacher}))["tuned"]
        return json.loads((dry.root / "steps" / f"tuned-{name}" / "step.json").read_text())["depends_on"]["settings"]

    prompts = {"query": "find: ", "passage": None}
    reader = {"model": "builtin:minilm-l6", "max_length": None, "prompts": prompts}
    assert settings("builtin:minilm-l6", query_prompt="find: ") == {"precision": "fp32", "reader": reader}
    assert settings("{encoder}", pooling="mean") == {"precision": "fp32"}


def test_a_model_that_earlier_versions_tuned_by_the_cosine_is_tuned_again(dry: Dry, tmp_path: Path) -> None:
    """They did so whatever similarity its files name, but for the dot product."""
    for similarity, said in (("dot", None), ("euclidean", "euclidean")):
        folder = shutil.copytree(dry.places["encoder"], tmp_path / similarity)
        (folder / SETTINGS_FILE).write_text(json.dumps({"similarity_fn_name": similarity}))
        teacher = {"name": "a", "kind": "bi_encoder", "model": str(folder), "pooling": "mean", "tune": {}}
        (name,) = dry.steps(dry.recipe({"teachers.0": {**teacher, "calibrate": "none"}}))["tuned"]
        depends = json.loads((dry.root / "steps" / f"tuned-{name}" / "step.json").read_text())["depends_on"]
        assert depends["settings"].get("similarity") == said


def test_fingerprints_of_bi_encoders(places: dict[str, Path]) -> None:
    """Those of folders are what they were in earlier versions; builtin models count the version of our forward, too."""
    minilm = "builtin:minilm-l6"
    weights, none = folder_fingerprint(find_folder(minilm)), [None, None, [None, None]]
    before = BiEncoderTeacher(minilm, precision="fp32").fingerprint
    assert before == digest_of(["bi_encoder", weights, 1, *none, "fp32", 2])
    assert BiEncoderTeacher(minilm, precision="bf16").fingerprint == digest_of(
        ["bi_encoder", weights, 1, *none, "bf16", 2]
    )
    given, about = folder_fingerprint(places["encoder"]), [None, "mean", [None, None], "fp32"]
    folder = BiEncoderTeacher(str(places["encoder"]), pooling="mean", precision="bf16")
    assert folder.fingerprint == digest_of(["bi_encoder", given, 1, *about])
    read = BiEncoderTeacher(TunedBuiltin(minilm, find_folder(minilm)), precision="fp32")
    assert read.fingerprint != before  # sentence-transformers gave other scores in the same precision, to rounding


def test_the_version_of_a_kind_is_part_of_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    content = depends_on(settings={"seed": 0}, inputs={})
    before = {kind: fingerprint(kind, content) for kind in STEP_VERSIONS}
    assert len(set(before.values())) == len(STEP_VERSIONS)
    monkeypatch.setitem(STEP_VERSIONS, "stage1", STEP_VERSIONS["stage1"] + 1)
    assert [kind for kind in STEP_VERSIONS if fingerprint(kind, content) != before[kind]] == ["stage1"]
    with pytest.raises(ValueError, match="'stage3' is not a kind of step"):
        fingerprint("stage3", content)


def test_content_of_a_step_is_readable_and_without_what_is_not_given(tmp_path: Path) -> None:
    recipe = Dry(tmp_path, {name: Path(name) for name in ("encoder", "train", "dev", "test", "pool")}).recipe({})
    pairs = Pairs.build(["q"], ["p"])
    step = Step("teacher", "abc", Path("somewhere"))
    content = depends_on(
        settings={"stage1": recipe.stage1, "loss": recipe.loss, "seed": 0, "weights": None},
        inputs={"pool": pairs, "teachers": [step, "def"], "start": None},
    )
    assert content == {
        "settings": {"stage1": {"learning_rate": 1e-4, "epochs": 2, "cosine": 0.5, "states": 1.0}, "seed": 0},
        "inputs": {"pool": pairs.digest(), "teachers": ["abc", "def"]},
    }
    assert non_defaults(recipe.student, without={"layers"}) == {"start": "teacher"}
    with pytest.raises(TypeError, match="a float has no fingerprint"):
        fingerprints.depends_on(settings={}, inputs={"pool": 0.5})
