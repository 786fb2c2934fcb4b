"""Servers under measurement: ours as anyone starts it, a plain one in its own environment, on free loopback ports."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tmkd.bench.environments import OURS, interpreter
from tmkd.bench.worker import WORKERS, Failed
from tmkd.core.errors import TmkdError

STARTING = 300.0  # seconds


@dataclass(frozen=True)
class Serving:
    """A server to start: `tmkd serve` with flags, or a script under workers/ with options."""

    name: str
    flags: tuple[str, ...] = ()
    script: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    environment: str = OURS

    @property
    def ours(self) -> bool:
        """Whether it is tmkd's."""
        return not self.script


class Running:
    """A started server. Use as a context manager.

    Raises:
        Failed: it does not start; its last words.
    """

    def __init__(self, what: Serving, log: Path, threads: int = 0) -> None:
        self.log = log
        cores = sorted(os.sched_getaffinity(0))[: threads or None]
        command = [sys.executable, "-m", "tmkd", "serve", "--port", "0", "--threads", str(len(cores)), *what.flags]
        if what.script:
            try:
                python = interpreter(what.environment)
            except TmkdError as error:
                raise Failed(str(error)) from error
            command = [str(python), str(WORKERS / what.script), json.dumps({"threads": len(cores), **what.options})]
        variables = {**os.environ, "TMKD_BENCH_CORES": ",".join(map(str, cores)), "HF_HUB_OFFLINE": "1"}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdout=errors, stderr=errors, env=variables, start_new_session=True
            )
        try:
            self.port = self._port()
        except BaseException:
            self.close()
            raise

    def _port(self) -> int:
        until = time.monotonic() + STARTING
        while time.monotonic() < until:
            text = self.log.read_text(errors="replace")
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", text):
                return int(found[1])
            if self.process.poll() is not None:
                lines = text.strip().splitlines()
                raise Failed(f"it did not start: {lines[-1] if lines else 'no message'} (see {self.log})")
            time.sleep(0.05)
        raise Failed(f"it did not start within {STARTING:.0f} s (see {self.log})")

    def processes(self) -> list[psutil.Process]:
        """It and its children."""
        with contextlib.suppress(psutil.NoSuchProcess):
            mine = psutil.Process(self.process.pid)
            return [mine, *mine.children(recursive=True)]
        return []

    def cpu(self) -> float:
        """Seconds of processor time so far, of all its processes that live."""
        total = 0.0
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> float:
        """Resident MiB of all its processes."""
        total = 0
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total / 2**20

    def kill_scorer(self) -> bool:
        """Kill the scoring process of ours, as an out-of-memory killer would; whether there was one."""
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "tmkd.serve.worker" in " ".join(one.cmdline()):
                    one.send_signal(signal.SIGKILL)
                    return True
        return False

    def close(self) -> None:
        """End it and what it started: ours politely first."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
