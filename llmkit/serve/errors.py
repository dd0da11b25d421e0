"""Errors as OpenAI's API gives them, which its clients raise again as exceptions of the same kind."""

from __future__ import annotations

from typing import Any

TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""HTTP status -> `type` of the error; "invalid_request_error" for all others."""


class ApiError(Exception):
    """An answer that says why there is none.

    status: of HTTP. param: the parameter of the request that is wrong. code: a name that programs can test.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON document."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
