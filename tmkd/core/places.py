"""Folders at any address that fsspec opens: `s3://bucket/folder`, `file:///shared/disk`, or a plain path.

Files are small and written as a whole: readers see the old content or the new one. Errors of the libraries below become
a `PlaceError` that names the address, what failed and what to do. Keys are read from where each library looks for them
(for S3 the standard variables such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL); they are in no address and no message.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tmkd.core.errors import MissingExtraError, PlaceError, TmkdError, needs_extra
from tmkd.core.files import write_durably


class Place:
    """A folder at an address. It need not exist: it is there as soon as it holds a file.

    Args:
        address: as `str` gives it.
        files: the file system, as fsspec opens it.
        path: the folder in that file system.

    Example:
        >>> import tempfile
        >>> place = Place.at(tempfile.mkdtemp()) / "labels"
        >>> place.write("a.json", b"{}")
        >>> place.read("a.json"), place.read("b.json"), place.names()
        (b'{}', None, ['a.json'])
    """

    def __init__(self, address: str, files: Any, path: str) -> None:
        self.address, self._files, self._path = address, files, path
        self._local = type(files).__name__ == "LocalFileSystem"

    @classmethod
    def at(cls, address: str | Path) -> Place:
        """Open an address. Nothing is read yet.

        Raises:
            PlaceError: an address of a kind that is not known, or one with keys in it.
            MissingExtraError: the package that opens it is not installed.
        """
        text = str(address).rstrip("/") or "/"
        kind, _, rest = text.partition("://")
        if rest and re.search(r"[@?]", rest):
            raise PlaceError(f"an address of the kind {kind}:// must not hold keys, @ or ?; put keys into variables")
        with needs_extra("remote"):
            from fsspec.core import url_to_fs

            if kind == "s3":
                importlib.import_module("s3fs")
        # s3fs otherwise sends a HEAD before each GET, and the answer to a HEAD does not say why it failed
        one_request = {"max_concurrency": 1} if kind == "s3" else {}
        try:
            files, path = url_to_fs(text, use_listings_cache=False, **one_request)
        except ValueError as error:
            raise PlaceError(f"{text} cannot be opened ({error}); S3 is s3://bucket/folder", address=text) from error
        except ImportError as error:  # such as "Please install gcsfs to access Google Storage"
            raise MissingExtraError(f"{text} cannot be opened: {error}", package=error.name) from error
        return cls(text, files, path)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rpartition("/")[2]

    @property
    def folder(self) -> Path | None:
        """The folder, where it is one of this machine's file system."""
        return Path(self._path) if self._local else None

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.address}/{name}", self._files, f"{self._path}/{name}")

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none of that name."""
        with self._errors(name, "be read"):
            try:
                return bytes(self._files.cat_file(f"{self._path}/{name}"))
            except FileNotFoundError as error:
                if _code(error).startswith("NoSuchBucket"):
                    raise
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file as a whole, in place of one that is there.

        Raises:
            PlaceError: it cannot be written.
            NoRoomError: this machine's disk is full.
        """
        with self._errors(name, "be written"):
            if self.folder is not None:
                with self._aside(name, content) as whole:
                    os.replace(whole, self.folder / name)
            else:
                self._files.pipe_file(f"{self._path}/{name}", content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file as a whole if there is none of that name; returns whether there was none."""
        with self._errors(name, "be written"):
            try:
                if self.folder is not None:
                    with self._aside(name, content) as whole:
                        os.link(whole, self.folder / name)
                else:
                    self._files.pipe_file(f"{self._path}/{name}", content, mode="create")
            except FileExistsError:
                return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._errors(name, "be removed"), suppress(FileNotFoundError):
            self._files.rm_file(f"{self._path}/{name}")

    def names(self) -> list[str]:
        """The names of the files and folders in it, sorted."""
        with self._errors("", "be listed"):
            try:
                found = self._files.ls(self._path, detail=False, refresh=True)
            except FileNotFoundError as error:
                if _code(error).startswith("NoSuchBucket"):
                    raise
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != self._path)

    @contextmanager
    def _aside(self, name: str, content: bytes) -> Iterator[Path]:
        """Write a file of this machine under another name, which no process of any machine that shares the disk has."""
        assert self.folder is not None
        whole = self.folder / f".{name}.{secrets.token_hex(8)}.tmp"
        try:
            write_durably(whole, content)
            yield whole
        finally:
            whole.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, name: str, what: str) -> Iterator[None]:
        """Turn the errors of the libraries below into a `PlaceError`."""
        try:
            yield
        except TmkdError:
            raise
        except Exception as error:
            foreign = type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec"))
            if not foreign and not isinstance(error, OSError | TimeoutError):
                raise
            address = f"{self.address}/{name}" if name else self.address
            raise PlaceError(f"{address} cannot {what}: {_reason(error)}", address=address) from error


_REASONS = {
    r"ExpiredToken|TokenRefresh|RequestExpired": "the credentials have expired; renew them",
    r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|InvalidClientTokenId|AuthorizationHeaderMalformed":
        "the credentials are not accepted; look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    r"NoCredentials|PartialCredentials|CredentialRetrieval|TokenRetrieval|UnauthorizedSSO|SSOToken":
        "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what else boto3 reads",
    r"AccessDenied|AllAccessDisabled|AccountProblem": "the credentials do not allow it",
    r"NoSuchBucket|InvalidBucketName": "there is no such bucket; make it, or name another",
    r"StorageFull|QuotaExceeded|InsufficientStorage|DiskFull|507": "there is no room; free some, or raise the quota",
    r"SlowDown|ServiceUnavailable|InternalError|\b50[0234]\b": "the server has a fault or is overloaded, after retries",
    r"EndpointConnection|ConnectTimeout|ReadTimeout|ConnectionClosed|ClientConnect|ServerDisconnect|FSTimeout|Timeout|"
    r"ConnectionRefused|ConnectionReset|IncompleteRead|ClientPayload|HTTPClientError":
        "the server does not answer, after retries; look at the network and AWS_ENDPOINT_URL",
    r"\b40[13]\b": "the credentials do not allow it",
}  # fmt: skip


def _reason(error: BaseException) -> str:
    """Why it failed and what to do, without any key."""
    words = f"{type(error).__name__} {_code(error)} {type(error.__cause__).__name__}"
    for pattern, reason in _REASONS.items():
        if re.search(pattern, words):
            return reason
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        text = text.replace(os.environ.get(name) or "\0", "...")
    return text.splitlines()[0]


def _code(error: BaseException) -> str:
    """What the server said: its error's code and HTTP status, such as `ExpiredToken 403`; empty if it said nothing."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(response := getattr(seen, "response", None), dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
            return f"{response.get('Error', {}).get('Code', '')} {status}"
        seen = seen.__cause__ or seen.__context__
    return ""
