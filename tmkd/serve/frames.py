"""Messages between the server and a scoring process: a length and a pickle, over the child's own pipes.

Both ends are this program; nothing that a client sent is ever unpickled, only texts inside a message that we made.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Job:
    """Pairs to score: each query with its texts. truncate: False refuses pairs beyond the student's length."""

    number: int
    groups: list[tuple[str, list[str], bool]]


@dataclass(frozen=True)
class Hello:
    """What a scoring process says once its model is open."""

    backend: str
    max_length: int
    classes: int
    labels: tuple[str, ...]
    threads: int


@dataclass(frozen=True)
class Scored:
    """scores: float64 bytes in the job's order, NaN where a pair was refused.

    too_long: (pair's place in the job, its tokens). seconds: what the job took there.
    """

    number: int
    scores: bytes
    too_long: list[tuple[int, int]]
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A job (or, as number -1, opening the model) that raised."""

    number: int
    message: str


def pack(message: Any) -> bytes:
    """One message as bytes."""
    content = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(content)) + content


def read(stream: BinaryIO) -> Any:
    """The next message; None where the other end is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(head)[0]
    content = stream.read(size)
    return pickle.loads(content) if len(content) == size else None


async def receive(stream: asyncio.StreamReader) -> Any:
    """The next message; None where the other end is gone."""
    try:
        size = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))[0]
        return pickle.loads(await stream.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
