"""`tmkd bench serve|soak|fuzz`: what counts as answered, late or failed; each bench runs once on a tiny export."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Done, pair_rows, write_jsonl
from serve_fixtures import model

from tmkd.bench import fuzz, serve, served, soak
from tmkd.bench.hostile import hostile, valid
from tmkd.bench.loadgen import Client, Reply, closed_loop, open_loop, percentiles, request_bytes
from tmkd.bench.material import Subject
from tmkd.bench.serve import ServeFigures, ServerResult, best_rate

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"


def against(answer: bytes, test: Callable[[int], Awaitable[Any]], seconds: float = 0.0) -> Any:
    """Run a test against a server that gives this answer to whatever comes, one at a time."""

    async def main() -> Any:
        lock = asyncio.Lock()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(1 << 20):
                    async with lock:
                        await asyncio.sleep(seconds)
                    writer.write(answer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            found = await test(server.sockets[0].getsockname()[1])
            server.close()
        return found

    return asyncio.run(main())


def test_an_open_loop_does_not_wait_for_a_slow_server_and_measures_from_the_time_a_request_was_due() -> None:
    request = [(request_bytes("/rerank", {}), 1)]

    async def slow(port: int) -> list[Reply]:
        return await open_loop(Client(port), request, 50, 1.0)

    replies = against(OK, slow, 0.05)
    assert 25 < len(replies) < 100
    assert all(reply.status == 200 for reply in replies)
    late = percentiles(replies)
    assert late["p99"] > 500  # half of what was sent is behind by then, though each takes 50 ms
    assert late["p50"] < late["p90"] <= late["p99"]


def test_a_closed_loop_sends_as_many_requests_at_once_as_it_has_callers() -> None:
    async def four(port: int) -> list[Reply]:
        return await closed_loop(Client(port), [(request_bytes("/", {}), 3)], 4, 0.5)

    replies = against(OK, four, 0.01)
    assert 10 < len(replies) < 80
    assert {reply.pairs for reply in replies} == {3}


def test_a_request_without_an_answer_has_status_0() -> None:
    async def nobody(_: int) -> list[Reply]:
        client = Client(1)
        return [await client.timed(b"x", time.perf_counter(), 1)]

    assert against(OK, nobody)[0].status == 0


def test_ours_is_compared_at_the_same_p99() -> None:
    def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"requests/s": rate, "p99": late, "sent": 5.0, "answered": 5.0} for rate, late in pairs]

    ours = ServerResult("tmkd serve", True, [10.0, 12.0], 50, 1.1, rows((10, 20), (40, 90), (50, 900)))
    plain = ServerResult(serve.PLAIN, False, [100.0, 120.0], 5, 9.0, rows((1, 110), (4, 240), (5, 2000)))
    bare = ServerResult("bare", True, [10.0, 10.0], 0, 1.0)
    found = ServeFigures(100, [ours, plain], bare).compared()
    assert found["p50_of_bare_scorer"] == pytest.approx(1.1)
    assert found["cpu_of_bare_scorer"] == pytest.approx(1.1)
    assert found["p50_faster_than_plain"] == pytest.approx(10)
    assert found["p99_limit_ms"] == pytest.approx(275)
    assert (found["rate_at_limit"], found["plain_rate_at_limit"], found["rate_of_plain"]) == (40, 4, 10)
    plain.rates[1]["answered"] = 4  # one was refused
    assert best_rate(plain, 275) == 1
    assert json.dumps(ServeFigures(100, [ours, plain], bare).to_json())


def test_a_soak_names_each_kind_of_failure() -> None:
    fine = soak.SoakFigures(10, 20, 60, {200: 5, 429: 5}, 0, {}, [100.0] * 60, 1, True)
    assert fine.problems == []
    assert "500" in soak.SoakFigures(10, 20, 60, {200: 5, 500: 1}, 0, {}, [100.0] * 60, 1, True).problems[0]
    assert "status 0" in soak.SoakFigures(10, 20, 60, {200: 5, 0: 1}, 0, {}, [100.0] * 60, 1, True).problems[0]
    assert "Retry-After" in soak.SoakFigures(10, 20, 60, {200: 5}, 2, {}, [100.0] * 60, 1, True).problems[0]
    grown = [100.0 + 2 * second for second in range(60)]
    assert "grew" in soak.SoakFigures(10, 20, 60, {200: 5}, 0, {}, grown, 1, True).problems[0]
    assert "afterwards" in soak.SoakFigures(10, 20, 60, {200: 5}, 0, {}, [100.0] * 60, 1, False).problems[0]


def test_hostile_requests_are_the_same_for_a_seed_and_of_every_kind() -> None:
    def first(seed: int) -> list[bytes]:
        return list(itertools.islice(hostile(seed, 4096), 300))

    assert first(1) == first(1)
    assert first(1) != first(2)
    joined = b"".join(first(1))
    for part in (b"NaN", b"\\ud800", b"[[[[[[", b"Encoding: chunked", b"multipart", b"evil.example", b"BREW", b"\xff"):
        assert part in joined, part
    assert valid().startswith(b"POST /rerank HTTP/1.1\r\n")


@pytest.mark.parametrize(("answer", "problem"), [(BROKEN, "500"), (FULL, "503"), (OK, "")])
def test_a_fuzz_run_reports_a_server_that_breaks(answer: bytes, problem: str) -> None:
    async def run(port: int) -> fuzz.FuzzFigures:
        found = fuzz.FuzzFigures()
        server: Any = SimpleNamespace(port=port, memory=lambda: 1.0)
        await fuzz._by_hand(server, found, 20, 0)
        return found

    found = against(answer, run)
    assert found.sent >= 20
    assert (any(problem in text for text in found.problems)) if problem else found.problems == []


def test_a_served_teacher_is_measured_beside_its_server(tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2))
    figures = served.run(Subject(str(model()), pairs=pairs), count=32, rounds=2, threads=1)
    alone, teacher = json.loads(json.dumps(figures.to_json()))["rows"]
    assert (alone["name"], teacher["name"]) == ("the server alone", "served teacher, labels stored")
    assert alone["slower"] > 0  # the median of teacher / server inside a round
    assert [len(one.values["pairs/s"]) for one in figures.results] == [2, 2]


def test_a_fuzz_run_reports_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "PATIENCE", 0.3)
    server: Any = SimpleNamespace(memory=lambda: 1.0)

    async def run(port: int) -> fuzz.FuzzFigures:
        server.port, found = port, fuzz.FuzzFigures()
        await fuzz._one(server, found, valid())
        return found

    found = against(OK, run, 5.0)
    assert found.statuses == Counter({"hung": 1})
    assert "hung" in found.problems[0]


def test_a_short_soak_of_the_real_server_passes() -> None:
    found = soak.run(model(), 5, kills=1, threads=1, flags=("--timeout", "4"))
    assert found.problems == []
    assert found.kills == 1
    assert found.statuses[200] > 10
    assert sum(found.statuses.values()) > found.statuses[200]  # at twice its capacity some are refused


def test_a_short_fuzz_of_the_real_server_passes() -> None:
    found = fuzz.run(model(), 200, threads=1, schema=False)
    assert found.problems == []
    assert len(found.statuses) > 5


def test_a_schema_fuzzer_finds_nothing() -> None:
    found = fuzz.run(model(), 40, threads=1)
    assert found.problems == []
    assert found.schema != "not run"
    assert found.sent > 40  # half of the 40 by hand, more than the rest by the fuzzer


def test_latency_against_rate_is_measured_from_the_command_line(tmkd: Callable[..., Done], tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(4))
    tmkd(
        "bench", "serve", "--model", model(), "--pairs", pairs, "--peers", "none", "--passages", "4", "--rounds", "2",
        "--seconds", "1", "--rates", "5,10", "--threads", "1", "--json", tmp_path / "out.json",
    )  # fmt: skip
    found = json.loads((tmp_path / "out.json").read_text())
    (ours,) = found["servers"]
    assert [row["requests/s"] for row in ours["rates"]] == [5, 10]
    assert all(row["answered"] == row["sent"] > 0 and row["p99"] > 0 for row in ours["rates"])
    assert found["compared"]["p50_of_bare_scorer"] > 0
    assert ours["cpu_ms_per_pair"] > 0


def test_rates_that_are_no_numbers_are_refused(tmkd: Callable[..., Done]) -> None:
    for text in ("a", "0", "-1", "1,nan", "inf"):
        refused = tmkd("bench", "serve", "--model", "x", f"--rates={text}", check=False)
        assert refused.returncode == 2
        assert "--rates" in refused.stderr
        assert "give requests per second" in refused.stderr
