"""Back ends beyond fp32: what the gate lets through, what a scorer takes on this machine, and what it falls back to."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from export_fixtures import clear_pairs, exported, texts, with_every_backend
from numpy.typing import NDArray
from onnx import numpy_helper
from transformers import AutoTokenizer

from tmkd.core.backends import KNOWN_BACKENDS
from tmkd.core.errors import ExportError, MissingExtraError
from tmkd.core.files import read_json
from tmkd.data.pairs import Pairs
from tmkd.export.export import export_student
from tmkd.export.gate import BACKENDS, ExportSource
from tmkd.export.int8 import choose_calibration, left_in_float
from tmkd.export.parity import CLOSE, EXACT, Invariance, Parity, measure_parity, why_refused
from tmkd.inference.engines import Inputs
from tmkd.inference.pair_reader import PairReader
from tmkd.inference.scorer import Scorer
from tmkd.models.batching import engine_batches, engine_shapes, padded_width

FAST = [name for name in KNOWN_BACKENDS if name != "onnx-fp32"]
INT8 = BACKENDS["openvino-int8"].write
ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(with_every_backend("ranking"), tmp_path / "copy"))


def _change(folder: Path, backend: str, **values: object) -> None:
    card = read_json(folder / "tmkd.json")
    card["backends"][backend].update(values)
    (folder / "tmkd.json").write_text(json.dumps(card))


def test_every_back_end_passes_with_all_its_numbers() -> None:
    folder = with_every_backend("ranking")
    rows = {row["backend"]: row for row in json.loads((folder / "parity.json").read_text())}
    assert set(rows) == set(KNOWN_BACKENDS)
    for name, row in rows.items():
        assert row["passed"], row["reason"]
        assert row["repeats"] is True
        assert row["batch_difference"] <= (1e-4 if name == "onnx-fp32" else 0.02)
        assert row["ndcg_pytorch"] == 1.0
        assert row["pairs_per_second"] == read_json(folder / "tmkd.json")["backends"][name]["pairs_per_second"] > 0
    assert rows["onnx-int8"]["bytes"] < rows["onnx-fp32"]["bytes"] / 3
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == ["model-int8.onnx", "model.onnx"]


@pytest.mark.parametrize(("family", "classes"), [("mpnet", 2), ("minilm", 3)])
def test_other_students_have_every_form_too(family: str, classes: int) -> None:
    rows = json.loads((with_every_backend(family, classes) / "parity.json").read_text())
    assert [row["backend"] for row in rows] == list(BACKENDS)
    for row in rows:
        int8 = row["backend"].endswith("int8")  # of random weights: it may fail the gate, but it is the same student
        assert row["max_logit_difference"] < (2.0 if int8 else 0.3), row
        if int8 and not row["passed"]:  # then by what it loses, not by an error
            assert re.search(r"at least|at most", row["reason"]), row
        else:
            assert (row["passed"], row["reason"]) == (True, ""), row


@pytest.mark.parametrize("backend", FAST)
def test_order_is_the_callers_and_calls_repeat_bit_for_bit(backend: str) -> None:
    scorer = Scorer(with_every_backend("ranking"), backend=backend, threads=2)
    questions, passages = texts(150, seed=2)
    found = scorer.logits(questions, passages)
    np.testing.assert_array_equal(found, scorer.logits(questions, passages))
    mixed = np.random.default_rng(0).permutation(150)
    again = scorer.logits([questions[i] for i in mixed], [passages[i] for i in mixed])
    np.testing.assert_allclose(again, found[mixed], atol=0.02 * np.abs(found).max())
    pairs = clear_pairs()
    fp32 = Scorer(with_every_backend("ranking"), backend="onnx-fp32").scores(pairs.questions, pairs.passages)
    scores = scorer.scores(pairs.questions, pairs.passages)
    assert np.corrcoef(scores, fp32)[0, 1] > 0.99
    assert scores[pairs.labels == 1].min() > scores[pairs.labels == 0].max() + 1


@pytest.mark.parametrize("backend", FAST)
def test_one_scorer_serves_many_threads(backend: str) -> None:
    scorer = Scorer(with_every_backend("ranking"), backend=backend, threads=2)
    calls = [texts(20, seed=seed) for seed in range(4)]
    wanted = [scorer.logits(*call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(lambda i: scorer.logits(*calls[i % 4]), range(16))):
            np.testing.assert_array_equal(found, wanted[number % 4])


def test_scoring_with_openvino_needs_no_torch_and_sends_no_telemetry() -> None:
    code = (
        "import sys; from pathlib import Path; from tmkd.inference.scorer import Scorer;"
        "early = 'openvino' in sys.modules;"
        f"Scorer(Path({str(with_every_backend('ranking'))!r}), backend='openvino-int8').scores(['a'], ['b']);"
        "heavy = ('torch', 'nncf', 'transformers', 'pyarrow', 'openvino_telemetry', 'http.client');"
        "print(early, *[n for n in heavy if sys.modules.get(n)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split() == ["False"], done.stderr


def test_the_first_calls_of_many_threads_do_not_lock_each_other_out() -> None:
    code = (
        "import sys, threading; from pathlib import Path; import numpy as np\n"
        "from tmkd.inference.engines import open_engine\n"
        "sys.setswitchinterval(1e-6)\n"
        f"path = Path({str(with_every_backend('ranking') / 'onnx' / 'model.onnx')!r})\n"
        "engine, barrier = open_engine('openvino-bf16', path, 4), threading.Barrier(4)\n"
        "given = dict.fromkeys(('input_ids', 'attention_mask', 'token_type_ids'), np.ones((1, 8), dtype=np.int64))\n"
        "threads = [threading.Thread(target=lambda: (barrier.wait(), engine(given))) for _ in range(4)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]"
    )
    for _ in range(3):  # a call that hangs holds the interpreter's lock: only another process can tell
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


FORKED = """
import os, signal
from pathlib import Path
from tmkd.inference.scorer import Scorer

folder = Path({folder!r})
scorer = Scorer(folder, backend="openvino-bf16", threads=2)
scorer.scores(["a"], ["b"])
child = os.fork()
if not child:
    signal.alarm(60)
    try:
        scorer.scores(["a"], ["b"])
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    other = Scorer(folder, threads=2)  # a new one finds a backend that works
    print(other.backend, len(other.scores(["a"], ["b"])), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the forked process hung"
"""


def test_openvino_says_that_it_does_not_work_after_a_fork() -> None:
    code = FORKED.format(folder=str(with_every_backend("ranking")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    error, other = done.stdout.splitlines()
    assert error.startswith("ExportError OpenVINO was opened before this process was forked")
    assert other in ("onnx-fp32 1", "onnx-int8 1")


def test_int8_gives_the_same_scores_on_a_cpu_without_vnni() -> None:
    folder = with_every_backend("ranking")
    questions, passages = texts(40, seed=7)
    code = (
        "import sys, json; from pathlib import Path; from tmkd.inference.scorer import Scorer\n"
        f"scorer = Scorer(Path({str(folder)!r}), backend='openvino-int8')\n"
        "questions, passages = json.load(sys.stdin)\n"
        "print(json.dumps(scorer.logits(questions, passages).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([questions, passages]),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    here = Scorer(folder, backend="openvino-int8").logits(questions, passages)
    np.testing.assert_allclose(np.array(found), here, atol=0.2)  # clipped sums are whole logits off


def test_auto_takes_the_fastest_as_measured(copy: Path) -> None:
    for name, speed in {"onnx-fp32": 10, "onnx-int8": 30, "openvino-bf16": 40, "openvino-int8": 20}.items():
        _change(copy, name, pairs_per_second=speed)
    assert Scorer(copy).backend == "openvino-bf16"
    _change(copy, "openvino-bf16", passed=False)
    assert Scorer(copy).backend == "onnx-int8"


def test_without_openvino_auto_says_what_to_install(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _change(copy, "openvino-int8", pairs_per_second=1e6)
    _change(copy, "onnx-int8", pairs_per_second=1e5)
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    assert Scorer(copy).backend == "onnx-int8"
    assert "openvino-int8 is faster and needs: pip install 'tmkd[fast]'" in caplog.text
    with pytest.raises(MissingExtraError, match=r"needs openvino, which is not installed; run: pip install"):
        Scorer(copy, backend="openvino-int8")


def test_a_machine_that_computes_otherwise_falls_back_to_fp32(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    _change(copy, "openvino-int8", pairs_per_second=1e6, probe_limit=1e-9)
    scorer = Scorer(copy)
    assert scorer.backend == "onnx-fp32"
    assert "openvino-int8 does not give this student's logits on this machine" in caplog.text
    questions, passages = texts(5)
    wanted = Scorer(exported("ranking") / "out").logits(questions, passages)
    np.testing.assert_allclose(scorer.logits(questions, passages), wanted, atol=1e-5)
    with pytest.raises(ExportError, match=r"off by .* on the export's probes"):
        Scorer(copy, backend="openvino-int8")
    _change(copy, "onnx-fp32", passed=False)
    with pytest.raises(ExportError, match="does not give this student's logits"):
        Scorer(copy)


def _other_tokenizer(folder: Path) -> None:
    """The same words with other numbers."""
    content = json.loads((folder / "tokenizer.json").read_text())
    words: dict[str, int] = content["model"]["vocab"]
    plain = [word for word in words if not word.startswith("[")]
    numbers = [words[word] for word in plain]
    words.update(zip(plain, numbers[1:] + numbers[:1], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_another_tokenizer_is_refused(copy: Path) -> None:
    _other_tokenizer(copy)
    with pytest.raises(ExportError, match=r"tokenizer\.json is damaged: it is not the file that was exported"):
        Scorer(copy, backend="onnx-fp32")


def test_no_backend_scores_where_the_probes_of_all_fail(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An export of an earlier version does not say which tokenizer is its own."""
    card = json.loads((copy / "tmkd.json").read_text())
    del card["tokenizers"]
    (copy / "tmkd.json").write_text(json.dumps(card))
    assert Scorer(copy, backend="onnx-fp32").backend == "onnx-fp32"
    _change(copy, "openvino-int8", pairs_per_second=1e6)
    _other_tokenizer(copy)
    for backend in ("auto", "onnx-fp32"):
        with pytest.raises(ExportError, match=r"onnx-fp32 does not give this student's logits.*tokenizer\.json too"):
            Scorer(copy, backend=backend)
    assert "openvino-int8 does not give this student's logits on this machine" in caplog.text
    _change(copy, "onnx-fp32", probe_limit=None)  # older still
    assert Scorer(copy, backend="onnx-fp32").backend == "onnx-fp32"


def test_damaged_probes_and_files_are_refused(copy: Path) -> None:
    (copy / "probes.json").write_text('{"questions": ["a"], "passages": ["b"], "logits": [[1]]}')
    with pytest.raises(ExportError, match=r"probes\.json is damaged"):
        Scorer(copy, backend="onnx-int8")
    (copy / "probes.json").unlink()
    with pytest.raises(ExportError, match=r"probes\.json is missing"):
        Scorer(copy, backend="onnx-int8")
    assert Scorer(copy, backend="onnx-fp32").backend == "onnx-fp32"  # it is what the others are compared with
    path = copy / "onnx" / "model-int8.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"model-int8\.onnx is damaged"):
        Scorer(copy, backend="openvino-int8")


def _broken_scale(source: ExportSource, path: Path, attempt: int) -> None:
    """int8 whose activations are clipped: a scale is a hundredth of what was calibrated."""
    INT8(source, path, attempt)
    model = onnx.load(path)
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 100, tensor.name))
    onnx.save(model, path)


def _dynamic(source: ExportSource, path: Path, attempt: int) -> None:
    """int8 with ranges taken from the batch at hand."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source.folder / "onnx" / "model.onnx", path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [(_broken_scale, "at least|at most"), (_dynamic, "changes by .* with the other pairs of its batch")],
)
def test_a_bad_int8_is_refused_and_removed(
    write: Callable[[ExportSource, Path, int], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "onnx-int8", replace(BACKENDS["onnx-int8"], write=write, attempts=1))
    folder = exported("ranking")
    rows = export_student(
        folder / "student",
        clear_pairs(),
        tmp_path / "out",
        calibration=clear_pairs(),
        backends=["onnx-int8", "onnx-fp32"],
    )
    assert [(row["backend"], row["passed"]) for row in rows] == [("onnx-fp32", True), ("onnx-int8", False)]
    assert re.search(reason, rows[1]["reason"])
    assert list(read_json(tmp_path / "out" / "tmkd.json")["backends"]) == ["onnx-fp32"]
    assert [path.name for path in (tmp_path / "out" / "onnx").iterdir()] == ["model.onnx"]


def test_int8_that_is_refused_is_written_again_with_less_of_it_in_8_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    def write(source: ExportSource, path: Path, attempt: int) -> None:
        attempts.append(attempt)
        (_broken_scale if attempt == 0 else INT8)(source, path, attempt)

    for name in ("onnx-int8", "openvino-int8"):
        monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], write=write))
    rows = export_student(
        exported("ranking") / "student", clear_pairs(), tmp_path / "out", calibration=clear_pairs(),
        backends=["onnx-fp32", "onnx-int8", "openvino-int8"],
    )  # fmt: skip
    assert attempts == [0, 1]
    assert all(row["passed"] for row in rows)
    assert "export: openvino-int8 is refused" in caplog.text, "the faster trial comes first"
    assert "export: onnx-int8 is refused" not in caplog.text, "one refusal is enough to write the file anew"
    assert "trying again with fewer products in 8 bits" in caplog.text
    assert Scorer(tmp_path / "out", backend="openvino-int8").backend == "openvino-int8"


def test_what_stays_in_float_is_the_last_attention_then_the_second_feed_forward_product_too() -> None:
    model = onnx.load(exported("ranking") / "out" / "onnx" / "model.onnx")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    products = {node.name: node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")}
    config = json.loads((exported("ranking") / "out" / "config.json").read_text())
    narrowing = (config["intermediate_size"], config["hidden_size"])

    def kept(step: int) -> list[tuple[int, ...]]:
        return [shapes.get(products[name].input[1], ()) for name in left_in_float(model, step)]

    last_attention = 5  # weights of keys, tokens, bias of keys; tokens, weights of values
    assert len(kept(0)) == last_attention
    assert all(len(shape) != 2 for shape in kept(0))
    behind = last_attention + 5  # attention output, two of the feed-forward, pooler, classifier
    layers = config["num_hidden_layers"]
    assert kept(2).count(narrowing) == layers
    assert len(kept(2)) == layers - 1 + behind
    assert len(kept(1)) == min(layers - 1, 1) + behind


def test_int8_alone_leaves_no_other_file_and_needs_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported("ranking")
    dev = clear_pairs()
    given: dict[str, Any] = {"calibration": clear_pairs(), "backends": ["openvino-int8"]}
    (row,) = export_student(folder / "student", dev, tmp_path / "out", **given)
    assert row["passed"], row["reason"]
    assert [path.name for path in (tmp_path / "out" / "onnx").iterdir()] == ["model-int8.onnx"]
    (row,) = export_student(folder / "student", dev, tmp_path / "out", backends=["openvino-int8"])
    assert "calibrated on training pairs and there are none" in row["reason"]
    monkeypatch.setitem(sys.modules, "nncf", None)
    (row,) = export_student(folder / "student", dev, tmp_path / "out", **given)
    assert "writing int8 needs nncf; run: pip install 'tmkd[train]'" in row["reason"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = export_student(folder / "student", dev, tmp_path / "out", calibration=clear_pairs())
    assert [row["backend"] for row in rows] == ["onnx-fp32"]  # by default: what the tools here can make


def test_calibration_pairs_are_of_every_class_and_the_same_each_time() -> None:
    many = Pairs.build([f"q{i}" for i in range(900)], ["p"] * 900, labels=[int(i % 9 == 0) for i in range(900)])
    chosen = choose_calibration(many, count=60)
    assert np.bincount(chosen.labels).tolist() == [30, 30]
    assert chosen.pair_ids == choose_calibration(many, count=60).pair_ids
    assert chosen.pair_ids != choose_calibration(many, count=60, seed=1).pair_ids
    assert len(choose_calibration(Pairs.build(["q"], ["p"]))) == 1
    assert len(choose_calibration(many.take([]))) == 0


def test_an_engine_sees_few_shapes() -> None:
    shapes = set()
    for seed in range(200):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(4, 193, int(generator.integers(1, 120)))
        batches = engine_batches(lengths, 2048, parts=2)
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        assert len(batches) >= min(2, len(lengths))
        for rows in batches:
            shapes.add((len(rows), padded_width(int(lengths[rows].max()))))
            assert len(rows) * padded_width(int(lengths[rows].max())) <= 2048
    assert shapes <= set(engine_shapes(192, 2048))
    assert len(engine_shapes(192, 2048)) <= 24 * 8  # widths to 192 in steps of 8, powers of two to 128
    assert engine_batches(np.array([], dtype=np.int64), 2048, parts=2) == []


@pytest.mark.parametrize(("file", "backend"), [("model.onnx", "onnx-fp32"), ("model-int8.onnx", "onnx-int8")])
def test_the_graphs_of_two_classes_give_one_logit_which_is_the_score(file: str, backend: str) -> None:
    folder = with_every_backend("ranking")
    session = onnxruntime.InferenceSession(folder / "onnx" / file)
    (output,) = session.get_outputs()
    assert (output.name, output.shape[1]) == ("logits", 1)
    questions, passages = texts(8, seed=4)
    given = AutoTokenizer.from_pretrained(folder)(questions, passages, padding=True, truncation=True)
    inputs = {value.name: np.array(given[value.name]) for value in session.get_inputs()}
    np.testing.assert_allclose(
        session.run(None, inputs)[0][:, 0], Scorer(folder, backend=backend).scores(questions, passages), atol=1e-4
    )


@pytest.mark.parametrize("backend", KNOWN_BACKENDS)
def test_a_warm_engine_meets_no_new_shape(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(with_every_backend("ranking"), backend=backend, threads=2)
    questions, passages = texts(150, seed=2)
    assert isinstance(scorer._reader, PairReader)
    before, seen, engine = scorer.logits(questions, passages), set(), scorer._reader._engine

    def watched(inputs: Inputs) -> NDArray[np.float32]:
        seen.add(inputs["input_ids"].shape)
        return engine(inputs)

    monkeypatch.setattr(scorer._reader, "_engine", watched)
    scorer.warm_up(within=0)
    assert not seen  # no time, no shape
    scorer.warm_up()
    warm = set(seen)
    np.testing.assert_array_equal(scorer.logits(questions, passages), before)
    assert seen == warm


def test_near_passages_may_change_places_in_the_agreement_within_a_tenth_and_the_plain_one_shows_it() -> None:
    reference = np.array([[0, 1.0], [0, 1.05], [0, -2.0]], dtype=np.float32)
    found = np.array([[0, 1.2], [0, 1.1], [0, -2.0]], dtype=np.float32)
    result = measure_parity(reference, found, ["a"] * 3, np.array([1, 0, 0]))
    assert (result.top1_agreement_within_0_1, result.kendall_tau_within_0_1) == (1.0, 1.0)
    assert result.top1_agreement == 0.0
    assert result.kendall_tau == pytest.approx(1 / 3)
    assert result.ndcg_pytorch == pytest.approx(1 / np.log2(3))
    assert result.ndcg_export == 1.0


@pytest.mark.parametrize(
    ("found", "steady", "expected"),
    [
        ({}, {}, ""),
        ({"metric_export": 0.894}, {}, "auc falls from 0.9000 to 0.8940"),
        ({"ndcg_export": 0.794}, {}, "nDCG@10 falls from 0.8000 to 0.7940"),
        ({"metric_export": 0.896, "ndcg_export": 0.796}, {}, ""),
        ({"top1_agreement_within_0_1": 0.97}, {}, "the first passage is the same within 0.1: 0.9700"),
        ({"kendall_tau_within_0_1": 0.94}, {}, "Kendall's tau within 0.1: 0.9400"),
        ({"top1_agreement": 0.5, "kendall_tau": 0.5}, {}, ""),  # within 0.1 the order is the same
        ({"top1_agreement_within_0_1": None, "decision_agreement": 0.9}, {}, "the decision is the same: 0.9000"),
        ({}, {"batch_difference": 0.03}, "changes by 3.00e-02 with the other pairs of its batch"),
        ({}, {"repeats": False}, "does not give the same logits again"),
        ({}, {"batch_difference": None}, "not finite"),
    ],
)
def test_what_the_gate_asks_of_int8(found: dict[str, Any], steady: dict[str, Any], expected: str) -> None:
    good = Parity(0.3, 0.99, 0.99, 0.99, 0.96, 0.96, "auc", 0.9, 0.9, 0.8, 0.8)
    reason = why_refused(replace(good, **found), replace(Invariance(0.01, True), **steady), CLOSE)
    assert (expected in reason) if expected else reason == ""
    assert "a logit differs by 3.00e-01" in why_refused(good, Invariance(0.0, True), EXACT)
