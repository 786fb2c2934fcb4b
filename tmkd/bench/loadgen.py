"""A load generator for a server on 127.0.0.1.

In an open loop, requests leave on schedule whether or not earlier ones are answered. Latency counts from the time at
which a request was due, so a server that falls behind cannot hide it. The client sends prepared bytes over open
connections, because it shares the machine with the server and must cost little.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HOST = "127.0.0.1"
NONE = 0  # the status of a request that got no answer


@dataclass(frozen=True)
class Reply:
    """What became of one request.

    Attributes:
        status: NONE where no whole answer came.
        seconds: From the time at which it was due.
        pairs: How many pairs it held.
        retry_after: Whether the answer says when to come back.
    """

    status: int
    seconds: float
    pairs: int
    retry_after: bool = False


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def request_bytes(path: str, body: Any) -> bytes:
    """A POST request with a JSON body, given as bytes or as values."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read the next answer of a connection.

    Raises:
        ConnectionError: The connection broke.
        IncompleteReadError: It was closed before the answer was whole.
    """
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        if status == 100:
            continue
        return Answer(status, headers, await reader.readexactly(int(headers.get("content-length", 0))))


@dataclass
class Client:
    """Connections to one server that stay open.

    Attributes:
        port: On 127.0.0.1.
        patience: Seconds to wait for an answer.
    """

    port: int
    patience: float = 60.0
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def send(self, content: bytes) -> Answer:
        """Send one request over a free connection, or over a new one.

        Raises:
            OSError: No answer came.
            TimeoutError: None came within `patience`.
        """
        async with asyncio.timeout(self.patience):
            while True:
                kept = bool(self._idle)
                reader, writer = self._idle.pop() if kept else await asyncio.open_connection(HOST, self.port)
                try:
                    writer.write(content)
                    answer = await read_answer(reader)
                except (ConnectionError, asyncio.IncompleteReadError) as error:
                    writer.close()
                    if kept:  # the server closed it while it was idle
                        continue
                    raise ConnectionError("no answer") from error
                except BaseException:
                    writer.close()
                    raise
                if answer.headers.get("connection") == "close":
                    writer.close()
                else:
                    self._idle.append((reader, writer))
                return answer

    async def timed(self, content: bytes, due: float, pairs: int) -> Reply:
        """Send one request and say what became of it, whatever the server does.

        Args:
            content: The request.
            due: When it should have left, on the clock of `time.perf_counter`.
            pairs: How many pairs it holds.
        """
        try:
            answer = await self.send(content)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            return Reply(NONE, time.perf_counter() - due, pairs)
        return Reply(answer.status, time.perf_counter() - due, pairs, "retry-after" in answer.headers)

    def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


Prepared = Sequence[tuple[bytes, int]]
"""Requests as bytes, each with its number of pairs."""


async def open_loop(
    client: Client, requests: Prepared, rate: float, seconds: float, *, seed: int = 0, most: int = 20_000,
    on_reply: Callable[[Reply], None] = lambda _: None,
) -> list[Reply]:  # fmt: skip
    """Send requests at random times (a Poisson process), then wait for every answer.

    Args:
        client: Connections to the server.
        requests: Sent in turn.
        rate: Mean requests per second.
        seconds: How long requests are sent.
        seed: Of the times.
        most: Most requests, whatever the rate.
        on_reply: Called with each reply as it comes.

    Returns:
        One reply for each request, in the order of sending.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=min(most, int(rate * seconds * 2) + 10))
    times = np.cumsum(gaps)
    times = times[times < seconds]
    start = time.perf_counter()

    async def one(number: int, due: float) -> Reply:
        content, pairs = requests[number % len(requests)]
        reply = await client.timed(content, due, pairs)
        on_reply(reply)
        return reply

    tasks = []
    for number, at in enumerate(times):
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, start + float(at))))
    return list(await asyncio.gather(*tasks))


async def closed_loop(client: Client, requests: Prepared, workers: int, seconds: float) -> list[Reply]:
    """Let callers send one request at a time each, which finds the server's capacity.

    Args:
        client: Connections to the server.
        requests: Sent in turn.
        workers: Callers at once.
        seconds: How long requests are sent.

    Returns:
        One reply for each request.
    """
    until = time.perf_counter() + seconds
    replies: list[Reply] = []
    number = 0

    async def caller() -> None:
        nonlocal number
        while time.perf_counter() < until:
            content, pairs = requests[number % len(requests)]
            number += 1
            replies.append(await client.timed(content, time.perf_counter(), pairs))

    await asyncio.gather(*(caller() for _ in range(workers)))
    return replies


def percentiles(replies: Sequence[Reply]) -> dict[str, float]:
    """p50, p90 and p99 of the answers with status 200, in milliseconds; empty where there are none."""
    times = [1000 * reply.seconds for reply in replies if reply.status == 200]
    return {f"p{share}": float(np.percentile(times, share)) for share in (50, 90, 99)} if times else {}
