"""Every setting of the server: its field, its option of `tmkd serve`, its environment variable TMKD_*, its limits.

A setting is named once, here. The command line makes an option of each field (`tmkd/cli/serve.py`), and
pydantic-settings reads the variables. An option takes precedence over its variable.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tmkd.core.errors import TmkdError

logger = logging.getLogger(__name__)

PREFIX = "TMKD_"
PREFIX_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+\Z")  # no address of another site can be made of it
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
Names = Annotated[tuple[str, ...], NoDecode]
"""Texts with commas between them, as options and variables hold them; in Python any sequence of texts."""


class Settings(BaseSettings):
    """What the server serves, where, and how much of it. The description of a field is the help of its option.

    Raises:
        pydantic.ValidationError: A value that is not usable; it is a `ValueError`.

    Example:
        >>> Settings(model="workspace/runs/demo/export", max_texts=100).body_bytes
        4194304
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, hide_input_in_errors=True, protected_namespaces=()
    )

    model: Path = Field(description="an exported student, such as workspace/runs/demo/export")
    index: Path | None = Field(None, description="an index made by `tmkd index`, for /ask and the page")
    teacher: Path | None = Field(
        None, description="a model folder whose answers the page can show beside the student's; needs PyTorch"
    )
    host: str = Field(
        "127.0.0.1",
        description="address to listen on; 0.0.0.0 stands for all IPv4 addresses of this machine, :: for all addresses",
    )
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 takes any free one")
    api_key: str | None = Field(
        None,
        repr=False,
        description="key that requests must send as Authorization: Bearer KEY; better set as a variable",
    )
    root_path: str = Field("", description="path below which a proxy serves this server, such as /tmkd")
    api_key_file: Path | None = Field(None, description="a file that holds the key")
    cors_origins: Names = Field((), description="web origins whose pages may call the server, with commas between them")
    allowed_hosts: Names = Field(
        (),
        description="Host headers that are answered, with commas between them; *.example.com stands for every name "
        "below it. Unless given: any, or on a loopback address its own names",
    )
    backend: str = Field("auto", description="auto, or one of the export's backends")
    threads: int | None = Field(None, gt=0, description="threads of the scorer; one for each usable core unless given")
    state_cache: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="MiB of passages that a cached student keeps what it has read of; 0 keeps none",
    )
    max_body: PositiveInt = Field(4096, description="most KiB of one request")
    max_buffered: PositiveInt = Field(64, description="most MiB of all requests that are read or answered at once")
    max_texts: PositiveInt = Field(1000, description="most texts of one request")
    max_chars: PositiveInt = Field(65_536, description="most characters of one text")
    max_queue: PositiveInt = Field(8000, description="most pairs that wait to be scored")
    max_connections: PositiveInt = Field(1000, description="most open connections")
    timeout: PositiveFloat = Field(30.0, description="seconds for one request, from its headers to its answer")
    idle_timeout: PositiveFloat = Field(
        10.0, description="seconds for a request's headers to arrive, and that an idle connection is kept"
    )
    batch_tokens: PositiveInt = Field(16_384, description="estimated tokens of one batch")
    batch_wait: NonNegativeFloat = Field(2.0, description="milliseconds that a batch waits for more pairs")
    stall: PositiveFloat = Field(60.0, description="seconds for one batch; after that the scorer is restarted")
    auto_truncate: bool = Field(
        True, description="cut pairs that are too long where a request to /rerank does not say whether to"
    )
    model_name: str = Field("", description="what /info calls the model; the folder's name unless given")
    log_requests: bool = Field(False, description="log one line for each request, without anything of its content")
    quiet: bool = Field(False, description="log warnings and errors only")

    @model_validator(mode="before")
    @classmethod
    def _drop_service_link(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Ignore what Kubernetes (and Docker, with links) sets for a service that is called tmkd.

        Of those variables (TMKD_SERVICE_HOST, TMKD_PORT_8080_TCP and so on) only TMKD_PORT is a setting's.
        """
        port = given.get("port")
        if not isinstance(port, str) or not _SERVICE_LINK.match(port):
            return given
        logger.warning(
            f"{PREFIX}PORT is {port}: Kubernetes sets it for a service called tmkd, so it is ignored and the default "
            f"port is taken; --port names another, and `enableServiceLinks: false` keeps the variable away"
        )
        return {name: value for name, value in given.items() if name != "port"}

    @model_validator(mode="before")
    @classmethod
    def _read_key(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Take the key from its file, without the line end that files and secrets have."""
        key, file = given.get("api_key"), given.get("api_key_file")
        if key is None and file is not None:
            try:
                key = Path(file).read_text(encoding="utf-8")
            except OSError as error:
                raise ValueError(f"the API key's file {file} cannot be read: {error.strerror}") from None
        elif key is None and f"{PREFIX}API_KEY" in os.environ:  # an unset secret would open the server to everyone
            raise ValueError(f"{PREFIX}API_KEY is set and empty; give it a key, or unset it to serve without one")
        return {**given, "api_key": None if key is None else key.strip()}

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        return host[1:-1] if host.startswith("[") and host.endswith("]") else host

    @field_validator("root_path")
    @classmethod
    def _usable_root(cls, path: str) -> str:
        path = path.strip("/")
        if path and not PREFIX_PATH.match(f"/{path}"):
            raise ValueError("it must be a path such as /tmkd: letters, digits and .-_~ between single slashes")
        return f"/{path}" if path else ""

    @field_validator("api_key")
    @classmethod
    def _usable_key(cls, key: str | None) -> str | None:
        if key is not None and (not key or not key.isascii()):
            raise ValueError("the API key must be ASCII characters, and not blank")
        return key

    @field_validator("cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        return tuple(filter(None, map(str.strip, given.split(",")))) if isinstance(given, str) else given

    @field_validator("allowed_hosts")
    @classmethod
    def _usable_hosts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if "*" in name[1:] or (name.startswith("*") and name != "*" and not name.startswith("*.")):
                raise ValueError(f"{name!r} is no pattern for hosts; a * stands first, as in *.example.com")
        return names

    @model_validator(mode="after")
    def _one_body_fits(self) -> Settings:
        if self.buffered_bytes < self.body_bytes:
            raise ValueError(
                f"--max-buffered ({self.max_buffered} MiB) is less than --max-body ({self.max_body} KiB); "
                "give at least as much"
            )
        return self

    @property
    def body_bytes(self) -> int:
        """Most bytes of one request."""
        return self.max_body << 10

    @property
    def buffered_bytes(self) -> int:
        """Most bytes of all requests that are read or answered at once."""
        return self.max_buffered << 20

    @property
    def name(self) -> str:
        """What /info calls the model."""
        return self.model_name or self.model.resolve().name

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> tuple[str, ...]:
        """`Host` headers that are answered, as patterns of Starlette's TrustedHostMiddleware.

        On a loopback address they are its own names: otherwise a page of any site could have its name resolved to
        127.0.0.1 and read a local server.
        """
        if self.allowed_hosts or not self.loopback:
            return self.allowed_hosts or ("*",)
        own = f"[{self.host}]" if ":" in self.host else self.host
        return ("localhost", "127.0.0.1", "[::1]", own)


def settings_of(options: dict[str, Any]) -> Settings:
    """The settings of the command line: the options that were given, then variables, then defaults.

    Args:
        options: the value of each option that was given, by the field's name.

    Raises:
        TmkdError: A value that is not usable; the message names its option, its variable and the value.
    """
    try:
        return Settings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise TmkdError(_sentence(first["loc"], first["msg"], first["input"])) from None


def _sentence(place: tuple[int | str, ...], message: str, given: Any) -> str:
    """One of pydantic's errors in the words of the command line."""
    message = message.removeprefix("Value error, ").replace("Input should", "it must", 1)
    if not place:
        return message
    name = str(place[0])
    option = f"--{name.replace('_', '-')}"
    variable = PREFIX + name.upper()
    if name == "api_key":  # never repeat it
        return message
    return f"{option} is {given} ({variable} as a variable); {message}"
