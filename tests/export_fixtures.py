"""Small student folders for the tests of tokenizer, runtime, export and score: real words, seeded random heads."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, MPNetConfig

from tmkd.data.pairs import Pairs
from tmkd.export.export import export_student
from tmkd.models.batching import pad
from tmkd.models.encoders.find import find_encoder
from tmkd.models.tokenizer import PairTokenizer

TEXT = """how do i mount a disk install package the command prints every file in directory and exits with status zero
use option to set name of server which listens on port change password user group network address read manual page"""
WORDS = TEXT.split()


def minilm_student(folder: Path, *, layers: int = 2, classes: int = 2, soft: int = 3, max_length: int = 48) -> Path:
    """The bottom of the installed MiniLM with K soft headers and one golden header."""
    source = find_encoder("builtin:minilm-l6")
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    config.num_hidden_layers, config.num_labels = layers, classes
    torch.manual_seed(11)
    model = AutoModelForSequenceClassification.from_config(config)
    weights = load_file(source / "model.safetensors")
    found = model.load_state_dict({f"bert.{name}": value for name, value in weights.items()}, strict=False)
    assert set(found.missing_keys) <= {"classifier.weight", "classifier.bias"}
    torch.nn.init.normal_(model.bert.pooler.dense.weight, std=0.5)  # the packaged pooler gives all texts nearly one h
    return _write(folder, model, source, classes, soft, max_length)


def ranking_student(folder: Path, pairs: Pairs | None = None) -> Path:
    """Two layers of the MiniLM, trained for a few steps to separate the classes of the pairs (`clear_pairs`).

    The untrained students' scores are small differences of large numbers, of which 8 bits leave little.
    """
    minilm_student(folder, layers=2, soft=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = PairTokenizer(folder, 48)
    pairs = clear_pairs() if pairs is None else pairs
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    ids, mask, types = map(torch.from_numpy, pad(encoded.ids, encoded.type_ids, range(len(pairs)), tokenizer.pad_id))
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    with torch.no_grad():
        model.bert.pooler.dense.weight.copy_(torch.eye(384))
    model.bert.embeddings.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.0)
    wanted = torch.from_numpy(np.where(pairs.labels[:, None] == [0, 1], 1.0, -1.0)).float()
    for _ in range(25):
        loss = (model(**given).logits - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    weight, bias = model.classifier.weight.detach(), model.classifier.bias.detach()
    headers = {"golden.weight": weight, "golden.bias": bias, "soft.weight": weight[None], "soft.bias": bias[None]}
    save_file({name: value.clone() for name, value in headers.items()}, folder / "headers.safetensors")
    return folder


def mpnet_student(folder: Path, *, classes: int = 2, soft: int = 2, max_length: int = 40) -> Path:
    """A tiny MPNet with random weights and a tokenizer of a few words (padding id 1, as MPNet has it)."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["<s>", "<pad>", "</s>", "<mask>", "[UNK]", *sorted(set(WORDS))]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.enable_padding(length=128, pad_id=1, pad_token="<pad>")
    source = folder / "source"
    source.mkdir()
    tokenizer.save(str(source / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(12)
    config = MPNetConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=300,
        num_labels=classes,
        initializer_range=0.3,
    )
    return _write(
        folder / "student", AutoModelForSequenceClassification.from_config(config), source, classes, soft, max_length
    )


def _write(folder: Path, model: Any, tokenizer: Path, classes: int, soft: int, max_length: int) -> Path:
    width = model.config.hidden_size
    headers = {
        "golden.weight": torch.randn(classes, width) * 0.3,
        "golden.bias": torch.randn(classes) * 0.1,
        "soft.weight": torch.randn(soft, classes, width) * 0.3,
        "soft.bias": torch.randn(soft, classes) * 0.1,
    }
    head = model.classifier.out_proj if model.config.model_type == "mpnet" else model.classifier
    with torch.no_grad():
        head.weight.copy_(torch.cat([headers["golden.weight"][None], headers["soft.weight"]]).mean(0))
        head.bias.copy_(torch.cat([headers["golden.bias"][None], headers["soft.bias"]]).mean(0))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_file(headers, folder / "headers.safetensors")
    PairTokenizer(tokenizer, max_length).save(folder)
    (folder / "tokenizer_config.json").write_bytes((tokenizer / "tokenizer_config.json").read_bytes())
    card = {"format": 1, "max_length": max_length, "classes": classes, "soft_headers": soft, "use_golden": True}
    (folder / "tmkd.json").write_text(json.dumps(card))
    return folder


def texts(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Questions (five passages each) and passages of very different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        size = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (size,), generator=generator).tolist())

    asked = [f"{words(3, 9)} {number}" for number in range(-(-count // 5))]
    return [asked[i // 5] for i in range(count)], [words(1, 70) for _ in range(count)]


def dev_pairs(count: int = 60, classes: int = 2) -> Pairs:
    """Labelled pairs over the same texts."""
    questions, passages = texts(count)
    return Pairs.build(questions, passages, labels=[i % classes for i in range(count)])


def clear_pairs(count: int = 60) -> Pairs:
    """Questions with one passage of words and four times the same numbers, labelled 1 and 0."""
    questions, passages = texts(count)
    numbers = ["1 2 3 5 8 13 21 34 55 89", "2 4 8 16 32 64 128 256", "0 0 1 1 0 1 0 0 1 1 0 1 0 1"]
    return Pairs.build(
        questions,
        [passages[i] if i % 5 == 0 else numbers[i // 5 % 3] for i in range(count)],
        labels=[int(i % 5 == 0) for i in range(count)],
        pids=[str(i) for i in range(count)],
    )


@functools.cache
def exported(family: str, classes: int = 2) -> Path:
    """A folder with student/ and its fp32 export out/, made once per test process; tests only read it or copy it."""

    folder = Path(tempfile.mkdtemp(prefix="tmkd-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if family == "ranking":
        student = ranking_student(folder / "student")
    elif family == "minilm":
        student = minilm_student(folder / "student", classes=classes)
    else:
        student = mpnet_student(folder / "mpnet", classes=classes).rename(folder / "student")
    export_student(student, dev_pairs(classes=classes), folder / "out", backends=["onnx-fp32"])
    return folder


@functools.cache
def with_every_backend(family: str, classes: int = 2) -> Path:
    """An export with all backends (those that pass); beside it student/ and out/ (fp32 alone).

    `ranking` is a student whose scores survive 8 bits; the heads of the others read mostly noise.
    """
    folder = Path(shutil.copytree(exported(family, classes), tempfile.mkdtemp(prefix="tmkd-test-") + "/e"))
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    dev = clear_pairs() if family == "ranking" else dev_pairs(classes=classes)
    export_student(folder / "student", dev, folder / "every", calibration=dev)
    return folder / "every"
