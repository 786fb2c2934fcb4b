"""Threads that run micro-batches. They also work in a process that was forked later, which starts its own."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Threads:
    """A fixed number of threads.

    Args:
        count: How many.

    Attributes:
        count: As given.

    Raises:
        ValueError: `count` is below 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"threads is {count}; it must be 1 or more")
        self.count = count
        self.start()
        _OPEN.add(self)

    def start(self) -> None:
        """Start the threads anew."""
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="tmkd-score")

    def map(self, work: Callable[[_In], _Out], given: Iterable[_In]) -> Iterator[_Out]:
        """Do some work for each of the given things, as many at once as there are threads; results in their order."""
        return self._pool.map(work, given)


_OPEN: weakref.WeakSet[Threads] = weakref.WeakSet()


def _after_fork() -> None:
    """Start all threads in a forked process: it has none, and a call would wait for them for ever."""
    for threads in list(_OPEN):
        threads.start()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
