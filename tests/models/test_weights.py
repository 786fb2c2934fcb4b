"""Weights come from the files that transformers reads, whole and finite; anything else is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from encoder_fixtures import inputs, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from tmkd.core.errors import EncoderError
from tmkd.models.bi_encoder import embed
from tmkd.models.checkpoint import load_encoder, load_finished, load_student, save_student
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.encoders.forward import Batch
from tmkd.models.student import Student


def saved(folder: Path, *, soft_heads: int = 0, seed: int = 5, family: str = "bert") -> Path:
    """A classification checkpoint that tmkd saved, of random weights."""
    source = tiny(family, folder.with_name(f"{folder.name}-source"))
    torch.manual_seed(seed)
    student = Student(load_encoder(source, 2), 2, soft_heads)
    for head in (student.golden.weight, student.soft_weight):
        torch.nn.init.normal_(head, std=0.5)
    save_student(student, folder, source, 64, {})
    return folder


def foreign(folder: Path) -> Path:
    """The same as other tools save it, without tmkd.json."""
    saved(folder)
    (folder / "tmkd.json").unlink()
    return folder


def logits(student: Student, folder: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = student.eval()(Batch(*inputs(folder))).golden
    return found


def rewrite(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")


def shard(folder: Path) -> dict[str, str]:
    """Cut model.safetensors in two, as large checkpoints are; returns the index's map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    named: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        named |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return named


def test_stray_weights_of_another_model_are_not_read(tmp_path: Path) -> None:
    folder, other = foreign(tmp_path / "one"), saved(tmp_path / "other", seed=6)
    wanted, mark = logits(load_finished(folder, 2), folder), encoder_fingerprint(folder)
    for name in ("model_epoch1", "model.fp16", "adapter_model", "a", "zzz", "model-00001-of-00002"):
        shutil.copyfile(other / "model.safetensors", folder / f"{name}.safetensors")
    for inside in ("onnx", "checkpoint-500"):
        (folder / inside).mkdir()
        shutil.copyfile(other / "model.safetensors", folder / inside / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that would run code")
    assert torch.equal(logits(load_finished(folder, 2), folder), wanted)
    assert encoder_fingerprint(folder) == mark
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids, mask, types = inputs(folder)
    with torch.no_grad():
        found = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert torch.allclose(found, wanted[:, 1:] - wanted[:, :1], atol=1e-5)  # two classes are saved as one logit


def test_a_folder_of_other_weights_alone_is_refused_and_they_are_named(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "one")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    for load in (lambda: find_encoder(str(folder)), lambda: load_encoder(folder, 2), lambda: embed(folder, ["a"], 8)):
        with pytest.raises(EncoderError, match=r"has no model\.safetensors; it has model\.fp16\.safetensors: rename"):
            load()


def test_an_adapter_is_refused_and_not_taken_for_the_model(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "one")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"holds an adapter.*merge_and_unload"):
        load_encoder(folder, 2)


def test_shards_are_read_as_the_index_names_them(tmp_path: Path) -> None:
    folder, other = foreign(tmp_path / "one"), saved(tmp_path / "other", seed=6)
    wanted = logits(load_finished(folder, 2), folder)
    named = shard(folder)
    shutil.copyfile(other / "model.safetensors", folder / "model-00003-of-00003.safetensors")  # an earlier save's
    first, second = sorted(set(named.values()))
    doubled = load_file(folder / first) | {max(named): torch.zeros(2)}  # a tensor that the index gives to the second
    save_file(doubled, folder / first)
    assert torch.equal(logits(load_finished(folder, 2), folder), wanted)
    (folder / second).unlink()
    with pytest.raises(EncoderError, match=rf"index\.json names {second}, which is not there"):
        find_encoder(str(folder))


def test_an_index_that_gives_a_tensor_to_two_files_is_refused(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "one")
    shard(folder)
    index = folder / "model.safetensors.index.json"
    twice = '"weight_map": {"bert.pooler.dense.bias": "model-00001-of-00002.safetensors",'
    index.write_text(index.read_text().replace('"weight_map": {', twice))
    with pytest.raises(EncoderError, match=r"bert\.pooler\.dense\.bias is in model-0000"):
        load_encoder(folder, 2)


def test_gamma_and_beta_load_as_transformers_loads_them(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "one")
    weights = load_file(folder / "model.safetensors")
    wanted = logits(load_finished(folder, 2), folder)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for name, value in weights.items()}  # fmt: skip
    assert sum("gamma" in name for name in old) == 7
    rewrite(folder, old)
    assert torch.equal(logits(load_finished(folder, 2), folder), wanted)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids, mask, types = inputs(folder)
    with torch.no_grad():
        found = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert torch.allclose(found, wanted[:, 1:] - wanted[:, :1], atol=1e-5)  # two classes are saved as one logit
    name = "bert.embeddings.LayerNorm.weight"
    rewrite(folder, old | {name: torch.zeros_like(weights[name])})
    with pytest.raises(EncoderError, match=rf"holds {name} twice"):
        load_finished(folder, 2)


def test_names_with_and_without_prefix_are_the_same_weights_and_never_a_mixture(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "one")
    weights = load_file(folder / "model.safetensors")
    wanted = logits(load_finished(folder, 2), folder)
    bare = {name.removeprefix("bert."): value for name, value in weights.items()}
    rewrite(folder, bare)
    assert torch.equal(logits(load_finished(folder, 2), folder), wanted)
    name = "embeddings.word_embeddings.weight"
    rewrite(folder, bare | {f"bert.{name}": bare[name] + 1})
    with pytest.raises(EncoderError, match=rf"holds {name} twice.*a mixture of two models"):
        load_finished(folder, 2)


def test_a_config_of_fewer_layers_than_the_weights_is_refused(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "one")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(EncoderError, match=r"layers that its config\.json does not have, first encoder\.layer\.2"):
        load_finished(folder, 2)


def test_no_head_stays_at_random_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "one")
    weights = load_file(folder / "model.safetensors")
    rewrite(folder, {name: value for name, value in weights.items() if name != "classifier.weight"})
    with pytest.raises(EncoderError, match=r"missing or of another shape, first classifier\.weight"):
        load_student(folder)
    rewrite(folder, weights | {"classifier.weight": torch.ones(3, 48), "classifier.bias": torch.ones(3)})
    with pytest.raises(EncoderError, match=r"classifier\.weight \(shape \[3, 48\], not \[2, 48\]\)"):
        load_student(folder)


def test_heads_of_another_student_are_refused(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one", soft_heads=2), saved(tmp_path / "other", soft_heads=2, seed=6)
    more = saved(tmp_path / "more", soft_heads=3)
    load_student(one)
    shutil.copyfile(other / "headers.safetensors", one / "headers.safetensors")
    with pytest.raises(EncoderError, match=r"the mean of the heads in headers\.safetensors is not the head"):
        load_student(one)
    shutil.copyfile(more / "headers.safetensors", one / "headers.safetensors")
    with pytest.raises(EncoderError, match=r"soft\.weight has the shape \[3, 2, 48\]"):
        load_student(one)
    (one / "headers.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"headers\.safetensors is missing"):
        load_student(one)


def test_weights_that_are_not_finite_are_refused_at_load_and_named(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "one")
    weights = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.bias"
    for value in (float("nan"), float("inf")):
        broken = weights[name].clone()
        broken[3] = value
        rewrite(folder, weights | {name: broken})
        for load in (lambda: load_finished(folder, 2), lambda: embed(folder, ["a"], 8)):
            with pytest.raises(
                EncoderError, match=r"layer\.1\.output\.dense\.bias \(1 of its 48 numbers are NaN"
            ) as got:
                load()
            assert str(folder) in str(got.value)


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "one")
    weights = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    rewrite(folder, weights | {name: (weights[name] * 100).to(torch.int8)})
    with pytest.raises(EncoderError, match=r"layer\.0\.output\.dense\.weight is torch\.int8.*quantized"):
        load_finished(folder, 2)


def test_a_bi_encoder_never_runs_on_random_weights(tmp_path: Path) -> None:
    folder = tiny("bert", tmp_path / "one")
    weights = load_file(folder / "model.safetensors")
    rewrite(folder, {f"tower.{name}": value for name, value in weights.items()})  # transformers fills in random ones
    assert AutoModel.from_pretrained(folder) is not None
    with pytest.raises(EncoderError, match=r"weights are missing or of another shape, first bert\.embeddings"):
        embed(folder, ["mount a disk"], 16)


def test_a_model_that_diverged_is_not_saved(tmp_path: Path) -> None:
    source = tiny("bert", tmp_path / "one")
    student = Student(load_encoder(source, 2), 2)
    torch.nn.init.constant_(student.golden.bias, float("nan"))
    with pytest.raises(EncoderError, match=r"saved: 1 weights are not finite, first golden\.bias"):
        save_student(student, tmp_path / "saved", source, 64, {})
    assert not (tmp_path / "saved").exists()
