"""POST /ask: answers over the queue, an index that is updated meanwhile, a teacher beside the student."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cached_fixtures import cached_export
from export_fixtures import exported
from qa_fixtures import TEXTS, document, index_of
from serve_fixtures import QUESTION, ROOT, InProcess, in_process, model

from tmkd.core.errors import TmkdError
from tmkd.core.hardware import native_bf16
from tmkd.data.documents.index import update_index
from tmkd.inference.qa import Calibration, QuestionAnswerer
from tmkd.inference.qa.calibrate import CalibrationResult
from tmkd.inference.qa.ground import Ground
from tmkd.inference.state_update import update_states
from tmkd.inference.text_encoder import TextEncoder
from tmkd.serve import ask, watched
from tmkd.serve.messages import Failed, read
from tmkd.serve.queueing import BatchQueue

TWO = "how do i mount a disk or copy a file"  # finds two passages


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return index_of(tmp_path_factory.mktemp("index") / "i").folder


@pytest.fixture(scope="module")
def app(index: Path) -> Iterator[InProcess]:
    with in_process(index=index, teacher=exported("mpnet") / "student") as found:
        yield found


def test_answers_are_those_of_the_answerer(app: InProcess, index: Path) -> None:
    found = app.post("/ask", {"question": TWO, "top": 2}).json()
    wanted = QuestionAnswerer.open(model(), index, threads=1).ask(TWO, top=2)
    assert found["ranker"] == "student"
    assert len(wanted.answers) == 2
    assert [one["passage_id"] for one in found["answers"]] == [one.passage_id for one in wanted.answers]
    for one, same in zip(found["answers"], wanted.answers, strict=True):
        assert one["score"] == pytest.approx(same.score, abs=1e-4)
        assert (one["text"], tuple(one["marked"]), one["source"]) == (same.text, same.marked, same.source)
    assert set(found["milliseconds"]) == {"retrieve", "rank", "mark", "total"}
    assert found["candidates"] == wanted.candidates
    assert 'tmkd_stage_seconds_count{stage="retrieve"}' in app.get("/metrics").text


def test_a_cached_student_retrieves_by_dense_search_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched, "LOOK", 0.0)
    export = cached_export() / "out"
    folder = index_of(tmp_path / "index").folder
    question = {"question": "duplicating documents", "top": 3}  # shares no word with a passage
    with in_process(index=folder, model=export) as served:
        assert served.post("/ask", question).json()["answers"] == []
        assert f"{folder} has no states of passages" in caplog.text
    encoder = TextEncoder.open(export)
    update_states(folder, encoder)
    with in_process(index=folder, model=export) as served:
        found = served.post("/ask", question).json()
        wanted = QuestionAnswerer.open(export, folder, threads=1).ask("duplicating documents", top=3)
        assert [one["passage_id"] for one in found["answers"]] == [one.passage_id for one in wanted.answers]
        for one, same in zip(found["answers"], wanted.answers, strict=True):
            assert one["score"] == pytest.approx(same.score, abs=1e-4)
            assert (one["bm25_rank"], one["dense_rank"]) == (None, same.dense_rank)
        index_of(folder, {**TEXTS, "new.md": "Making copies of letters and other papers."})
        update_states(folder, encoder)
        sources = [one["source"] for one in served.post("/ask", {**question, "top": 9}).json()["answers"]]
        assert "new.md" in sources


def test_the_calibration_decides_by_the_raw_score_and_other_ground_is_told_once(
    index: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export = Path(shutil.copytree(model(), tmp_path / "export"))
    best = QuestionAnswerer.open(export, index, threads=1).ask(TWO).answers[0].score
    ground = Ground(dense=True, candidates=50, backend="onnx-int8")
    for least, answered in ((best - 0.5, True), (best + 0.5, False)):  # with probabilities that are 0 or 1
        CalibrationResult(replace(Calibration(0.001).from_score(least), ground=ground), {}).save(export)
        caplog.clear()
        with in_process(index=index, model=export) as served:
            assert "were calibrated with dense search, and BM25 alone retrieves now" in caplog.text
            assert "with the backend onnx-int8, and onnx-fp32 computes the scores now" in caplog.text
            for _ in range(2):
                assert served.post("/ask", {"question": TWO}).json()["answered"] is answered
        said = [one.getMessage() for one in caplog.records if "were calibrated" in one.getMessage()]
        assert len(said) == 3
        assert "with 50 candidates for a question, and 100 are ranked now" in said[2]


def test_the_teacher_ranks_the_same_passages(app: InProcess) -> None:
    student = app.post("/ask", {"question": TWO, "top": 3}).json()
    teacher = app.post("/ask", {"question": TWO, "top": 3, "ranker": "teacher"}).json()
    assert teacher["ranker"] == "teacher"
    assert {one["passage_id"] for one in teacher["answers"]} == {one["passage_id"] for one in student["answers"]}
    scores = {one["passage_id"]: one["score"] for one in student["answers"]}
    assert len(scores) == len(teacher["answers"]) >= 2
    close = 0.02 if native_bf16() else 1e-3  # a teacher computes in bf16 where the CPU does
    for one in teacher["answers"]:  # the same weights, in PyTorch
        assert one["score"] == pytest.approx(scores[one["passage_id"]], abs=close)
    assert app.get("/info").json()["teacher"] is True


def test_a_question_that_is_not_read_to_its_end_is_told(app: InProcess) -> None:
    assert app.post("/ask", {"question": TWO}).json()["truncated"] is False
    assert app.post("/ask", {"question": "how do i mount a disk " * 4}).json()["truncated"] is True


def test_nothing_found_is_an_answer_too(app: InProcess) -> None:
    found = app.post("/ask", {"question": "xyzzy plugh"})
    assert found.is_success
    assert (found.json()["answered"], found.json()["answers"]) == (False, [])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "question"), ({"question": ""}, "question"), ({"question": " \n"}, "question"),
        ({"question": "a" * 2001}, "question"),
        ({"question": "a", "top": 0}, "top"), ({"question": "a", "candidates": 10_000}, "candidates"),
        ({"question": "a", "ranker": "nobody"}, "ranker"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_refused(app: InProcess, body: object, field: str) -> None:
    found = app.post("/ask", body)
    assert (found.status_code, found.json()["field"]) == (422, field)


def test_without_an_index_or_a_teacher_it_says_how_to_get_one(index: Path) -> None:
    with in_process() as app:
        found = app.post("/ask", {"question": "a"})
        assert (found.status_code, "--index" in found.json()["error"]) == (404, True)
        assert app.get("/info").json()["index"] is None
    with in_process(index=index) as app:
        found = app.post("/ask", {"question": "a", "ranker": "teacher"})
        assert (found.status_code, "--teacher" in found.json()["error"]) == (422, True)


def test_an_index_that_is_updated_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK", 0.0)
    folder = index_of(tmp_path / "i").folder
    with in_process(index=folder) as app:
        assert app.post("/ask", {"question": "zebra"}).json()["answers"] == []
        texts = {**TEXTS, "zebra.md": "A zebra has stripes."}
        update_index(folder, lambda: [document(key, text) for key, text in texts.items()])
        assert app.post("/ask", {"question": "zebra"}).json()["answers"][0]["source"] == "zebra.md"
        folder.rename(tmp_path / "away")  # made anew, say: what was opened still answers
        assert app.post("/ask", {"question": "zebra"}).json()["answers"][0]["source"] == "zebra.md"


def test_too_many_questions_at_once_are_told_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "MOST", 1)
    with in_process(index=index, timeout=5) as app:
        free = threading.Event()
        answerer = app.server.asker.rankers["student"]
        real = answerer.ask
        monkeypatch.setattr(answerer, "ask", lambda *a, **k: (free.wait(10), real(*a, **k))[1])
        first = threading.Thread(target=app.post, args=["/ask", {"question": QUESTION}])
        first.start()
        time.sleep(0.3)
        found = app.post("/ask", {"question": QUESTION})
        assert (found.status_code, "retry-after" in found.headers) == (429, True)
        free.set()
        first.join()
        assert app.post("/ask", {"question": QUESTION}).is_success


def test_a_question_whose_time_is_up_leaves_no_work_behind(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_process(index=index, timeout=0.5) as app:
        monkeypatch.setattr(BatchQueue, "_scorer_up", lambda _: False)  # nothing is scored
        found = app.post("/ask", {"question": QUESTION})
        assert (found.status_code, "retry-after" in found.headers) == (503, True)
        assert app.server.queues["student"].pairs == 0


def test_a_teacher_that_cannot_be_loaded_is_told_with_the_way_out(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from tmkd.serve.worker import main; main('teacher', 'x', '-', '1')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd=ROOT)
    message = read(io.BytesIO(done.stdout))
    assert isinstance(message, Failed)
    assert "tmkd[train]" in message.message
    with pytest.raises(TmkdError, match=str(tmp_path)), in_process(teacher=tmp_path):
        pass
