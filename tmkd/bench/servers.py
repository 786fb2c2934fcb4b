"""Servers to measure: `tmkd serve` and a plain one in its own environment, each on a free port of 127.0.0.1."""

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
from tmkd.bench.worker import WORKERS, Failed, cores_for
from tmkd.core.errors import TmkdError

STARTING = 300.0  # seconds


@dataclass(frozen=True)
class ServerSpec:
    """How to start a server: `tmkd serve` with flags, or a script with options.

    Attributes:
        name: Its name in the table.
        flags: Flags of `tmkd serve`.
        script: Another server's file under workers/; empty for `tmkd serve`.
        options: What the script gets, as JSON.
        environment: The Python environment that runs the script.
    """

    name: str
    flags: tuple[str, ...] = ()
    script: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    environment: str = OURS

    @property
    def ours(self) -> bool:
        """Whether it is `tmkd serve`."""
        return not self.script


class RunningServer:
    """A started server. Use it as a context manager.

    Args:
        spec: What to start.
        log: File for everything that it prints.
        threads: Threads that it computes with; 0 for all usable cores.

    Raises:
        Failed: It does not start. The message holds its last line.
    """

    def __init__(self, spec: ServerSpec, log: Path, threads: int = 0) -> None:
        self.log = log
        cores = cores_for(threads)
        command = [sys.executable, "-m", "tmkd", "serve", "--port", "0", "--threads", str(len(cores)), *spec.flags]
        if spec.script:
            try:
                python = interpreter(spec.environment)
            except TmkdError as error:
                raise Failed(str(error)) from error
            command = [str(python), str(WORKERS / spec.script), json.dumps({"threads": len(cores), **spec.options})]
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
        """The server's process and its children."""
        with contextlib.suppress(psutil.NoSuchProcess):
            mine = psutil.Process(self.process.pid)
            return [mine, *mine.children(recursive=True)]
        return []

    def cpu(self) -> float:
        """Seconds of processor time that its living processes have used so far."""
        total = 0.0
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> float:
        """Resident memory of all its processes, in MiB."""
        total = 0
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total / 2**20

    def kill_scorer(self) -> bool:
        """Kill the scoring process of `tmkd serve`, as an out-of-memory killer would; False where there is none."""
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "tmkd.serve.worker" in " ".join(one.cmdline()):
                    one.send_signal(signal.SIGKILL)
                    return True
        return False

    def close(self) -> None:
        """Ask the server to end, then kill what is left of it and of its children."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
