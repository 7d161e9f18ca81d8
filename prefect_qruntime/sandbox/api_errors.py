"""Errors that the service answers with its error container."""

from __future__ import annotations

import uuid
from typing import Any

MAX_INPUT = 300 << 20
"""Most bytes of a request's body that the service accepts."""


def size_text(limit: int) -> str:
    """Return a number of bytes in KB or MB."""
    return f"{limit >> 20} MB" if limit >= 1 << 20 else f"{limit >> 10} KB"


class ApiError(Exception):
    """A refusal with its HTTP status and the service's code.

    Args:
        status: HTTP status.
        code: The service's code; a number or, as in older answers, a word.
        message: What is wrong.
        solution: What to do; left out of the answer when empty.
        headers: Extra response headers.
    """

    def __init__(
        self,
        status: int,
        code: int | str,
        message: str,
        solution: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.solution = solution
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON."""
        return container(self.code, self.message, self.solution)


def container(code: int | str, message: str, solution: str = "") -> dict[str, Any]:
    """Build the error container with a fresh trace id."""
    error: dict[str, Any] = {"code": code, "message": message}
    if solution:
        error["solution"] = solution
    if isinstance(code, int):
        error["more_info"] = f"https://quantum.cloud.ibm.com/docs/errors#{code}"
    return {"errors": [error], "trace": str(uuid.uuid4())}


def invalid(message: str, solution: str = "") -> ApiError:
    """Return the error for a body or query that does not fit the schema: 400, code 1208."""
    return ApiError(400, 1208, message, solution)


def job_not_found(job_id: str) -> ApiError:
    """Return the error for a job that does not exist for this caller: 404, code 1291."""
    return ApiError(404, 1291, f"Job not found. Job ID: {job_id}", "Check the job ID and the instance.")


# Sent if a fault or the framework gives a status and no text of its own.
DEFAULT_MESSAGES: dict[int, tuple[int | str, str]] = {
    400: (1208, "The request is not valid."),
    401: (1200, "You are not authorized."),
    403: (1200, "Access is denied."),
    404: ("not_found", "The requested resource was not found."),
    405: ("method_not_allowed", "The method is not allowed for this resource."),
    409: ("conflict", "The request conflicts with the state of the resource."),
    413: (1208, f"The input is larger than {size_text(MAX_INPUT)}."),
    429: (1202, "Too many requests."),
    500: (1000, "Internal error."),
    502: ("bad_gateway", "Bad gateway."),
    503: ("unavailable", "The service is temporarily unavailable."),
    504: ("gateway_timeout", "The upstream service did not answer in time."),
}


def default_error(status: int) -> dict[str, Any]:
    """Build the container for a bare HTTP status."""
    code, message = DEFAULT_MESSAGES.get(status, (f"http_{status}", f"HTTP status {status}."))
    return container(code, message)
