"""A lease on a shared folder: one writer at a time, on any machine, with nothing but files.

`writer.json` names the writer, which writes it again every half minute (`BEAT`). If it gets old, the writer is gone,
and another process takes the lease over. A writer learns from `Lease.check` that it lost its lease, before it writes
what others rely on.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tmkd.core.errors import PlaceError, TmkdError
from tmkd.core.machine import has_ended, this_machine
from tmkd.core.places import Place

logger = logging.getLogger(__name__)

NAME = "writer.json"
BEAT = 30.0  # seconds between two signs of life
STALE = 300.0  # seconds without one after which a lease is taken over
POLL = 3.0  # seconds between two looks at the lease of another
SETTLE = 1.0  # seconds after which of two that take a lease over at once, one sees that the other has it

_mine: set[str] = set()  # the tokens of the leases that this process holds


class Lease:
    """The lease of this process on a folder.

    Args:
        place: the folder.

    Attributes:
        token: what names it in the file.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.token = secrets.token_hex(8)

    def check(self) -> None:
        """Make sure that the lease is still this process's.

        Raises:
            PlaceError: another process has it.
        """
        found = _parsed(self.place.read(NAME))
        if found.get("token") != self.token:
            raise PlaceError(
                f"{self.place} was taken over by {_who(found)}, since this process gave no sign of life for "
                f"{STALE:,.0f} s; what it stored before stays. Run the same command again",
                address=str(self.place),
            )

    def take(self, busy: Callable[[str], TmkdError], *, wait: bool) -> None:
        """Take the lease; arguments and errors as of `leased`."""
        seen, since, announced = b"", time.monotonic(), False
        while not self.place.create(NAME, self._content()) or not self._is_ours():
            content = self.place.read(NAME) or b""
            if content != seen:
                seen, since = content, time.monotonic()
            other = _parsed(content)
            gone = _is_gone(other) or time.monotonic() - since > STALE
            if gone and self.place.read(NAME) != content:  # it was given back, and perhaps taken, meanwhile
                continue
            if gone:
                logger.warning(f"{self.place}: {_who(other)} is gone or gives no sign of life; its work is continued")
                self.place.write(NAME, self._content())
                time.sleep(SETTLE)
                if self._is_ours():
                    return
                continue
            message = f"{self.place} is being written by {_who(other)}"
            if not wait:
                raise busy(message)
            if not announced:
                logger.info(f"{message}; waiting for it")
            announced = True
            time.sleep(POLL)

    def give_back(self) -> None:
        """End the lease, if it is this process's; where the folder cannot be reached, it ends by its age."""
        try:
            if self._is_ours():
                self.place.remove(NAME)
        except TmkdError as error:
            logger.debug(str(error))

    def renew(self, stop: threading.Event) -> None:
        """Give signs of life until the event is set, or the lease is another process's."""
        while not stop.wait(BEAT):
            try:
                if not self._is_ours():
                    return
                self.place.write(NAME, self._content())
            except TmkdError as error:  # the writer meets it, too, if it lasts
                logger.debug(str(error))

    def _is_ours(self) -> bool:
        return _parsed(self.place.read(NAME)).get("token") == self.token

    def _content(self) -> bytes:
        return json.dumps({"token": self.token, **this_machine(), "pid": os.getpid(), "time": time.time()}).encode()


@contextmanager
def leased(place: Place, busy: Callable[[str], TmkdError], *, wait: bool) -> Iterator[Lease]:
    """Hold the lease on a folder until the block ends.

    Args:
        place: the folder.
        busy: makes the error where another process holds it.
        wait: wait for that process.

    Raises:
        TmkdError: `busy`, unless `wait` is true.
        PlaceError: the folder cannot be read or written.
    """
    lease, stop = Lease(place), threading.Event()
    beat = threading.Thread(target=lease.renew, args=(stop,), daemon=True)
    _mine.add(lease.token)
    try:
        lease.take(busy, wait=wait)
        beat.start()
        try:
            yield lease
        finally:
            stop.set()
            beat.join(BEAT)
            lease.give_back()
    finally:
        _mine.discard(lease.token)


def _is_gone(other: dict[str, Any]) -> bool:
    """Whether a writer on this machine has ended, or any writer has given no sign of life for `STALE` seconds."""
    if other and {key: other.get(key) for key in ("host", "numbers")} == this_machine():
        if other["pid"] == os.getpid():  # it could not give that lease back
            return other["token"] not in _mine
        if has_ended(int(other["pid"])):
            return True
    return bool(other) and time.time() - other["time"] > STALE


def _parsed(content: bytes | None) -> dict[str, Any]:
    """What a lease says; empty where there is none, or it is not whole."""
    try:
        found = json.loads(content or b"")
        return {key: found[key] for key in ("token", "host", "numbers", "pid", "time")}
    except (ValueError, KeyError, TypeError):
        return {}


def _who(writer: dict[str, Any]) -> str:
    if not writer:
        return "another process"
    return f"process {writer['pid']} on {writer['host']} (last sign of life {time.time() - writer['time']:,.0f} s ago)"
