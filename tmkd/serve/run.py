"""Run the server with uvicorn, with limits on connections and headers, and stop it gracefully."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from typing import Any

import h11
import uvicorn
from pydantic_core import to_json
from uvicorn.protocols.http.h11_impl import H11Protocol

from tmkd.core.errors import TmkdError
from tmkd.serve.app import create_app
from tmkd.serve.settings import Settings

logger = logging.getLogger(__name__)

HEADERS = 16_384  # bytes of a request's line and headers
SLOWEST = 4096  # bytes per second; the connection of a client that reads more slowly is closed


class Connection(H11Protocol):
    """One connection. Requests must arrive and answers must be read in time, and there is a limit on connections."""

    settings: Settings
    _timer: asyncio.TimerHandle | None = None
    _unread = float("inf")  # bytes that the client had not read when the timer last ended

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or answer that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            transport.write(_plain(503, "Unhealthy", "too many connections", b"Retry-After: 1\r\n"))
            transport.close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """A request is answered; the time for the next one's headers begins."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client has stopped reading."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no valid HTTP with JSON, unless an answer has begun already."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_plain(400, "Validation", msg))
        self.transport.close()

    def _watch(self) -> None:
        """Start or stop the timer of a slow client.

        It runs exactly while the server waits for the client: for a request's headers, for the rest of a body that is
        answered already, or for the client to read.
        """
        begun = self.conn.their_state is not h11.IDLE or self.conn.our_state is not h11.IDLE
        waiting = not begun or self.conn.our_state is h11.DONE or self.flow.write_paused
        if waiting and self._timer is None:
            self._timer = self.loop.call_later(self.settings.idle_timeout, self._expire)
        elif not waiting and self._timer is not None:
            self._timer.cancel()
            self._timer, self._unread = None, float("inf")

    def _expire(self) -> None:
        """Close the connection; abort it if the client reads almost nothing of what is still to be sent."""
        seconds, left = self.settings.idle_timeout, self.transport.get_write_buffer_size()
        if left and left > self._unread - SLOWEST * seconds:
            self.transport.abort()
            return
        self._unread = left or float("inf")
        if not self.flow.write_paused:
            self.transport.close()
        if left:
            self._timer = self.loop.call_later(seconds, self._expire)


def _plain(status: int, kind: str, message: str, more: bytes = b"") -> bytes:
    content = to_json({"error": message, "error_type": kind})
    reason = {400: b"Bad Request", 503: b"Service Unavailable"}[status]
    return (
        b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n%b\r\n%b"
        % (status, reason, len(content), more, content)
    )


class _Server(uvicorn.Server):
    """The server of uvicorn, which logs its address once it has started."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            for server in self.servers:
                for sock in server.sockets:
                    host, port = sock.getsockname()[:2]
                    logger.info(f"tmkd serve: http://{f'[{host}]' if ':' in host else host}:{port}/  (Ctrl-C stops it)")


def run(settings: Settings) -> None:
    """Serve until a signal ends the server; requests that were accepted are answered first.

    Raises:
        TmkdError: A model cannot be opened, or the port is taken.
    """
    if settings.api_key is None and not settings.loopback:
        logger.warning(f"everyone who can reach {settings.host} can use this server; set TMKD_API_KEY to ask for a key")
    app = create_app(settings)
    protocol = type("Connection", (Connection,), {"settings": settings})
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, http=protocol, ws="none", loop="asyncio", lifespan="on",
        log_config=None, log_level="critical", access_log=False, server_header=False, backlog=2048,
        timeout_keep_alive=int(settings.idle_timeout) + 1, timeout_graceful_shutdown=int(settings.timeout) + 5,
        h11_max_incomplete_event_size=HEADERS,
    )  # fmt: skip
    server = _Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises what stopped it once more at its end
        signal.signal(number, lambda *_: None)
    try:
        server.run()
    except SystemExit:
        raise TmkdError(_reason(app, settings)) from None
    if not server.started:
        raise TmkdError(_reason(app, settings))
    logger.info("tmkd serve: stopped; all accepted requests are answered")


def _reason(app: Any, settings: Settings) -> str:
    problem: str = app.state.server.problem
    if problem:
        return problem
    try:
        family, *_, place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as one:
            one.bind(place)
        reason = "taken a moment ago"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    return f"port {settings.port} of {settings.host} cannot be opened: {reason}; --host and --port name another place"
