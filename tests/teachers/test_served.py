"""Teachers behind HTTP: a real `tmkd serve` on loopback, and a stub of a chat server and of one that misbehaves."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import pair_rows
from serve_fixtures import Command, model
from served_fixtures import Answer, ranks, stub

from tmkd.config.teacher_sections import Endpoint
from tmkd.core.errors import EndpointError
from tmkd.core.logits import log_odds
from tmkd.data.pairs import Pairs
from tmkd.inference.scorer import Scorer
from tmkd.teachers import served
from tmkd.teachers.served import ServedTeacher

ROWS = pair_rows()
PAIRS = Pairs.build([str(row["question"]) for row in ROWS], [str(row["passage"]) for row in ROWS])


def teacher(url: str, **keys: Any) -> ServedTeacher:
    return ServedTeacher(Endpoint(url=url, **keys), "big")


@pytest.mark.parametrize("form", ["tei", "cohere"])
def test_a_real_server_gives_what_its_export_gives(form: str) -> None:
    server = Command()
    try:
        server.wait_ready()
        found = log_odds(teacher(server.url, form=form, request_size=3).logits(PAIRS))
    finally:
        server.process.terminate()
        server.process.wait(20)
    expected = Scorer(model(), threads=1).scores(PAIRS.questions, PAIRS.passages)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_server_that_is_killed_loses_only_what_was_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_GATHERED", 0.0)  # this small server answers everything in half a second
    server = Command()
    server.wait_ready()
    asked = teacher(server.url, request_size=1, concurrency=2, retries=1, timeout=5)
    kept: dict[int, float] = {}

    def label() -> None:
        for rows, raw in asked.scored(PAIRS):
            kept.update(zip(rows.tolist(), raw[:, 0].tolist(), strict=True))
            if len(kept) >= 10 and server.process.poll() is None:
                os.kill(server.process.pid, 9)
                server.process.wait(20)

    with pytest.raises(EndpointError, match=r"teacher big: .*after 2 tries\. What it answered before is kept"):
        label()
    assert 10 <= len(kept) < len(PAIRS)
    expected = Scorer(model(), threads=1).scores(PAIRS.questions, PAIRS.passages)
    np.testing.assert_allclose(list(kept.values()), expected[list(kept)], atol=2e-3)


def test_requests_run_side_by_side_within_their_bound_and_hold_one_question() -> None:
    def slow(body: dict[str, Any], number: int) -> Answer:
        threading.Event().wait(0.02)
        return ranks(body)

    with stub(slow) as server:
        found = log_odds(teacher(server.url, request_size=2, concurrency=3).logits(PAIRS))
    assert found.tolist() == [len(text) for text in PAIRS.passages]
    assert 1 < server.most <= 3
    assert all(len(body["texts"]) <= 2 and body["raw_scores"] for body in server.asked)
    assert len(server.asked) == 2 * len(set(PAIRS.questions))


def test_it_tries_again_after_429_and_5xx_and_then_gives_up() -> None:
    with stub(lambda body, number: (429, {}) if number == 1 else (503, {}) if number == 2 else ranks(body)) as server:
        one = teacher(server.url, concurrency=1)
        assert log_odds(one.logits(PAIRS.take([0, 1]))).tolist() == [len(text) for text in PAIRS.passages[:2]]
    assert one.budget.sent == 3
    with stub(lambda *_: (429, {"error": "slow down"})) as server, pytest.raises(EndpointError) as caught:
        teacher(server.url, retries=1).logits(PAIRS.take([0]))
    assert caught.value.status == 429
    assert "answers 429" in str(caught.value)
    assert "after 2 tries" in str(caught.value)


def test_the_budget_is_kept_and_what_was_answered_is_given() -> None:
    with stub(ranks) as server:
        found: list[int] = []
        one = teacher(server.url, request_size=1, max_requests=7)

        def label() -> None:
            for rows, _ in one.scored(PAIRS):
                found.extend(rows.tolist())

        with pytest.raises(EndpointError, match="max_requests: 7 requests are spent"):
            label()
        assert len(server.asked) == len(found) == 7


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {"error": "no"}), r"answers 401.*name the variable of its key: endpoint\.api_key_env"),
        ((422, {"error": "too long"}), "answers 422.*too long"),
        ((200, b"<html>"), "its answer is no JSON; it begins '<html>'"),
        ((200, [{"index": 0, "score": 1}]), "2 passages were sent, and 1 scores came"),
        ((200, [{"index": 0, "score": 1}, {"index": 0, "score": 2}]), "2 passages were sent, and 2 scores came"),
        ((200, b'[{"index": 0, "score": NaN}, {"index": 1, "score": 2}]'), "nan is not a finite number"),
        ((200, [{"index": 0, "score": "high"}, {"index": 1, "score": 2}]), "'high' is not a finite number"),
        ((200, {"error": "model is loading"}), "its answer cannot be used"),
    ],
)
def test_answers_that_cannot_be_used(answer: Answer, message: str) -> None:
    with stub(lambda *_: answer) as server, pytest.raises(EndpointError, match=message) as caught:
        teacher(server.url).logits(PAIRS.take([0, 1]))
    assert caught.value.url == server.url
    assert len(server.asked) == 1  # none of them is tried again


def test_a_server_that_does_not_answer_in_time_or_is_not_there() -> None:
    def asleep(*_: Any) -> Answer:
        threading.Event().wait(0.5)
        return 200, []

    with stub(asleep) as server, pytest.raises(EndpointError, match=r"ReadTimeout.*after 1 tries"):
        teacher(server.url, timeout=0.1, retries=0).logits(PAIRS.take([0]))
    with pytest.raises(EndpointError, match="ConnectError"):
        teacher(server.url, retries=0).logits(PAIRS.take([0]))


def prompt(folder: Path, text: str = "Does it answer? {question} | {passage}") -> str:
    (folder / "prompt.txt").write_text(text)
    return str(folder / "prompt.txt")


def said(text: str | None, **logprobs: float) -> Answer:
    likely = sorted(logprobs, key=lambda name: -logprobs[name])
    top = [{"token": name, "logprob": logprobs[name]} for name in likely]
    first = [{**top[0], "top_logprobs": top}] if top else []
    return 200, {"choices": [{"message": {"content": text}, "logprobs": {"content": first}}]}


def test_a_chat_model_judges_with_a_label_its_probability_or_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat: dict[str, Any] = {"form": "chat", "model": "judge-1", "prompt": prompt(tmp_path)}
    labels = {**chat, "answers": {"yes": 0.9, "no": 0.1}, "api_key_env": "JUDGE_KEY"}
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with stub(lambda body, _: said(" Yes." if "cp" in body["messages"][0]["content"] else "No")) as server:
        found = log_odds(teacher(server.url, **labels).logits(PAIRS))
    expected = [np.log(9) * (1 if "cp" in text else -1) for text in PAIRS.passages]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    first = server.asked[0]
    assert first["model"] == "judge-1"
    assert first["messages"][0]["content"] in [
        f"Does it answer? {q} | {p}" for q, p in zip(PAIRS.questions, PAIRS.passages, strict=True)
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    probable = {" Yes": float(np.log(0.6)), "no": float(np.log(0.2)), "well": float(np.log(0.2))}
    with stub(lambda *_: said("Yes", **probable)) as server:
        found = log_odds(teacher(server.url, **{**labels, "answers": {"yes": 1, "no": 0}}).logits(PAIRS.take([0])))
    np.testing.assert_allclose(found, np.log(3), atol=1e-4)
    with stub(lambda *_: said("8")) as server:
        found = log_odds(teacher(server.url, **chat, scale=(0, 10)).logits(PAIRS.take([0])))
    np.testing.assert_allclose(found, np.log(4), atol=1e-4)


GRADED = {"irrelevant": 0, "partly relevant": 0.5, "fully relevant": 1}
OPPOSITE = {"relevant": 1, "not relevant": 0}


@pytest.mark.parametrize(
    ("answers", "text", "probabilities", "expected"),
    [
        (OPPOSITE, "not relevant", {"not": 0.9, "relevant": 0.1}, 0.1),
        (OPPOSITE, "Relevant.", {" Relevant": 0.75, "not": 0.25}, 0.75),
        (GRADED, "partly relevant", {"partly": 0.6, "fully": 0.2, "ir": 0.2}, 0.5),
        (GRADED, "irrelevant", {"ir": 0.5, "partly": 0.5}, 0.25),
        (OPPOSITE, "not relevant", {"<think>": 0.9, "relevant": 0.1}, 0.0),  # of what it thought first
        (OPPOSITE, "Not relevant, since it", {}, 0.0),
        (OPPOSITE, "Relevant - it names", {}, 1.0),
        (OPPOSITE, "**Relevant**", {"**": 0.9, "not": 0.1}, 1.0),
        ({"0": 0, "0.5": 0.5, "1": 1}, "0.5 (partly)", {}, 0.5),
        ({"relevant": 1, "irrelevant": 0}, "Relevant", {"Relevant": 0.6, "I": 0.4}, 1.0),
        ({"relevant": 1, "relevant in part": 0.5}, "relevant in part", {"relevant": 0.9}, 0.5),
    ],
)
def test_an_answer_of_several_tokens_is_known_by_its_first(
    tmp_path: Path, answers: dict[str, float], text: str, probabilities: dict[str, float], expected: float
) -> None:
    keys: dict[str, Any] = {"form": "chat", "model": "m", "prompt": prompt(tmp_path), "answers": answers}
    with stub(lambda *_: said(text, **{name: float(np.log(p)) for name, p in probabilities.items()})) as server:
        raw = np.concatenate([found for _, found in teacher(server.url, **keys).scored(PAIRS.take([0]))])
    assert raw[0, 0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I'm sorry, but I cannot help.", "is none of the answers irrelevant"),
        ("<think> The passage", "is none of the answers"),
        (None, "the content is None"),
        ("relevant", "is none of the answers"),
    ],
)
def test_a_refusal_is_no_judgement(tmp_path: Path, text: str | None, message: str) -> None:
    keys: dict[str, Any] = {"form": "chat", "model": "m", "prompt": prompt(tmp_path), "answers": GRADED}
    with stub(lambda *_: said(text, I=-0.1, ir=-12.0)) as server, pytest.raises(EndpointError, match=message) as caught:
        teacher(server.url, **keys).logits(PAIRS.take([0]))
    assert PAIRS.pair_ids[0] in str(caught.value)


def test_a_partial_judge_leaves_out_what_it_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    section = {"form": "chat", "model": "m", "prompt": prompt(tmp_path), "answers": OPPOSITE}

    def judged(body: Any, _: int) -> Answer:
        return said("I cannot say." if PAIRS.passages[1] in body["messages"][0]["content"] else "relevant")

    with stub(judged) as server:
        judge = ServedTeacher(Endpoint(url=server.url, **section), "judge", partial=True)
        raw = judge.raw(PAIRS)
        refused = [row for row, passage in enumerate(PAIRS.passages) if passage == PAIRS.passages[1]]
        assert np.flatnonzero(np.isnan(raw[:, 0])).tolist() == refused
        assert f"{len(refused)} of {len(PAIRS)} pairs are left out, since its answer cannot be used" in caplog.text
        asked = len(server.asked)
        judge.raw(PAIRS.take(refused))
        assert len(server.asked) == asked, "it is not asked again"
    many = Pairs.build([f"{n}?" for n in range(40)], ["x"] * 40)
    with stub(lambda *_: said("I cannot say.")) as server:
        judge = ServedTeacher(Endpoint(url=server.url, **section), "judge", partial=True)
        with pytest.raises(EndpointError, match="11 of its answers cannot be used, which is more than 10 before the"):
            judge.raw(many)
    assert len(server.asked) < 20, "a judge that never answers is not paid for all pairs"


def test_scores_that_are_no_probabilities_are_not_clipped() -> None:
    rounded = {"results": [{"index": 0, "relevance_score": 1 + 1e-7}]}
    with stub(lambda *_: (200, rounded)) as server:
        assert teacher(server.url, form="cohere").logits(PAIRS.take([0])).shape == (1, 2)
    rows = {"results": [{"index": 0, "relevance_score": 7.5}, {"index": 1, "relevance_score": -2.25}]}
    with stub(lambda *_: (200, rows)) as server:
        with pytest.raises(EndpointError, match=r"7\.5 is no probability.*endpoint\.holds: logit"):
            teacher(server.url, form="cohere").logits(PAIRS.take([0, 1]))
        logits = teacher(server.url, form="cohere", holds="logit").logits(PAIRS.take([0, 1]))
        assert log_odds(logits).tolist() == [7.5, -2.25]
        with pytest.raises(EndpointError, match="try form: cohere"):
            teacher(server.url).logits(PAIRS.take([0, 1]))


@pytest.mark.parametrize("key", ["abc\ndef", "schl\u00fcssel"])
def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(EndpointError, match="JUDGE_KEY holds a character that no key has") as caught:
        teacher("http://127.0.0.1:9", api_key_env="JUDGE_KEY").logits(PAIRS)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [("It depends.", "'It depends.' is not a number"), ("11", "11 is not in the scale from 0 to 10"),
     ("nan", "is not a number"), ("1_0", "is not a number")],
)  # fmt: skip
def test_a_judge_that_gives_text_in_place_of_a_number(tmp_path: Path, answer: str, message: str) -> None:
    keys: dict[str, Any] = {"form": "chat", "model": "m", "prompt": prompt(tmp_path), "scale": (0, 10)}
    with stub(lambda *_: said(answer)) as server, pytest.raises(EndpointError, match=message):
        teacher(server.url, **keys).logits(PAIRS.take([0]))


def test_what_is_wrong_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    chat: dict[str, Any] = {"form": "chat", "model": "m", "answers": {"yes": 1, "no": 0}}
    with pytest.raises(EndpointError, match="the environment has no JUDGE_KEY"):
        teacher("http://127.0.0.1:9", api_key_env="JUDGE_KEY").logits(PAIRS)
    with pytest.raises(EndpointError, match=r"the prompt .* has no \{passage\}"):
        teacher("http://127.0.0.1:9", **chat, prompt=prompt(tmp_path, "Hm {question}"))
    with pytest.raises(EndpointError, match="the prompt nowhere cannot be read"):
        teacher("http://127.0.0.1:9", **chat, prompt="nowhere")
    for keys, message in (
        ({"form": "chat"}, "form chat needs"),
        ({"answers": {"yes": 1}}, "answers is for form chat"),
        ({**chat, "prompt": "p", "answers": {"yes": 2}}, "probabilities from 0 to 1"),
        ({**chat, "prompt": "p", "answers": None, "scale": (3, 3)}, r"scale is \[low, high\]"),
        ({**chat, "prompt": "p", "answers": None, "scale": (0, float("inf"))}, "two finite numbers"),
        ({**chat, "prompt": "p", "answers": {}}, "answers are texts that differ"),
        ({**chat, "prompt": "p", "answers": {True: 1, False: 0}}, "quote"),
        ({**chat, "prompt": "p", "answers": {"Yes": 1, "yes.": 0}}, "differ by more than capitals"),
        ({**chat, "prompt": "p", "holds": "logit"}, "holds is for the forms tei and cohere"),
        ({"url": "http://127.0.0.1:99999"}, "is no address: Port out of range"),
        ({"url": "http://[::1"}, "is no address: Invalid IPv6"),
    ):
        with pytest.raises(ValueError, match=message):
            Endpoint(**{"url": "http://127.0.0.1:9", **keys})


def test_the_fingerprint_depends_on_what_is_asked_and_not_on_how_fast(tmp_path: Path) -> None:
    before = teacher("http://127.0.0.1:9").fingerprint
    assert teacher("http://127.0.0.1:9", concurrency=1, request_size=5, max_requests=3).fingerprint == before
    assert teacher("http://127.0.0.1:9/rerank").fingerprint == before
    assert teacher("http://127.0.0.1:9?version=2").url == "http://127.0.0.1:9/rerank?version=2"
    assert teacher("http://127.0.0.1:8").fingerprint != before
    chat: dict[str, Any] = {"form": "chat", "model": "m", "answers": {"yes": 1, "no": 0}}
    one = teacher("http://127.0.0.1:9", **chat, prompt=prompt(tmp_path)).fingerprint
    assert teacher("http://127.0.0.1:9", **chat, prompt=prompt(tmp_path, "{question}{passage}")).fingerprint != one
