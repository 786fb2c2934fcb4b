"""tmkd.inference.scorer: scores in the caller's order, without torch, and clear errors for what is no export."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_fixtures import exported, texts
from qa_fixtures import index_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tmkd.core.errors import DataError, EncoderError, ExportError
from tmkd.core.logits import softmax
from tmkd.inference.engines import Inputs
from tmkd.inference.pair_reader import PairReader
from tmkd.inference.qa import QuestionAnswerer
from tmkd.inference.scorer import Scorer


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported("mpnet") / "out", tmp_path / "copy"))


@pytest.mark.parametrize("family", ["minilm", "mpnet"])
def test_logits_are_those_of_the_checkpoint_one_pair_at_a_time(family: str) -> None:
    folder = exported(family) / "out"
    questions, passages = texts(60, seed=5)
    found = Scorer(folder, threads=1).logits(questions, passages)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    unknown = {"token_type_ids"} if model.config.model_type == "mpnet" else set()
    for row in range(0, 60, 7):
        given = tokenizer(questions[row], passages[row], truncation=True, return_tensors="pt")
        with torch.no_grad():
            wanted = model(**{name: value for name, value in given.items() if name not in unknown}).logits[0]
        np.testing.assert_allclose(found[row], [0, *wanted.numpy()], atol=1e-5)  # the checkpoint has one logit
    assert found.dtype == np.float32
    assert found[:, 1].std() > 0.01  # the pairs do differ


def test_order_of_the_caller_is_kept_and_batches_do_not_matter() -> None:
    scorer = Scorer(exported("minilm") / "out", threads=2)
    questions, passages = texts(300, seed=2)
    seen: list[int] = []
    found = scorer.logits(questions, passages, seen.append)
    assert sum(seen) == 300
    assert len(seen) > 3
    mixed = np.random.default_rng(0).permutation(300)
    again = scorer.logits([questions[i] for i in mixed], [passages[i] for i in mixed])
    np.testing.assert_allclose(again, found[mixed], atol=1e-5)


@pytest.mark.parametrize("window", [16384, 7])
def test_equal_pairs_have_equal_scores_whatever_batch_they_are_in(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Engines compute in the order of a batch, so the last digits depend on it; here the difference is made large."""
    scorer = Scorer(exported("minilm") / "out", threads=1)
    assert isinstance(scorer._reader, PairReader)
    engine, calls = scorer._reader._engine, list[int]()

    def rough(inputs: Inputs) -> Any:
        calls.append(len(inputs["input_ids"]))
        return engine(inputs) + 1e-3 * len(calls)

    monkeypatch.setattr(scorer._reader, "_engine", rough)
    monkeypatch.setattr("tmkd.inference.pair_reader.WINDOW", window)
    questions, passages = texts(40, seed=5)
    several = [("mount", "a disk"), *zip(questions, passages, strict=True), ("mount", "a  DISK "), ("mount", "a disk")]
    seen: list[int] = []
    found = scorer.score_pairs([one for one, _ in several], [one for _, one in several], seen.append)
    assert len(set(found.logits[[0, -2, -1], 1].tolist())) == 1
    assert sum(calls) == len(set(several)) - 1  # the spelling with two spaces is the same tokens
    assert sum(seen) == len(several)
    assert (found.tokens[[0, -1]] == 6).all()


def test_pairs_that_the_student_does_not_read_whole_are_marked() -> None:
    scorer = Scorer(exported("minilm") / "out", threads=1)
    found = scorer.score_pairs(["mount"] * 3, ["a disk", "disk " * 44, "disk " * 45])
    assert scorer.max_length == 48
    assert found.tokens.tolist() == [6, 48, 49]
    assert found.cut.tolist() == [False, False, True]


def in_a_fork(work: Callable[[], object]) -> str:
    """What a function gives in a forked process, or its error; fails if it takes longer than 20 seconds."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            said = f"{work()}"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read().decode()
    assert os.waitpid(child, 0)[1] == 0, "the forked process hung"
    return said


def test_a_scorer_works_in_a_process_that_was_forked_later(tmp_path: Path) -> None:
    questions, passages = texts(30)
    scorer = Scorer(exported("mpnet") / "out", threads=2)
    index_of(tmp_path / "index")
    answerer = QuestionAnswerer.open(exported("mpnet") / "out", tmp_path / "index", threads=2)
    wanted = scorer.scores(questions, passages).tolist()
    source = answerer.ask("how do i mount a disk").answers[0].source
    assert in_a_fork(lambda: scorer.scores(questions, passages).tolist()) == str(wanted)
    assert in_a_fork(lambda: answerer.ask("how do i mount a disk").answers[0].source) == source
    assert in_a_fork(lambda: in_a_fork(lambda: scorer.scores(questions, passages).tolist())) == str(wanted)
    assert scorer.scores(questions, passages).tolist() == wanted  # the parent's threads are still there


def test_windows_join_seamlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(exported("mpnet") / "out", threads=1)
    questions, passages = texts(50)
    whole = scorer.logits(questions, passages)
    monkeypatch.setattr("tmkd.inference.pair_reader.WINDOW", 7)
    np.testing.assert_allclose(scorer.logits(questions, passages), whole, atol=1e-5)


def test_scores_are_unsquashed_log_odds() -> None:
    scorer = Scorer(exported("mpnet") / "out", threads=1)
    questions, passages = texts(20)
    logits = scorer.logits(questions, passages)
    scores = scorer.scores(questions, passages)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, logits[:, 1].astype(float) - logits[:, 0], atol=1e-6)
    probabilities = scorer.probabilities(questions, passages)
    np.testing.assert_allclose(np.log(probabilities[:, 1] / probabilities[:, 0]), scores, atol=1e-6)


def test_three_classes_have_probabilities_but_no_score() -> None:
    scorer = Scorer(exported("mpnet", 3) / "out", threads=1)
    assert (scorer.classes, len(scorer.labels)) == (3, 3)
    np.testing.assert_allclose(scorer.probabilities(["mount"], ["a disk"]).sum(axis=1), 1.0)
    with pytest.raises(ExportError, match="3 classes"):
        scorer.scores(["mount"], ["a disk"])


def test_softmax_does_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]])), [[1.0, 0.0], [0.5, 0.5]])


def test_no_pairs_and_one_pair() -> None:
    scorer = Scorer(exported("minilm") / "out", threads=1)
    assert scorer.logits([], []).shape == (0, 2)
    assert scorer.scores([], []).shape == (0,)
    assert scorer.logits(["mount"], [""]).shape == (1, 2)
    with pytest.raises(ValueError, match="2 questions but 1 passages"):
        scorer.logits(["a", "b"], ["c"])


def test_wrong_arguments_are_value_errors() -> None:
    scorer = Scorer(exported("minilm") / "out", threads=1)
    with pytest.raises(ValueError, match="questions is a single text; give a list"):
        scorer.scores("mount", ["a disk"])
    with pytest.raises(ValueError, match="passages is a single text; give a list"):
        scorer.probabilities(["m"], "d")
    with pytest.raises(ValueError, match="batch_size is 0"):
        scorer.logits(["mount"], ["a disk"], batch_size=0)
    with pytest.raises(DataError, match="the passage is int 3, expected a string"):
        scorer.logits(["mount"], [3])  # type: ignore[list-item]


def test_one_scorer_serves_many_threads() -> None:
    scorer = Scorer(exported("mpnet") / "out", threads=1)
    questions, passages = texts(80)
    wanted = scorer.logits(questions, passages)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: scorer.logits(questions, passages), range(12)):
            np.testing.assert_array_equal(found, wanted)


def test_runtime_needs_no_torch_and_imports_fast() -> None:
    code = (
        "import sys, time; from pathlib import Path; start = time.perf_counter(); "
        "from tmkd.inference.scorer import Scorer;"
        f"took = time.perf_counter() - start; Scorer(Path({str(exported('mpnet') / 'out')!r})).scores(['a'], ['b']);"
        "print(took, *[n for n in ('torch', 'transformers', 'pyarrow', 'scipy') if n in sys.modules])"
    )
    took, *loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    ).stdout.split()
    assert loaded == []
    assert float(took) < 2  # a quarter of a second on a free machine


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not a folder; give an export"):
        Scorer(tmp_path / "none")
    with pytest.raises(ExportError, match=r"has no tmkd\.json"):
        Scorer(tmp_path)
    with pytest.raises(ExportError, match="is a model folder, not an export"):
        Scorer(exported("mpnet") / "student")
    (tmp_path / "tmkd.json").write_text('{"format": 1, "backends": ')
    with pytest.raises(ExportError, match=r"tmkd\.json is damaged"):
        Scorer(tmp_path)
    shown = json.loads((exported("mpnet") / "out" / "tmkd.json").read_text())
    for change in ({"max_length": float("inf")}, {"backends": {"onnx-fp32": {"passed": True, "file": "\0"}}},
                   {"backends": {"onnx-fp32": {"passed": True, "pairs_per_second": "fast"}}}):  # fmt: skip
        (tmp_path / "tmkd.json").write_text(json.dumps({**shown, **change}))
        with pytest.raises(ExportError, match=r"tmkd\.json is damaged"):
            Scorer(tmp_path)
    (tmp_path / "tmkd.json").write_text("[" * 100_000)
    with pytest.raises(ExportError, match=r"tmkd\.json is damaged"):
        Scorer(tmp_path)
    (tmp_path / "tmkd.json").write_text('{"format": 99}')
    with pytest.raises(ExportError, match="format 99, this version reads 1 to 5"):
        Scorer(tmp_path)


def test_damaged_and_missing_files_are_refused(copy: Path) -> None:
    model = copy / "onnx" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx is damaged"):
        Scorer(copy)
    model.unlink()
    with pytest.raises(ExportError, match=r"model\.onnx is missing"):
        Scorer(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match=r"no tokenizer\.json"):
        Scorer(copy)


def test_back_ends_are_named(copy: Path) -> None:
    assert Scorer(copy, backend="onnx-fp32").backend == Scorer(copy).backend == "onnx-fp32"
    with pytest.raises(ExportError, match="'onnx-int4' is not known; this version runs openvino-int8"):
        Scorer(copy, backend="onnx-int4")
    card = json.loads((copy / "tmkd.json").read_text())
    (copy / "tmkd.json").write_text(json.dumps({**card, "backends": {}}))
    with pytest.raises(ExportError, match="none passed the parity gate"):
        Scorer(copy)


def test_a_file_outside_the_export_is_refused(copy: Path) -> None:
    card = json.loads((copy / "tmkd.json").read_text())
    card["backends"]["onnx-fp32"]["file"] = "../elsewhere.onnx"
    (copy / "tmkd.json").write_text(json.dumps(card))
    with pytest.raises(ExportError, match="lies outside"):
        Scorer(copy)


def test_a_graph_of_other_classes_is_refused(copy: Path) -> None:
    card = json.loads((copy / "tmkd.json").read_text())
    (copy / "tmkd.json").write_text(json.dumps({**card, "classes": 3, "outputs": 3, "labels": ["a", "b", "c"]}))
    with pytest.raises(ExportError, match="does not run as a student of 3 classes"):
        Scorer(copy)


def test_threads_must_be_positive() -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        Scorer(exported("mpnet") / "out", threads=0)


def test_a_folder_may_be_named_by_a_text() -> None:
    folder = exported("mpnet") / "out"
    questions, passages = texts(3)
    named = Scorer(str(folder), threads=1)
    assert named.manifest.folder == folder
    np.testing.assert_array_equal(
        named.logits(questions, passages), Scorer(folder, threads=1).logits(questions, passages)
    )


def test_a_system_without_affinity_scores_on_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr("tmkd.core.cpu.cpu_quota", lambda: None)
    scorer = Scorer(exported("mpnet") / "out")
    assert scorer.threads == 3
    questions, passages = texts(5)
    assert scorer.scores(questions, passages).shape == (5,)


def test_scoring_and_answering_use_nothing_that_only_unix_has(tmp_path: Path) -> None:
    """A new process in which the modules and functions that Windows or macOS lacks are missing too.

    Documents are indexed there as well; what needs a lock between processes, which Windows lacks, says so.
    """
    index_of(tmp_path / "index")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "copy.md").write_text("# copy\n\nThe copy command copies a file to a folder.\n")
    (tmp_path / "pairs.csv").write_text("question,passage\na,b\n")
    export, index = exported("mpnet") / "out", tmp_path / "index"
    script = (
        "import os, sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'syslog'): sys.modules[name] = None\n"
        "for name in ('sched_getaffinity', 'fork', 'forkpty', 'posix_fallocate', 'posix_spawn', 'killpg', 'getuid',\n"
        "             'mkfifo', 'getpgid', 'setsid'): delattr(os, name)\n"
        "from tmkd.inference.scorer import Scorer\n"
        "from tmkd.inference.qa.answer import QuestionAnswerer\n"
        "import tmkd\n"
        f"print(len(Scorer({str(export)!r}).scores(['a'], ['b'])))\n"
        f"print(tmkd.score_file({str(export)!r}, {str(tmp_path / 'pairs.csv')!r}, {str(tmp_path / 'o.csv')!r}).rows)\n"
        f"answerer = QuestionAnswerer.open({str(export)!r}, {str(index)!r})\n"
        "print(answerer.ask('how do i mount a disk').answers[0].source)\n"
        f"print(tmkd.build_index([{str(tmp_path / 'docs')!r}], {str(tmp_path / 'new')!r}).added)\n"
        "from tmkd.inference.state_writer import writing\n"
        "try:\n"
        f"    with writing(tmkd.DocumentIndex({str(index)!r}).folder): pass\n"
        "except tmkd.TmkdError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    *found, refused = done.stdout.splitlines() or [""]
    assert found == ["1", "1", "mount.md", "1"], done.stderr
    assert (
        refused == f"{index / 'states' / 'lock'} cannot be locked: Windows has no `flock`; run this on Linux or "
        "macOS, or in WSL"
    )
