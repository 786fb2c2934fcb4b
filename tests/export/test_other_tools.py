"""Other tools rank rightly with what we save, with no option set: two classes become one logit, the log-odds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cached_fixtures import cached_export
from export_fixtures import dev_pairs, exported, minilm_student, texts
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from serve_fixtures import in_process
from transformers import AutoModelForSequenceClassification, pipeline

from tmkd.core.errors import EncoderError, ExportError
from tmkd.core.files import sha256_of
from tmkd.core.logits import log_odds, sigmoid, softmax
from tmkd.data.pairs import Pairs
from tmkd.export.export import Classes, export_student
from tmkd.inference.manifest import read_manifest
from tmkd.inference.score_file import score_columns
from tmkd.inference.scorer import Scorer
from tmkd.models.checkpoint import load_finished, load_student, save_student
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import score
from tmkd.models.tokenizer import PairTokenizer

QUESTION = "how do i mount a disk"
PASSAGES = [
    "2 4 8 16 32 64 128 256",
    "use the command mount to mount a disk in a directory",
    "0 0 1 1 0 1 0 0 1 1 0 1 0 1",
    "install package to set name of server which listens on port",
]


@pytest.fixture(scope="module", params=["export", "student"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An export, and a student as a run saves it."""
    if request.param == "export":
        yield exported("ranking") / "out"
        return
    source = exported("ranking") / "student"
    saved = tmp_path_factory.mktemp("saved")
    save_student(load_student(source), saved, source, 48, {"step": "tmkd"})
    yield saved


def raw_scores(passages: list[str] = PASSAGES) -> NDArray[np.float64]:
    """Log-odds by the student's heads as they were trained, in PyTorch."""
    source = exported("ranking") / "student"
    tokenizer = PairTokenizer(source, 48)
    return log_odds(_scored(load_student(source), tokenizer, passages))


def _scored(model: Any, tokenizer: PairTokenizer, passages: list[str] = PASSAGES) -> NDArray[np.float32]:
    encoded = tokenizer.encode([QUESTION] * len(passages), passages)
    return score(model, TokenInputs(encoded, tokenizer.pad_id), precision="fp32")


def test_transformers_pipeline_names_the_relevant_class_and_ranks_rightly(folder: Path) -> None:
    classify = pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu")
    pairs = [{"text": QUESTION, "text_pair": passage} for passage in PASSAGES]
    found = classify(pairs)
    assert {row["label"] for row in found} == {"relevant"}
    np.testing.assert_allclose([row["score"] for row in found], sigmoid(raw_scores()), atol=1e-5)
    raw = [row["score"] for row in classify(pairs, function_to_apply="none")]
    np.testing.assert_allclose(raw, raw_scores(), atol=1e-4)
    assert int(np.argmax(raw)) in (1, 3)  # words, and no numbers


def test_sentence_transformers_predicts_the_log_odds_and_ranks_by_them(folder: Path) -> None:
    model = CrossEncoder(str(folder), device="cpu")
    wanted = raw_scores()
    np.testing.assert_allclose(model.predict([(QUESTION, passage) for passage in PASSAGES]), wanted, atol=1e-4)
    ranked = model.rank(QUESTION, PASSAGES)
    assert [row["corpus_id"] for row in ranked] == np.argsort(-wanted).tolist()
    np.testing.assert_allclose([row["score"] for row in ranked], np.sort(wanted)[::-1], atol=1e-4)


def test_the_identity_is_recorded_where_every_version_of_sentence_transformers_looks(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    identity = "torch.nn.modules.linear.Identity"
    assert config["sentence_transformers"]["activation_fn"] == identity  # since version 4
    assert config["sbert_ce_default_activation_function"] == identity  # before
    assert (config["id2label"], config["label2id"]) == ({"0": "relevant"}, {"relevant": 0})


def test_tools_that_read_the_padding_token_from_files_find_it(tmp_path: Path) -> None:
    out = Path(shutil.copytree(exported("ranking") / "out", tmp_path / "out"))
    student = Path(shutil.copytree(exported("ranking") / "student", tmp_path / "student"))
    (student / "special_tokens_map.json").unlink(missing_ok=True)
    settings = json.loads((student / "tokenizer_config.json").read_text())
    settings.pop("pad_token", None)
    (student / "tokenizer_config.json").write_text(json.dumps(settings))
    export_student(student, dev_pairs(20), tmp_path / "bare", backends=["onnx-fp32"])
    for folder in (out, tmp_path / "bare"):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert (config["pad_token"], config["model_max_length"]) == ("[PAD]", 48)
        assert json.loads((folder / "special_tokens_map.json").read_text())["pad_token"] == "[PAD]"
        assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 0


def test_probabilities_still_have_two_columns_and_scores_are_the_same_numbers() -> None:
    scorer = Scorer(exported("ranking") / "out", threads=1)
    given = [QUESTION] * len(PASSAGES), PASSAGES
    assert (scorer.classes, scorer.manifest.outputs) == (2, 1)
    logits = scorer.logits(*given)
    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(scorer.scores(*given), raw_scores(), atol=1e-4)
    probabilities = scorer.probabilities(*given)
    assert probabilities.shape == (len(PASSAGES), 2)
    np.testing.assert_allclose(probabilities[:, 1], sigmoid(raw_scores()), atol=1e-5)


def test_classes_have_the_names_of_the_task_and_three_keep_three_logits(tmp_path: Path) -> None:
    student = minilm_student(tmp_path / "two", layers=1, soft=1)
    config = json.loads((student / "config.json").read_text())
    old = {"id2label": {"0": "relevant", "1": "not_relevant"}, "problem_type": "multi_label_classification"}
    (student / "config.json").write_text(json.dumps({**config, **old}))  # of the checkpoint that it came from
    names = ["entailment", "not_entailment"]
    export_student(student, dev_pairs(20), tmp_path / "named", backends=["onnx-fp32"], classes=Classes(names))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "named")
    assert (model.config.id2label, model.config.problem_type) == ({0: "not_entailment"}, None)
    assert Scorer(tmp_path / "named").labels == ("entailment", "not_entailment")
    export_student(student, dev_pairs(20), tmp_path / "bare", backends=["onnx-fp32"])
    assert Scorer(tmp_path / "bare").labels == ("not_relevant", "relevant")
    with pytest.raises(ExportError, match=r"3 names of classes \(a, b, c\), .* has 2 classes"):
        export_student(
            student, dev_pairs(20), tmp_path / "wrong", backends=["onnx-fp32"], classes=Classes(["a", "b", "c"])
        )
    student = minilm_student(tmp_path / "three", layers=1, classes=3, soft=1)
    pairs = dev_pairs(20, classes=3)
    export_student(student, pairs, tmp_path / "nli", backends=["onnx-fp32"], classes=Classes(["no", "maybe", "yes"]))
    config = json.loads((tmp_path / "nli" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert "sentence_transformers" not in config
    assert Scorer(tmp_path / "nli").logits(pairs.questions, pairs.passages).shape == (20, 3)


def _as_format_1(out: Path, student: Path) -> None:
    """Make an export what version 0.1 wrote: two logits in checkpoint and graph, format 1."""
    shutil.copyfile(student / "config.json", out / "config.json")
    shutil.copyfile(student / "model.safetensors", out / "model.safetensors")
    weights = load_file(student / "model.safetensors")
    weight, bias = weights["classifier.weight"].numpy(), weights["classifier.bias"].numpy()
    path = out / "onnx" / "model.onnx"
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        if 1 in tensor.dims and tensor.dims in ([1, 384], [384, 1]):
            tensor.CopyFrom(numpy_helper.from_array(weight if tensor.dims[0] == 1 else weight.T.copy(), tensor.name))
        elif list(tensor.dims) == [1]:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and np.isclose(values[0], bias[1] - bias[0]):
                tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    del graph.graph.value_info[:]
    onnx.save(graph, path)
    card = json.loads((out / "tmkd.json").read_text())
    card["backends"]["onnx-fp32"]["sha256"] = sha256_of(path)
    del card["outputs"]
    (out / "tmkd.json").write_text(json.dumps({**card, "format": 1}))


def test_an_older_export_of_two_logits_still_scores_and_is_a_teacher(tmp_path: Path) -> None:
    out = Path(shutil.copytree(exported("ranking") / "out", tmp_path / "out"))
    _as_format_1(out, exported("ranking") / "student")
    scorer = Scorer(out, threads=1)
    given = [QUESTION] * len(PASSAGES), PASSAGES
    assert read_manifest(out).outputs == 2
    assert np.abs(scorer.logits(*given)[:, 0]).min() > 0.01
    np.testing.assert_allclose(scorer.scores(*given), raw_scores(), atol=1e-4)
    np.testing.assert_allclose(scorer.probabilities(*given), softmax(scorer.logits(*given)), atol=1e-6)
    assert json.loads((out / "config.json").read_text()).get("id2label") != {"0": "relevant"}
    tokenizer = PairTokenizer(out, 48)
    logits = _scored(load_finished(out, 2), tokenizer)
    np.testing.assert_allclose(log_odds(logits), raw_scores(), atol=1e-4)


@pytest.mark.parametrize("kind", ["layers", "cached"])
def test_where_class_0_is_the_positive_one_the_logit_is_its_log_odds(kind: str, tmp_path: Path) -> None:
    source = (exported("ranking") if kind == "layers" else cached_export()) / "student"
    names = ["entailment", "not_entailment"]
    plain, out = ((exported("ranking") if kind == "layers" else cached_export()) / "out", tmp_path / "out")
    dev = dev_pairs(40)  # class 0 holds the right passages:
    pairs = Pairs.build(dev.questions, dev.passages, labels=(1 - dev.labels).tolist(), qids=dev.qids)
    (row,) = export_student(source, pairs, out, backends=["onnx-fp32"], classes=Classes(names, 0))
    assert row["passed"]
    assert row["metric_export"] == pytest.approx(row["metric_pytorch"])

    config, card = (json.loads((out / name).read_text()) for name in ("config.json", "tmkd.json"))
    assert config["id2label"] == {"0": "entailment"}
    assert (card["format"], card["positive"], card["labels"], card["outputs"]) == (5, 0, names, 1)

    given = [QUESTION] * len(PASSAGES), PASSAGES
    before, after = Scorer(plain, threads=1), Scorer(out, threads=1)
    wanted = -before.scores(*given)
    np.testing.assert_allclose(after.scores(*given), wanted, atol=1e-5)
    np.testing.assert_allclose(after.probabilities(*given), before.probabilities(*given), atol=1e-6)  # by class
    np.testing.assert_array_equal(after.logits(*given)[:, 1], 0)
    assert after.labels == tuple(names)
    columns = [*score_columns(after.logits(*given), after.positive)]
    np.testing.assert_allclose([one["tmkd_score"] for one in columns], wanted, atol=1e-5)
    assert [one["tmkd_predicted"] for one in columns] == (wanted <= 0).astype(int).tolist()
    with in_process(model=out) as app:
        ranks = app.post("/rerank", {"query": QUESTION, "texts": PASSAGES, "raw_scores": True}).json()
    assert [one["index"] for one in ranks] == np.argsort(-wanted).tolist()
    np.testing.assert_allclose([one["score"] for one in ranks], np.sort(wanted)[::-1], atol=1e-5)

    if kind == "layers":
        model = CrossEncoder(str(out), device="cpu")
        assert [one["corpus_id"] for one in model.rank(QUESTION, PASSAGES)] == np.argsort(-wanted).tolist()
        classify = pipeline("text-classification", model=str(out), tokenizer=str(out), device="cpu")
        found = classify([{"text": QUESTION, "text_pair": one} for one in PASSAGES], function_to_apply="none")
        assert {one["label"] for one in found} == {"entailment"}
        np.testing.assert_allclose([one["score"] for one in found], wanted, atol=1e-4)
        logits = _scored(load_finished(out, 2), PairTokenizer(out, 48))  # as a teacher: in the order of the classes
        np.testing.assert_allclose(log_odds(logits), -wanted, atol=1e-4)


def test_a_class_that_is_not_one_of_two_is_refused(tmp_path: Path) -> None:
    student = minilm_student(tmp_path / "three", layers=1, classes=3, soft=1)
    with pytest.raises(ValueError, match="positive is 0 of 3 classes; it is one of two classes, 0 or 1"):
        export_student(
            student, dev_pairs(20, classes=3), tmp_path / "out", backends=["onnx-fp32"], classes=Classes(positive=0)
        )
    out = Path(shutil.copytree(exported("ranking") / "out", tmp_path / "copy"))
    card = json.loads((out / "tmkd.json").read_text())
    (out / "tmkd.json").write_text(json.dumps({**card, "positive": 2}))
    with pytest.raises(ExportError, match=r"tmkd\.json is damaged .*positive 2 of 2 classes"):
        Scorer(out)


def test_an_export_of_one_logit_is_a_teacher_of_two_classes() -> None:
    out = exported("ranking") / "out"
    tokenizer = PairTokenizer(out, 48)
    logits = _scored(load_finished(out, 2), tokenizer)
    np.testing.assert_allclose(log_odds(logits), raw_scores(), atol=1e-4)


def test_a_graph_with_another_number_of_logits_is_refused_and_not_repeated(tmp_path: Path) -> None:
    out = Path(shutil.copytree(exported("ranking") / "out", tmp_path / "out"))
    card = json.loads((out / "tmkd.json").read_text())
    (out / "tmkd.json").write_text(json.dumps({**card, "outputs": 2}))
    with pytest.raises(ExportError, match=r"does not run as a student of 2 classes \(the graph gives \[1, 1\] logits"):
        Scorer(out)
    (out / "tmkd.json").write_text(json.dumps({**card, "outputs": 3}))
    with pytest.raises(ExportError, match=r"tmkd\.json is damaged .*3 outputs for 2 classes"):
        Scorer(out)


@pytest.mark.parametrize("soft", [0, 2])
def test_a_saved_student_continues_with_the_rows_that_it_was_trained_with(soft: int, tmp_path: Path) -> None:
    source = minilm_student(tmp_path / "source", layers=1, soft=max(soft, 1))
    if soft == 0:
        (source / "headers.safetensors").unlink()
        card = json.loads((source / "tmkd.json").read_text())
        (source / "tmkd.json").write_text(json.dumps({**card, "soft_headers": 0}))
    before = load_student(source)  # as older versions wrote it: two rows
    assert before.golden.weight.abs().min() > 0
    save_student(before, tmp_path / "saved", source, 48, {"step": "tmkd"})
    after: Any = load_student(tmp_path / "saved")
    for name, value in before.state_dict().items():
        if not name.startswith("encoder.model.classifier"):  # the checkpoint's own head is not trained
            torch.testing.assert_close(after.state_dict()[name], value, rtol=0, atol=0)
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    weight, bias = before.fold()
    torch.testing.assert_close(weights["classifier.weight"], weight[1:] - weight[:1])
    torch.testing.assert_close(weights["classifier.bias"], bias[1:] - bias[:1])


def test_a_head_that_is_missing_or_of_other_classes_is_named(tmp_path: Path) -> None:
    source = minilm_student(tmp_path / "source", layers=1, classes=3, soft=1)
    card = json.loads((source / "tmkd.json").read_text())
    (source / "tmkd.json").write_text(json.dumps({**card, "classes": 2}))
    with pytest.raises(EncoderError, match=r"classifier\.weight \(shape \[3, 384\], not \[2, 384\]\)"):
        load_student(source)
    weights = load_file(source / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(EncoderError, match=r"2 weights are missing or of another shape, first classifier\.weight;"):
        load_student(source)


def test_the_order_of_long_lists_is_the_same_in_sentence_transformers() -> None:
    folder = exported("ranking") / "out"
    _, passages = texts(40, seed=3)
    scores = Scorer(folder, threads=1).scores([QUESTION] * 40, passages)
    found = CrossEncoder(str(folder), device="cpu").predict([(QUESTION, passage) for passage in passages])
    np.testing.assert_allclose(found, scores, atol=1e-4)
