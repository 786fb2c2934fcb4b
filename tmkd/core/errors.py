"""Every error that tmkd raises on purpose. Each message names what is wrong, where, and the fix.

TmkdError
├── DataError            a file, row or column that cannot be used
├── FetchError           something that had to be fetched is not to be had
├── RecipeError          the recipe or an override on the command line
├── EncoderError         weights, configuration or tokenizer of a model
├── Diverged             a training run whose loss is not finite any more
├── LabelError           the label store: missing, non-finite or foreign labels
├── ExportError          an export that does not match, or a back end that is not there
└── MissingExtraError    an optional dependency that is not installed
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TmkdError(Exception):
    """Base class; the command line prints its message without a traceback and exits with 1."""


class DataError(TmkdError):
    """A file, row or column that cannot be used."""


class FetchError(TmkdError):
    """Something that had to be fetched is not to be had."""


class RecipeError(TmkdError):
    """The recipe, or an override of it, is not valid."""


class EncoderError(TmkdError):
    """Weights, configuration or tokenizer of a model are missing, damaged or not supported."""


class Diverged(TmkdError):
    """A training run's loss is not finite any more."""


class LabelError(TmkdError):
    """Stored labels are missing, not finite, or belong to another teacher."""


class ExportError(TmkdError):
    """An export does not match the student, or the back end asked for is not available."""


class MissingExtraError(TmkdError):
    """An optional dependency is not installed; the message says what to install."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports: MissingExtraError names what is not installed, and the extra that brings it."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"this needs {error.name or error}; install it with: pip install 'tmkd[{extra}]'"
        ) from error
