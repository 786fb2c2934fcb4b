"""A server for tests: in this process (its scorer is a real process), or the real command on a loopback port."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from export_fixtures import exported

from tmkd.serve.app import create_app
from tmkd.serve.settings import Settings

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "tmkd", "serve")
QUESTION = "how do i mount a disk"
PASSAGES = ["the command prints every file", "mount the disk as root", "which port does the server listen on"]


def model() -> Path:
    """A tiny export."""
    return exported("mpnet") / "out"


class InProcess:
    """The application on an event loop of its own; requests go through ASGI, without a socket."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.app = create_app(Settings(**{"model": model(), "threads": 1, **settings}))
        self.server = self.app.state.server
        self.run(self.server.__aenter__())
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, on the application's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request."""
        return self.run(self.client.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        """One GET."""
        return self.request("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        """One POST of JSON."""
        return self.request("POST", path, json=json, **options)

    def close(self) -> None:
        """End it."""
        self.run(self.client.aclose())
        self.run(self.server.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)


@contextmanager
def in_process(**settings: Any) -> Iterator[InProcess]:
    """An application for one test."""
    app = InProcess(**settings)
    try:
        yield app
    finally:
        app.close()


class Command:
    """`tmkd serve` as a process of its own, on a free loopback port."""

    def __init__(self, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [
                *PROGRAM,
                *(() if "--model" in flags else ("--model", str(model()))),
                "--port",
                "0",
                "--threads",
                "1",
                *flags,
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stderr is not None
        self.log: list[str] = []
        self.url = ""
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port, self.url = int(found[1]), f"http://127.0.0.1:{found[1]}"
                break
        assert self.url, "".join(self.log)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def scorer(self) -> int:
        """The scoring process's id."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                command = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and b"tmkd.serve.worker" in command and fields[0] != "Z":
                return int(path.name)
        raise AssertionError("there is no scoring process")

    def wait_ready(self) -> None:
        """Until the scorer is there."""
        until = time.monotonic() + 30
        while httpx.get(f"{self.url}/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.05)

    def wait_read(self, count: int) -> None:
        """Until so many requests were read since the start: they wait for the scorer, or are done."""
        until = time.monotonic() + 30
        while f'tmkd_stage_seconds_count{{stage="read"}} {count}.0' not in httpx.get(f"{self.url}/metrics").text:
            assert time.monotonic() < until
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it politely; its exit status."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(5)
        return code


@contextmanager
def command(*flags: str, **options: Any) -> Iterator[Command]:
    """The command for one test."""
    running = Command(*flags, **options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
