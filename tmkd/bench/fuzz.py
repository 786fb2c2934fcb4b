"""`tmkd bench fuzz`: hostile requests made by hand, then a schema fuzzer on the server's own description.

Passes where every request is answered or its connection closed in time, never with 500, with 503 only beside
Retry-After, and where the server still scores as before and has not grown.
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

from tmkd.bench.environments import interpreter
from tmkd.bench.hostile import hostile, valid
from tmkd.bench.loadgen import HOST, Answer, read_answer
from tmkd.bench.servers import Running, Serving
from tmkd.core.console import Bar, progress
from tmkd.core.files import cache_folder

logger = logging.getLogger(__name__)

BODY = 256  # KiB: the server's limit here, so that passing it is cheap
FLAGS = ("--max-body", str(BODY), "--idle-timeout", "2", "--timeout", "3")
CALLERS = 12  # most of the time some wait for what never comes
PATIENCE = 15.0  # seconds for one answer: more than the server's own limits
PROBE = 100  # a valid request after so many
GROWTH = 1.3
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@dataclass
class Fuzzed:
    """What came of it. statuses: answers by status; "closed": none, but the connection was closed in time."""

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

    def show(self) -> None:
        """One line a number."""
        for name, value in self.to_json().items():
            print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


def run(
    export: Path, count: int, *, seed: int = 0, schema: bool = True, index: Path | None = None, threads: int = 0
) -> Fuzzed:
    """Start a server on the export and send it `count` hostile requests; half of them by the schema fuzzer.

    Args:
        schema: whether the schema fuzzer takes part; it is installed in an environment of its own.
    """
    flags = ("--model", str(export), *FLAGS, *(("--index", str(index)) if index else ()))
    log = cache_folder("bench", "logs") / "fuzz.log"
    with Running(Serving("tmkd serve", flags), log, threads) as server:
        found = Fuzzed()
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


async def _by_hand(server: Running, found: Fuzzed, count: int, seed: int) -> None:
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


async def _one(server: Running, found: Fuzzed, content: bytes) -> None:
    """One request; what is wrong with the answer is kept, with the request's beginning."""
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
    told = answer.headers.get("content-type", "").startswith("application/json")
    return answer.status >= 400 and not told and not head_only


async def _exchange(port: int, content: bytes) -> Answer | None:
    """The first answer to these bytes; None where the connection was closed without one."""
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


async def _probe(server: Running, found: Fuzzed) -> None:
    """A valid request is still answered."""
    answer = await _exchange(server.port, valid())
    if answer is None or answer.status != 200:
        found.problems.append(f"a valid request was answered {answer.status if answer else 'not at all'}")


def _by_schema(server: Running, found: Fuzzed, count: int, seed: int) -> None:
    """schemathesis on our OpenAPI document, in positive and negative mode."""
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
def _counted(server: Running, count: int) -> Iterator[None]:
    """A bar of the requests that the server counts while the block runs, in a thread; at most `count`."""
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


def _requests(server: Running) -> int:
    """How many requests the server counts by now; 0 where it does not say in time."""
    try:
        answer = asyncio.run(_exchange(server.port, f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()))
    except OSError:
        return 0
    lines = answer.body.decode().splitlines() if answer else []
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("tmkd_requests_total{")))
