"""Finished cross-encoders of every kind that sentence-transformers opens, compared with its own `predict`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pair_rows
from encoder_fixtures import decoder, reranker, tiny
from sentence_transformers import CrossEncoder

from tmkd.core.errors import EncoderError, MissingExtraError
from tmkd.data.pairs import Pairs
from tmkd.models.encoders.find import find_encoder
from tmkd.models.ready import needs_library
from tmkd.teachers import cross_encoder
from tmkd.teachers.cross_encoder import CrossEncoderTeacher

ROWS = pair_rows()
PAIRS = Pairs.build([str(row["question"]) for row in ROWS], [str(row["passage"]) for row in ROWS])
TEXTS = list(zip(PAIRS.questions, PAIRS.passages, strict=True))
IDENTITY = torch.nn.Identity()


def classifier(folder: Path, model_type: str, logits: int = 1, **changes: Any) -> Path:
    """A tiny sequence classifier of an architecture, with the head saved."""
    from transformers import AutoModelForSequenceClassification

    base = tiny(model_type, folder.parent / f"{folder.name}-base", **changes)
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=logits)
    for name, parameter in model.named_parameters():
        if "classifier" in name or "pooler" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    return folder


def described(folder: Path, **config: Any) -> Path:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    return folder


def theirs(folder: Path, **options: Any) -> Any:
    return CrossEncoder(str(folder), local_files_only=True, model_kwargs={"dtype": "float32"}, **options)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_decoder_with_yes_and_no(tmp_path: Path, kind: str) -> None:
    folder = decoder(tmp_path / kind, kind)
    teacher = CrossEncoderTeacher(str(folder), precision="fp32")
    model = theirs(folder)
    raw = teacher.raw(PAIRS)
    np.testing.assert_allclose(raw[:, 0], model.predict(TEXTS, activation_fn=IDENTITY), atol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-raw[:, 0])), model.predict(TEXTS), atol=1e-5)  # its own sigmoid
    assert np.ptp(raw) > 0.1
    np.testing.assert_array_equal(teacher.logits(PAIRS)[:, 0], 0)
    np.testing.assert_array_equal(teacher.logits(PAIRS)[:, 1], raw[:, 0])
    teacher.require_log_odds()
    assert needs_library(folder)
    assert teacher.width == 1
    assert teacher.classes == 2


def test_a_prompt_of_its_own_is_read_and_counts(tmp_path: Path) -> None:
    plain = decoder(tmp_path / "plain")
    model = theirs(plain, prompts={"judge": "Does the passage answer the question?"}, default_prompt_name="judge")
    model.save(str(tmp_path / "judge"), create_model_card=False)
    teacher = CrossEncoderTeacher(str(tmp_path / "judge"), precision="fp32")
    asked = teacher.raw(PAIRS)[:, 0]
    np.testing.assert_allclose(asked, model.predict(TEXTS, activation_fn=IDENTITY), atol=1e-5)
    assert np.abs(asked - CrossEncoderTeacher(str(plain), precision="fp32").raw(PAIRS)[:, 0]).max() > 1e-3

    encoder = theirs(reranker(tmp_path / "bert"), prompts={"q": "how : "}, default_prompt_name="q")
    assert needs_library(tmp_path / "bert") == ""
    encoder.save(str(tmp_path / "asking"), create_model_card=False)
    assert needs_library(tmp_path / "asking") == "its prompt"
    found = CrossEncoderTeacher(str(tmp_path / "asking"), precision="fp32").raw(PAIRS)[:, 0]
    np.testing.assert_allclose(found, encoder.predict(TEXTS, activation_fn=IDENTITY), atol=1e-5)


@pytest.mark.parametrize("model_type", ["albert", "convbert", "deberta-v2", "electra"])
def test_other_architectures(tmp_path: Path, model_type: str) -> None:
    special = {"embedding_size": 32} if model_type in ("albert", "convbert") else {}
    folder = classifier(tmp_path / model_type, model_type, **special)
    assert bool(needs_library(folder)) == (model_type in ("albert", "convbert"))
    for length in (None, 24):
        found = CrossEncoderTeacher(str(folder), max_length=length, precision="fp32").raw(PAIRS)[:, 0]
        expected = theirs(folder, max_length=length).predict(TEXTS, activation_fn=IDENTITY)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_real_weights_with_another_activation(tmp_path: Path) -> None:
    """MiniLM with a head of one logit on which its files put tanh: no log-odds, so it must be calibrated."""
    folder = reranker(tmp_path / "minilm", source=find_encoder("builtin:minilm-l6"))
    described(folder, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    assert needs_library(folder) == "the scale of its scores"
    teacher = CrossEncoderTeacher(str(folder), max_length=128, precision="fp32")
    expected = theirs(folder, max_length=128).predict(TEXTS)
    np.testing.assert_allclose(teacher.raw(PAIRS)[:, 0], expected, atol=1e-5)
    assert np.abs(expected).max() <= 1
    with pytest.raises(EncoderError, match=r"activation\.Tanh on the logits\..*`calibrate`: platt or isotonic"):
        teacher.require_log_odds()


def test_several_logits_in_the_order_of_the_task(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "three", "albert", 3, embedding_size=32)
    expected = theirs(folder).predict(TEXTS)
    teacher = CrossEncoderTeacher(str(folder), class_order=[2, 0, 1], precision="fp32")
    np.testing.assert_allclose(teacher.logits(PAIRS), expected[:, [2, 0, 1]], atol=1e-5)
    assert teacher.width == teacher.classes == 3
    assert teacher.fingerprint != CrossEncoderTeacher(str(folder), precision="fp32").fingerprint


def test_a_score_of_a_single_token_is_no_log_odds(tmp_path: Path) -> None:
    model = theirs(decoder(tmp_path / "plain"))
    model.save(str(tmp_path / "one"), create_model_card=False)
    settings = tmp_path / "one" / "1_LogitScore" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "false_token_id": None}))
    with pytest.raises(EncoderError, match="the logit of a single token"):
        CrossEncoderTeacher(str(tmp_path / "one")).require_log_odds()


def test_pairs_come_in_parts_the_longest_one_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_encoder, "CHUNK", 5)
    teacher = CrossEncoderTeacher(str(decoder(tmp_path / "small")), precision="fp32")
    parts = [rows for rows, _ in teacher.scored(PAIRS)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(PAIRS)))
    assert sorted(len(part) for part in parts)[1:] == [5] * (len(parts) - 1)
    lengths = [[sum(map(len, texts)) for texts in PAIRS.take(part).texts()] for part in parts]
    assert min(lengths[0]) >= max(max(part) for part in lengths[1:])


def test_heads_that_are_not_understood(tmp_path: Path) -> None:
    bare = tiny("albert", tmp_path / "bare", embedding_size=32)
    with pytest.raises(EncoderError, match="its head is not understood: AlbertModel"):
        CrossEncoderTeacher(str(bare))
    described(bare, architectures=["AlbertForSequenceClassification"])
    with pytest.raises(EncoderError, match=r"needs the weights classifier\.bias, classifier\.weight"):
        CrossEncoderTeacher(str(bare))
    model = theirs(decoder(tmp_path / "plain"))
    model.save(str(tmp_path / "modules"), create_model_card=False)
    modules = json.loads((tmp_path / "modules" / "modules.json").read_text())
    pooling = {**modules[1], "type": "sentence_transformers.models.Pooling"}
    (tmp_path / "modules" / "modules.json").write_text(json.dumps([modules[0], pooling]))
    with pytest.raises(EncoderError, match="its head is not understood: Transformer, Pooling"):
        CrossEncoderTeacher(str(tmp_path / "modules"))
    (tmp_path / "modules" / "modules.json").write_text(json.dumps([modules[0], {**modules[1], "type": "mine.Score"}]))
    with pytest.raises(EncoderError, match=r"names code of its own, mine\.Score, which is not run"):
        CrossEncoderTeacher(str(tmp_path / "modules"))


def test_a_language_model_without_yes_and_no(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "plain")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["nay"] = content["model"]["vocab"].pop("no")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EncoderError, match="its tokenizer has no token 'no'"):
        CrossEncoderTeacher(str(folder))


def test_a_chat_template_without_a_place_for_the_pair(tmp_path: Path) -> None:
    user = "{%- for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}relevant ?"
    teacher = CrossEncoderTeacher(str(decoder(tmp_path / "chat", template=user)))
    with pytest.raises(EncoderError, match="cannot carry a 'query'/'document' pair"):
        teacher.raw(PAIRS)


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "plain")
    (folder / "mine.py").write_text("open('ran', 'w')\n")
    described(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    with pytest.raises(EncoderError, match=r"names code of its own, mine\.Config, mine\.Model, which is not run"):
        CrossEncoderTeacher(str(folder))
    other = reranker(tmp_path / "other")
    described(other, sentence_transformers={"activation_fn": "mine.Squash"})
    with pytest.raises(EncoderError, match=r"code of its own, mine\.Squash, on the logits"):
        CrossEncoderTeacher(str(other))


def test_weights_in_another_format_and_a_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = decoder(tmp_path / "plain")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="no weights in safetensors"):
        CrossEncoderTeacher(str(folder))
    (tmp_path / "model.safetensors").rename(folder / "model.safetensors")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"tmkd\[teachers\]"):
        CrossEncoderTeacher(str(folder))
