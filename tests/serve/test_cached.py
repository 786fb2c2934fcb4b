"""A server of a student that reads every passage once: states from an index, from the cache, and computed."""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cached_fixtures import cached_export
from qa_fixtures import TEXTS, document, index_of
from serve_fixtures import PASSAGES, PROGRAM, QUESTION, ROOT, Command, InProcess, command, in_process
from state_fixtures import MiniLM

from tmkd.core.errors import TmkdError
from tmkd.data.documents.index import update_index
from tmkd.inference.qa import QuestionAnswerer
from tmkd.inference.scorer import Scorer
from tmkd.inference.state_store import StateStore
from tmkd.inference.state_update import update_states
from tmkd.inference.text_encoder import TextEncoder
from tmkd.models.tokenizer import Encoded
from tmkd.serve.messages import Group, Job, Scored, read
from tmkd.serve.worker import Desk

BODY = {"query": QUESTION, "texts": PASSAGES, "raw_scores": True}
OWN = list(TEXTS.values())
INDEXED = {"query": QUESTION, "texts": OWN, "raw_scores": True}


def export() -> Path:
    return cached_export() / "out"


def with_states(folder: Path, texts: dict[str, str] | None = None) -> Path:
    """An index whose passages have states of the export's encoder."""
    made = index_of(folder, texts).folder
    update_states(made, TextEncoder.open(export(), threads=1))
    return made


def by_source(app: InProcess | str) -> dict[str, int]:
    """Passages by where their states came from, as /metrics says."""
    text = httpx.get(f"{app}/metrics").text if isinstance(app, str) else app.get("/metrics").text
    found = re.findall(r'tmkd_states_total\{source="(\w+)"\} ([\d.]+)', text)
    return {name: int(float(count)) for name, count in found}


def cache_bytes(app: InProcess) -> float:
    (found,) = re.findall(r"tmkd_state_cache_bytes ([\d.e+]+)", app.get("/metrics").text)
    return float(found)


def eventually(found: Callable[[], Any], seconds: float = 15) -> Any:
    """The first value that is true."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return value


@pytest.fixture
def app() -> Iterator[InProcess]:
    with in_process(model=export()) as found:
        yield found


def test_unknown_texts_are_computed_once_and_score_the_same_to_the_bit(app: InProcess) -> None:
    assert by_source(app) == {"store": 0, "cache": 0, "computed": 0}
    first = app.post("/rerank", BODY).json()
    assert by_source(app) == {"store": 0, "cache": 0, "computed": 3}
    held = cache_bytes(app)
    assert held > 0
    assert app.post("/rerank", BODY).json() == first
    assert by_source(app) == {"store": 0, "cache": 3, "computed": 3}
    assert cache_bytes(app) == held
    other = app.post("/rerank", {**BODY, "texts": [*PASSAGES, "a passage that is new"]}).json()
    assert by_source(app) == {"store": 0, "cache": 6, "computed": 4}
    scores = {one["index"]: one["score"] for one in other}  # four passages in one call: the last digits may differ
    assert [scores[one["index"]] for one in first] == pytest.approx([one["score"] for one in first], abs=1e-5)
    alone = Scorer(export(), threads=1).scores([QUESTION] * 3, PASSAGES)
    assert [one["score"] for one in first] == [alone[one["index"]] for one in first]


def test_the_cache_is_bounded_and_may_be_off() -> None:
    with in_process(model=export(), state_cache=0) as app:
        first = app.post("/rerank", BODY).json()
        assert app.post("/rerank", BODY).json() == first
        assert by_source(app) == {"store": 0, "cache": 0, "computed": 6}
        assert cache_bytes(app) == 0
    with in_process(model=export(), state_cache=1) as app:
        for number in range(6):
            texts = [f"passage {number} {row} of {'words ' * 40}" for row in range(100)]
            assert app.post("/rerank", {**BODY, "texts": texts}).is_success
        assert 900_000 < cache_bytes(app) <= 1 << 20
        assert app.get("/info").json()["state_cache_bytes"] == 1 << 20


def test_requests_at_once_share_batches_and_score_as_alone(app: InProcess) -> None:
    bodies = [{**BODY, "query": f"{QUESTION} {row}", "texts": [*PASSAGES, f"text {row}"]} for row in range(12)]
    alone = [app.post("/rerank", body).json() for body in bodies]
    found: dict[int, Any] = {}
    work = [
        threading.Thread(target=lambda row=row, body=body: found.update({row: app.post("/rerank", body).json()}))
        for row, body in enumerate(bodies)
    ]
    sent = _batches(app)
    for one in work:
        one.start()
    for one in work:
        one.join()
    assert [found[row] for row in range(12)] == alone
    assert _batches(app) - sent < 12


def _batches(app: InProcess) -> int:
    (count,) = re.findall(r'tmkd_batch_pairs_count\{model="student"\} ([\d.]+)', app.get("/metrics").text)
    return int(float(count))


def test_states_of_the_index_are_used_and_change_no_score(tmp_path: Path, app: InProcess) -> None:
    wanted = app.post("/rerank", INDEXED).json()
    with in_process(model=export(), index=with_states(tmp_path / "i")) as stored:
        assert stored.post("/rerank", INDEXED).json() == wanted
        assert by_source(stored) == {"store": 3, "cache": 0, "computed": 0}
        assert stored.get("/info").json()["index"] == {"documents": 3, "passages": 3, "states": 3}


def test_ask_retrieves_both_ways_and_answers_as_the_answerer(tmp_path: Path) -> None:
    index = with_states(tmp_path / "i")
    with in_process(model=export(), index=index) as app:
        found = app.post("/ask", {"question": "zzz disk", "top": 3}).json()
        assert [one["dense_rank"] for one in found["answers"]] != [None] * 3
        assert sorted(one["dense_rank"] for one in found["answers"]) == [1, 2, 3]
        by_words = {one["source"]: one["bm25_rank"] for one in found["answers"]}
        assert by_words == {"mount.md": 1, "copy.md": None, "sort.md": None}  # one has a word of the question
        assert found["candidates"] == 3
        counts = by_source(app)
        assert counts["store"] >= 3  # the passages; the sentences of long ones are computed
        wanted = QuestionAnswerer.open(export(), index, threads=1).ask("zzz disk", top=3)
        for one, same in zip(found["answers"], wanted.answers, strict=True):
            assert (one["passage_id"], one["score"]) == (same.passage_id, same.score)
            assert (tuple(one["marked"]), one["dense_rank"]) == (same.marked, same.dense_rank)


def test_a_question_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = with_states(tmp_path / "i")
    texts: list[int] = []  # tokens of each text that an encoder reads in this process

    def counted(self: TextEncoder, encoded: Encoded, row: int) -> Any:
        texts.append(len(encoded.ids[row]))
        return run(self, encoded, row)

    run = TextEncoder._run
    monkeypatch.setattr(TextEncoder, "_run", counted)
    answerer = QuestionAnswerer.open(export(), index, threads=1)
    texts.clear()
    wanted = answerer.ask("how do I mount a disk", top=3)
    assert texts == [8]  # for retrieval, ranking and marking together; 6 words and 2 special tokens

    sent: list[Group] = []
    with in_process(model=export(), index=index, backend="onnx-fp32") as app:
        process = app.server.scorers["student"]
        score = process.score

        async def seen(groups: list[Group]) -> Scored:
            sent.extend(groups)
            scored: Scored = await score(groups)
            return scored

        monkeypatch.setattr(process, "score", seen)
        texts.clear()
        found = app.post("/ask", {"question": "how do I mount a disk", "top": 3}).json()
        assert texts == [8]  # and the scoring process, which is sent what was read here, reads it no more:
        assert [one["score"] for one in found["answers"]] == [one.score for one in wanted.answers]
        app.post("/rerank", BODY)
    asked, reranked = sent
    assert asked.read is not None
    assert reranked.read is None  # nobody has read it before
    answers = []
    for group, reads in ((asked, 0), (asked._replace(read=None), 1)):
        scorer, out = Scorer(export(), threads=1), io.BytesIO()
        scorer.attach(StateStore.open(index, None))
        desk = Desk(scorer, out)
        texts.clear()
        desk.answer(pickle.loads(pickle.dumps(Job(1, [group]))))
        assert texts == [8] * reads
        out.seek(0)
        answers.append(read(out).scores)
    assert answers[0] == answers[1]


def test_the_kind_of_student_is_named(app: InProcess) -> None:
    for path in ("/health", "/ready", "/info"):
        assert app.get(path).json()["student_kind"] == "cached", path
    with in_process() as layers:
        for path in ("/health", "/ready", "/info"):
            assert layers.get(path).json()["student_kind"] == "layers", path
        assert layers.get("/info").json()["state_cache_bytes"] is None
        layers.post("/rerank", BODY)
        assert by_source(layers) == {}


def test_a_long_text_is_cut_apart_from_the_query(app: InProcess) -> None:
    body = {"query": QUESTION, "documents": ["a disk", "disk " * 40, "disk " * 100]}  # 48 tokens of each are read
    found = app.post("/v2/rerank", body).json()
    assert {one["index"]: one.get("truncated") for one in found["results"]} == {0: None, 1: None, 2: True}
    (warning,) = found["meta"]["warnings"]
    assert warning == (
        "1 of 3 documents, or the query beside them, have more than the 48 tokens that the student reads of each text; "
        "the rest of them was not read"
    )
    asked = app.post("/v2/rerank", {**body, "query": "disk " * 50, "documents": ["a disk"]}).json()
    assert asked["results"][0]["truncated"] is True
    refused = app.post("/rerank", {**BODY, "texts": ["a disk", "disk " * 100], "truncate": False})
    assert (refused.status_code, refused.json()["field"]) == (413, "texts[1]")
    assert "the query or the text of pair 1 has 102 tokens, 48 are read of each" in refused.json()["error"]


def test_states_that_come_and_change_while_it_runs_are_used(tmp_path: Path) -> None:
    index = index_of(tmp_path / "i").folder
    with command("--model", str(export()), "--index", str(index)) as live:
        said = [line for line in "".join(live.log).splitlines() if "has no states" in line]
        assert len(said) == 1
        assert f"tmkd index --out {index} --model {export()}" in " ".join("".join(live.log).split())
        first = httpx.post(f"{live.url}/rerank", json=INDEXED).json()
        assert by_source(live.url)["computed"] == 3
        assert _dense_ranks(live, "disk") == [None]
        reader = TextEncoder.open(export(), threads=1)
        update_states(index, reader)
        assert eventually(lambda: _stored(live, INDEXED) == 3)
        assert httpx.post(f"{live.url}/rerank", json=INDEXED).json() == first
        assert eventually(lambda: None not in _dense_ranks(live, "disk"))
        text = "A zebra has stripes, and lives in the grass."
        update_index(index, lambda: [document(key, one) for key, one in {**TEXTS, "zebra.md": text}.items()])
        update_states(index, reader)
        assert eventually(lambda: _stored(live, {**INDEXED, "texts": [text]}) == 1)


def _stored(live: Command, body: dict[str, Any]) -> int:
    """How many passages of a request came from the store."""
    before = by_source(live.url)["store"]
    assert httpx.post(f"{live.url}/rerank", json=body).is_success
    return by_source(live.url)["store"] - before


def _dense_ranks(live: Command, question: str) -> list[int | None]:
    found = httpx.post(f"{live.url}/ask", json={"question": question}).json()
    return [one["dense_rank"] for one in found["answers"]]


def test_an_update_by_another_model_leaves_the_old_states_in_use(tmp_path: Path) -> None:
    index = with_states(tmp_path / "i")
    with command("--model", str(export()), "--index", str(index)) as live:
        first = httpx.post(f"{live.url}/rerank", json=INDEXED).json()
        update_states(index, MiniLM())
        until = time.monotonic() + 5
        while time.monotonic() < until:
            assert _stored(live, INDEXED) == 3
            time.sleep(0.2)
        log = " ".join("".join(live.log).split())
        assert log.count("so it uses those that it read before") == 1
        assert "of another model or tokenizer" in log
        os.kill(live.scorer(), signal.SIGKILL)  # the next scorer has no states that it read before
        time.sleep(0.2)
        live.wait_ready()
        assert httpx.post(f"{live.url}/rerank", json=INDEXED).json() == first
        assert "goes on without the states in the index" in " ".join("".join(live.log).split())
        counts = by_source(live.url)
        assert counts["computed"] == 3


@pytest.mark.parametrize("spoil", ["another model", "cut short"])
def test_states_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path, spoil: str) -> None:
    index = with_states(tmp_path / "i")
    if spoil == "another model":
        update_states(index, MiniLM())
        said = "holds the states of another model or tokenizer"
    else:
        (values,) = (index / "states").glob("values*")
        os.truncate(values, 100)
        said = "is cut short"
    with pytest.raises(TmkdError, match=said), in_process(model=export(), index=index):
        pass
    done = subprocess.run(
        [*PROGRAM, "--model", str(export()), "--index", str(index), "--port", "0"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip
    output = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert said in output
    assert f"tmkd index --out {index} --model {export()}" in output
    assert "Traceback" not in output
