"""Start the scoring process, watch it, and start it again when it dies or hangs.

Requests that it was scoring when it died are refused (503); those in the queue are scored by the next process. A
process that dies while it opens its model is started again after pauses that grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tmkd.core.errors import TmkdError
from tmkd.serve.messages import Failed, Group, Hello, Job, Scored, pack, receive
from tmkd.serve.refusals import Refusal, unavailable

logger = logging.getLogger(__name__)

OPENING = 300.0  # seconds to open a model
PAUSES = (0.0, 0.2, 1.0, 5.0, 15.0)  # seconds before a start, by the number of deaths since the last answer
GONE = "the scorer died while it worked on this request; it is being started again"


@dataclass(frozen=True)
class StatePlaces:
    """Where a cached student keeps the states of passages.

    Attributes:
        cache_bytes: Room for those of texts that no index holds.
        index: An index whose stored states it uses.
    """

    cache_bytes: int = 0
    index: Path | None = None


_NO_STATES = StatePlaces()


class ScorerProcess:
    """One model in a process of its own.

    Args:
        kind: `student` for an export, `teacher` for a model folder.
        folder: The model.
        backend: As `tmkd.inference.scorer.Scorer` takes it.
        threads: As `tmkd.inference.scorer.Scorer` takes it.
        stall: Seconds for one job; a process that takes longer counts as hung and is killed.
        states: Where a cached student keeps the states of passages.
        positive: Of a teacher's two classes the one of the right passages.

    Attributes:
        hello: What the process says about its model; None while no process is ready.
        restarts: Number of processes started after the first.
        cached: Bytes of the states in the process's cache.
        on_up: Called whenever a process is ready.
        on_states: Called with the counts of every job, as `Scored.states` has them.
    """

    def __init__(
        self, kind: str, folder: Path, *, backend: str = "auto", threads: int | None = None, stall: float = 60.0,
        states: StatePlaces = _NO_STATES, positive: int = 1,
    ) -> None:  # fmt: skip
        worker = (sys.executable, "-P", "-m", "tmkd.serve.worker")  # -P: nothing is imported from the current folder
        self._command = [*worker, kind, str(folder), backend, str(threads or 0)]
        self._command += [str(states.cache_bytes), str(states.index or ""), str(positive)]
        self._kind, self._folder, self._stall = kind, folder, stall
        self._digest = ""  # of the first process's model
        self._process: asyncio.subprocess.Process | None = None
        self._pending: dict[int, tuple[asyncio.Future[Scored], float]] = {}
        self._number = 0
        self._keeper: asyncio.Task[None] | None = None
        self._died = 0
        self.hello: Hello | None = None
        self.restarts = 0
        self.cached = 0
        self.on_up: Callable[[], None] = lambda: None
        self.on_states: Callable[[tuple[int, int, int]], None] = lambda _: None

    async def start(self) -> Hello:
        """Start a process and open the model in it.

        Raises:
            TmkdError: The model cannot be opened, or the index has states that it cannot use, such as those of another
                model; the message is the process's own.
        """
        await self._open()
        self._keeper = asyncio.create_task(self._keep(), name=f"{self._kind} keeper")
        assert self.hello is not None
        return self.hello

    async def score(self, groups: list[Group]) -> Scored:
        """Score one job.

        Raises:
            Refusal: 503, no process is ready or it died meanwhile; 500, the job raised an error in it.
        """
        if self.hello is None or self._process is None or self._process.stdin is None:
            raise unavailable("the scorer is being started")
        self._number += 1
        number = self._number
        future: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        patience = self._stall * (len(self._pending) + 1)  # the jobs before it are scored first
        self._pending[number] = (future, time.monotonic() + patience)
        try:
            self._process.stdin.write(pack(Job(number, groups)))
            await self._process.stdin.drain()
            return await future
        except ConnectionError:
            raise unavailable(GONE) from None
        finally:
            self._pending.pop(number, None)

    async def close(self) -> None:
        """End the process by closing its stdin."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._end(patience=5.0)

    async def _open(self) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the server's to handle
        )
        assert process.stdout is not None
        try:
            message = await asyncio.wait_for(receive(process.stdout), OPENING)
        except TimeoutError:
            message = Failed(-1, f"it did not open within {OPENING:.0f} seconds")
        except asyncio.CancelledError:
            await self._end()
            raise
        if not isinstance(message, Hello):
            await self._end()
            code = process.returncode
            raise TmkdError(
                message.message if isinstance(message, Failed)
                else f"the {self._kind}'s process ended with {code} while it opened its model"
            )  # fmt: skip
        if self._digest not in ("", message.digest):  # its calibration, windows and name are those of the first one
            await self._end()
            raise TmkdError(
                f"{self._folder} holds another model than the one that this server was started with; restart the "
                "server to serve it, or put the old model back"
            )
        if message.problem and not self._digest:
            await self._end()
            raise TmkdError(message.problem)
        if message.problem:  # the index was changed meanwhile; the server goes on
            logger.warning(f"the scorer goes on without the states in the index: {message.problem}")
        self.hello, self._digest = message, message.digest
        self.on_up()

    async def _keep(self) -> None:
        """Read answers until the process ends, then start the next one; this never returns."""
        while True:
            watch = asyncio.create_task(self._watch())
            try:
                await self._read()
            finally:
                watch.cancel()
            self._drop()
            await self._end()
            logger.warning(f"the {self._kind}'s process is gone; starting it again")
            while self.hello is None:
                await asyncio.sleep(PAUSES[min(self._died, len(PAUSES) - 1)])
                self._died += 1
                self.restarts += 1
                try:
                    await self._open()
                except (TmkdError, OSError) as error:
                    logger.error(f"the {self._kind} cannot be opened again: {error}")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while (message := await receive(self._process.stdout)) is not None:
            if isinstance(message, Scored):
                self.cached = message.cache_bytes
                self.on_states(message.states)
            future, _ = self._pending.get(message.number, (None, 0.0))
            if future is None or future.done():
                continue
            if isinstance(message, Scored):
                self._died = 0
                future.set_result(message)
            else:
                logger.warning(f"the {self._kind} failed: {message.message}")
                future.set_exception(Refusal(500, "Backend", "the scorer failed on this request"))

    async def _watch(self) -> None:
        """Kill a process that takes too long for a job."""
        while True:
            await asyncio.sleep(min(1.0, self._stall / 4))
            if any(until < time.monotonic() for _, until in self._pending.values()):
                logger.warning(f"the {self._kind}'s process gave no answer for {self._stall:.0f} s or more; ending it")
                self._kill()

    def _drop(self) -> None:
        self.hello, self.cached = None, 0
        for future, _ in self._pending.values():
            if not future.done():
                future.set_exception(unavailable(GONE))

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _end(self, patience: float = 0.0) -> None:
        """Close the process's stdin, and kill the process if it has not ended after `patience` seconds."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), max(patience, 0.01))
        except TimeoutError:
            self._kill()
            await process.wait()
