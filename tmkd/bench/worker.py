"""A contestant's process: it starts once, stays over the rounds and is killed at the end."""

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
from tmkd.core.cpu import usable_cores
from tmkd.core.errors import TmkdError

PATIENCE = 1800.0  # seconds for one answer
WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class Contestant:
    """One tool in a bench.

    Attributes:
        name: Its name in the table.
        script: Its file under workers/.
        options: What it is loaded with, sent as JSON; `do_what` names its job.
        ours: Whether it is tmkd.
        environment: The Python environment that runs it (`tmkd.bench.environments`).
        threads: 0 for all usable cores.
        share: It gets only one of this many pairs, where it is very slow.
        same_weights: Whether it has the same weights as tmkd, so that scores and arithmetic can be compared.
        baseline: Whether it takes part whatever peers are chosen.
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
    def job(self) -> str:
        """What it does: train, score, export or probe."""
        return str(self.options.get("do_what", ""))


class Failed(TmkdError):
    """A contestant cannot be run; the bench continues without it."""


def cores_for(threads: int) -> list[int]:
    """The cores that a process of so many threads is kept on (Linux); 0 threads for all usable cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return cores[: threads or usable_cores()]


class Worker:
    """A running contestant. Use it as a context manager.

    Args:
        contestant: What to start.
        log: File for what it writes to standard error.

    Raises:
        Failed: Its environment cannot be built, it cannot load, or it died.
    """

    def __init__(self, contestant: Contestant, log: Path) -> None:
        self.contestant, self.log = contestant, log
        cores = cores_for(contestant.threads)
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
        variables["TMPDIR"] = self.scratch.name  # removed with everything that it leaves there
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(python), str(WORKERS / contestant.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=variables,
                text=True,
                start_new_session=True,  # so Ctrl-C reaches only us, and `close` kills its children too
            )
        try:
            self._ask({"do": "load", "threads": len(cores), **contestant.options})
        except BaseException:
            self.close()
            raise

    def run(self, questions: list[str], passages: list[str], labels: list[int]) -> tuple[float, list[float] | None]:
        """Give it a turn.

        Args:
            questions: N questions.
            passages: N passages.
            labels: N labels, 0 or 1; only trainers read them.

        Returns:
            The seconds that it measured, and its N scores (None from a trainer).

        Raises:
            Failed: It died, gave an error, or did not answer in time.
        """
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
        """End the process and those that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.scratch.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
