"""The export of a student that reads passages once: its graphs, the gate, and what its files say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached_fixtures import SHAPE, cached_export, cached_student, cached_with_every_backend
from encoder_fixtures import OURS, THEIRS, inputs, tiny
from export_fixtures import dev_pairs, exported, texts
from numpy.typing import NDArray

from tmkd.core.errors import EncoderError, ExportError
from tmkd.data.pairs import Pairs
from tmkd.export import cached
from tmkd.export.cached import CACHED_BACKENDS, CachedSource, CachedStudent, ReadText
from tmkd.export.cached_graphs import InteractionGraph
from tmkd.export.export import export_student
from tmkd.export.gate import refuse_states_of_others
from tmkd.inference.cached_reader import CachedReader
from tmkd.inference.scorer import Scorer
from tmkd.inference.text_encoder import ReadQuestion, TextEncoder
from tmkd.models.checkpoint import load_encoder
from tmkd.models.encoders.find import find_encoder
from tmkd.models.encoders.forward import Batch
from tmkd.models.encoders.interaction import InteractionEncoder
from tmkd.models.text_states import TextStates, dequantised, quantised
from tmkd.models.text_tokenizer import TextTokenizer

ROOT = Path(__file__).parents[2]


def test_an_export_has_the_documented_files() -> None:
    folder = cached_export()
    card = json.loads((folder / "out" / "tmkd.json").read_text())
    assert (card["format"], card["kind"]) == (3, "cached")  # an older version names the format that it cannot read
    assert json.loads((exported("mpnet") / "out" / "tmkd.json").read_text())["format"] == 2
    assert (card["states"]["size"], card["states"]["width"]) == (64, 384)
    assert sorted(path.name for path in (folder / "out" / "onnx").iterdir()) == ["encoder.onnx", "interaction.onnx"]
    (row,) = json.loads((folder / "out" / "parity.json").read_text())
    assert (row["passed"], row["reason"]) == (True, "")
    assert row["stored_difference"] == 0.0
    assert row["interaction_difference"] <= 1e-4
    assert row["reading_difference"] <= 1e-4
    assert row["max_logit_difference"] <= 1e-3
    assert 0 < row["int8_states_difference"] < 0.05
    assert abs(row["int8_states_metric_loss"]) < 0.02
    assert row["bytes"] == sum(path.stat().st_size for path in (folder / "out" / "onnx").iterdir())
    probes = json.loads((folder / "out" / "probes.json").read_text())
    assert len(probes["cosines"]) == len(probes["logits"]) == 60
    assert not (folder / "out" / "model.safetensors").exists()
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_every_backend_passes_or_says_why_not() -> None:
    folder = cached_with_every_backend()
    rows = {row["backend"]: row for row in json.loads((folder / "parity.json").read_text())}
    assert list(rows) == list(CACHED_BACKENDS)
    questions, passages = texts(40, seed=7)
    wanted = Scorer(cached_export() / "out").scores(questions, passages)
    for name, row in rows.items():
        if not row["passed"]:  # of random weights: int8 may lose too much, by what the gate measures
            assert name.endswith("int8")
            assert "at least" in row["reason"] or "at most" in row["reason"]
            continue
        assert row["stored_difference"] == 0.0
        assert row["repeats"] is True
        scorer = Scorer(folder, backend=name, threads=2)
        found = scorer.scores(questions, passages)
        assert np.corrcoef(found, wanted)[0, 1] > 0.98
        np.testing.assert_array_equal(scorer.scores(questions, passages), found)
        assert TextEncoder.open(folder, backend=name).identity == scorer.text_encoder.identity  # type: ignore[union-attr]
    card = json.loads((folder / "tmkd.json").read_text())
    passed = set(card["backends"])
    for name, entry in card["backends"].items():  # every engine scores the states that every other one computes
        assert set(entry["states_of"]) == passed - {name}
        assert rows[name]["other_states_difference"] == max(entry["states_of"].values())
        for writer, difference in entry["states_of"].items():
            assert difference <= entry["probe_limit"] + card["backends"][writer]["probe_limit"]
    named = {part["file"] for entry in card["backends"].values() for part in entry["files"].values()}
    assert named == {f"onnx/{path.name}" for path in (folder / "onnx").iterdir()}


class _Tried:
    def __init__(self, limit: float) -> None:
        self.entry: dict[str, Any] = {"probe_limit": limit}
        self.further: dict[str, Any] = {}
        self.reason = ""

    def refuse(self, reason: str) -> None:
        self.reason = reason


@pytest.mark.parametrize(("far", "refused"), [("openvino-bf16", "openvino-bf16"), ("onnx-fp32", "openvino-bf16")])
def test_a_backend_that_cannot_score_the_states_of_another_is_refused(far: str, refused: str) -> None:
    """The difference of both may add up, to 0.11 here; fp32 stays, whichever of the two directions is too far."""
    reference = np.zeros((3, 2), np.float32)
    near, wrong = reference + np.float32(0.1), reference + np.float32(0.2)
    tried = {"onnx-fp32": _Tried(0.01), "openvino-bf16": _Tried(0.1)}
    found = {name: {other: wrong if name == far else near} for name, other in zip(tried, reversed(tried), strict=True)}
    refuse_states_of_others(tried, found, reference)
    assert {name for name, one in tried.items() if one.reason} == {refused}
    assert "differs by 0.200 from the PyTorch student, at most 0.110 is allowed" in tried[refused].reason
    assert tried[far].further["other_states_difference"] == pytest.approx(0.2)


@pytest.mark.parametrize("limit", ["ONEDNN_MAX_CPU_ISA=AVX2", "ATEN_CPU_CAPABILITY=default"])
def test_a_cpu_with_fewer_instructions_gives_the_same_scores(limit: str) -> None:
    questions, passages = texts(30, seed=8)
    code = (
        "import json, sys; from tmkd.inference.scorer import Scorer\n"
        f"print(json.dumps(Scorer({str(cached_with_every_backend())!r}).scores(*json.load(sys.stdin)).tolist()))"
    )
    name, value = limit.split("=")
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([questions, passages]), capture_output=True, text=True,
        check=False, cwd=ROOT, env={**os.environ, name: value},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = Scorer(cached_export() / "out").scores(questions, passages)
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=0.25)  # clipped sums are whole logits off


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"asks": "all"}, {"self_attention": False}, {"asks": "all", "self_attention": False},
        {"layers": 1}, {"layers": 3}, {"width": 384, "heads": 6}, {"state_size": 384, "width": 384, "heads": 12},
    ],
)  # fmt: skip
def test_folded_attention_gives_the_numbers_of_the_layers(changes: dict[str, object]) -> None:
    torch.manual_seed(3)
    shape = replace(SHAPE, **changes)  # type: ignore[arg-type]
    encoder = InteractionEncoder(shape, Path("unused")).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weight, bias = torch.randn(3, encoder.hidden_size), torch.randn(3)
    question, cosine = torch.randn(1, 9, 384), torch.rand(5)
    values, scales = quantised(torch.randn(5, 13, shape.state_size).numpy())
    scales[2, 4:] = scales[4, 1:] = 0
    states = torch.from_numpy(dequantised(values, scales))
    with torch.inference_mode():
        h, _ = encoder.read(question, torch.ones(1, 9), states, torch.from_numpy(scales > 0), cosine)
        wanted = torch.nn.functional.linear(h, weight, bias)
        graph = InteractionGraph(encoder, weight, bias).eval()
        found = graph(question, torch.from_numpy(values), torch.from_numpy(scales.astype(np.float32)), cosine)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("family", [*OURS, *THEIRS])
def test_all_tokens_have_the_hidden_states_of_transformers(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = tiny(family, tmp_path)
    ids, mask, types = inputs(folder)
    types = torch.zeros_like(types)
    theirs = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        wanted = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        found = load_encoder(folder, 2).eval().last_hidden_states(Batch(ids, mask, types))
    np.testing.assert_allclose(found[mask.bool()], wanted[mask.bool()], atol=2e-5)


def test_the_identity_is_of_what_decides_the_states(tmp_path: Path) -> None:
    folder = cached_export()
    identity = json.loads((folder / "out" / "tmkd.json").read_text())["states"]["identity"]
    same = CachedStudent(folder / "student", TextTokenizer(folder / "out", 48))
    assert same.identity == identity
    assert CachedStudent(folder / "student", TextTokenizer(folder / "out", 47)).identity != identity
    with torch.no_grad():
        student = CachedStudent(folder / "student", TextTokenizer(folder / "out", 48))
        student.interaction.last_norm.weight.mul_(2)  # not of the states
        assert student.identity == identity
        other = CachedStudent(folder / "student", TextTokenizer(folder / "out", 48))
        other.interaction.projection.bias[0] += 1
        assert other.identity != identity


def test_a_wrong_interaction_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(source: CachedSource, path: Path, attempt: int) -> None:
        with torch.no_grad():
            source.student.bias += 0.01
        cached._fp32(source, path, attempt)
        with torch.no_grad():
            source.student.bias -= 0.01

    monkeypatch.setitem(CACHED_BACKENDS, "onnx-fp32", replace(CACHED_BACKENDS["onnx-fp32"], write=wrong))
    (row,) = export_student(cached_export() / "student", dev_pairs(10), tmp_path / "out", backends=["onnx-fp32"])
    assert "a logit differs by 1.0" in row["reason"]
    assert not (tmp_path / "out" / "onnx").exists()
    with pytest.raises(ExportError, match="none passed the parity gate"):
        Scorer(tmp_path / "out")


def test_a_number_that_rounds_to_the_other_side_is_no_error_of_fp32(tmp_path: Path) -> None:
    """Of all texts those of which the two engines round a number of a state differently: here that is worth 3e-3."""
    student = cached_student(tmp_path, heads=0.6)
    questions, passages = texts(1500, seed=11)
    pytorch = CachedStudent(student, TextTokenizer(cached_export() / "out", 48))
    own = pytorch.read(Pairs.build(passages, passages)).passages
    encoder = TextEncoder.open(cached_export() / "out", backend="onnx-fp32", threads=1)
    assert encoder.identity == pytorch.identity
    theirs = encoder.states(passages)
    rounded = [
        row for row, (text, one) in enumerate(zip(passages, theirs, strict=True))
        if not np.array_equal(TextStates.of(own[text].states, own[text].embedding).values, one.values)
    ]  # fmt: skip
    assert len(rounded) > 10
    dev = Pairs.build([questions[row] for row in rounded], [passages[row] for row in rounded])
    (row,) = export_student(student, dev, tmp_path / "out", backends=["onnx-fp32"])
    assert (row["passed"], row["reason"]) == (True, "")
    assert 1e-3 < row["max_logit_difference"] < row["int8_states_difference"]
    assert row["interaction_difference"] < 1e-4
    assert row["reading_difference"] < 1e-4


def test_a_wrong_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(source: CachedSource, path: Path, attempt: int) -> None:
        weight = source.student.encoder.base.encoder.layer[0].output.LayerNorm.bias
        with torch.no_grad():
            weight[7] += 0.002
            cached._fp32(source, path, attempt)
            weight[7] -= 0.002

    monkeypatch.setitem(CACHED_BACKENDS, "onnx-fp32", replace(CACHED_BACKENDS["onnx-fp32"], write=wrong))
    (row,) = export_student(cached_export() / "student", dev_pairs(10), tmp_path / "out", backends=["onnx-fp32"])
    assert "for states that are not rounded a logit differs by " in row["reason"]
    assert row["interaction_difference"] < 1e-4
    assert row["max_logit_difference"] < 5e-3  # no more than what rounding may change


def test_a_student_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    student = Path(shutil.copytree(cached_export() / "student", tmp_path / "student"))
    (student / "encoder" / "config.json").unlink()
    with pytest.raises(EncoderError, match=r"has no encoder/config\.json"):
        export_student(student, dev_pairs(10), tmp_path / "out", backends=["onnx-fp32"])
    assert not (tmp_path / "out").exists()


def test_three_classes_have_three_logits() -> None:
    folder = cached_export(3)
    (row,) = json.loads((folder / "out" / "parity.json").read_text())
    assert (row["passed"], row["metric_name"]) == (True, "accuracy")
    scorer = Scorer(folder / "out", threads=1)
    np.testing.assert_allclose(scorer.probabilities(["mount"], ["a disk"]).sum(axis=1), 1.0)
    with pytest.raises(ExportError, match="3 classes"):
        scorer.scores(["mount"], ["a disk"])


LONG = "how do i mount a disk that is not there when the machine starts and why does it take so long to find it again"


def test_openvino_reads_long_questions_after_short_ones(tmp_path: Path) -> None:
    """OpenVINO 2026.4 gave NaN or other logits of questions of 16 tokens and more after one of a single token."""
    student = cached_student(tmp_path, shape=replace(SHAPE, width=384, heads=6, ffn=384))
    (row,) = export_student(student, dev_pairs(), tmp_path / "out", backends=["openvino-bf16"])
    assert row["passed"], row["reason"]
    reader = Scorer(tmp_path / "out", threads=1)._reader
    assert isinstance(reader, CachedReader)
    long, word = (reader.encoder.question(text) for text in (LONG, "disk"))
    short = ReadQuestion(word.hidden[:1], word.embedding, None)  # a tokenizer may add no special tokens
    states = reader.encoder.states(texts(5, seed=3)[1])
    before, found = reader._run(long, states), reader._run(short, states)
    assert len(long.hidden) > 20
    np.testing.assert_array_equal(reader._run(long, states), before)
    pytorch = CachedStudent(student, TextTokenizer(tmp_path / "out", 48))
    read = [ReadText(x, x, one.embedding.astype(np.float32)) for one in states for x in (_exact(one),)]
    for question, of_backend in ((long, before), (short, found)):
        wanted = pytorch.of_question(
            ReadText(question.hidden, question.hidden, question.embedding), read, rounded=False
        )
        np.testing.assert_allclose(of_backend[:, -1:], wanted, atol=0.1)


def _exact(one: TextStates) -> NDArray[np.float32]:
    return dequantised(one.values, one.scales)


@pytest.mark.slow
def test_the_whole_minilm_is_exported_in_every_form(tmp_path: Path) -> None:
    assert find_encoder("builtin:minilm-l6").is_dir()
    student = cached_student(tmp_path, shape=replace(SHAPE, state_size=96, width=384, heads=6, ffn=768), layers=6)
    rows = export_student(student, dev_pairs(), tmp_path / "out", calibration=dev_pairs())
    assert {row["backend"] for row in rows if row["passed"]} >= {"onnx-fp32", "openvino-bf16"}
