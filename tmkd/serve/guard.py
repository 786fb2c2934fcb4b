"""What every request passes before its route: host, key, connection's headers; and what every answer gets."""

from __future__ import annotations

import hmac
import logging
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tmkd.serve.refusals import Refusal
from tmkd.serve.state import Server

logger = logging.getLogger(__name__)

PROBED = ("/health", "/ready")  # by what watches over the server, at whatever address it finds it
OPEN = ("/", "/docs", *PROBED)  # without a key; what is under /page/ too
_PAGE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}


class Guard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, server: Server, routes: frozenset[str]) -> None:
        self._app, self._server, self._routes = app, server, routes
        key = server.settings.api_key
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if headers.get("content-type", "").startswith("text/html"):
                    headers.update(_PAGE)
            await send(message)

        try:
            self._check(scope)
        except Refusal as refusal:
            await refusal.response(scope["path"])(scope, receive, answer)
        else:
            await self._app(scope, receive, answer)
        finally:
            self._count(scope, status, time.monotonic() - start)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        hosts = self._server.settings.hosts
        if hosts and path not in PROBED and host_of(headers.get("host", "")) not in hosts:
            raise Refusal(421, "Validation", "this server does not answer to that Host", field="Host")
        if self._key is None or path in OPEN or path.startswith("/page/"):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key):
            raise Refusal(
                401, "Authorization", "an API key is needed: Authorization: Bearer KEY", field="Authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self._routes else "other"
        metrics = self._server.metrics
        metrics.requests.labels(route, str(status or "gone")).inc()
        metrics.seconds.labels(route).observe(seconds)
        if self._server.settings.log_requests:
            logger.info(f"{scope['method']} {route} {status or 'gone'} {1000 * seconds:.1f} ms")


def host_of(header: Any) -> str:
    """The name in a Host header, without its port, in lower case."""
    name = str(header).lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]
