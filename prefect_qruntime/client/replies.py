"""Read the service's answers: all error shapes, Retry-After, JSON."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.failures import Phase, judge
from prefect_qruntime.redact import redact

__all__ = ["ErrorBody", "Reply", "error_for", "parse_error", "retry_after_seconds"]

_TEXT_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, without anything of httpx in it."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            QuantumRuntimeError: The body is no JSON.
        """
        try:
            return orjson.loads(self.content)
        except orjson.JSONDecodeError as exc:
            shown = redact(self.text[:200])
            raise QuantumRuntimeError(f"the answer is not JSON: {shown!r}", status=self.status) from exc

    def object(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            QuantumRuntimeError: The body is something else.
        """
        body = self.json()
        if not isinstance(body, dict):
            raise QuantumRuntimeError("the answer is not a JSON object", status=self.status)
        return body

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What an error body says, whatever its shape."""

    message: str
    code: int | str | None = None
    solution: str | None = None
    trace: str | None = None


def _first(*values: Any) -> str | None:
    return next((str(value) for value in values if value not in (None, "")), None)


def parse_error(content: bytes) -> ErrorBody:
    """Take an error body apart.

    Understands the API's `errors` list (codes as int or text), the older single `error` object, IAM's
    `errorCode`/`errorMessage`, a bare `message`, and plain text or HTML of a gateway (kept, truncated).
    """
    try:
        body = orjson.loads(content) if content else None
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict):
        trace = _first(body.get("trace"), body.get("trace_id"))
        errors = body.get("errors")
        item = errors[0] if isinstance(errors, list) and errors else body.get("error")
        if isinstance(item, dict):
            more = _first(item.get("more_info"))
            solution = _first(item.get("solution"))
            if more and more.startswith("http"):
                solution = f"{solution} See {more}" if solution else f"See {more}"
            message = _first(item.get("message"), item.get("code"), "the service gave no message")
            return ErrorBody(redact(str(message)), _code(item.get("code")), solution, trace)
        if isinstance(item, str):
            return ErrorBody(redact(item), _code(body.get("code")), None, trace)
        if "errorMessage" in body or "errorCode" in body:  # IAM
            context = body.get("context")
            trace = trace or (_first(context.get("requestId")) if isinstance(context, dict) else None)
            message = _first(body.get("errorMessage"), body.get("errorCode"))
            return ErrorBody(redact(str(message)), _code(body.get("errorCode")), None, trace)
        if "message" in body:
            return ErrorBody(redact(str(body["message"])), _code(body.get("code")), None, trace)
    text = redact(content.decode("utf-8", "replace").strip())
    return ErrorBody(text[:_TEXT_LIMIT] or "the answer has no body")


def _code(value: Any) -> int | str | None:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    return int(value) if isinstance(value, str) and value.isdigit() else value


def retry_after_seconds(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds asked for by `Retry-After`, given as seconds or as an HTTP date; None without one."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - (time.time() if now is None else now))


_WHAT = {
    "token": "the token request was refused",
    "read": "the request was refused",
    "submit": "the submission was refused",
    "open": "the session was not opened",
    "wait": "the job's state could not be read",
    "fetch": "the results could not be read",
    "change": "the change was refused",
}


def error_for(
    reply: Reply, phase: Phase, *, job_id: str | None = None, job_url: str | None = None
) -> QuantumRuntimeError:
    """Turn an answer that is no success into the typed error of the failure table."""
    body = parse_error(reply.content)
    verdict = judge(phase, reply.status, body.code, retry_after_seconds(reply.headers))
    message = f"{_WHAT[phase]}: {body.message}"
    solution = body.solution
    if phase == "token" and body.code == "BXNIM0415E":
        message = "API key not found"
        solution = "Check the api_key of the credentials block; make a new key in IBM Cloud under Manage > Access."
    elif 300 <= reply.status < 400:
        message = f"the service redirects elsewhere (HTTP {reply.status}), which is not followed"
        solution = "Check base_url and the dialect."
    elif body.code in (1352, "1352"):
        solution = solution or "Use mode='batch' or single jobs: this plan has no dedicated sessions."
    return verdict.error(
        message,
        code=body.code,
        solution=solution,
        trace_id=body.trace,
        status=reply.status,
        advice=verdict.advice,
        job_id=job_id,
        job_url=job_url,
    )
