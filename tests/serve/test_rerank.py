"""The rerank routes: both APIs' forms, with those APIs' own clients, and what is refused."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cohere
import numpy as np
import pytest
from pydantic import BaseModel
from serve_fixtures import PASSAGES, QUESTION, Command, InProcess, command, in_process, model
from tei_client.clients.http_client import HttpClient

from tmkd.core.errors import TmkdError
from tmkd.inference.scorer import Scorer
from tmkd.serve.body import parse
from tmkd.serve.refusals import Refusal
from tmkd.serve.schemas import RerankRequest, V1Request, V2Request
from tmkd.serve.settings import Settings, settings_of
from tmkd.serve.worker import open_model

TEI = {"query": QUESTION, "texts": PASSAGES}
COHERE = {"model": "any", "query": QUESTION, "documents": PASSAGES}


@pytest.fixture(scope="module")
def app() -> Iterator[InProcess]:
    with in_process(max_body=20, max_texts=50, max_chars=5000) as found:
        yield found


@pytest.fixture(scope="module")
def live() -> Iterator[Command]:
    with command(environment={"TMKD_API_KEY": "a secret", "TMKD_MODEL_NAME": "mine"}) as found:
        yield found


@pytest.fixture(scope="module")
def wanted() -> np.ndarray:
    return Scorer(model(), threads=1).scores([QUESTION] * len(PASSAGES), PASSAGES)


def test_teis_form_gives_ranks_best_first(app: InProcess, wanted: np.ndarray) -> None:
    found = app.post("/rerank", TEI)
    assert found.status_code == 200
    ranks = found.json()
    assert [one["index"] for one in ranks] == np.argsort(-wanted).tolist()
    assert all(set(one) == {"index", "score"} for one in ranks)
    np.testing.assert_allclose(
        [one["score"] for one in ranks], sorted(1 / (1 + np.exp(-wanted)), reverse=True), atol=1e-6
    )


def test_teis_options_do_what_they_say(app: InProcess, wanted: np.ndarray) -> None:
    ranks = app.post("/rerank", {**TEI, "raw_scores": True, "return_text": True, "truncate": True}).json()
    for one in ranks:
        assert one["text"] == PASSAGES[one["index"]]
        assert one["score"] == pytest.approx(wanted[one["index"]], abs=1e-5)
    long = {**TEI, "texts": ["a disk", "disk " * 100]}
    assert app.post("/rerank", long).status_code == 200  # cut, as the server is set
    refused = app.post("/rerank", {**long, "truncate": False})
    assert (refused.status_code, refused.json()["field"]) == (413, "texts[1]")
    assert refused.json()["error_type"] == "Validation"


def test_a_server_may_be_set_not_to_cut() -> None:
    with in_process(auto_truncate=False) as app:
        long = {**TEI, "texts": ["disk " * 100]}
        assert app.post("/rerank", long).status_code == 413
        assert app.post("/rerank", {**long, "truncate": True}).status_code == 200
        assert app.get("/info").json()["auto_truncate"] is False


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_coheres_form_gives_results_best_first(app: InProcess, wanted: np.ndarray, version: str) -> None:
    found = app.post(f"/{version}/rerank", {**COHERE, "top_n": 2, "return_documents": True}).json()
    assert set(found) == {"id", "results", "meta"}
    assert [one["index"] for one in found["results"]] == np.argsort(-wanted).tolist()[:2]
    for one in found["results"]:
        assert one["relevance_score"] == pytest.approx(1 / (1 + np.exp(-wanted[one["index"]])), abs=1e-6)
        assert one["document"] == {"text": PASSAGES[one["index"]]}
    for without in (COHERE, {**COHERE, "return_documents": None}):  # an SDK sends null for what is not set
        assert "document" not in app.post(f"/{version}/rerank", without).json()["results"][0]


def test_coheres_first_form_takes_objects(app: InProcess, wanted: np.ndarray) -> None:
    documents = [{"text": text, "place": row} for row, text in enumerate(PASSAGES)]
    found = app.post("/v1/rerank", {**COHERE, "documents": documents, "return_documents": True}).json()["results"]
    assert [one["index"] for one in found] == np.argsort(-wanted).tolist()
    assert found[0]["document"] == documents[found[0]["index"]]
    odd = json.dumps({**COHERE, "documents": [{"text": "x", "y": float("nan")}], "return_documents": True})
    answer = app.request("POST", "/v1/rerank", content=odd, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert "NaN" not in answer.text  # it is no JSON
    assert answer.json()["results"][0]["document"] == {"text": "x", "y": None}
    fields = app.post("/v1/rerank", {**COHERE, "documents": documents, "rank_fields": ["text", "place"]})
    assert fields.status_code == 200
    absent = app.post("/v1/rerank", {**COHERE, "documents": [*documents, {"title": "x"}]})
    assert (absent.status_code, absent.json()["field"]) == (422, "documents[3].text")


OBJECTS = [PASSAGES[0], *({"text": text, "place": row} for row, text in enumerate(PASSAGES[1:], 1))]
LITELLM = {
    "model": "x",
    "query": QUESTION,
    "documents": OBJECTS,
    "return_documents": True,
}  # as version 1.83.0 sends it


def test_documents_may_be_objects_on_every_route(app: InProcess, wanted: np.ndarray) -> None:
    order = np.argsort(-wanted).tolist()
    for path in ("/v1/rerank", "/v2/rerank"):  # litellm's `cohere/` and `jina_ai/`
        found = app.post(path, LITELLM).json()["results"]
        assert [one["index"] for one in found] == order
        for one in found:
            entry = OBJECTS[one["index"]]
            assert one["document"] == ({"text": entry} if isinstance(entry, str) else entry)
    titles = [{"title": text} for text in PASSAGES]
    fields = app.post("/v2/rerank", {**LITELLM, "documents": titles, "rank_fields": ["title"]}).json()["results"]
    assert [one["index"] for one in fields] == order
    assert fields[0]["document"] == {"title": PASSAGES[order[0]], "text": PASSAGES[order[0]]}  # clients require `text`
    body = {"query": QUESTION, "texts": OBJECTS, "raw_scores": False, "truncate": False, "return_text": True}
    ranks = app.post("/rerank", {**body, "truncation_direction": "Right"}).json()  # litellm's `huggingface/`
    assert [(one["index"], one["text"]) for one in ranks] == [(row, PASSAGES[row]) for row in order]


def test_documents_in_place_of_texts_are_answered_as_infinity_does(app: InProcess, wanted: np.ndarray) -> None:
    order = np.argsort(-wanted).tolist()
    found = app.post("/rerank", LITELLM, headers={"Authorization": "Bearer None"}).json()  # litellm's `infinity/`
    assert [(one["index"], one["document"]) for one in found["results"]] == [(row, PASSAGES[row]) for row in order]
    assert (found["object"], found["model"]) == ("rerank", "out")
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 20
    own = {"query": QUESTION, "documents": PASSAGES, "return_documents": False, "raw_scores": True, "top_n": 2}
    (best, second) = app.post("/rerank", {**own, "model": "default/not-specified"}).json()["results"]  # infinity's own
    assert (best["index"], second["index"]) == (order[0], order[1])
    assert best["relevance_score"] == pytest.approx(wanted.max(), abs=1e-5)
    assert "document" not in best


def test_vllms_client_of_litellm_gets_its_documents_as_objects(app: InProcess, wanted: np.ndarray) -> None:
    """It asks on infinity's path, with the same body; only the key that it sends where none is set tells them apart."""
    order = np.argsort(-wanted).tolist()
    found = app.post("/rerank", LITELLM, headers={"Authorization": "Bearer fake-api-key"}).json()["results"]
    assert [(one["index"], one["document"]) for one in found] == [(row, {"text": PASSAGES[row]}) for row in order]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("hosted_vllm/x", ""), ("hosted_vllm/x", "/v1"), ("infinity/x", ""), ("cohere/x", ""), ("jina_ai/x", ""),
        ("huggingface/x", ""),
    ],
)  # fmt: skip
def test_litellms_own_clients_work_unchanged(name: str, path: str, wanted: np.ndarray) -> None:
    litellm = pytest.importorskip("litellm", reason="litellm is not installed: pip install litellm")
    keys: dict[str, str] = {"api_key": "any"} if path or name[0] in "cj" else {}
    documents = PASSAGES if name.startswith("huggingface") else OBJECTS  # its own code takes texts only
    with command() as live:
        found = litellm.rerank(
            model=name, query=QUESTION, documents=documents, top_n=2, api_base=f"{live.url}{path}", **keys
        )
    order = np.argsort(-wanted).tolist()[:2]
    assert [one["index"] for one in found.results] == order
    assert [one["document"]["text"] for one in found.results] == [PASSAGES[row] for row in order]


def test_equal_texts_have_one_score_and_stay_in_the_callers_order(app: InProcess) -> None:
    """In two micro-batches their scores differ in the last digits, so that chance would rank them and fill `top_n`."""
    same, others = "mount the disk as root", [f"{'disk ' * (row % 30)}{row}" for row in range(30)]
    documents = [same, *others[:10], same, *others[10:], *[same] * 4]
    places = [row for row, text in enumerate(documents) if text == same]
    ranks = app.post("/rerank", {"query": QUESTION, "texts": documents, "raw_scores": True}).json()
    assert [one["index"] for one in ranks if one["index"] in places] == places
    assert len({one["score"] for one in ranks if one["index"] in places}) == 1
    alone = app.post("/v2/rerank", {**COHERE, "documents": [same] * 7, "top_n": 3}).json()["results"]
    assert [one["index"] for one in alone] == [0, 1, 2]


def test_a_text_that_was_cut_is_told_in_every_answer(app: InProcess) -> None:
    def counted() -> float:
        (line,) = re.findall(r'tmkd_pairs_truncated_total\{model="student"\} ([\d.]+)', app.get("/metrics").text)
        return float(line)

    documents = ["a disk", "disk " * 100, "mount"]
    app.post("/rerank", {"query": QUESTION, "texts": documents})
    before = counted()
    for path, field, score in (
        ("/rerank", "texts", None), ("/rerank", "documents", "results"),
        ("/v1/rerank", "documents", "results"), ("/v2/rerank", "documents", "results"),
    ):  # fmt: skip
        found = app.post(path, {"query": QUESTION, field: documents}).json()
        results = found if score is None else found[score]
        assert {one["index"]: one.get("truncated") for one in results} == {0: None, 1: True, 2: None}, path
        if path != "/rerank":
            (warning,) = found["meta"]["warnings"]
            assert warning.startswith("1 of 3 documents have, with the query, more than the 40 tokens")
    assert counted() == before + 4
    assert "warnings" not in app.post("/v2/rerank", COHERE).json()["meta"]
    long = app.post("/v2/rerank", {**COHERE, "query": "disk " * 50}).json()  # the query is cut
    assert all(one["truncated"] for one in long["results"])


def test_teis_own_client_works_unchanged(live: Command, wanted: np.ndarray) -> None:
    client = HttpClient(live.url, headers={"Authorization": "Bearer a secret"})
    assert client.health()
    info = client.info()
    assert info.server_model_id == "mine"
    assert info.max_input_length == 40
    found = client.rerank(QUESTION, PASSAGES, return_text=True, raw_scores=True).ranks
    assert [one.index for one in found] == np.argsort(-wanted).tolist()
    assert found[0].text == PASSAGES[found[0].index]
    assert found[0].score == pytest.approx(wanted.max(), abs=1e-5)


def test_coheres_own_clients_work_unchanged(live: Command, wanted: np.ndarray) -> None:
    order = np.argsort(-wanted).tolist()
    first = cohere.Client("a secret", base_url=live.url)
    found = first.rerank(query=QUESTION, documents=PASSAGES, model="any", top_n=2, return_documents=True)
    assert [one.index for one in found.results] == order[:2]
    assert found.results[0].document is not None
    assert found.results[0].document.text == PASSAGES[order[0]]
    second = cohere.ClientV2("a secret", base_url=live.url).rerank(model="any", query=QUESTION, documents=PASSAGES)
    assert [one.index for one in second.results] == order
    assert second.results[0].relevance_score == pytest.approx(1 / (1 + np.exp(-wanted.max())), abs=1e-6)


def test_their_clients_raise_their_own_errors(live: Command) -> None:
    with pytest.raises(cohere.errors.UnauthorizedError, match="API key"):
        cohere.ClientV2("wrong", base_url=live.url).rerank(model="any", query=QUESTION, documents=PASSAGES)
    with pytest.raises(cohere.errors.UnprocessableEntityError, match="documents"):
        cohere.ClientV2("a secret", base_url=live.url).rerank(model="any", query=QUESTION, documents=[])


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/rerank", {"texts": ["a"]}, 422, "query"),
        ("/rerank", {"query": "a"}, 422, "texts"),
        ("/rerank", {**TEI, "texts": []}, 400, "texts"),
        ("/rerank", {**TEI, "texts": ["a", 1]}, 422, "texts[1]"),
        ("/rerank", {**TEI, "texts": "a"}, 422, "texts"),
        ("/rerank", {**TEI, "query": None}, 422, "query"),
        ("/rerank", {**TEI, "raw_scores": "yes"}, 422, "raw_scores"),
        ("/rerank", {**TEI, "truncation_direction": "Left"}, 422, "truncation_direction"),
        ("/rerank", {**TEI, "texts": ["a"] * 51}, 413, "texts"),
        ("/rerank", {**TEI, "texts": ["a", "b" * 5001]}, 413, "texts[1]"),
        ("/rerank", {**TEI, "query": "b" * 5001}, 413, "query"),
        ("/rerank", {**TEI, "texts": ["b" * 4000] * 10}, 413, "body"),
        ("/v1/rerank", {**COHERE, "documents": [[]]}, 422, "documents[0]"),
        ("/rerank", {**TEI, "documents": PASSAGES}, 422, "documents"),
        ("/rerank", {"query": "a", "documents": []}, 422, "documents"),
        ("/rerank", {"query": "a", "documents": ["a", {"title": "b"}]}, 422, "documents[1].text"),
        ("/rerank", {"query": "a", "texts": ["a", {"text": None}]}, 422, "texts[1].text"),
        ("/v2/rerank", {**COHERE, "top_n": 0}, 422, "top_n"),
        ("/v2/rerank", {**COHERE, "top_n": 1.5}, 422, "top_n"),
        ("/v2/rerank", {**COHERE, "query": ""}, 422, "query"),
        ("/v2/rerank", {**COHERE, "documents": [{"title": "a"}]}, 422, "documents[0].text"),
        ("/v2/rerank", [], 422, None),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_with_the_fields_name(
    app: InProcess, path: str, body: object, status: int, field: str | None
) -> None:
    found = app.post(path, body)
    answer = found.json()
    assert (found.status_code, answer.get("field")) == (status, field), answer
    assert (answer["error_type"] in ("Validation", "Empty")) if path == "/rerank" else answer["message"]


HOSTILE = {
    "nothing": b"",
    "no JSON": b"query",
    "half of it": b'{"query": "a", "texts": ["b"',
    "invalid UTF-8": b'{"query": "\xff", "texts": ["a"]}',
    "UTF-16": json.dumps(TEI).encode("utf-16"),
    "half a surrogate pair": b'{"query": "\\ud83d", "texts": ["a"]}',
    "a raw control character": b'{"query": "\x01"}',
    "deep lists": b"[" * 10_000,
    "deep objects": b'{"a":' * 3000,
    "deep and unknown": b'{"x":' + b"[" * 500 + b"]" * 500 + b"}",
    "NaN": b'{"query": NaN, "texts": ["a"]}',
    "Infinity": b'{"query": "a", "texts": [Infinity], "documents": [Infinity]}',
    "a huge number": b'{"query": "a", "texts": [1e999999], "documents": [1e999999]}',
    "many digits": b'{"x": ' + b"9" * 9000 + b"}",
    "many texts": b'{"query": "a", "texts": [' + b'"",' * 5000 + b'""]}',
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_hostile_bodies_are_refused_clearly(app: InProcess, path: str, name: str) -> None:
    found = app.request("POST", path, content=HOSTILE[name], headers={"Content-Type": "application/json"})
    assert found.status_code in (400, 413, 422), (found.status_code, found.text)
    assert "json" in found.headers["content-type"]
    assert len(found.content) < 500


def test_strange_but_valid_texts_are_scored(app: InProcess) -> None:
    strange = ["", " ", "\x00\x01", "\U0001f600" * 50, "é" * 200, "a" * 4000, "\u202e\u200b", "]]>'\"<script>"]
    found = app.post("/rerank", {"query": "\n", "texts": strange, "unknown": {"a": 1}}).json()
    assert sorted(one["index"] for one in found) == list(range(len(strange)))
    assert all(0 <= one["score"] <= 1 for one in found)


@pytest.mark.parametrize("entry", [b"1", b"{}", b"null", b'""'])
@pytest.mark.parametrize("schema", [RerankRequest, V1Request, V2Request])
def test_a_million_entries_do_not_hold_up_the_others(schema: type[BaseModel], entry: bytes) -> None:
    many = b",".join([entry] * 1_000_000)
    start = time.process_time()
    with contextlib.suppress(Refusal):
        parse(schema, b'{"query": "a", "texts": [%b], "documents": [%b]}' % (many, b"" if entry == b"{}" else many))
    assert time.process_time() - start < 2.0  # of all errors: 7 s


def test_fields_that_are_named_often_are_read_once(app: InProcess) -> None:
    body = {**COHERE, "documents": [{"text": "a disk"}], "return_documents": True}
    assert app.post("/v1/rerank", {**body, "rank_fields": ["text"] * 32}).is_success
    found = app.post("/v1/rerank", {**body, "rank_fields": ["text"] * 33})
    assert (found.status_code, found.json()["field"]) == (422, "rank_fields")


def test_other_kinds_of_bodies_are_refused(app: InProcess) -> None:
    body = json.dumps(TEI).encode()
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert app.request("POST", "/rerank", content=body, headers=headers).status_code == 415
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert app.request("POST", "/rerank", content=body, headers=packed).status_code == 415
    assert app.request(
        "POST", "/rerank", content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"}
    ).is_success


def test_many_at_once_each_get_their_own_scores(app: InProcess) -> None:
    scorer = Scorer(model(), threads=1)
    found: dict[int, list[float]] = {}

    def one(number: int) -> None:
        texts = [f"{text} {number}" for text in PASSAGES]
        ranks = app.post("/rerank", {"query": f"{QUESTION} {number}", "texts": texts, "raw_scores": True}).json()
        found[number] = [rank["score"] for rank in sorted(ranks, key=lambda rank: rank["index"])]

    threads = [threading.Thread(target=one, args=[n]) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(20))
    for number, scores in found.items():
        texts = [f"{text} {number}" for text in PASSAGES]
        np.testing.assert_allclose(scores, scorer.scores([f"{QUESTION} {number}"] * 3, texts), atol=1e-5)
    metrics = app.get("/metrics").text
    assert "tmkd_batch_pairs_bucket" in metrics


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, sentence in (
        ({"max_texts": 0}, "--max-texts is 0 (TMKD_MAX_TEXTS as a variable); it must be greater than 0"),
        ({"max_body": 2048, "max_buffered": 1}, "--max-buffered (1 MiB) is less than --max-body (2048 KiB)"),
        ({"api_key": " "}, "the API key must be ASCII characters, and not blank"),
        ({"api_key": "schl\u00fcssel"}, "the API key must be ASCII characters, and not blank"),
        ({"api_key_file": "nowhere"}, "the API key's file nowhere cannot be read: No such file or directory"),
        ({"allowed_hosts": "*.example.com,a*b"}, "'a*b' is no pattern for hosts"),
        ({"port": 70_000}, "--port is 70000 (TMKD_PORT as a variable); it must be less than or equal to 65535"),
    ):
        with pytest.raises(ValueError, match="1 validation error for Settings"):
            Settings(model=model(), **wrong)
        with pytest.raises(TmkdError, match=re.escape(sentence)) as refused:
            settings_of({"model": model(), **wrong})
        assert "schl" not in str(refused.value)
    assert "hidden" not in repr(Settings(model=model(), api_key="hidden"))


def test_settings_come_from_options_then_variables_then_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("from a file\n")
    monkeypatch.setenv("TMKD_MODEL", "a/model")
    monkeypatch.setenv("TMKD_MAX_TEXTS", "7")
    monkeypatch.setenv("TMKD_MAX_CHARS", "")  # an empty variable counts as unset
    monkeypatch.setenv("TMKD_CORS_ORIGINS", "https://a.example, https://b.example,")
    monkeypatch.setenv("TMKD_API_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("TMKD_AUTO_TRUNCATE", "no")
    found = settings_of({"timeout": 3})
    assert (found.name, found.max_texts, found.max_chars, found.timeout) == ("model", 7, 65_536, 3)
    assert (found.cors_origins, found.auto_truncate) == (("https://a.example", "https://b.example"), False)
    assert found.api_key == "from a file"
    assert settings_of({"max_texts": 8, "api_key": "given"}).api_key == "given"
    assert settings_of({"max_texts": 8}).max_texts == 8


def test_a_student_of_three_classes_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmkd.serve.worker.Scorer", lambda *_, **__: SimpleNamespace(classes=3))
    with pytest.raises(TmkdError, match="3 classes"):
        open_model("student", model(), "auto", 1)


def test_the_description_holds_schemas_limits_and_examples(app: InProcess) -> None:
    found = app.get("/openapi.json").json()
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/health", "/ready", "/info", "/metrics"} <= set(found["paths"])
    request = found["components"]["schemas"]["RerankRequest"]
    assert request["properties"]["texts"]["maxItems"] == 50
    assert request["examples"][0]["texts"]
    content = json.dumps(found)
    named = [part.split('"')[0] for part in content.split('"#/components/schemas/')[1:]]
    assert "RerankRequest" in named
    for name in named:
        assert name in found["components"]["schemas"], name
    assert app.post("/rerank", request["examples"][0]).is_success
