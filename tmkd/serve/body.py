"""A request's body: read with a limit while it streams, counted against what the server holds at once, then checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from tmkd.serve.metrics import Metrics
from tmkd.serve.refusals import Refusal, overloaded, too_large, wrong
from tmkd.serve.settings import Settings

Model = TypeVar("Model", bound=BaseModel)
DRAIN_BYTES, DRAIN_SECONDS = 64 << 20, 5.0  # of a body that is refused: a client reads the answer after it has sent
_CLOSE = {"Connection": "close"}


class Gone(Exception):
    """The client hung up; there is nobody to answer."""


class Bodies:
    """Reads bodies; holds at most `max_buffered` bytes of them."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._held = 0

    @contextmanager
    def holding(self) -> Iterator[Held]:
        """What one request holds, given back at the end."""
        held = Held(self)
        try:
            yield held
        finally:
            self.hold(-held.size)

    def hold(self, size: int) -> None:
        """Count bytes. Refusal: 429, there is no room for them."""
        if size > 0 and self._held + size > self._settings.max_buffered:
            self._metrics.rejected.labels("memory").inc()
            raise overloaded("the server holds as many requests as it can; try again in a moment", 1.0)
        self._held += size
        self._metrics.buffered.set(self._held)

    async def read(self, request: Request, held: Held, until: float) -> bytes:
        """The whole body.

        Raises:
            Refusal: 413 beyond the limit (the declared size too), 415 not JSON, 408 too slow, 429 no room. Gone.
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
        limit = self._settings.max_body
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
                held.grow(len(part))  # as it comes: what a header declares takes no room
                parts.append(part)
        except Refusal as refusal:
            refusal.headers |= _CLOSE
            raise
        return b"".join(parts)

    def _beyond(self) -> Refusal:
        refusal = too_large(f"the body has more than {self._settings.max_body:,} bytes, which is the limit", "body")
        refusal.headers |= _CLOSE
        return refusal


class Held:
    """Bytes that one request holds."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.size = bodies, 0

    def grow(self, size: int) -> None:
        """Hold more. Refusal: 429."""
        self._bodies.hold(size)
        self.size += size


def parse(model: type[Model], body: bytes) -> Model:
    """The body as a request. Nothing of what the client sent is repeated in the refusal.

    Raises:
        Refusal: 400 no valid JSON; 422 JSON of another shape, which names the field.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise wrong(first["msg"], status=400) from None
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        others = error.error_count() - 1
        more = f" (and {others} more)" if others else ""
        raise wrong(f"{where or 'the body'}: {first['msg']}{more}", where[:200] or None) from None


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another site cannot send it without asking first
        raise wrong("the Content-Type must be application/json", "Content-Type", 415)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise wrong("the body must not be compressed", "Content-Encoding", 415)


async def _drain(request: Request) -> None:
    """Read on and throw away, within reason: most clients look for an answer only once they have sent all."""
    if "expect" in request.headers:  # it asked before it sends
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
