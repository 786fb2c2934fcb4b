"""Hostile requests: wrong, large, deeply nested, damaged or odd. A seed gives the same endless series."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

PATHS = ("/rerank", "/v1/rerank", "/v2/rerank", "/ask")
_VALUES = (
    b"null", b"true", b"0", b"-1", b"1e400", b"NaN", b"-Infinity", b'""', b'"\\u0000"', b'"\\ud800"', b'"\xff"', b"[]",
    b"{}", b"[[]]", b'["a",null]', b'[{"text":1}]', b'[{"text":"a"}]', b"9" * 5000, b'"\x07"', b"'a'", b"undefined",
    b'"\\x"', b'["a"],', b'"' + b"\xf0\x9f\x98\x80" * 200 + b'"', b'["' + b"a" * 5000 + b'"]', b'["\xe2\x80\xae"]',
)  # fmt: skip
_KEYS = (
    "query", "texts", "documents", "question", "top_n", "top", "candidates", "truncate", "raw_scores", "return_text",
    "return_documents", "rank_fields", "truncation_direction", "model", "ranker", "max_tokens_per_doc", "__proto__",
)  # fmt: skip
_TARGETS = (
    b"/", b"/../../etc/passwd", b"/%00", b"/%ff%fe", b"/page/../app.py", b"//rerank", b"/rerank/", b"*", b"/docs",
    b"/info?" + b"a" * 2000, b"/metrics", b"/openapi.json", b"/%2e%2e/%2e%2e", b"/rerank;a=b", b"/health",
)  # fmt: skip
_METHODS = (b"GET", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"BREW", b"get")
_HEAD = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\n"
_JSON = b"Content-Type: application/json\r\n"
_VALID = {"query": "how do i mount a disk", "texts": ["a disk"], "documents": ["a disk"], "question": "a disk"}


def hostile(seed: int, limit: int) -> Iterator[bytes]:
    """Yield whole HTTP requests as bytes, for ever.

    Args:
        seed: Of the series.
        limit: The server's largest body in bytes; some requests have more.
    """
    generator = np.random.default_rng(seed)
    kinds = (_fields, _fields, _fields, _torn, _deep, _many, _huge, _noise, _heads, _chunks, _targets)
    while True:
        yield kinds[generator.integers(len(kinds))](generator, limit)


def valid() -> bytes:
    """A request that the server must answer with status 200."""
    return _post("/rerank", json.dumps({key: _VALID[key] for key in ("query", "texts")}).encode())


def _post(path: str, body: bytes, more: bytes = _JSON) -> bytes:
    return _HEAD % path.encode() + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _path(generator: np.random.Generator) -> str:
    return PATHS[generator.integers(len(PATHS))]


def _fields(generator: np.random.Generator, _: int) -> bytes:
    """A valid request with one to three fields set to something else."""
    parts = {key: json.dumps(value).encode() for key, value in _VALID.items()}
    del parts[("texts", "documents")[generator.integers(2)]]  # both at once are refused before anything else is read
    for _ in range(generator.integers(1, 4)):
        parts[_KEYS[generator.integers(len(_KEYS))]] = _VALUES[generator.integers(len(_VALUES))]
    body = b",".join(b'"%b":%b' % (key.encode(), value) for key, value in parts.items())
    return _post(_path(generator), b"{" + body + b"}")


def _torn(generator: np.random.Generator, _: int) -> bytes:
    """Valid JSON that is cut off or has changed bytes."""
    body = bytearray(json.dumps(_VALID).encode())
    for _ in range(generator.integers(1, 5)):
        body[generator.integers(len(body))] = generator.integers(256)
    return _post(_path(generator), bytes(body[: generator.integers(len(body) + 1)]))


def _deep(generator: np.random.Generator, _: int) -> bytes:
    """Nested lists or objects, closed or not."""
    depth = int(10 ** generator.uniform(1, 4.5))
    opened, closed = ((b"[", b"]"), (b'{"a":', b"}"))[generator.integers(2)]
    inner = opened * depth + b"1" + closed * (depth if generator.integers(2) else 0)
    return _post(_path(generator), (b'{"query":"a","texts":%b}' % inner) if generator.integers(2) else inner)


def _many(generator: np.random.Generator, limit: int) -> bytes:
    """Many texts, up to a million: more than the server accepts."""
    count = min(int(10 ** generator.uniform(0, 6)), limit)
    entry = (b'""', b'"a"', b"1", b"{}")[generator.integers(4)]
    return _post(_path(generator), b'{"query":"a","question":"a","texts":[%b]}' % b",".join([entry] * count))


def _huge(generator: np.random.Generator, limit: int) -> bytes:
    """One text as long as the largest body, or longer."""
    size = int(limit * generator.uniform(0.1, 1.5))
    kind = (b"a", b" ", b"\\n", b"\xc3\xa9", b"a ")[generator.integers(5)]
    text = kind * (size // len(kind))
    return _post(_path(generator), b'{"query":"a","question":"%b","texts":["%b"]}' % (text[:50], text))


def _noise(generator: np.random.Generator, _: int) -> bytes:
    """Random bytes as a body, with any content type."""
    kinds = (b"application/json", b"text/plain", b"multipart/form-data; boundary=a", b"\xff", b"application/xml", b"")
    kind = b"Content-Type: %b\r\n" % kinds[generator.integers(len(kinds))]
    return _post(_path(generator), generator.bytes(int(generator.integers(0, 300))), kind)


def _heads(generator: np.random.Generator, _: int) -> bytes:
    """Headers that contradict each other, repeat or are too long."""
    odd = (
        b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 0x10\r\n", b"Transfer-Encoding: gzip\r\n",
        b"X: " + b"a" * 100_000 + b"\r\n", b"A: 1\r\n" * 2000, b"Expect: 100-continue\r\nContent-Length: 99999999\r\n",
        b"Content-Encoding: gzip\r\nContent-Length: 2\r\n", b"Authorization: Bearer \xff\r\nContent-Length: 2\r\n",
        b"\x00: a\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b" folded\r\nContent-Length: 2\r\n",
    )  # fmt: skip
    return _HEAD % b"/rerank" + _JSON + odd[generator.integers(len(odd))] + b"\r\n{}"


def _chunks(generator: np.random.Generator, limit: int) -> bytes:
    """A chunked body: whole, larger than the limit, or with wrong sizes."""
    body = json.dumps(_VALID).encode()
    long = b"".join(b"1000\r\n" + b" " * 4096 + b"\r\n" for _ in range(limit // 4096 + 2)) + b"0\r\n\r\n"
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    sizes = (whole, b"zz\r\n", b"-1\r\n", b"ffffffffffffffff\r\na", b"5\r\nab\r\n0\r\n\r\n", long)
    head = _HEAD % b"/rerank" + _JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + sizes[generator.integers(len(sizes))]


def _targets(generator: np.random.Generator, _: int) -> bytes:
    """Other paths, methods, hosts and versions."""
    method, target = _METHODS[generator.integers(len(_METHODS))], _TARGETS[generator.integers(len(_TARGETS))]
    version = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"")[generator.integers(5)]
    host = (b"127.0.0.1", b"evil.example", b"", b"[::1", b"a:b:c")[generator.integers(5)]
    return b"%b %b %b\r\nHost: %b\r\n\r\n" % (method, target, version, host)
