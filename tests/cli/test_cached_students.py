"""Cached students of two makes, from the command line and a server: with an encoder of questions, and trained along.

What the exports give is compared with the student in PyTorch, so the encoder before its training, or the passages'
encoder in place of the questions', would be noticed.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from cached_run_fixtures import Trained, trained
from conftest import TOPICS, Tmkd, pair_rows, write_jsonl
from numpy.typing import NDArray
from serve_fixtures import InProcess, command, in_process

from tmkd.data.documents.index import DocumentIndex
from tmkd.data.pairs import Pairs
from tmkd.evaluation.report import write_report
from tmkd.export.cached import CachedStudent
from tmkd.inference.qa import QuestionAnswerer
from tmkd.inference.state_card import FOLDER
from tmkd.inference.state_store import StateStore
from tmkd.inference.text_encoder import TextEncoder
from tmkd.models.encoders.cached_files import question_folder
from tmkd.models.text_states import TextStates, text_key
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.pipeline.run import Run

QUESTION = "How do I copy a file?"
UNKNOWN = ["A zebra has stripes.", "", "The cp command duplicates a file; nobody indexed this."]
CLOSE = 0.02  # of a logit: what numbers that round to the other side may change


@pytest.fixture(scope="module", params=["question encoder", "trained along"])
def made(request: pytest.FixtureRequest) -> Trained:
    return trained(str(request.param))


@pytest.fixture(scope="module")
def pytorch(made: Trained) -> CachedStudent:
    """The student, whose encoder is the one of its folder."""
    asking = question_folder(made.student)
    apart = None if asking is None else TextTokenizer(made.export / asking.name, 64)
    return CachedStudent(made.student, TextTokenizer(made.export, 64), apart)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, (_, text) in TOPICS.items():
        (folder / f"{name}.md").write_text(f"{text}\n")
    return folder


@pytest.fixture
def index(tmkd: Tmkd, made: Trained, docs: Path) -> Path:
    """An index of the documents with the states that the export computes."""
    tmkd("index", docs, "--out", "index", "--model", made.export, "--threads", "1")
    return docs.parent / "index"


def scores(student: CachedStudent, questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float32]:
    """The log-odds that the student in PyTorch gives."""
    pairs = Pairs.build(list(questions), list(passages))
    found: NDArray[np.float32] = student.logits(student.read(pairs), pairs, rounded=True)[:, 1]
    return found


def by_source(app: InProcess | str) -> dict[str, int]:
    """Passages by where their states came from, as /metrics says."""
    text = httpx.get(f"{app}/metrics").text if isinstance(app, str) else app.get("/metrics").text
    return {name: int(float(n)) for name, n in re.findall(r'tmkd_states_total\{source="(\w+)"\} ([\d.]+)', text)}


def test_the_states_of_an_index_are_those_of_the_students_encoder(
    tmkd: Tmkd, made: Trained, pytorch: CachedStudent, index: Path, docs: Path
) -> None:
    said = json.loads(tmkd("index", docs, "-o", index, "-m", made.export, "--threads", "1", "--json").stdout)
    assert (said["unchanged"], said["states"]["computed"], said["states"]["kept"]) == (8, 0, 8)
    (docs / "copy.md").write_text("Now it tells how cp duplicates a folder.\n")
    (docs / "mail.md").unlink()
    said = json.loads(tmkd("index", docs, "-o", index, "-m", made.export, "--threads", "1", "--json").stdout)
    assert (said["changed"], said["deleted"], said["unchanged"]) == (1, 1, 6)
    assert [said["states"][name] for name in ("computed", "kept", "dropped")] == [1, 6, 2]
    store = StateStore.open(index, pytorch.identity)
    passages = [one.text for one in DocumentIndex.open(index).passages()]
    read = pytorch.read(Pairs.build(passages, passages)).passages
    fresh = TextEncoder.open(made.export, threads=1).states(passages)
    assert len(passages) == len(store) == 7
    for text, same in zip(passages, fresh, strict=True):
        found, wanted = store.get(text_key(text)), TextStates.of(read[text].states, read[text].embedding)
        assert found is not None
        assert found.values.tobytes() == same.values.tobytes()
        assert np.abs(found.values.astype(int) - wanted.values).max() <= 1
        np.testing.assert_allclose(found.embedding, wanted.embedding, atol=1e-3)
    assert store.get(text_key(TOPICS["copy"][1])) is None


def test_ask_ranks_by_the_students_scores(tmkd: Tmkd, made: Trained, pytorch: CachedStudent, index: Path) -> None:
    question = "Which port is it?"
    done = tmkd("ask", question, "--model", made.export, "--index", index, "--top", "8", "--threads", "1", "--json")
    answers = json.loads(done.stdout)["answers"]
    assert len(answers) == 8
    texts = [one["text"] for one in answers]
    answerer = QuestionAnswerer.open(made.export, index, threads=1)
    retrieved = answerer.retrieve(question, 100)
    scored = zip(retrieved, answerer.score(question, retrieved), strict=True)
    of_student = {one.found.passage.text: score.log_odds for one, score in scored}
    np.testing.assert_allclose([of_student[text] for text in texts], scores(pytorch, [question] * 8, texts), atol=CLOSE)
    read = pytorch.read(Pairs.build([question] * 8, texts))
    cosines = [float(read.questions[question].embedding @ read.passages[text].embedding) for text in texts]
    by_dense = sorted(zip([one["dense_rank"] for one in answers], cosines, strict=True))
    assert [rank for rank, _ in by_dense] == list(range(1, 9))
    assert np.diff([cosine for _, cosine in by_dense]).max() < 2e-3  # the embeddings are stored in 16 bits
    shutil.rmtree(index / FOLDER)
    without = tmkd("ask", question, "--model", made.export, "--index", index, "--threads", "1")
    assert f"tmkd index --out {index} --model {made.export}" in " ".join(without.stderr.split())


def test_a_server_of_it_answers_and_reranks_what_no_index_holds(
    tmkd: Tmkd, made: Trained, pytorch: CachedStudent, index: Path, docs: Path
) -> None:
    body = {"query": QUESTION, "texts": UNKNOWN, "raw_scores": True}
    held = [TOPICS["copy"][1], TOPICS["sort"][1]]
    with in_process(model=made.export, index=index) as app:
        for counts in ({"computed": 3, "cache": 0, "store": 0}, {"computed": 3, "cache": 3, "store": 0}):
            found = {one["index"]: one["score"] for one in app.post("/rerank", body).json()}
            wanted = scores(pytorch, [QUESTION] * 3, UNKNOWN)
            np.testing.assert_allclose([found[row] for row in range(3)], wanted, atol=CLOSE)
            assert by_source(app) == counts
        found = {one["index"]: one["score"] for one in app.post("/rerank", {**body, "texts": held}).json()}
        np.testing.assert_allclose([found[row] for row in range(2)], scores(pytorch, [QUESTION] * 2, held), atol=CLOSE)
        assert by_source(app) == {"computed": 3, "cache": 3, "store": 2}
        answered = app.post("/ask", {"question": QUESTION, "top": 3}).json()["answers"]
        same = QuestionAnswerer.open(made.export, index, threads=1).ask(QUESTION, top=3).answers
        assert [one["passage_id"] for one in answered] == [one.passage_id for one in same]
        np.testing.assert_allclose([one["score"] for one in answered], [one.score for one in same], atol=1e-4)
        assert by_source(app)["computed"] == 3  # what the index holds was not read again


def test_the_command_serves_it_while_its_index_changes(
    tmkd: Tmkd, made: Trained, pytorch: CachedStudent, index: Path, docs: Path
) -> None:
    new, question = "A giraffe has a long neck.", "Which animal has a neck?"
    body = {"query": question, "texts": [new], "raw_scores": True}
    with command("--model", str(made.export), "--index", str(index)) as live:
        (first,) = httpx.post(f"{live.url}/rerank", json=body).json()
        assert first["score"] == pytest.approx(scores(pytorch, [question], [new])[0], abs=CLOSE)
        assert by_source(live.url) == {"computed": 1, "cache": 0, "store": 0}
        (docs / "giraffe.md").write_text(f"{new}\n")
        tmkd("index", docs, "--out", index, "--model", made.export, "--threads", "1")
        asked, until, texts = {"question": question, "top": 9}, time.monotonic() + 30, list[str]()
        while new not in texts:
            assert time.monotonic() < until
            texts = [one["text"] for one in httpx.post(f"{live.url}/ask", json=asked).json()["answers"]]
        assert by_source(live.url)["computed"] == 1
        assert live.stop() == 0


def test_score_and_evaluate_give_the_students_numbers(tmkd: Tmkd, made: Trained, pytorch: CachedStudent) -> None:
    rows = [{**row, "question": f"Tell me: {row['question']}"} for row in pair_rows(1)]
    pairs = write_jsonl(Path("pairs.jsonl"), rows)
    tmkd("score", made.export, "--pairs", pairs, "--output", "scored.jsonl", "--threads", "1")
    found = [json.loads(line)["tmkd_score"] for line in Path("scored.jsonl").read_text().splitlines()]
    wanted = scores(pytorch, [str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    assert np.ptp(wanted) > 10 * CLOSE
    np.testing.assert_allclose(found, wanted, atol=CLOSE)
    done = tmkd("evaluate", made.run, "--pairs", pairs, "--no-speed", "--json")
    methods = {row["name"]: row for row in json.loads(done.stdout)["methods"]}
    labels = np.array([row["label"] for row in rows])
    pairs_apart = wanted[labels == 1][:, None] - wanted[labels == 0]
    auc = float((pairs_apart > 0).mean() + (pairs_apart == 0).mean() / 2)
    assert methods["tmkd"]["auc"]["mean"] == pytest.approx(auc, abs=0.02)  # its states are not rounded to 8 bits
    assert methods["tmkd"]["encoder_parameters"] > 0


def test_results_and_report_say_how_the_encoder_was_made(made: Trained, tmp_path: Path) -> None:
    results = Run.open(made.run).evaluate(
        write_jsonl(Path("pairs.jsonl"), [{**row, "question": f"Tell me: {row['question']}"} for row in pair_rows(1)]),
        speed=False,
    )
    write_report(tmp_path / "report", results)
    content = json.loads((tmp_path / "report" / "results.json").read_text())
    found = {row["name"]: row.get("cached") for row in content["methods"]}
    folder = made.run.parents[2]
    asking = str(folder / "asking") if question_folder(made.student) else None
    along = asking is None
    assert found["tmkd"] == {
        "encoder": str(folder / "tiny"), "encoder_layers": 3, "trained": "along" if along else "no",
        "encoder_learning_rate": 1e-3 if along else 0.0, "question_encoder": asking, "state_size": 16, "layers": 1,
    }  # fmt: skip
    page = html.unescape((tmp_path / "report" / "report.html").read_text())
    encoder = (
        f"the encoder is {folder}/tiny with 3 layers, trained along with the interaction layers at a peak learning"
    )
    encoder += " rate of 0.001"
    if asking:
        encoder = f"the encoder of passages is {folder}/tiny with 3 layers, that of questions {asking}; both are frozen"
    rest = "16 numbers of each token of a passage are stored, and the question reads them in 1 interaction layer."
    assert page.count(f"tmkd: {encoder}. {rest}") == 1
