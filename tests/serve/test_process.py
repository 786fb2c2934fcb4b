"""`tmkd serve` as a process: limits while a body streams, a killed scorer, a graceful end, keys and headers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Done
from qa_fixtures import index_of
from serve_fixtures import PASSAGES, QUESTION, Command, InProcess, command, in_process, model

from tmkd.core.errors import TmkdError
from tmkd.core.files import sha256_of
from tmkd.inference.scorer import Scorer
from tmkd.serve.ask import Asker
from tmkd.serve.run import address, bound
from tmkd.serve.settings import Settings, settings_of
from tmkd.serve.worker import folder_digest, open_named

TEI = {"query": QUESTION, "texts": PASSAGES}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def live() -> Iterator[Command]:
    with command("--max-body", "64", "--max-connections", "20", "--log-requests") as found:
        yield found


def raw(port: int, content: bytes, seconds: float = 10.0) -> bytes:
    """What a server answers to these bytes, until it closes or says no more."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
        link.sendall(content)
        found = b""
        try:
            while part := link.recv(65_536):
                found += part
        except (TimeoutError, ConnectionResetError):
            pass
        return found


def test_a_body_is_measured_while_it_streams(live: Command) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 1000

    for _ in range(3):
        found = httpx.post(f"{live.url}/rerank", content=endless(), headers=JSON)
        assert (found.status_code, found.json()["field"]) == (413, "body")
    declared = httpx.post(f"{live.url}/rerank", content=b" " * 200_000, headers=JSON)
    assert declared.status_code == 413
    chunked = httpx.post(f"{live.url}/rerank", content=iter([json.dumps(TEI).encode()]), headers=JSON)
    assert len(chunked.json()) == len(PASSAGES)


def test_a_body_that_is_refused_is_not_asked_for(live: Command) -> None:
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    assert raw(live.port, head + b"Content-Length: 999999999\r\n\r\n").startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET  nowhere\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_with_400_and_json(live: Command, content: bytes) -> None:
    found = raw(live.port, content)
    assert found.startswith(b"HTTP/1.1 400"), found[:100]
    assert b"application/json" in found


def test_too_many_connections_are_told_so(live: Command) -> None:
    idle = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(20)]
    try:
        time.sleep(0.3)
        found = raw(live.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 503")
        assert b"Retry-After" in found
    finally:
        for link in idle:
            link.close()
    time.sleep(0.2)
    assert httpx.get(f"{live.url}/health").is_success


def test_headers_and_bodies_that_never_end_are_given_up() -> None:
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    with command(environment={"TMKD_IDLE_TIMEOUT": "0.5", "TMKD_TIMEOUT": "1"}) as live:
        for content, answer in (
            (b"", b""),
            (b"GET / HTTP/1.1\r\nHost: loc", b""),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200"),
            (head, b"HTTP/1.1 408"),
        ):
            start = time.monotonic()
            assert raw(live.port, content).startswith(answer)
            assert time.monotonic() - start < 5


def _closed(link: socket.socket, seconds: float) -> bool:
    """Whether the server ends the connection in time, whatever is sent and never read."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            link.send(b"x")
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_a_body_that_trickles_in_after_its_answer_is_given_up() -> None:
    """The answer does not wait for the body; the connection must not wait for it either."""
    with (
        command(environment={"TMKD_IDLE_TIMEOUT": "0.5"}) as live,
        socket.create_connection(("127.0.0.1", live.port)) as link,
    ):
        link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert link.recv(12) == b"HTTP/1.1 200"
        assert _closed(link, 6)


def test_an_answer_that_is_not_read_is_given_up() -> None:
    body = json.dumps({"query": "q", "texts": ["a" * 60_000] * 60, "return_text": True}).encode()
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with command(environment={"TMKD_IDLE_TIMEOUT": "0.5"}) as live, socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", live.port))
        link.sendall(head % len(body) + body)
        assert _closed(link, 15)


def test_the_scorer_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizers.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with in_process() as app:
        assert app.post("/rerank", TEI).is_success
    assert not (tmp_path / "ran").exists()


def test_nothing_of_a_request_is_logged(live: Command) -> None:
    secret = "an unlikely word"
    httpx.post(f"{live.url}/rerank?{secret}", json={"query": secret, "texts": [secret]})
    httpx.get(f"{live.url}/{secret}")
    time.sleep(0.2)
    log = "".join(live.log)
    assert re.search(r"POST /rerank 200 [\d.]+ ms", log)
    assert "GET other 404" in log
    assert secret not in log


def test_a_killed_scorer_costs_what_was_in_flight_and_comes_back(tmp_path: Path) -> None:
    with command() as live:
        killed = live.scorer()
        os.kill(killed, signal.SIGSTOP)  # so that the request is certainly in flight
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{live.url}/rerank", json=TEI, timeout=30)))
        asking.start()
        live.wait_read(1)
        time.sleep(0.1)
        os.kill(killed, signal.SIGKILL)
        asking.join()
        assert answers[0].status_code == 503
        assert answers[0].headers["Retry-After"] == "1"
        assert answers[0].json()["error_type"] == "Unhealthy"
        assert httpx.get(f"{live.url}/health").is_success
        waited = httpx.post(f"{live.url}/rerank", json=TEI, timeout=30)  # waits for the next scorer
        assert waited.is_success
        live.wait_ready()
        assert live.scorer() != killed
        assert 'tmkd_scorer_restarts{model="student"} 1.0' in httpx.get(f"{live.url}/metrics").text


def test_nothing_of_the_model_or_the_index_is_read_after_the_start(tmp_path: Path) -> None:
    """A deployment renames the folder under a running server."""
    folder = Path(shutil.copytree(model(), tmp_path / "model"))
    (folder / "calibration.json").write_text('{"format": 1, "temperature": 2.0, "threshold": 0.0}')
    index_of(tmp_path / "index", {"long.md": "A disk is mounted. " * 40})
    link = tmp_path / "current"
    link.symlink_to(folder)
    with command("--model", str(link), "--index", str(tmp_path / "index")) as live:
        live.wait_ready()
        folder.rename(tmp_path / "old")
        (tmp_path / "index").rename(tmp_path / "old index")
        long = {"query": QUESTION, "texts": ["a disk", "disk " * 100], "truncate": False}
        found = httpx.post(f"{live.url}/rerank", json=long)
        assert (found.status_code, found.json()["field"]) == (413, "texts[1]")
        assert httpx.post(f"{live.url}/rerank", json=TEI).is_success
        answer = httpx.post(f"{live.url}/ask", json={"question": QUESTION})
        assert answer.status_code == 200
        (best,) = answer.json()["answers"]
        assert best["window"] is not None  # the tokenizer has cut it
        assert best["probability"] == pytest.approx(1 / (1 + np.exp(-best["score"] / 2.0)))
        assert httpx.get(f"{live.url}/info").json()["model_id"] == "model"
        for path in ("/", "/docs", "/page/app.js", "/openapi.json", "/metrics", "/ready"):
            assert httpx.get(f"{live.url}{path}").is_success, path


def test_a_scorer_is_not_started_again_with_another_model(tmp_path: Path) -> None:
    """The server would go on with the first one's calibration, windows and name."""
    folder = Path(shutil.copytree(model(), tmp_path / "model"))
    with command("--model", str(folder)) as live:
        first = httpx.get(f"{live.url}/info").json()["model_sha"]
        assert first
        folder.rename(tmp_path / "old")
        shutil.copytree(tmp_path / "old", folder)
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
        card = json.loads((folder / "tmkd.json").read_text())
        card["tokenizers"] = {"tokenizer.json": sha256_of(folder / "tokenizer.json")}  # as another export would say
        (folder / "tmkd.json").write_text(json.dumps(card))
        (folder / "calibration.json").write_text("{}")
        os.kill(live.scorer(), signal.SIGKILL)
        until = time.monotonic() + 30
        while "holds another model than the one" not in "".join(live.log):
            assert time.monotonic() < until, live.log
            time.sleep(0.1)
        assert httpx.get(f"{live.url}/ready").status_code == 503
        shutil.rmtree(folder)
        (tmp_path / "old").rename(folder)
        live.wait_ready()
        assert httpx.get(f"{live.url}/info").json()["model_sha"] == first


def test_a_model_that_is_replaced_while_it_is_opened_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores would be those of one model under the name of the other."""
    folder, index = Path(shutil.copytree(model(), tmp_path / "model")), index_of(tmp_path / "index").folder

    def replaced() -> None:
        shutil.copytree(folder, tmp_path / "new", dirs_exist_ok=True)
        (tmp_path / "new" / "config.json").write_text(f"{(folder / 'config.json').read_text()} ")
        folder.rename(tmp_path / f"old {time.monotonic_ns()}")
        (tmp_path / "new").rename(folder)

    def opening() -> Scorer:
        scorer = Scorer(folder, threads=1)
        replaced()
        return scorer

    with pytest.raises(TmkdError, match=r"model was replaced while it was opened; try again"):
        open_named(folder, opening)
    opened, digest = open_named(folder, lambda: Scorer(folder, threads=1))
    assert (opened.max_length, digest) == (Scorer(folder, threads=1).max_length, folder_digest(folder))
    with in_process(model=folder, index=index) as app:
        assert app.get("/info").json()["model_sha"] == digest

    def asker(*given: Any) -> Asker:
        replaced()  # after the scoring process has opened it
        return Asker(*given)

    monkeypatch.setattr("tmkd.serve.server.Asker", asker)
    with pytest.raises(TmkdError, match="model was replaced while the server started"):
        InProcess(model=folder, index=index)


def test_a_scorer_that_hangs_is_ended_and_started_again() -> None:
    with command("--stall", "1") as live:
        hung = live.scorer()
        os.kill(hung, signal.SIGSTOP)
        assert httpx.post(f"{live.url}/rerank", json=TEI, timeout=30).status_code == 503
        live.wait_ready()
        assert live.scorer() != hung
        assert httpx.post(f"{live.url}/rerank", json=TEI).is_success


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_is_graceful(number: int) -> None:
    with command() as live:
        scorer = live.scorer()
        os.kill(scorer, signal.SIGSTOP)
        answers: list[httpx.Response] = []
        asking = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{live.url}/rerank", json=TEI, timeout=30)))
            for _ in range(3)
        ]
        for one in asking:
            one.start()
        live.wait_read(3)
        live.process.send_signal(number)
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{live.url}/health")
        os.kill(scorer, signal.SIGCONT)
        for one in asking:
            one.join()
        assert [one.status_code for one in answers] == [200] * 3
        assert live.process.wait(20) == 0
        assert not Path(f"/proc/{scorer}").exists()


def test_the_scorer_ends_with_a_server_that_was_killed() -> None:
    with command() as live:
        scorer = live.scorer()
        live.process.kill()
        live.process.wait()
        until = time.monotonic() + 10
        while Path(f"/proc/{scorer}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{scorer}").exists()


def test_a_key_is_asked_for_everywhere_but_on_the_page() -> None:
    with in_process(api_key="right") as app:
        for path in ("/info", "/metrics", "/openapi.json", "/nowhere"):
            for given in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "right"},
                {"Authorization": b"Bearer \xff"},
            ):
                found = app.get(path, headers=given)
                assert found.status_code == 401, (path, given)
                assert found.headers["www-authenticate"] == "Bearer"
        assert app.post("/rerank", TEI).json()["field"] == "Authorization"
        assert app.post("/v2/rerank", {}).json()["message"]
        assert app.post("/rerank", TEI, headers={"Authorization": "Bearer right"}).is_success
        for path in ("/", "/docs", "/page/app.js", "/page/style.css", "/health", "/ready"):
            assert app.get(path).is_success, path
        assert (
            "key"
            in app.get("/openapi.json", headers={"Authorization": "bearer right"}).json()["components"][
                "securitySchemes"
            ]
        )


def test_pages_carry_security_headers_and_load_nothing_from_elsewhere() -> None:
    with in_process() as app:
        for path in ("/", "/docs"):
            found = app.get(path)
            policy = found.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert found.headers["x-frame-options"] == "DENY"
            assert found.headers["referrer-policy"] == "no-referrer"
            assert not re.search(r"""(src|href)=["'](https?:)?//""", found.text)
            assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", found.text)
        assert app.get("/info").headers["x-content-type-options"] == "nosniff"


def test_other_sites_are_shut_out_unless_named() -> None:
    site = {"Origin": "https://a.example"}
    asks = {**site, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with in_process(api_key="k") as app:
        assert "access-control-allow-origin" not in app.request("OPTIONS", "/rerank", headers=asks).headers
        assert app.get("/info", headers={"Host": "rebound.example"}).status_code == 421
        for name in ("localhost:80", "127.0.0.1", "[::1]:8080", "LOCALHOST"):
            assert app.get("/health", headers={"Host": name}).is_success, name
    with in_process(api_key="k", cors_origins=("https://a.example",), host="0.0.0.0") as app:
        allowed = app.request("OPTIONS", "/rerank", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = app.request("OPTIONS", "/rerank", headers={**asks, "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        assert app.get("/health", headers={"Host": "any.example"}).is_success
    with in_process(allowed_hosts=("search.example",), host="0.0.0.0") as app:
        assert app.get("/ready", headers={"Host": "10.0.0.7:8080"}).is_success  # a probe knows no name
        refused = app.get("/info", headers={"Host": "10.0.0.7:8080"})
        assert (refused.status_code, refused.json()["error_type"], refused.json()["field"]) == (
            421,
            "Validation",
            "Host",
        )
        assert app.post("/v2/rerank", {}, headers={"Host": "no name"}).json()["message"]  # in that API's form
    with in_process(allowed_hosts=("*.example.com",), host="0.0.0.0") as app:
        assert app.get("/info", headers={"Host": "search.example.com:8080"}).is_success
        assert app.get("/info", headers={"Host": "example.org"}).status_code == 421


@pytest.mark.parametrize(("given", "answer"), [("secret\n", 200), ("", 1)])
def test_a_key_in_a_variable_is_stripped_and_not_empty(
    given: str, answer: int, tmkd: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets come with a line end, and an unset one is an open server."""
    if given:
        with command(environment={"TMKD_API_KEY": given}) as live:
            found = httpx.get(f"{live.url}/info", headers={"Authorization": "Bearer secret"})
            assert found.status_code == answer
        return
    monkeypatch.setenv("TMKD_API_KEY", given)
    refused = tmkd("serve", "--model", model(), check=False)
    assert (refused.returncode, "TMKD_API_KEY is set and empty" in refused.stderr) == (answer, True)


def test_get_routes_answer_head_and_needless_slashes_are_no_other_route(live: Command) -> None:
    for path in ("/", "/docs", "/page/app.js", "/health", "/ready", "/info", "/openapi.json"):
        head, get = httpx.head(f"{live.url}{path}"), httpx.get(f"{live.url}{path}")
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
        assert head.headers["content-length"] == get.headers["content-length"]
    with httpx.Client(base_url=live.url) as client:  # one connection: nothing of a body is left in it
        for _ in range(3):
            assert client.head("/docs").status_code == 200
            assert client.head("/nowhere").status_code == 404
    wanted = httpx.post(f"{live.url}/rerank", json=TEI).json()
    for path in ("/rerank/", "//rerank", "//rerank//"):
        assert httpx.post(f"{live.url}{path}", json=TEI).json() == wanted, path
    cohere = {"query": QUESTION, "documents": PASSAGES}
    assert httpx.post(f"{live.url}//v2/rerank/", json=cohere).json()["meta"]["api_version"] == {"version": "2"}
    assert httpx.post(f"{live.url}/v2/rerank/", json={}).json()["message"]  # the refusal is Cohere's too
    wrong = httpx.head(f"{live.url}/rerank")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert httpx.post(f"{live.url}/info", json={}).headers["allow"] == "GET, HEAD"
    docs = httpx.get(f"{live.url}/docs/")
    assert (docs.status_code, docs.headers["location"]) == (308, "../docs")  # its links are relative


def test_needless_slashes_do_not_go_round_the_key() -> None:
    with in_process(api_key="right", root_path="/tmkd") as app:
        for path in ("//info", "/info/", "/page/../info", "/docs/../info", "/tmkd/info", "/tmkd//metrics/"):
            assert app.get(f"http://127.0.0.1{path}").status_code == 401, path
        for path in ("//health/", "/tmkd", "/tmkd/docs", "/tmkd/page/app.js"):
            assert app.get(f"http://127.0.0.1{path}").status_code == 200, path


def test_web_pages_that_are_let_in_may_send_what_clients_send_and_read_when_to_come_back() -> None:
    site = {"Origin": "https://a.example"}
    asks = {**site, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-fern-language"}
    with in_process(cors_origins=("https://a.example",)) as app:
        assert app.request("OPTIONS", "/v2/rerank", headers=asks).is_success  # Cohere's JavaScript sends that header
        assert app.get("/info", headers=site).headers["access-control-expose-headers"] == "Retry-After"


@pytest.mark.parametrize("link", ["tcp://10.96.12.34:8080", "udp://[fd00::1]:53"])
def test_what_kubernetes_sets_for_a_service_called_tmkd_is_ignored_with_a_warning(
    link: str, tmkd: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {
        "TMKD_SERVICE_HOST": "10.96.12.34", "TMKD_SERVICE_PORT": "8080", "TMKD_SERVICE_PORT_HTTP": "8080",
        "TMKD_PORT": link, "TMKD_PORT_8080_TCP": link, "TMKD_PORT_8080_TCP_PROTO": "tcp",
        "TMKD_PORT_8080_TCP_PORT": "8080", "TMKD_PORT_8080_TCP_ADDR": "10.96.12.34",
    }  # fmt: skip
    with command(environment=links) as live:
        assert httpx.get(f"{live.url}/health").is_success
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    failed = tmkd("serve", "--model", tmp_path, "--host", "127.0.0.1", check=False)  # stops: there is no model
    assert f"warning: TMKD_PORT is {link}: Kubernetes sets it" in failed.stderr
    assert "has no tmkd.json" in failed.stderr or "port 8080 of 127.0.0.1" in failed.stderr


def test_a_service_link_leaves_the_default_port_and_a_wrong_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMKD_PORT", "tcp://10.96.12.34:80")
    assert settings_of({"model": model()}).port == 8080
    monkeypatch.setenv("TMKD_PORT", "http")
    with pytest.raises(TmkdError, match="--port is http"):
        settings_of({"model": model()})


@pytest.mark.parametrize(
    ("host", "answered", "said"),
    [
        ("::", ["127.0.0.1", "[::1]"], "localhost"), ("0.0.0.0", ["127.0.0.1"], "localhost"),
        ("localhost", ["127.0.0.1"], "localhost"), ("[::1]", ["[::1]"], "[::1]"), ("::1", ["[::1]"], "[::1]"),
    ],
)  # fmt: skip
def test_the_server_answers_on_the_addresses_that_its_host_stands_for(
    host: str, answered: list[str], said: str
) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    sockets = bound(Settings(model=model(), host=host).host, 0)
    port = sockets[0].getsockname()[1]
    assert {one.getsockname()[1] for one in sockets} == {port}
    for one in sockets:
        one.listen()
    try:
        for name in answered:
            socket.create_connection((name.strip("[]"), port), timeout=5).close()
        assert address(Settings(model=model(), host=host).host, port).startswith(f"http://{said}:{port}/")
        with pytest.raises(OSError, match="in use"):
            bound(Settings(model=model(), host=host).host, port)
    finally:
        for one in sockets:
            one.close()


def test_memory_of_requests_is_bounded() -> None:
    with in_process(max_body=3, max_buffered=1) as app:
        app.server.bodies.hold((1 << 20) - 500)
        found = app.post("/rerank", {**TEI, "texts": ["a" * 1000]})
        assert found.status_code == 429
        assert int(found.headers["retry-after"]) >= 1
        assert app.get("/metrics").text.count('tmkd_rejected_total{reason="memory"} 1.0') == 1
        app.server.bodies.hold(500 - (1 << 20))
        assert app.post("/rerank", TEI).is_success
        assert "tmkd_buffered_bytes 0.0" in app.get("/metrics").text


def test_every_flag_is_a_variable_and_its_errors_name_it(
    tmkd: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmkd("serve", "--help").stdout
    options = {
        name
        for name in re.findall(r"--([a-z-]+)", page)
        if name not in ("help", "version") and not name.startswith("no-")
    }
    variables = set(re.findall(r"TMKD_[A-Z_]+", page))
    assert {"TMKD_" + name.upper().replace("-", "_") for name in options} == variables
    assert "nowhere" in tmkd("serve", "--model", "nowhere", check=False).stderr
    monkeypatch.setenv("TMKD_TIMEOUT", "-1")
    failed = tmkd("serve", "--model", model(), check=False)
    assert (failed.returncode, "timeout is -1 (TMKD_TIMEOUT as a variable)" in failed.stderr) == (1, True)


def test_what_keeps_it_from_starting_is_said_in_one_line(tmkd: Callable[..., Done], tmp_path: Path) -> None:
    failed = tmkd("serve", "--model", tmp_path, "--port", "0", check=False)
    assert failed.returncode == 1
    assert "has no tmkd.json" in failed.stderr
    assert "Traceback" not in failed.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = tmkd("serve", "--model", model(), "--port", str(port), check=False)
    assert (failed.returncode, f"port {port}" in failed.stderr) == (1, True)


def test_an_error_of_the_server_is_told_without_what_was_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError(QUESTION)

    monkeypatch.setattr("tmkd.serve.rerank.best_first", broken)
    with in_process() as app:
        found = app.post("/rerank", TEI)
        assert (found.status_code, found.json()["error_type"]) == (500, "Backend")
        assert QUESTION not in found.text
    log = caplog.text
    assert "KeyError" in log
    assert "rerank.py" in log
    assert QUESTION not in log
