"""What the server answers instead of a result: a status, a kind, a sentence, the field it is about.

The form depends on whose API the path belongs to: text-embeddings-inference's `{"error", "error_type"}`, and Cohere's
`{"message"}` under /v1 and /v2. Both also carry `field` where one field is to blame.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

COHERE = ("/v1/", "/v2/")


class Refusal(Exception):
    """A request that is not answered with a result.

    Attributes:
        status: HTTP status. kind: `error_type` in text-embeddings-inference's words.
        message: says what is wrong, with the limit. field: the field of the request it is about.
        retry_after: seconds, for what may work later. headers: more of them.
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
        """The answer, in the form that clients of this path read."""
        content: dict[str, Any] = {"error": self.message, "error_type": self.kind}
        if path.startswith(COHERE):
            content = {"message": self.message}
        if self.field is not None:
            content["field"] = self.field
        return json_response(content, self.status, self.headers)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON, written by pydantic's serialiser."""
    return Response(to_json(content, inf_nan_mode="null"), status, headers, media_type="application/json")


def wrong(message: str, field: str | None = None, status: int = 422) -> Refusal:
    """A request of the wrong shape."""
    return Refusal(status, "Validation", message, field=field)


def too_large(message: str, field: str | None = None) -> Refusal:
    """A request beyond a limit: 413."""
    return wrong(message, field, 413)


def overloaded(message: str, retry_after: float) -> Refusal:
    """No room in the queue: 429."""
    return Refusal(429, "Overloaded", message, retry_after=retry_after)


def unavailable(message: str, retry_after: float = 1.0) -> Refusal:
    """The scorer died, or the time was up: 503."""
    return Refusal(503, "Unhealthy", message, retry_after=retry_after)
