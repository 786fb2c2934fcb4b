"""Messages between the server and a scoring process: a length and a pickle, through the process's own pipes.

Both ends are this program. A client's texts are inside these messages, but no bytes of a client are ever unpickled.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from tmkd.inference.text_encoder import ReadQuestion

_LENGTH = struct.Struct("<I")


class Group(NamedTuple):
    """The pairs of a job that have the same query.

    Attributes:
        query: The query.
        texts: Its texts.
        truncate: Whether pairs beyond the student's length are cut; if not, they are refused.
        read: The query as a cached student reads it, where the server has read it already.
    """

    query: str
    texts: list[str]
    truncate: bool
    read: ReadQuestion | None = None


@dataclass(frozen=True)
class Job:
    """Pairs to score.

    Attributes:
        number: Names the job in the answer.
        groups: The pairs by their query.
    """

    number: int
    groups: list[Group]


@dataclass(frozen=True)
class Hello:
    """What a scoring process says about its model once the model is open.

    Attributes:
        backend: As `Scorer.backend`; `pytorch` for a teacher.
        max_length: Tokens of a pair that it reads, or of each of its two texts where `apart` is true.
        classes: Number of classes.
        labels: Their names.
        threads: Threads that score.
        digest: Names the model's content.
        apart: Whether it reads every text by itself, as a cached student does.
        problem: Why the states in the index cannot be used; empty where they are used or there are none.
    """

    backend: str
    max_length: int
    classes: int
    labels: tuple[str, ...]
    threads: int
    digest: str = ""
    apart: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Scored:
    """The result of a job.

    Attributes:
        number: The job's number.
        scores: float64 bytes in the job's order.
        tokens: int64 bytes in the job's order: the tokens of each pair, before it was cut.
        too_long: (place in the job, number of tokens) of each pair that is refused because it must not be cut.
        seconds: Time that the job took in the process.
        states: Passages whose states came from the store, from the cache, and were computed, since the last message.
        cache_bytes: What the cache of states takes.
    """

    number: int
    scores: bytes
    tokens: bytes
    too_long: list[tuple[int, int]]
    seconds: float
    states: tuple[int, int, int] = (0, 0, 0)
    cache_bytes: int = 0


@dataclass(frozen=True)
class Failed:
    """An error.

    Attributes:
        number: The job that raised it; -1 for the opening of the model.
        message: The error's text.
    """

    number: int
    message: str


def pack(message: Any) -> bytes:
    """A message as bytes."""
    content = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(content)) + content


def read(stream: BinaryIO) -> Any:
    """The next message; None after the other end has closed the pipe."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(head)[0]
    content = stream.read(size)
    return pickle.loads(content) if len(content) == size else None


async def receive(stream: asyncio.StreamReader) -> Any:
    """The next message; None after the other end has closed the pipe."""
    try:
        size = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))[0]
        return pickle.loads(await stream.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
