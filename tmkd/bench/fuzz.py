"""`tmkd bench fuzz`: send the server our own hostile requests, then those of a fuzzer that reads its OpenAPI document.

The server passes if it answers every request or closes its connection in time, never with status 500, and with 503
only beside Retry-After, if it still scores afterwards, and if its memory does not grow.
"""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from tmkd.bench.environments import interpreter
from tmkd.bench.hostile import hostile, valid
from tmkd.bench.loadgen import HOST, Answer, read_answer
from tmkd.bench.rounds import line_per_number
from tmkd.bench.servers import RunningServer, ServerSpec
from tmkd.core.console import Bar, progress
from tmkd.core.files import cache_folder

logger = logging.getLogger(__name__)

BODY = 256  # KiB, the server's limit here: a low one, so that larger bodies are cheap to send
FLAGS = ("--max-body", str(BODY), "--idle-timeout", "2", "--timeout", "3")
CALLERS = 12  # many, since some wait for answers that never come
PATIENCE = 15.0  # seconds for one answer: more than the server's own limits
PROBE = 100  # a valid request is sent after so many hostile ones
GROWTH = 1.3
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@dataclass
class FuzzFigures:
    """What `run` measured.

    Attributes:
        sent: Requests.
        statuses: How many requests got each status; "closed" where the connection was closed in time without an
            answer, "hung" where nothing came.
        problems: Why the server fails; empty where it passes.
        memory: MiB after a warm-up and after each part.
        slowest: Seconds of the slowest answer.
        schema: What the fuzzer of the OpenAPI document said last.
    """

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    slowest: float = 0.0
    schema: str = "not run"

    def to_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "bench": "fuzz", "sent": self.sent, "statuses": dict(sorted(self.statuses.items())),
            "slowest_seconds": self.slowest, "memory_mib": self.memory, "schema_fuzzer": self.schema,
            "problems": self.problems,
        }  # fmt: skip

    def shown(self) -> list[RenderableType]:
        """One line a number, for a terminal."""
        return line_per_number(self.to_json())


def run(
    export: Path, count: int, *, seed: int = 0, schema: bool = True, index: Path | None = None, threads: int = 0
) -> FuzzFigures:
    """Start a server and send it hostile requests.

    Args:
        export: What the server serves.
        count: Requests.
        seed: Of the requests.
        schema: Whether half of the requests come from schemathesis, which runs in an environment of its own.
        index: An index of documents that the server answers from.
        threads: Of the server; 0 for all usable cores.

    Raises:
        Failed: The server does not start.
    """
    flags = ("--model", str(export), *FLAGS, *(("--index", str(index)) if index else ()))
    log = cache_folder("bench", "logs") / "fuzz.log"
    with RunningServer(ServerSpec("tmkd serve", flags), log, threads) as server:
        found = FuzzFigures()
        asyncio.run(_by_hand(server, found, count // 2 if schema else count, seed))
        if schema:
            _by_schema(server, found, count - count // 2, seed)
            asyncio.run(_probe(server, found))
            found.memory.append(server.memory())
    if found.memory[-1] > GROWTH * found.memory[0]:
        found.problems.append(f"memory grew from {found.memory[0]:.0f} to {found.memory[-1]:.0f} MiB")
    if re.search(r"Traceback|an error answering", log.read_text(errors="replace")):
        found.problems.append(f"an error in {log}")
    return found


async def _by_hand(server: RunningServer, found: FuzzFigures, count: int, seed: int) -> None:
    requests = hostile(seed, BODY << 10)
    warm = min(1000, count // 2)
    with progress("fuzz", count, unit="requests") as bar:

        async def caller() -> None:
            while found.sent < count:
                found.sent += 1
                if found.sent == warm:
                    found.memory.append(server.memory())
                await _one(server, found, next(requests))
                if found.sent % PROBE == 0:
                    await _probe(server, found)
                bar.advance(1)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await _probe(server, found)
    found.memory.append(server.memory())


async def _one(server: RunningServer, found: FuzzFigures, content: bytes) -> None:
    """Send one request. A wrong answer becomes a problem, with the beginning of the request."""
    start = time.perf_counter()
    try:
        answer = await _exchange(server.port, content)
        status = str(answer.status) if answer else "closed"
    except TimeoutError:
        answer, status = None, "hung"
    found.slowest = max(found.slowest, time.perf_counter() - start)
    found.statuses[status] += 1
    wrong = status == "hung" or (answer is not None and _wrong(answer, head_only=content.startswith(b"HEAD")))
    if wrong and len(found.problems) < 20:
        found.problems.append(f"{status} to {content[:200]!r}")


def _wrong(answer: Answer, head_only: bool) -> bool:
    if answer.status >= 500 and not (answer.status == 503 and "retry-after" in answer.headers):
        return True
    explained = answer.headers.get("content-type", "").startswith("application/json")
    return answer.status >= 400 and not explained and not head_only


async def _exchange(port: int, content: bytes) -> Answer | None:
    """Send bytes and return the first answer; None where the connection was closed without one."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(content)
            if content.startswith(b"HEAD"):
                line = await reader.readline()
                return Answer(int(line.split()[1]), {}, b"") if line else None
            return await read_answer(reader)
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        finally:
            writer.close()


async def _probe(server: RunningServer, found: FuzzFigures) -> None:
    """Check that a valid request is still answered."""
    answer = await _exchange(server.port, valid())
    if answer is None or answer.status != 200:
        found.problems.append(f"a valid request was answered {answer.status if answer else 'not at all'}")


def _by_schema(server: RunningServer, found: FuzzFigures, count: int, seed: int) -> None:
    """Run schemathesis on the server's OpenAPI document, with valid and invalid values."""
    program = interpreter("schemathesis").parent / "schemathesis"
    url = f"http://{HOST}:{server.port}"
    each = max(1, count // 4)  # operations that take a body
    command = [
        str(program), "--no-color", "run", f"{url}/openapi.json", "--checks", CHECKS, "--max-examples", str(each),
        "--mode", "all", "--phases", "examples,fuzzing", "--seed", str(seed), "--generation-database", "none",
        "--request-timeout", str(PATIENCE), "--continue-on-failure", "--warnings", "off",
    ]  # fmt: skip
    logger.info(f"fuzz: schemathesis, {each} examples an operation")
    with _counted(server, count):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=7200, cwd=cache_folder("bench")
        )
    log = cache_folder("bench", "logs") / "schemathesis.log"
    log.write_text(done.stdout + done.stderr)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    found.schema = lines[-1].strip("= ") if lines else "no output"
    if made := re.search(r"(\d[\d,]*) generated", done.stdout):
        found.sent += int(made[1].replace(",", ""))
    if done.returncode:
        found.problems.append(f"schemathesis: {found.schema} (see {log})")


@contextmanager
def _counted(server: RunningServer, count: int) -> Iterator[None]:
    """Show, while the block runs, how many requests the server has counted; at most `count`."""
    over = threading.Event()

    def watch(bar: Bar) -> None:
        first = seen = _requests(server)
        while not over.wait(1):
            now = min(_requests(server) or seen, first + count)
            bar.advance(now - seen)
            seen = now

    with progress("schemathesis", count, unit="requests") as bar:
        watcher = threading.Thread(target=watch, args=(bar,))
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _requests(server: RunningServer) -> int:
    """How many requests the server has counted so far; 0 where it does not answer."""
    try:
        answer = asyncio.run(_exchange(server.port, f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()))
    except OSError:
        return 0
    lines = answer.body.decode().splitlines() if answer else []
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("tmkd_requests_total{")))
