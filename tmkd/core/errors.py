"""Every error that tmkd raises on purpose. Each message names what is wrong, where, and how to mend it.

What a program may want to know of an error stands in its attributes too, each None where it does not apply. A wrong
argument to a Python function is a `ValueError`, as usual.

TmkdError
├── DataError            a file, row or column that cannot be used
├── FetchError           something that cannot be fetched
├── EndpointError        an HTTP endpoint that refuses, or answers something else
├── RecipeError          the recipe, or an override of it, is not valid
├── EncoderError         weights, configuration or tokenizer of a model
├── Diverged             a training run whose loss is no longer finite
├── LabelError           the label store: labels that are missing, not finite, or of another teacher
├── ExportError          an export that does not match its student, or a backend that is not available
├── NoRoomError          a full disk
├── PlaceError           an address of a folder, such as s3://..., that cannot be read or written
├── ClusterError         a Ray cluster that is not there, went away, or has no room
└── MissingExtraError    an optional dependency that is not installed
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self


class TmkdError(Exception):
    """Base class. The command line prints the message without a traceback and exits with status 1."""

    def within(self, place: str) -> Self:
        """The same error with its attributes, its message headed by the place where it happened."""
        error = copy.copy(self)
        error.args = (f"{place}: {self}",)
        return error


class DataError(TmkdError):
    """A file, row or column cannot be used.

    Attributes:
        path: the file.
        line: the line of it, counted from 1.
        column: the column.
        value: what the row holds in that column.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        column: str | None = None,
        value: Any = None,
    ) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)
        self.line = line
        self.column = column
        self.value = value


class FetchError(TmkdError):
    """Something cannot be fetched: no network, no tool that fetches it, or nothing of that name.

    Attributes:
        what: what was to be fetched.
    """

    def __init__(self, message: str, *, what: str | None = None) -> None:
        super().__init__(message)
        self.what = what


class EndpointError(TmkdError):
    """An HTTP endpoint refuses, does not answer, or answers something that cannot be used.

    Attributes:
        url: its address.
        status: the status of its last answer; None where it gave none, or a good one that cannot be used.
    """

    def __init__(self, message: str, *, url: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.status = status


class RecipeError(TmkdError):
    """The recipe, or an override of it, is not valid.

    Attributes:
        where: the recipe's file, or the override.
        key: the key at fault, with dots into parts (`stage1.epochs`); of several the first.
        value: what the key holds.
    """

    def __init__(self, message: str, *, where: str | None = None, key: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.where = where
        self.key = key
        self.value = value


class EncoderError(TmkdError):
    """Weights, configuration or tokenizer of a model are missing, damaged or not supported.

    Attributes:
        source: the model's folder, or its name as the recipe has it.
    """

    def __init__(self, message: str, *, source: Path | str | None = None) -> None:
        super().__init__(message)
        self.source = source


class Diverged(TmkdError):
    """The loss of a training run is no longer finite.

    Attributes:
        step: the optimiser step, counted from 1.
    """

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class LabelError(TmkdError):
    """Stored labels are missing, not finite, or belong to another teacher.

    Attributes:
        path: the label store, or the file of it.
        key: the key of the store's header that differs, where the labels are of another teacher.
        missing: how many of the wanted pairs have no labels.
        not_finite: how many of the wanted pairs have labels that are not finite.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        key: str | None = None,
        missing: int | None = None,
        not_finite: int | None = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.key = key
        self.missing = missing
        self.not_finite = not_finite


class ExportError(TmkdError):
    """An export does not match its student, or the backend that was asked for is not available.

    Attributes:
        folder: the export.
        backend: the backend at fault.
    """

    def __init__(self, message: str, *, folder: Path | None = None, backend: str | None = None) -> None:
        super().__init__(message)
        self.folder = folder
        self.backend = backend


class NoRoomError(TmkdError):
    """There is no room for a file; what was there before stays.

    Attributes:
        path: what was written.
        needed: its bytes, where they are known.
        free: bytes free on its disk.
    """

    def __init__(self, path: Path, reason: str, *, needed: int | None = None, free: int) -> None:
        room = "" if needed is None else f"{needed / 2**20:,.1f} MiB needed, "
        super().__init__(
            f"{reason} at {path} ({room}{free / 2**20:,.1f} MiB free). Finished work is kept: "
            "free some space (`tmkd clean` lists steps no run needs) and run the same command again"
        )
        self.path = path
        self.needed = needed
        self.free = free


class PlaceError(TmkdError):
    """A folder at an address, such as s3://bucket/folder, cannot be read or written: credentials, room, connection.

    Attributes:
        address: the file or folder.
    """

    def __init__(self, message: str, *, address: str | None = None) -> None:
        super().__init__(message)
        self.address = address


class ClusterError(TmkdError):
    """A Ray cluster is not there, went away, or has no room for a worker. What came back from it is kept."""


class MissingExtraError(TmkdError):
    """An optional dependency is not installed; the message says what to install.

    Attributes:
        extra: the extra of tmkd that brings it (`pip install 'tmkd[EXTRA]'`).
        package: what could not be imported.
    """

    def __init__(self, message: str, *, extra: str | None = None, package: str | None = None) -> None:
        super().__init__(message)
        self.extra = extra
        self.package = package


def first_line(error: BaseException) -> str:
    """What an error says in its first line; the name of its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def named(whose: str) -> Iterator[None]:
    """Put around what reads a model: an error of its files also says whose model it is.

    Args:
        whose: such as "teacher large".

    Raises:
        EncoderError: that of the block, headed by `whose`.
    """
    try:
        yield
    except EncoderError as error:
        raise error.within(whose) from error


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Put around imports: a package that is not installed becomes an error that names the extra to install.

    Raises:
        MissingExtraError: an import failed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"this needs {error.name or error}; install it with: pip install 'tmkd[{extra}]'",
            extra=extra,
            package=error.name,
        ) from error
