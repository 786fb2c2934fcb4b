"""What is measured: rows, and one set of weights in every form that a contestant opens. Kept in the cache.

student/  a model folder of tmkd          export/  what `tmkd export` writes
single/   the same with one output (the difference of the two classes: what the peers expect), in a checkpoint and
          in onnx/ as the usual whole graph, fp32 and dynamic int8
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tmkd.core.errors import TmkdError
from tmkd.core.files import cache_folder, write_json
from tmkd.data.builtin.debian_docs import build_demo
from tmkd.data.pairs import Pairs
from tmkd.data.rows import read_pairs
from tmkd.data.writers import write_rows
from tmkd.export.onnx import quiet_exporter
from tmkd.inference.scorer import read_manifest
from tmkd.models.checkpoint import load_encoder, load_finished, save_student
from tmkd.models.encoders.families import family_of, last_linear, takes_token_types
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer

logger = logging.getLogger(__name__)

FORMAT = 2


@dataclass(frozen=True)
class Rows:
    """Real pairs, question by question; labels are 0 or 1. calibration: other questions' pairs of the same kind."""

    pairs: Pairs
    calibration: Pairs

    def first(self, count: int) -> tuple[list[str], list[str], list[int]]:
        """Questions, passages and labels of the first pairs."""
        part = self.pairs.take(range(min(count, len(self.pairs))))
        return list(part.questions), list(part.passages), [int(label) for label in np.maximum(part.labels, 0)]

    def one_question(self, passages: int, turn: int) -> tuple[list[str], list[str], list[int]]:
        """One question with so many passages; another for every turn."""
        rows = [(turn * passages + i) % len(self.pairs) for i in range(passages)]
        question = self.pairs.questions[rows[0]]
        return [question] * passages, [self.pairs.passages[row] for row in rows], [0] * passages


def rows_of(path: Path | None, seed: int = 0) -> Rows:
    """The built-in development pairs (ten a question), calibrated on training pairs; or a file's, half of them each."""
    if path is None:
        built = build_demo()
        return Rows(_by_question(built.dev, seed), _by_question(built.train, seed))
    pairs = _by_question(read_pairs(path), seed)
    half = len(pairs) // 2
    while half < len(pairs) and pairs.questions[half] == pairs.questions[half - 1]:
        half += 1
    if min(half, len(pairs) - half) < 16:
        raise TmkdError(
            f"{path}: {len(pairs)} pairs, {len(set(pairs.questions))} questions; a bench needs 16 or more in each half"
        )
    return Rows(pairs.take(range(half)), pairs.take(range(half, len(pairs))))


def _by_question(pairs: Pairs, seed: int) -> Pairs:
    """The questions in a random order, the rows of each together, as a reranker gets them."""
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(pairs.questions):
        rows.setdefault(question, []).append(row)
    groups = list(rows.values())
    return pairs.take([row for i in np.random.default_rng(seed).permutation(len(groups)) for row in groups[i]])


@dataclass(frozen=True)
class Weights:
    """One model in every form."""

    folder: Path
    max_length: int

    @property
    def student(self) -> Path:
        """A model folder of tmkd."""
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
        """Texts that a peer calibrates on."""
        return self.folder / "calibration"

    def flops(self, questions: list[str], passages: list[str]) -> float:
        """Useful operations of one forward over these pairs: no padding, and only what the last first token needs."""
        config = _config(self.student)
        tokens = PairTokenizer(self.student, self.max_length).encode(questions, passages).lengths.astype(np.float64)
        d, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        products = 2 * (4 * d * d + 2 * d * wide)  # of one token with the weights of a layer
        whole = tokens * products + 4 * tokens**2 * d
        last = (
            products + 4 * tokens * config["num_attention_heads"] * d
        )  # tmkd/models/encoders/attention.py, FirstOfPadded
        return float(((layers - 1) * whole + last).sum())


def weights(model: str, layers: int, max_length: int, rows: Rows, *, export: bool) -> Weights:
    """Every form of `model` (an export, a checkpoint, a builtin or a hub id), made once.

    An export is taken as it is; of anything else the first `layers` layers with a new head.
    """
    exported = Path(model).is_dir() and (Path(model) / "parity.json").is_file()
    source = Path(model) if exported else find_encoder(model)
    mark = {"of": encoder_fingerprint(source), "layers": None if exported else layers, "length": max_length}
    name = hashlib.sha256(repr((FORMAT, mark)).encode()).hexdigest()[:12]
    folder = cache_folder("bench") / f"weights-{name}"
    length = read_manifest(source).max_length if exported else max_length
    found = Weights(folder, length)
    if not folder.is_dir():
        logger.info(f"bench: writing the weights in the forms that are compared, {folder} (once)")
        partial = Weights(folder.with_name(f".{name}.partial"), length)
        shutil.rmtree(partial.folder, ignore_errors=True)
        _write(partial, source, exported, layers)
        partial.folder.rename(folder)
    _write_calibration(found, rows)
    if exported:
        shutil.rmtree(found.export, ignore_errors=True)
        shutil.copytree(source, found.export)
    elif export:  # every time: it is what this version exports that is measured
        from tmkd.export.export import export_student

        half = len(rows.calibration) // 2
        dev, calibration = rows.calibration.take(range(half)), rows.calibration.take(range(half, 2 * half))
        export_student(
            found.student,
            Pairs.build(dev.questions[:200], dev.passages[:200], qids=dev.qids[:200]),  # a new head knows no label
            found.export,
            calibration=calibration.take(range(min(half, 300))),
        )
    return found


def _write_calibration(found: Weights, rows: Rows) -> None:
    few = rows.calibration.take(range(min(300, len(rows.calibration))))
    found.calibration.mkdir(exist_ok=True)
    lines = [{"text": f"{q} {p}"} for q, p in zip(few.questions, few.passages, strict=True)]
    write_rows(found.calibration / "train.jsonl", lines)


def _write(found: Weights, source: Path, exported: bool, layers: int) -> None:
    torch.manual_seed(0)
    if exported:
        plain = found.folder / "checkpoint"
        shutil.copytree(source, plain, ignore=shutil.ignore_patterns("tmkd.json", "onnx"))
        student = load_finished(plain, 2)
    else:
        student = Student(load_encoder(source, 2, layers=layers), 2)
        nn.init.normal_(student.golden.weight, std=0.2)
    save_student(student, found.student, source, found.max_length, {"step": "bench"})
    _write_single(found)


def _write_single(found: Weights) -> None:
    """The checkpoint with one output, and its whole graph as ONNX: what the peers open."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(found.student, attn_implementation="eager")
    head = last_linear(model)
    single = nn.Linear(head.in_features, 1)
    with torch.no_grad():
        single.weight.copy_(head.weight[1:] - head.weight[:1])
        single.bias.copy_(head.bias[1:] - head.bias[:1])
    parent, _, name = family_of(model.config.model_type, "bench").last.rpartition(".")
    setattr(model.get_submodule(parent), name, single)
    model.config.num_labels = 1
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
    """Logits alone, with the inputs in order."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits


def _write_tokenizer_files(found: Weights) -> None:
    """Peers read the padding token from files that newer tokenizers no longer have."""
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
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found
