"""A stub of a server that scores, which may misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]


class Stub:
    """A server that answers what `answer` says, and keeps what it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self.now = 0
        lock, stub = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    stub.asked.append(body)
                    stub.headers.append(dict(self.headers))
                    number = len(stub.asked)
                    stub.now += 1
                    stub.most = max(stub.most, stub.now)
                status, content = answer(body, number)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                with lock:
                    stub.now -= 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def stub(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[Stub]:
    found = Stub(answer)
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()


def ranks(body: dict[str, Any], _: int = 0) -> Answer:
    """TEI's answer: the passages' lengths as scores, best first."""
    scores = sorted(((len(text), index) for index, text in enumerate(body["texts"])), reverse=True)
    return 200, [{"index": index, "score": length} for length, index in scores]
