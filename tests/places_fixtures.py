"""A real S3 server on this machine, and a proxy in front of it that can refuse requests."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from s3fs import S3FileSystem

KEYS = {
    "AWS_ACCESS_KEY_ID": "the-key-id",
    "AWS_SECRET_ACCESS_KEY": "the-secret-key",
    "AWS_SESSION_TOKEN": "the-session-token",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",
}
SERVER = """
import sys
from moto.server import main
main(["-H", "127.0.0.1", "-p", "0"])
"""


def refusal(code: str) -> bytes:
    """The body with which an S3 server refuses a request."""
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'.encode()


class Proxy:
    """Passes requests on to a server, and counts them.

    Attributes:
        port: where it listens.
        seen: the method and path of each request.
        refuse: gives the status and error code with which a request is refused, or None.
    """

    def __init__(self, port: int) -> None:
        self.seen: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append((self.command, self.path))
                refused = proxy.refuse(self.command, self.path)
                if refused is not None:
                    status, answer, headers = refused[0], refusal(refused[1]), [("Content-Type", "application/xml")]
                else:
                    there = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                    there.request(self.command, self.path, body, dict(self.headers.items()))
                    found = there.getresponse()
                    status, answer, headers = found.status, found.read(), found.getheaders()
                    there.close()
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

            def log_message(self, format: str, *args: object) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """The port of an S3 server (moto) in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "Running on" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # what it logs must not fill the pipe
        yield int(line.rstrip().rpartition(":")[2])
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def the_proxy(s3_port: int) -> Iterator[Proxy]:
    """A proxy in front of the server: one, so that the clients of a module's tests are made once."""
    S3FileSystem.clear_instance_cache()
    found = Proxy(s3_port)
    yield found
    found.close()
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(the_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy, which the variables of S3 name; it refuses nothing."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{the_proxy.port}")
    yield the_proxy
    the_proxy.refuse = lambda method, path: None


@pytest.fixture
def bucket(proxy: Proxy, s3_port: int, request: pytest.FixtureRequest) -> str:
    """The name of a new bucket."""
    name = f"b{abs(hash(request.node.nodeid)) % 10**12}"
    there = http.client.HTTPConnection("127.0.0.1", s3_port, timeout=30)
    there.request("PUT", f"/{name}")
    assert there.getresponse().status == 200
    there.close()
    proxy.seen.clear()
    return name
