"""Every setting of the server, checked once. Each is a flag of `tmkd serve` and an environment variable TMKD_*."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from tmkd.core.errors import TmkdError

MEBI = 1 << 20
_POSITIVE = (
    "max_body", "max_texts", "max_chars", "max_queue", "max_connections", "batch_tokens",
    "timeout", "idle_timeout", "stall",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the server serves, where, and how much of it.

    Attributes:
        model: an export. index: an index of documents, for /ask and the page. teacher: a model folder, or None.
        backend, threads: of the scorer, as in `tmkd.inference.scorer.Scorer`.
        host, port: where it listens. api_key: asked for in `Authorization: Bearer`; None: none.
        cors_origins: web origins whose pages may call it. allowed_hosts: `Host` headers that are answered; empty: any,
            or, on a loopback address, that address's names alone.
        max_body: bytes of a request. max_buffered: bytes of all requests that are being read or answered.
        max_texts: texts of a request. max_chars: characters of one text.
        max_queue: pairs that wait. max_connections: open connections.
        timeout: seconds for one request, from its headers to its answer.
        idle_timeout: seconds for a request's headers to arrive, and that an idle connection is kept.
        batch_tokens: estimated tokens of a batch. batch_wait: seconds that a batch waits to be filled.
        stall: seconds for one batch, after which the scorer is taken to hang and is started anew.
        auto_truncate: whether a pair beyond the student's length is cut where the request does not say.
        model_name: what /info calls the model. log_requests: one line a request, without its content.
    """

    model: Path
    index: Path | None = None
    teacher: Path | None = None
    backend: str = "auto"
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = field(default=None, repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body: int = 4 * MEBI
    max_buffered: int = 64 * MEBI
    max_texts: int = 1000
    max_chars: int = 65_536
    max_queue: int = 8000
    max_connections: int = 1000
    timeout: float = 30.0
    idle_timeout: float = 10.0
    batch_tokens: int = 16_384
    batch_wait: float = 0.002
    stall: float = 60.0
    auto_truncate: bool = True
    model_name: str = ""
    log_requests: bool = False

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise TmkdError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if self.batch_wait < 0:
            raise TmkdError(f"batch-wait is {self.batch_wait}; it must be 0 or more")
        if self.max_buffered < self.max_body:
            raise TmkdError(
                f"max-buffered ({self.max_buffered}) is below max-body ({self.max_body}); use at least that"
            )
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.strip()):
            raise TmkdError("the API key must be ASCII characters, and not blank")

    @property
    def name(self) -> str:
        """What /info calls the model."""
        return self.model_name or self.model.resolve().name

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> tuple[str, ...]:
        """`Host` headers that are answered, in lower case; empty: any.

        Without this a page of any site could have its own name resolved to 127.0.0.1 and read a local server.
        """
        given = tuple(name.lower() for name in self.allowed_hosts)
        if given or not self.loopback:
            return given
        return ("localhost", "127.0.0.1", "::1", self.host.lower())
