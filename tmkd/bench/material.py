"""What is measured: pairs, and one model in every form that a contestant opens. Kept in the cache folder.

A model's folder holds:

student/  a model folder of tmkd
export/   what `tmkd export` writes of it
single/   the same weights as a checkpoint with one output, which other tools expect (the difference of the two
          classes), and in onnx/ as an ONNX graph, in fp32 and in dynamic int8
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tmkd.core.errors import TmkdError
from tmkd.core.files import cache_folder, read_json, write_json
from tmkd.data.builtin.debian_docs import build_demo
from tmkd.data.pairs import Pairs
from tmkd.data.rows import read_pairs
from tmkd.data.writers import write_rows
from tmkd.export.onnx import quiet_exporter
from tmkd.inference.manifest import read_manifest
from tmkd.models.checkpoint import load_encoder, load_finished, save_student
from tmkd.models.encoders.families import takes_token_types
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.quiet import without_bars
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer

logger = logging.getLogger(__name__)

FORMAT = 3


@dataclass(frozen=True)
class BenchPairs:
    """Pairs to measure on, question by question.

    Attributes:
        pairs: What contestants train on or score. Labels are 0 or 1.
        calibration: Pairs of other questions, from which quantisation takes its ranges.
    """

    pairs: Pairs
    calibration: Pairs

    @classmethod
    def read(cls, path: Path | None, seed: int = 0) -> BenchPairs:
        """Read pairs, and put their questions into a random order.

        Args:
            path: A file whose first half is measured on and whose second half is for calibration. None for the
                built-in development pairs (ten a question), with training pairs for calibration.
            seed: Of the order.

        Raises:
            TmkdError: The file has too few questions.
        """
        if path is None:
            built = build_demo()
            return cls(_by_question(built.dev, seed), _by_question(built.train, seed))
        pairs = _by_question(read_pairs(path), seed)
        half = len(pairs) // 2
        while half < len(pairs) and pairs.questions[half] == pairs.questions[half - 1]:
            half += 1
        if min(half, len(pairs) - half) < 16:
            questions = len(set(pairs.questions))
            raise TmkdError(
                f"{path}: {len(pairs)} pairs, {questions} questions; a bench needs 16 pairs or more in each half"
            )
        return cls(pairs.take(range(half)), pairs.take(range(half, len(pairs))))

    def first(self, count: int) -> tuple[list[str], list[str], list[int]]:
        """Questions, passages and labels of the first `count` pairs."""
        part = self.pairs.take(range(min(count, len(self.pairs))))
        return list(part.questions), list(part.passages), [int(label) for label in np.maximum(part.labels, 0)]

    def reused(self, times: int, count: int) -> tuple[list[str], list[str], list[int]]:
        """At most `count` pairs in which every text occurs `times` times, and labels that are all 0.

        Each `times` of the passages stand beside the same `times` questions, as in a pool that was mined: there a
        question has several passages and a passage several questions. Where the file has too few questions for that,
        a question occurs more often. The number of pairs does not depend on `times`.

        Raises:
            TmkdError: There are fewer questions than `times`.
        """
        questions, passages = (list(dict.fromkeys(texts)) for texts in (self.pairs.questions, self.pairs.passages))
        if len(questions) < times:
            raise TmkdError(f"the pairs have {len(questions)} questions; give {times} or more")
        rows = range(min(count, len(passages)))
        asked = [questions[(row // times**2 * times + row % times) % len(questions)] for row in rows]
        return asked, [passages[row // times] for row in rows], [0] * len(rows)

    def one_question(self, passages: int, turn: int) -> tuple[list[str], list[str], list[int]]:
        """One question with so many passages, and labels that are all 0. Each turn has another question."""
        rows = [(turn * passages + i) % len(self.pairs) for i in range(passages)]
        question = self.pairs.questions[rows[0]]
        return [question] * passages, [self.pairs.passages[row] for row in rows], [0] * passages


def _by_question(pairs: Pairs, seed: int) -> Pairs:
    """Shuffle the questions and keep the pairs of each together, as a reranker gets them."""
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(pairs.questions):
        rows.setdefault(question, []).append(row)
    groups = list(rows.values())
    return pairs.take([row for i in np.random.default_rng(seed).permutation(len(groups)) for row in groups[i]])


@dataclass(frozen=True)
class Subject:
    """What a bench measures.

    Attributes:
        model: An export, a model folder, `builtin:NAME` or a hub id.
        layers: Layers to keep, from the bottom; an export keeps all.
        max_length: Longest pair in tokens; an export has its own.
        pairs: A file of pairs; None for the built-in ones.
        cached: The export of a student that reads passages once, which is measured beside the model.
    """

    model: str = "builtin:minilm-l6"
    layers: int = 3
    max_length: int = 192
    pairs: Path | None = None
    cached: Path | None = None

    def prepare(self, *, export: bool) -> tuple[BenchPairs, Weights]:
        """Read the pairs, and write the model in every form; `export` says whether an export is needed.

        Raises:
            TmkdError: The pairs or the model cannot be used.
        """
        _require_kinds(self)
        pairs = BenchPairs.read(self.pairs)
        return pairs, _weights(self, pairs, export)

    def exported(self) -> Path:
        """The folder of the model's export; the model itself where it is one."""
        if _is_export(self.model):
            return Path(self.model)
        return self.prepare(export=True)[1].export


@dataclass(frozen=True)
class Weights:
    """One model in every form, in the subfolders that the module's docstring names.

    Attributes:
        folder: In the cache.
        max_length: Longest pair in tokens.
        cached: The export of a student that reads passages once, where one takes part.
    """

    folder: Path
    max_length: int
    cached: Path | None = None

    @property
    def student(self) -> Path:
        """The model folder of tmkd."""
        return self.folder / "student"

    @property
    def single(self) -> Path:
        """The checkpoint with one output."""
        return self.folder / "single"

    @property
    def export(self) -> Path:
        """The export."""
        return self.folder / "export"

    @property
    def calibration(self) -> Path:
        """Texts from which another tool takes its ranges for int8."""
        return self.folder / "calibration"

    def flops(self, questions: list[str], passages: list[str]) -> float:
        """Useful floating-point operations of one forward pass over these pairs.

        Padding does not count, and in the last layer only what the first token needs.
        """
        config = _config(self.student)
        tokens = PairTokenizer(self.student, self.max_length).encode(questions, passages).lengths.astype(np.float64)
        d, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        products = 2 * (4 * d * d + 2 * d * wide)  # of one token with the weights of a layer
        whole = tokens * products + 4 * tokens**2 * d
        last = (
            products + 4 * tokens * config["num_attention_heads"] * d
        )  # tmkd/models/encoders/attention.py, FirstOfPadded
        return float(((layers - 1) * whole + last).sum())


def _require_kinds(subject: Subject) -> None:
    """Refuse a cached student as the model, which other tools cannot run, and another student as the cached one."""
    if _is_export(subject.model) and read_manifest(subject.model).states is not None:
        raise TmkdError(
            f"{subject.model} is a student that reads passages once, which other tools cannot run. Give it as "
            f"`--cached {subject.model}`, beside a `--model` that they can"
        )
    if subject.cached is not None and read_manifest(subject.cached).states is None:
        raise TmkdError(f"--cached {subject.cached}: this student reads question and passage together")


def _weights(subject: Subject, pairs: BenchPairs, export: bool) -> Weights:
    """Write a model in every form. All forms but the export are written once.

    An export is used as it is. Any other model gives its first layers, with a new head.
    """
    exported = _is_export(subject.model)
    source = Path(subject.model) if exported else find_encoder(subject.model)
    layers = None if exported else subject.layers
    mark = {"of": encoder_fingerprint(source), "layers": layers, "length": subject.max_length}
    name = hashlib.sha256(repr((FORMAT, mark)).encode()).hexdigest()[:12]
    folder = cache_folder("bench") / f"weights-{name}"
    length = read_manifest(source).max_length if exported else subject.max_length
    found = Weights(folder, length, subject.cached)
    if not folder.is_dir():
        logger.info(f"bench: writing the weights in the forms that are compared, {folder} (once)")
        partial = Weights(folder.with_name(f".{name}.partial"), length)
        shutil.rmtree(partial.folder, ignore_errors=True)
        _write(partial, source, layers)
        partial.folder.rename(folder)
    _write_calibration(found, pairs)
    if exported:
        shutil.rmtree(found.export, ignore_errors=True)
        shutil.copytree(source, found.export)
    elif export:  # each time, since the export of this version is measured
        from tmkd.export.export import export_student

        half = len(pairs.calibration) // 2
        dev, calibration = pairs.calibration.take(range(half)), pairs.calibration.take(range(half, 2 * half))
        unlabelled = Pairs.build(dev.questions[:200], dev.passages[:200], qids=dev.qids[:200])  # the head is new
        export_student(
            found.student,
            unlabelled,
            found.export,
            calibration=calibration.take(range(min(half, 300))),
        )
    return found


def _is_export(model: str) -> bool:
    return (Path(model) / "parity.json").is_file()


def _write_calibration(found: Weights, pairs: BenchPairs) -> None:
    few = pairs.calibration.take(range(min(300, len(pairs.calibration))))
    found.calibration.mkdir(exist_ok=True)
    lines = [{"text": f"{q} {p}"} for q, p in zip(few.questions, few.passages, strict=True)]
    write_rows(found.calibration / "train.jsonl", lines)


def _write(found: Weights, source: Path, layers: int | None) -> None:
    torch.manual_seed(0)
    if layers is None:  # an export
        student = load_finished(source, 2)
    else:
        student = Student(load_encoder(source, 2, layers=layers), 2)
        nn.init.normal_(student.golden.weight, std=0.2)
    save_student(student, found.student, source, found.max_length, {"step": "bench"})
    _write_single(found)


def _write_single(found: Weights) -> None:
    """Write the checkpoint, whose two classes are one logit, and the same as an ONNX graph, which other tools open."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    with without_bars():
        model: Any = AutoModelForSequenceClassification.from_pretrained(found.student, attn_implementation="eager")
        model.eval().save_pretrained(found.single)
    for file in found.student.glob("*token*"):
        shutil.copyfile(file, found.single / file.name)
    _write_tokenizer_files(found)
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if takes_token_types(model.config) else [])
    onnx = found.single / "onnx"
    onnx.mkdir()
    with quiet_exporter():
        torch.onnx.export(
            _Tuple(model),
            tuple(torch.ones(2, 8, dtype=torch.int64) for _ in inputs),
            str(onnx / "model.onnx"),
            input_names=inputs,
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in inputs} | {"logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    quantize_dynamic(onnx / "model.onnx", onnx / "model_int8.onnx", weight_type=QuantType.QInt8)


class _Tuple(nn.Module):
    """A model that takes its inputs by position and returns the logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits


def _write_tokenizer_files(found: Weights) -> None:
    """Write the padding token where other tools look for it; newer tokenizers no longer have these files."""
    pads = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if _config(found.student)["model_type"] != "bert":
        pads = {"pad_token": "<pad>"}
    path = found.single / "tokenizer_config.json"
    config = {**_config(found.single, path.name), **pads, "model_max_length": found.max_length}
    write_json(path, config)
    if not (found.single / "special_tokens_map.json").is_file():
        write_json(found.single / "special_tokens_map.json", pads)


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    path = folder / name
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found
