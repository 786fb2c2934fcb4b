"""A request's body: read while it streams, within limits on one request and on all of them together, then checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from tmkd.serve.metrics import Metrics
from tmkd.serve.refusals import Refusal, overloaded, too_large, wrong
from tmkd.serve.settings import Settings

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")
DRAIN_BYTES, DRAIN_SECONDS = 64 << 20, 5.0  # most of a refused body that is read: clients look for answers after it
_KINDS = ("str", "dict[str,any]", "list[union[str,dict[str,any]]]")  # pydantic names them in the place of an error
_CLOSE = {"Connection": "close"}


class Gone(Exception):
    """The client hung up, so there is nobody to answer."""


class Bodies:
    """Reads bodies, and holds at most `Settings.buffered_bytes` of them at once."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._held = 0

    @contextmanager
    def holding(self) -> Iterator[Held]:
        """Count what one request holds until the end of the block."""
        held = Held(self)
        try:
            yield held
        finally:
            self.hold(-held.size)

    def hold(self, size: int) -> None:
        """Count bytes as held, or fewer of them where `size` is negative.

        Raises:
            Refusal: 429, there is no room for them.
        """
        if size > 0 and self._held + size > self._settings.buffered_bytes:
            self._metrics.rejected.labels("memory").inc()
            raise overloaded("the server holds as many requests as it can; try again in a moment", 1.0)
        self._held += size
        self._metrics.buffered.set(self._held)

    async def read(self, request: Request, held: Held, until: float) -> bytes:
        """The whole body.

        Args:
            request: The request.
            held: Where its bytes are counted.
            until: When its time is up (`time.monotonic()`).

        Raises:
            Refusal: 413, it is too large or says that it will be; 415, it is not JSON; 408, it came too slowly; 429,
                there is no room for it.
            Gone: The client hung up.
        """
        _require_json(request)
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await self._read(request, held)
        except TimeoutError:
            raise Refusal(408, "Validation", "the body did not arrive in time", headers=_CLOSE) from None
        except ClientDisconnect:
            raise Gone from None

    async def _read(self, request: Request, held: Held) -> bytes:
        limit = self._settings.body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > limit:
            await _drain(request)
            raise self._beyond()
        try:
            parts: list[bytes] = []
            size = 0
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    parts.clear()
                    await _drain(request)
                    raise self._beyond()
                held.grow(len(part))  # what came, not what a header declares
                parts.append(part)
        except Refusal as refusal:
            refusal.headers |= _CLOSE
            raise
        return b"".join(parts)

    def _beyond(self) -> Refusal:
        refusal = too_large(f"the body has more than {self._settings.body_bytes:,} bytes, which is the limit", "body")
        refusal.headers |= _CLOSE
        return refusal


class Held:
    """The bytes that one request holds."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.size = bodies, 0

    def grow(self, size: int) -> None:
        """Hold more bytes.

        Raises:
            Refusal: 429, there is no room for them.
        """
        self._bodies.hold(size)
        self.size += size


def parse(model: type[Model], body: bytes) -> Model:
    """The body as a request of a given shape. A refusal repeats nothing of what the client sent.

    Raises:
        Refusal: 400, the body is no valid JSON; 422, a field of it is missing or wrong, and the refusal names it.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise wrong(first["msg"], status=400) from None
        parts = [part for part in first["loc"] if part not in _KINDS]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
        others = error.error_count() - 1
        more = f" (and {others} more)" if others else ""
        raise wrong(f"{where or 'the body'}: {first['msg']}{more}", where[:200] or None) from None


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # another site's form cannot send this kind without asking the server first
        raise wrong("the Content-Type must be application/json", "Content-Type", 415)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise wrong("the body must not be compressed", "Content-Encoding", 415)


async def _drain(request: Request) -> None:
    """Read the rest of a refused body, up to a limit: most clients look for an answer only after they have sent it."""
    if "expect" in request.headers:  # the client waits for leave to send
        return
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b"")) + 1
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client hangs up.

    Args:
        request: A request whose body was read.
        work: What its answer needs.

    Raises:
        Gone: The client hung up.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # after the body, the next message is the client's end
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
