"""One contestant's process: started once, kept over the rounds, killed at the end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmkd.bench.environments import OURS, interpreter
from tmkd.core.errors import TmkdError

PATIENCE = 1800.0  # seconds for one answer
WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class Contestant:
    """One row of a bench.

    Attributes:
        name: what the table calls it. ours: whether it is tmkd.
        script: its file under workers/. options: what it is loaded with.
        environment: whose Python runs it. threads: 0: all usable cores.
        share: it is given only one of so many rows (a very slow one).
        same_weights: whether its scores and its arithmetic can be compared.
        baseline: it takes part whichever peers are chosen.
    """

    name: str
    script: str
    options: dict[str, Any] = field(default_factory=dict)
    ours: bool = False
    environment: str = OURS
    threads: int = 0
    share: int = 1
    same_weights: bool = True
    baseline: bool = False

    @property
    def script_does(self) -> str:
        """What it was asked to do."""
        return str(self.options.get("do_what", ""))


class Failed(TmkdError):
    """A contestant that cannot be run; the bench goes on without it."""


class Worker:
    """A running contestant. Use as a context manager.

    Raises:
        Failed: its environment cannot be built, it cannot load, or it died.
    """

    def __init__(self, contestant: Contestant, log: Path) -> None:
        self.contestant, self.log = contestant, log
        cores = sorted(os.sched_getaffinity(0))[: contestant.threads or None]
        variables = {
            **os.environ,
            "TMKD_BENCH_CORES": ",".join(map(str, cores)),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        variables |= {"OMP_NUM_THREADS": str(len(cores)), "TOKENIZERS_PARALLELISM": "true"}
        try:
            python = interpreter(contestant.environment)
        except TmkdError as error:
            raise Failed(str(error)) from error
        self.scratch = tempfile.TemporaryDirectory(prefix="tmkd-bench-", ignore_cleanup_errors=True)
        variables["TMPDIR"] = self.scratch.name  # whatever it leaves there goes with it
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(python), str(WORKERS / contestant.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=variables,
                text=True,
                start_new_session=True,  # Ctrl-C is handled here, and its own children end with it
            )
        try:
            self._ask({"do": "load", "threads": len(cores), **contestant.options})
        except BaseException:
            self.close()
            raise

    def run(self, questions: list[str], passages: list[str], labels: list[int]) -> tuple[float, list[float] | None]:
        """Seconds that the contestant measured, and its scores (None from a trainer)."""
        answer = self._ask({"do": "run", "questions": questions, "passages": passages, "labels": labels})
        return answer["seconds"], answer["scores"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answered, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            if not answered:
                raise Failed(f"it gave no answer for {PATIENCE / 60:.0f} minutes (see {self.log})")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            written = self.log.read_text(errors="replace").strip().splitlines()
            raise Failed(f"it died: {written[-1] if written else 'no message'} (see {self.log})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{answer['error']} (see {self.log})")
        return answer

    def close(self) -> None:
        """End the process and whatever it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.scratch.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
