"""tmkd.export.export: the fold is exact, the gate compares through the runtime and refuses what does not agree."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_fixtures import dev_pairs, exported, minilm_student, mpnet_student, texts
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tmkd.core.errors import EncoderError, ExportError, TmkdError
from tmkd.data.pairs import Pairs
from tmkd.export.export import export_student
from tmkd.export.gate import BACKENDS, ExportSource
from tmkd.export.onnx import write_onnx
from tmkd.export.parity import measure_invariance, measure_parity
from tmkd.inference.scorer import Scorer

FP32 = ["onnx-fp32"]


@pytest.mark.parametrize("family", ["minilm", "mpnet"])
def test_an_export_has_the_documented_files(family: str) -> None:
    folder = exported(family)
    (row,) = json.loads((folder / "out" / "parity.json").read_text())
    assert row["passed"]
    assert row["reason"] == ""
    assert row["max_logit_difference"] <= 1e-4
    assert row["decision_agreement"] == row["top1_agreement_within_0_1"] == 1.0
    assert row["kendall_tau_within_0_1"] in (None, 1.0)  # None: these scores are too close to each other
    assert row["kendall_tau"] > 0.99
    assert row["metric_name"] == "auc"
    assert row["metric_export"] == pytest.approx(row["metric_pytorch"], abs=1e-6)
    assert row["bytes"] == (folder / "out" / "onnx" / "model.onnx").stat().st_size
    card = json.loads((folder / "out" / "tmkd.json").read_text())
    assert list(card["backends"]) == ["onnx-fp32"]
    assert card["backends"]["onnx-fp32"]["pairs_per_second"] == row["pairs_per_second"] > 0
    assert len(json.loads((folder / "out" / "probes.json").read_text())["questions"]) == 60
    assert not (folder / "out" / "headers.safetensors").exists()
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("family", ["minilm", "mpnet"])
def test_folded_checkpoint_gives_the_mean_of_the_heads(family: str) -> None:
    folder = exported(family)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    headers = load_file(folder / "student" / "headers.safetensors")
    questions, passages = texts(12, seed=9)
    given = tokenizer(questions, passages, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        if family == "mpnet":
            given.pop("token_type_ids", None)
            first = model.mpnet(**given).last_hidden_state[:, 0]
            h = torch.tanh(model.classifier.dense(first))
        else:
            h = model.bert(**given).pooler_output
        every = [h @ headers["golden.weight"].T + headers["golden.bias"]]
        for weight, bias in zip(headers["soft.weight"], headers["soft.bias"], strict=True):
            every.append(h @ weight.T + bias)
        own = model(**given).logits
    mean = torch.stack(every).mean(0)
    np.testing.assert_allclose(own[:, 0], mean[:, 1] - mean[:, 0], atol=1e-5)
    np.testing.assert_allclose(Scorer(folder / "out").scores(questions, passages), own[:, 0], atol=1e-4)


def test_length_is_written_into_every_tokenizer_file() -> None:
    out = exported("minilm") / "out"
    saved = json.loads((out / "tokenizer.json").read_text())
    assert saved["truncation"]["max_length"] == 48
    assert saved["padding"] is None
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 48
    assert len(tokenizer("how", "word " * 200, truncation=True)["input_ids"]) == 48


def test_far_positions_of_mpnet_agree(tmp_path: Path) -> None:
    student = mpnet_student(tmp_path, max_length=280)  # its position buckets end at a distance of 128
    long = dev_pairs(6)
    pairs = Pairs.build(long.questions, [f"{text} " * 40 for text in long.passages])
    (row,) = export_student(student, pairs, tmp_path / "out", backends=FP32)
    assert row["passed"]
    assert row["metric_name"] is None  # no labels


def test_last_layer_of_the_graph_runs_for_one_token() -> None:
    graph = onnx.load(exported("minilm") / "out" / "onnx" / "model.onnx")
    shaped = onnx.shape_inference.infer_shapes(graph).graph
    (wide,) = [node.output[0] for node in shaped.node if node.op_type == "Gelu"][-1:]
    (shape,) = [value.type.tensor_type.shape for value in shaped.value_info if value.name == wide]
    assert [dim.dim_value or dim.dim_param for dim in shape.dim] == ["batch", 1, 1536]


def test_a_changed_folded_head_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    student = mpnet_student(tmp_path)
    weights = load_file(student / "model.safetensors")
    weights["classifier.out_proj.weight"][0, 0] += 0.01
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="does not hold the mean of its heads"):
        export_student(student, dev_pairs(), tmp_path / "out", backends=FP32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "student"]


def _perturbed(source: ExportSource, path: Path, attempt: int) -> None:
    """A writer whose file is slightly wrong: one weight of the feed-forward block is changed."""
    write_onnx(source.model, path)
    graph = onnx.load(path)
    target = max(
        (tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2 and 64 in tensor.dims),
        key=lambda tensor: tensor.name,
    )
    values = numpy_helper.to_array(target).copy()
    values[3, :5] += 0.05  # not a whole row: a shift of all features would vanish in the LayerNorm
    target.CopyFrom(numpy_helper.from_array(values, target.name))
    onnx.save(graph, path)


def _broken(source: ExportSource, path: Path, attempt: int) -> None:
    write_onnx(source.model, path)
    path.write_bytes(path.read_bytes()[:-5000])


def _not_finite(source: ExportSource, path: Path, attempt: int) -> None:
    with torch.no_grad():
        source.model.classifier.out_proj.bias[0] = float("nan")
    write_onnx(source.model, path)


@pytest.mark.parametrize(
    ("writer", "reason"),
    [(_perturbed, "a logit differs by"), (_broken, "cannot be opened"), (_not_finite, "not finite")],
)
def test_a_wrong_backend_is_removed_and_the_table_says_why(
    writer: Callable[[ExportSource, Path, int], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "onnx-fp32", replace(BACKENDS["onnx-fp32"], write=writer))
    student = mpnet_student(tmp_path)
    (row,) = export_student(student, dev_pairs(), tmp_path / "out", backends=FP32)
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == [row]
    assert not row["passed"]
    assert reason in row["reason"]
    assert not (tmp_path / "out" / "onnx").exists()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").num_labels == 1
    with pytest.raises(ExportError, match="none passed the parity gate"):
        Scorer(tmp_path / "out")


def test_full_disk_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = mpnet_student(tmp_path)
    shutil.copytree(exported("mpnet") / "out", tmp_path / "out")
    before = (tmp_path / "out" / "tmkd.json").read_bytes()

    def full(source: ExportSource, path: Path, attempt: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(BACKENDS, "onnx-fp32", replace(BACKENDS["onnx-fp32"], write=full))
    with pytest.raises(TmkdError, match="no room on disk"):
        export_student(student, dev_pairs(), tmp_path / "out", backends=FP32)
    assert (tmp_path / "out" / "tmkd.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "student"]


def test_three_classes_and_a_golden_head_only(tmp_path: Path) -> None:
    (row,) = json.loads((exported("mpnet", 3) / "out" / "parity.json").read_text())
    assert row["metric_name"] == "accuracy"
    assert row["top1_agreement"] is row["top1_agreement_within_0_1"] is None
    assert row["kendall_tau"] is row["kendall_tau_within_0_1"] is None
    student = mpnet_student(tmp_path)
    (student / "headers.safetensors").unlink()
    with pytest.raises(ExportError, match=r"headers\.safetensors is missing"):
        export_student(student, dev_pairs(), tmp_path / "out", backends=FP32)
    card = json.loads((student / "tmkd.json").read_text())
    (student / "tmkd.json").write_text(json.dumps({**card, "soft_headers": 0}))
    assert export_student(student, dev_pairs(), tmp_path / "out", backends=FP32)[0]["passed"]


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    student = mpnet_student(tmp_path)
    with pytest.raises(ExportError, match="'onnx-int3' is not known; there are: onnx-fp32, openvino-bf16"):
        export_student(student, dev_pairs(), tmp_path / "out", backends=["onnx-int3"])
    with pytest.raises(ExportError, match="no development pairs"):
        export_student(student, dev_pairs(0), tmp_path / "out", backends=FP32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(ExportError, match="holds files that are not an export"):
        export_student(student, dev_pairs(), tmp_path / "mine", backends=FP32)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"
    (student / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match=r"has no tokenizer\.json"):
        export_student(student, dev_pairs(), tmp_path / "out", backends=FP32)
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    student = mpnet_student(tmp_path)
    content = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(EncoderError, match=r"model\.safetensors cannot be read .*the file is damaged"):
        export_student(student, dev_pairs(), tmp_path / "out", backends=FP32)
    assert not (tmp_path / "out").exists()


def test_one_layer_student(tmp_path: Path) -> None:
    (row,) = export_student(minilm_student(tmp_path / "s", layers=1), dev_pairs(20), tmp_path / "out", backends=FP32)
    assert row["passed"]


def test_parity_by_hand() -> None:
    reference = np.array([[0, 1], [0, 2], [0, 3], [0, -1]], dtype=np.float32)
    found = np.array([[0, 1], [0, 3], [0, 2], [0, 0.5]], dtype=np.float32)
    result = measure_parity(reference, found, ["a", "a", "a", "b"], np.array([0, 1, 1, -1]))
    assert result.max_logit_difference == 1.5
    assert result.decision_agreement == 0.75
    assert result.top1_agreement == 0.0  # one question has two passages or more, and its first differs
    assert result.kendall_tau == result.kendall_tau_within_0_1 == pytest.approx(1 / 3)
    assert (result.metric_name, result.metric_pytorch) == ("auc", 1.0)


def test_invariance_by_hand() -> None:
    asked: list[int | None] = []

    def score(size: int | None) -> np.ndarray:
        asked.append(size)
        return np.array([[0.0, 1.0], [0.5, (size or 0) / 1000]], dtype=np.float32)

    found = measure_invariance(score)
    sizes = [size for size in asked if size is not None]
    assert len(sizes) >= 2
    assert found.batch_difference == pytest.approx((max(sizes) - min(sizes)) / 1000)
    assert found.repeats is True
    assert measure_invariance(lambda size: np.random.default_rng().random((1, 2), dtype=np.float32)).repeats is False
    assert measure_invariance(lambda size: np.array([[0.0, np.nan]], dtype=np.float32)).batch_difference is None
