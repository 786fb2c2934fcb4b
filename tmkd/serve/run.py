"""Run the server with uvicorn, with limits on connections and headers, and stop it gracefully."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
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

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self._address = address

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            logger.info(f"tmkd serve: {self._address}  (Ctrl-C stops it)")


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets that are bound to every address of a host, all to one port. `::` takes IPv4 addresses too.

    Args:
        host: An address, or a name such as `localhost`, which may have an IPv4 and an IPv6 address.
        port: The port; 0 for any free one.

    Raises:
        OSError: There is no such address here, or the port is taken.
    """
    if host == "::":
        if socket.has_dualstack_ipv6():
            one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            return [_bind(one, (host, port))]
        logger.warning("this system does not answer IPv4 on ::, so only IPv6 is answered; --host 0.0.0.0 takes IPv4")
    found: list[socket.socket] = []
    failed: OSError | None = None
    for family, kind, protocol, _, place in dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
        try:
            one = socket.socket(family, kind, protocol)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            found.append(_bind(one, (place[0], found[0].getsockname()[1] if found else port, *place[2:])))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a name's address that is not there
                for one in found:
                    one.close()
                raise
            failed = error
    if failed is not None and not found:
        raise failed
    return found


def _bind(one: socket.socket, place: tuple[Any, ...]) -> socket.socket:
    try:
        if os.name == "posix":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(place)
        return one
    except OSError:
        one.close()
        raise


def address(host: str, port: int) -> str:
    """An address at which a browser on this machine reaches the server, and what else answers."""
    others = {"0.0.0.0": "all IPv4 addresses of this machine", "::": "all addresses of this machine"}
    if host == "::" and not socket.has_dualstack_ipv6():
        others["::"] = "all IPv6 addresses of this machine"
    shown = "localhost" if host in others else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f", on {others[host]}" if host in others else "")


def run(settings: Settings) -> None:
    """Serve until a signal ends the server; requests that were accepted are answered first.

    Raises:
        TmkdError: A model cannot be opened, or the port is taken.
    """
    if settings.api_key is None and not settings.loopback:
        logger.warning(f"everyone who can reach {settings.host} can use this server; set TMKD_API_KEY to ask for a key")
    try:
        sockets = bound(settings.host, settings.port)
    except OSError as error:
        raise TmkdError(_cannot_open(settings, error)) from None
    app = create_app(settings)
    protocol = type("Connection", (Connection,), {"settings": settings})
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, http=protocol, ws="none", loop="asyncio", lifespan="on",
        log_config=None, log_level="critical", access_log=False, server_header=False, backlog=2048,
        timeout_keep_alive=int(settings.idle_timeout) + 1, timeout_graceful_shutdown=int(settings.timeout) + 5,
        h11_max_incomplete_event_size=HEADERS,
    )  # fmt: skip
    server = _Server(config, address(settings.host, sockets[0].getsockname()[1]))
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises what stopped it once more at its end
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=sockets)
    except SystemExit:
        raise TmkdError(app.state.server.problem or "the server did not start") from None
    except OSError as error:  # another server took the port while the models were opened
        raise TmkdError(_cannot_open(settings, error)) from None
    finally:
        for one in sockets:
            one.close()
    if not server.started:
        raise TmkdError(app.state.server.problem or "the server did not start")
    logger.info("tmkd serve: stopped; all accepted requests are answered")


def _cannot_open(settings: Settings, error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    return f"port {settings.port} of {settings.host} cannot be opened: {reason}; --host and --port name another place"
