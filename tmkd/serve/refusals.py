"""What the server answers instead of a result: a status, a kind, a sentence, and the field that it is about.

The form depends on whose API the path belongs to: `{"error", "error_type"}` as text-embeddings-inference answers, and
`{"message"}` as Cohere answers below /v1 and /v2. Both also carry `field` where a field of the request is wrong.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

COHERE = ("/v1/", "/v2/")


class Refusal(Exception):
    """The answer to a request that gets no result.

    Attributes:
        status: The HTTP status.
        kind: The `error_type`, one of text-embeddings-inference's.
        message: A sentence that says what is wrong, and what the limit is.
        field: The field of the request that is wrong; None where it is no single field.
        headers: Headers of the answer.

    Args:
        retry_after: Seconds after which the same request may work; None where it never will.
    """

    def __init__(
        self, status: int, kind: str, message: str, *, field: str | None = None, retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.kind, self.message, self.field = status, kind, message, field
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def response(self, path: str) -> Response:
        """The answer in the form that clients of this path read."""
        content: dict[str, Any] = {"error": self.message, "error_type": self.kind}
        if path.startswith(COHERE):
            content = {"message": self.message}
        if self.field is not None:
            content["field"] = self.field
        return json_response(content, self.status, self.headers)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of JSON. Numbers that are not finite become null."""
    return Response(to_json(content, inf_nan_mode="null"), status, headers, media_type="application/json")


def wrong(message: str, field: str | None = None, status: int = 422) -> Refusal:
    """Refuse a request with a missing or wrong field."""
    return Refusal(status, "Validation", message, field=field)


def too_large(message: str, field: str | None = None) -> Refusal:
    """Refuse a request beyond a limit (413)."""
    return wrong(message, field, 413)


def overloaded(message: str, retry_after: float) -> Refusal:
    """Refuse a request for which there is no room (429)."""
    return Refusal(429, "Overloaded", message, retry_after=retry_after)


def unavailable(message: str, retry_after: float = 1.0) -> Refusal:
    """Refuse a request whose scorer died or whose time is up (503)."""
    return Refusal(503, "Unhealthy", message, retry_after=retry_after)
