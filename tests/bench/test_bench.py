"""`tmkd bench`: contestants are processes that take turns; one may fail. No test depends on speed."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import pair_rows, write_jsonl

from tmkd.bench import environments, profile, worker
from tmkd.bench.material import BenchPairs, Subject
from tmkd.bench.rounds import Result, compete, ratios
from tmkd.bench.speed import SpeedFigures, gains, run
from tmkd.bench.worker import Contestant, Failed, Worker
from tmkd.cli.options import give
from tmkd.core.errors import TmkdError

ECHO = """
from protocol import serve

def load(options):
    if options.get("bad"):
        raise ValueError("no such weights")
    turns = 0
    def run(questions, passages, labels):
        nonlocal turns
        turns += 1
        if turns == options.get("dies_at"):
            import os
            print("out of memory")
            os._exit(1)
        print("a library prints this")
        return [len(passage) for passage in passages]
    return run

serve(load)
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workers"
    folder.mkdir()
    (folder / "protocol.py").write_text((worker.WORKERS / "protocol.py").read_text())
    (folder / "echo.py").write_text(ECHO)
    monkeypatch.setattr(worker, "WORKERS", folder)
    return folder


def turn(one: Worker) -> dict[str, list[float]]:
    seconds, scores = one.run(["q", "q"], ["ab", "c"], [0, 1])
    assert scores == [2.0, 1.0]
    assert seconds >= 0
    return {"pairs/s": [2.0]}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_contestant_that_fails_gets_a_row_with_the_reason_and_the_others_continue(
    scripts: Path, tmp_path: Path
) -> None:
    names: dict[str, dict[str, Any]] = {"good": {}, "cannot load": {"bad": True}, "dies": {"dies_at": 3}}
    contestants = [Contestant(name, "echo.py", options) for name, options in names.items()]
    good, cannot, dies = compete(contestants, turn, 4, tmp_path)
    assert good.values == {"pairs/s": [2.0] * 4}
    assert "ValueError: no such weights" in cannot.error
    assert "it died: out of memory" in dies.error
    assert dies.rows() == [{"name": "dies", "ours": False, "error": dies.error}]


def test_brackets_in_a_message_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Result("peer", False, error="needs optimum[openvino], [/tmp/a/model.onnx] is missing")
    give(None, {}, SpeedFigures("score", [failed], {}).shown())
    shown = " ".join(capsys.readouterr().out.split())
    assert "optimum[openvino]" in shown
    assert "[/tmp/a/model.onnx]" in shown


def test_a_contestant_that_does_not_answer_fails(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 0.5)
    (scripts / "echo.py").write_text("import time; time.sleep(600)")
    with pytest.raises(Failed, match="no answer"):
        Worker(Contestant("hangs", "echo.py"), tmp_path / "log")


def test_temporary_files_of_a_contestant_are_removed(scripts: Path, tmp_path: Path) -> None:
    (scripts / "echo.py").write_text(ECHO.replace("turns = 0", "turns = 0; import tempfile; tempfile.mkdtemp()", 1))
    with Worker(Contestant("one", "echo.py"), tmp_path / "log") as one:
        folder = Path(one.scratch.name)
        assert len(list(folder.iterdir())) == 1
    assert not folder.exists()


def test_contestants_take_turns_in_a_rotating_order(scripts: Path, tmp_path: Path) -> None:
    order: list[str] = []

    def watched(one: Worker) -> dict[str, list[float]]:
        order.append(one.contestant.name)
        return turn(one)

    compete([Contestant(name, "echo.py") for name in "abc"], watched, 3, tmp_path)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # the first round warms up


def test_an_interrupted_bench_ends_its_processes(scripts: Path, tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted(one: Worker) -> dict[str, list[float]]:
        pids.append(one.process.pid)
        if len(pids) == 2:
            raise KeyboardInterrupt
        return turn(one)

    with pytest.raises(KeyboardInterrupt):
        compete([Contestant(name, "echo.py") for name in "ab"], interrupted, 1, tmp_path)
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_a_contestant_gets_as_many_cores_as_threads(scripts: Path, tmp_path: Path) -> None:
    with Worker(Contestant("one", "echo.py", threads=1), tmp_path / "log") as one:
        assert len(os.sched_getaffinity(one.process.pid)) == 1


def test_an_environment_that_cannot_be_built_fails_its_contestant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    (tmp_path / "nowhere.txt").write_text(f"{tmp_path}/no-such-package\n")
    with pytest.raises(Failed, match="environment of nowhere cannot be built"):
        Worker(Contestant("peer", "echo.py", environment="nowhere"), tmp_path / "log")


def test_ratios_are_medians_over_rounds() -> None:
    ours = Result("ours", True, {"pairs/s": [10.0, 20.0, 40.0], "ms, 10 passages": [1.0, 2.0, 4.0]})
    peer = Result("peer", False, {"pairs/s": [5.0, 5.0, 5.0], "ms, 10 passages": [4.0, 4.0, 4.0]})
    assert ratios([ours, peer], "pairs/s") == {"peer": 4.0}
    assert ratios([ours, peer], "ms, 10 passages") == {"peer": 2.0}
    (row,) = [row for row in ours.rows() if row["unit"].startswith("ms")]
    assert row["p99"] == pytest.approx(3.96)
    assert (row["median"], row["min"], row["max"]) == (2.0, 1.0, 4.0)


def test_every_peer_is_pinned() -> None:
    files = {path.stem: path.read_text().split() for path in environments.REQUIREMENTS.glob("*.txt")}
    assert files
    for name, lines in files.items():
        assert lines, name
        assert all("==" in line for line in lines), name


def test_a_whole_bench_with_ours_and_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2))
    began = time.monotonic()
    figures = run("score", Subject(layers=1, max_length=48, pairs=pairs), count=500, rounds=1, peers=())
    content = json.loads(json.dumps(figures.to_json()))
    assert {"name", "ours", "unit", "median", "min", "max"} <= set(content["rows"][0])
    assert content["bench"] == "score"
    rates = {row["name"]: row["median"] for row in content["rows"]}
    assert all(32 / rate < time.monotonic() - began for name, rate in rates.items() if "product" not in name)
    differences = {name: float(text) for name, text in figures.columns["scores differ by"].items()}
    assert differences["tmkd, onnx-fp32"] < 1e-4
    assert differences["transformers, fp32, length-sorted"] < 1e-4
    slower = {row["name"]: row.get("slower") for row in content["rows"]}
    assert slower["transformers, fp32"] > 0
    assert len(figures.shown()) == 1


def test_a_profile_divides_the_time_among_kinds_of_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2))
    figures = profile.run(Subject(layers=1, max_length=48, pairs=pairs), count=32, rounds=2)
    rows = json.loads(json.dumps(figures.to_json()))["rows"]
    assert {"name", "part", "ours", "unit", "median", "min", "max"} <= set(rows[0])
    for part in ("training", "scoring"):
        shares = {row["name"]: row["median"] for row in rows if row["part"] == part}
        assert 0.9 < sum(shares.values()) < 1.1  # each is a median of its own
        assert {"matrix products", "tokenizing", "layer norm"} <= set(shares)
        assert shares["matrix products"] > shares["layer norm"] > 0
    give(None, {}, figures.shown())
    assert "matrix products" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("aten::addmm", "matrix products"), ("FullyConnected", "matrix products"), ("aten::_fused_adamw_", "optimiser"),
     ("aten::_softmax_backward_data", "softmax"), ("Subgraph", "attention in one operation"),
     ("aten::native_layer_norm_backward", "layer norm"), ("MVN", "layer norm"), ("Reshape", profile.OTHER)],
)  # fmt: skip
def test_operations_of_both_engines_have_a_kind(operation: str, kind: str) -> None:
    assert profile.kind_of(operation) == kind


def test_padding_and_other_tokens_of_the_last_layer_do_not_count_as_useful_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    subject = Subject(layers=2, max_length=48, pairs=write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2)))
    pairs, model = subject.prepare(export=False)
    questions, passages, _ = pairs.first(1)
    d, wide, tokens = 384, 1536, 0
    from tmkd.models.tokenizer import PairTokenizer

    (tokens,) = PairTokenizer(model.student, 48).encode(questions, passages).lengths
    projections = 4 * 2 * tokens * d * d + 2 * 2 * tokens * d * wide
    attention = 2 * 2 * tokens * tokens * d
    last = 4 * 2 * d * d + 2 * 2 * d * wide + 2 * 2 * tokens * 12 * d  # 12 heads, each over all tokens' d numbers
    assert np.isclose(model.flops(questions, passages), projections + attention + last)


def test_half_written_weights_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    subject = Subject(layers=1, max_length=48, pairs=write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2)))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.quantization.quantize_dynamic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            subject.prepare(export=False)
    _, model = subject.prepare(export=False)
    assert (model.single / "onnx" / "model_int8.onnx").is_file()


def test_an_unknown_peer_is_refused_with_the_names_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2))
    with pytest.raises(TmkdError, match=r"no peer 'vespa'.*sentence-transformers trainer"):
        run("train", Subject(layers=1, max_length=48, pairs=pairs), peers=("vespa",))


def test_pairs_of_a_question_stay_together_and_calibration_has_other_questions(tmp_path: Path) -> None:
    found = BenchPairs.read(write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2)))
    runs = [question for question, _ in itertools.groupby(found.pairs.questions)]
    assert len(runs) == len(set(runs))
    assert not set(found.pairs.questions) & set(found.calibration.questions)


def test_texts_that_occur_several_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    texts = [{"question": f"where is {n}?", "passage": f"{n} is on page {m}", "label": 0}
             for n in range(40) for m in range(2)]  # fmt: skip
    path = write_jsonl(tmp_path / "pairs.jsonl", texts)
    found = BenchPairs.read(path)
    for times in (1, 4, 16):
        questions, passages, labels = found.reused(times, 32)
        assert len(set(zip(questions, passages, strict=True))) == len(labels) == 32
        assert {passages.count(text) for text in passages} == {times}
    questions, _, _ = found.reused(4, 32)
    assert {questions.count(text) for text in questions} == {4}
    with pytest.raises(TmkdError, match="have 20 questions; give 21 or more"):
        found.reused(21, 32)
    for bench in ("label --reuse", "train --reuse"):
        figures = run(bench, Subject(layers=1, max_length=48, pairs=path), count=32, rounds=1)
        rows = json.loads(json.dumps(figures.to_json()))["rows"]
        assert not any("error" in row for row in rows), rows
        assert {row["unit"] for row in rows} == {f"pairs/s, each text in {times}" for times in (1, 4, 16)}
        assert len(rows) == 6
        assert sum("slower" in row for row in rows) == 3


def test_factors_compare_each_row_with_the_row_above() -> None:
    rates = {
        "deep": [2.0, 4.0, 3.0],
        "+ small": [20.0, 40.0, 60.0],
        "matrix product": [],
        "+ sorted": [50.0, 40.0, 60.0],
    }
    results = [Result(name, True, {"pairs/s": found} if found else {}) for name, found in rates.items()]
    assert gains(results) == {"+ small": "10.0x", "+ sorted": "1.0x"}
