"""Checks of every request before its route (its Host header, its key), and headers of every answer."""

from __future__ import annotations

import hmac
import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tmkd.serve.metrics import Metrics
from tmkd.serve.refusals import Refusal
from tmkd.serve.settings import Settings

logger = logging.getLogger(__name__)

PROBED = ("/health", "/ready")  # what watches over a server knows its address and no name, so any Host will do
DOCS = "/docs"
OPEN = ("/", DOCS, *PROBED)  # routes that need no key, like those below /page/
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
    """ASGI middleware around the routes.

    Args:
        app: The routes.
        settings: Which hosts and which key are accepted, and whether requests are logged.
        metrics: Where requests are counted.
        routes: The paths that are counted under their own name; all others count as `other`.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app, self._settings, self._metrics, self._routes = app, settings, metrics, routes
        self._key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, pass it on, count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, head = time.monotonic(), 0, scope["method"] == "HEAD"
        asked, scope = scope["path"], self._routed(scope)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if headers.get("content-type", "").startswith("text/html"):
                    headers.update(_PAGE)
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            if scope["path"] == DOCS and asked.endswith("/"):  # the page's links are relative
                await RedirectResponse(f"..{DOCS}", 308)(scope, receive, answer)
                return
            await self._checked(scope, receive, answer)
        finally:
            self._count(scope, status, time.monotonic() - start)

    def _routed(self, scope: Scope) -> Scope:
        """A request as the routes know it: HEAD as GET, without the proxy's prefix and without needless slashes."""
        path = re.sub("/{2,}", "/", scope["path"])
        root = self._settings.root_path
        if root and (path == root or path.startswith(f"{root}/")):  # this proxy does not strip it
            path = path[len(root) :]
        path = path.rstrip("/") or "/"
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        return {**scope, "path": path, "raw_path": path.encode(), "method": method}

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with a wrong Host or key with a refusal; pass on any other."""
        path = scope["path"]

        async def accepted(scope: Scope, receive: Receive, _: Send) -> None:
            if self._has_key(scope):
                await self._app(scope, receive, send)
                return
            message, headers = "an API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            refusal = Refusal(401, "Authorization", message, field="Authorization", headers=headers)
            await refusal.response(path)(scope, receive, send)

        async def refuse(message: Message) -> None:  # in place of Starlette's plain text: our clients read JSON
            if message["type"] == "http.response.start":
                refusal = Refusal(421, "Validation", "this server does not answer to that Host", field="Host")
                await refusal.response(path)(scope, receive, send)

        hosts = ("*",) if path in PROBED else self._settings.hosts
        await TrustedHostMiddleware(accepted, allowed_hosts=hosts, www_redirect=False)(scope, receive, refuse)

    def _has_key(self, scope: Scope) -> bool:
        """Whether a request may pass: it has the key, or its route or this server needs none."""
        path = scope["path"]
        if self._key is None or path in OPEN or path.startswith("/page/"):
            return True
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._key)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self._routes else "other"
        self._metrics.requests.labels(route, str(status or "gone")).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._settings.log_requests:
            logger.info(f"{scope['method']} {route} {status or 'gone'} {1000 * seconds:.1f} ms")
