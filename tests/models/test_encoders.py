"""Our forward compared with transformers'; finding, cutting and refusing encoders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import OURS, THEIRS, inputs, tiny
from safetensors.torch import load_file, save_file

from tmkd.core.errors import EncoderError
from tmkd.models.checkpoint import load_encoder, load_student, save_student
from tmkd.models.encoders import find
from tmkd.models.encoders.attention import FirstOfPadded, Padded
from tmkd.models.encoders.families import takes_token_types
from tmkd.models.encoders.find import find_encoder
from tmkd.models.encoders.forward import Batch, PairEncoder
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.training.losses import golden_loss


@pytest.fixture(params=["minilm", *OURS, *THEIRS])
def encoder_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "minilm":
        return find_encoder("builtin:minilm-l6")
    return tiny(request.param, tmp_path / request.param)


def test_outputs_and_gradients_equal_transformers(encoder_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    ours = Student(load_encoder(encoder_folder, 2, layers=2, freeze_embeddings=False), 2)
    torch.nn.init.normal_(ours.golden.weight, std=0.5)
    save_student(ours, tmp_path / "saved", encoder_folder, 64, {})
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    ids, mask, types = inputs(encoder_folder)
    labels = torch.arange(len(ids)) % 2
    golden_loss(ours(Batch(ids, mask, types)).golden, labels).mean().backward()
    extra = {"token_type_ids": types} if takes_token_types(theirs.config) else {}
    output = theirs(input_ids=ids, attention_mask=mask, **extra).logits
    torch.nn.functional.binary_cross_entropy_with_logits(output[:, 0], labels.float()).backward()
    golden = ours(Batch(ids, mask, types)).golden
    assert torch.allclose(golden[:, 1:] - golden[:, :1], output, atol=1e-5)
    assert isinstance(ours.encoder, PairEncoder)
    reference = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in ours.encoder.model.named_parameters() if p.grad is not None}
    assert set(mine) | {n for n in reference if "classifier" in n} >= set(reference)
    norm = torch.sqrt(sum((reference[name] ** 2).sum() for name in mine))
    off = torch.sqrt(sum(((mine[name] - reference[name]) ** 2).sum() for name in mine))
    assert off / norm < 1e-4


def test_layers_are_the_bottom_ones_evenly_spaced_ones_or_new_ones(encoder_folder: Path) -> None:
    def layer(encoder: PairEncoder, number: int) -> dict[str, torch.Tensor]:
        named = {re.sub(rf"^.*layers?\.{number}\.", "", name): p for name, p in encoder.model.named_parameters()
                 if re.search(rf"layers?\.{number}\..*weight$", name)}  # fmt: skip
        assert named
        return named

    whole = load_encoder(encoder_folder, 2)
    wanted = {"bottom": [0, 1], "spaced": {3: [0, 1], 6: [0, 3]}[whole.layers]}
    for start, numbers in wanted.items():
        cut = load_encoder(encoder_folder, 2, layers=2, start=start)
        assert cut.layers == 2
        for at, number in enumerate(numbers):  # ModernBERT's first layer has one norm fewer
            theirs = layer(whole, number)
            assert all(torch.equal(weight, theirs[name]) for name, weight in layer(cut, at).items())
    new = load_encoder(encoder_folder, 2, layers=2, start="random")
    dense = [name for name, weight in layer(new, 0).items() if weight.ndim == 2]
    assert not any(torch.equal(layer(new, 0)[name], layer(whole, 0)[name]) for name in dense)
    theirs, mine = whole.base.embeddings.state_dict(), new.base.embeddings.state_dict()
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs)


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_dropout_has_the_given_probability(model_type: str, tmp_path: Path) -> None:
    folder = tiny(model_type, tmp_path / "tiny")
    batch = Batch(*inputs(folder))
    for dropout, same in ((0.0, True), (0.5, False)):
        encoder = load_encoder(folder, 2, dropout=dropout).train()
        assert torch.equal(encoder(batch), encoder(batch)) == same


def test_layers_between_encoder_and_head_start_with_random_weights_where_the_checkpoint_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("distilbert", tmp_path / "tiny")
    torch.manual_seed(3)
    encoder = load_encoder(folder, 2)
    assert "pre_classifier.weight" in caplog.text
    save_student(Student(encoder, 2), tmp_path / "saved", folder, 64, {})
    again = load_student(tmp_path / "saved")
    assert isinstance(again.encoder, PairEncoder)
    assert torch.equal(again.encoder.model.pre_classifier.weight, encoder.model.pre_classifier.weight)
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    del weights["pre_classifier.weight"]
    save_file(weights, tmp_path / "saved" / "model.safetensors")
    with pytest.raises(EncoderError, match=r"pre_classifier\.weight"):
        load_student(tmp_path / "saved")


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_one_query_per_pair_needs_no_keys_and_values(dropout: float) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(3, 7, 24), torch.randn(3, 4, 1, 7)
    query, key, value = (torch.nn.Linear(24, 24) for _ in range(3))
    first, cheap = Padded(bias, fused=False).first(x)
    found = []
    for attention in (cheap, Padded(bias, fused=False)):
        torch.manual_seed(1)  # the same weights are dropped
        output = attention(query(first), x, key, value, 4, dropout)
        output.square().sum().backward()
        found.append([output, *(gradient(p) for layer in (query, key, value) for p in layer.parameters())])
        for layer in (query, key, value):
            layer.zero_grad()
    assert isinstance(cheap, FirstOfPadded)
    assert [tuple(tensor.shape) for tensor in found[0]] == [tuple(tensor.shape) for tensor in found[1]]
    assert all(torch.allclose(mine, plain, atol=1e-4) for mine, plain in zip(*found, strict=True))


def test_fold_equals_mean_of_heads_in_any_tool(encoder_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    student = Student(load_encoder(encoder_folder, 3, layers=2), 3, soft_heads=3).eval()
    torch.nn.init.normal_(student.soft_weight)
    torch.nn.init.normal_(student.soft_bias)
    save_student(student, tmp_path / "saved", encoder_folder, 64, {})
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    ids, mask, types = inputs(encoder_folder)
    with torch.no_grad():
        logits = student(Batch(ids, mask, types))
        extra = {"token_type_ids": types} if takes_token_types(theirs.config) else {}
        folded = theirs(input_ids=ids, attention_mask=mask, **extra).logits
        expected = torch.stack([logits.golden, *logits.soft.unbind(1)]).mean(0)
        again = load_student(tmp_path / "saved").eval()(Batch(ids, mask, types))
    assert torch.allclose(folded, expected, atol=1e-5)
    assert torch.allclose(student.combine(logits), expected, atol=1e-6)
    assert torch.equal(again.soft, logits.soft)


def test_stage1_student_averages_soft_heads_only(tmp_path: Path) -> None:
    folder = find_encoder("builtin:minilm-l6")
    student = Student(load_encoder(folder, 2, layers=1), 2, soft_heads=2, use_golden=False).eval()
    save_student(student, tmp_path / "s", folder, 64, {})
    again = load_student(tmp_path / "s").eval()
    with torch.no_grad():
        logits = again(Batch(*inputs(folder)))
    assert not again.use_golden
    assert torch.equal(again.combine(logits), logits.soft.mean(1))
    again.start_golden_from_soft()
    with torch.no_grad():
        assert torch.allclose(again(Batch(*inputs(folder))).golden, logits.soft.mean(1), atol=1e-6)


def test_tokenizer_of_a_saved_model_truncates_at_the_recipes_length(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = find_encoder("builtin:minilm-l6")
    save_student(Student(load_encoder(folder, 2, layers=1), 2), tmp_path / "s", folder, 40, {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "s")
    assert tokenizer.model_max_length == 40
    long = tokenizer("why", "word " * 300, truncation=True)["input_ids"]
    assert len(long) == 40
    ours = PairTokenizer(tmp_path / "s", 40).encode(["why", "a"], ["word " * 300, "b"])
    assert list(ours.ids[0]) == long
    assert len(ours.ids[1]) == 5  # no fixed padding


def test_builtin_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"not the weights")
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EncoderError, match="SHA-256"):
        find._verified(weights, find.MINILM.sha256, find.MINILM.install)


def test_folder_without_tokenizer_or_weights(tmp_path: Path) -> None:
    source = find_encoder("builtin:minilm-l6")
    shutil.copy(source / "config.json", tmp_path)
    with pytest.raises(EncoderError, match=r"safetensors"):
        find_encoder(str(tmp_path))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(EncoderError, match=r"tokenizer\.json"):
        find_encoder(str(tmp_path))
    with pytest.raises(EncoderError, match="no such folder"):
        find_encoder("./nowhere")
    with pytest.raises(EncoderError, match="builtin:minilm-l6"):
        find_encoder("builtin:nothing")


def test_an_unavailable_hub_id_is_refused_with_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"is neither a folder .* nor available from the model hub"):
        find_encoder("nobody/nothing")


def test_other_architectures_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    source = find_encoder("builtin:minilm-l6")
    folder = tmp_path / "copy"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    weights = load_file(source / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    removed = weights.pop(name)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(EncoderError, match=name):
        load_encoder(folder, 2)
    save_file({**weights, name: removed}, folder / "model.safetensors")
    with pytest.raises(EncoderError, match="6 layers"):
        load_encoder(folder, 2, layers=7)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    with pytest.raises(EncoderError, match="bert, roberta, xlm-roberta, mpnet"):
        load_encoder(folder, 2)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with pytest.raises(EncoderError, match="damaged"):
        load_encoder(folder, 2)


def test_padding_does_not_change_scores() -> None:
    folder = find_encoder("builtin:minilm-l6")
    model = Student(load_encoder(folder, 2, layers=2), 2).eval()
    ids, mask, types = inputs(folder)
    with torch.no_grad():
        together = model(Batch(ids, mask, types)).golden.numpy()
        alone = []
        for row in range(len(ids)):
            own = slice(row, row + 1), slice(int(mask[row].sum()))
            alone.append(model(Batch(ids[own], mask[own], types[own])).golden.numpy())
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)


def test_a_pooler_that_was_never_trained_starts_as_the_identity(tmp_path: Path) -> None:
    source = find_encoder("builtin:minilm-l6")
    kept = load_encoder(source, 2, layers=1)
    assert torch.equal(kept.dense.weight, load_file(source / "model.safetensors")["pooler.dense.weight"])
    assert torch.equal(load_encoder(source, 2, layers=1, pooler="auto").dense.weight, torch.eye(384))
    assert torch.equal(load_encoder(tiny("mpnet", tmp_path / "mpnet"), 2, pooler="auto").dense.weight, torch.eye(48))
    with torch.no_grad():
        kept.dense.bias[0] = 0.5  # a trained one
    save_student(Student(kept, 2), tmp_path / "trained", source, 64, {})
    assert torch.equal(load_encoder(tmp_path / "trained", 2, pooler="auto").dense.weight, kept.dense.weight)
    assert torch.equal(load_encoder(tmp_path / "trained", 2, pooler="identity").dense.weight, torch.eye(384))
