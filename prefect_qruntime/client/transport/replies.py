"""Read the service's answers: all error shapes, Retry-After, JSON."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import httpx
import orjson

from prefect_qruntime.client.failures import Phase, judge, lost_answer
from prefect_qruntime.errors import NEVER, SEARCH_FIRST, QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.redact import redact, redact_start

__all__ = ["ErrorBody", "Reply", "error_for", "no_answer", "parse_error", "retry_after_seconds", "unreadable_create"]

_TEXT_LIMIT = 500
_MESSAGE_LIMIT = 2000
_TEXT_BYTES = 40_000  # of a body that is shown in part
# None of these can have reached the service.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, without anything of httpx in it. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)  # it may hold a token, and tracebacks may show it

    @classmethod
    def of(cls, answer: httpx.Response) -> Reply:
        """Take what is needed out of httpx's response."""
        return cls(answer.status_code, dict(answer.headers), answer.content)

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ServiceUnavailable: The body is no JSON: cut short, or from a gateway in between. It says
                nothing about the job.
        """
        try:
            return orjson.loads(self.content)
        except orjson.JSONDecodeError:
            pass  # raised out here, as that error holds the whole text, which may be a token's
        shown = redact_start(self.content[:_TEXT_BYTES].decode("utf-8", "replace"), 200)
        raise ServiceUnavailable(f"the answer is not JSON: {shown!r}", status=self.status)

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


def _clean(*values: Any) -> str | None:
    """The first value given, as text without secrets, of bearable length."""
    text = next((str(value) for value in values if value not in (None, "")), None)
    return None if text is None else redact_start(text, _MESSAGE_LIMIT)


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
        trace = _clean(body.get("trace"), body.get("trace_id"))
        errors = body.get("errors")
        item = errors[0] if isinstance(errors, list) and errors else body.get("error")
        if isinstance(item, dict):
            more = _clean(item.get("more_info"))
            solution = _clean(item.get("solution"))
            if more and more.startswith("http"):
                solution = f"{solution} See {more}" if solution else f"See {more}"
            message = _clean(item.get("message"), item.get("code")) or "the service gave no message"
            return ErrorBody(message, _code(item.get("code")), solution, trace)
        if isinstance(item, str):
            return ErrorBody(_clean(item) or "the service gave no message", _code(body.get("code")), None, trace)
        if "errorMessage" in body or "errorCode" in body:  # IAM
            context = body.get("context")
            trace = trace or (_clean(context.get("requestId")) if isinstance(context, dict) else None)
            message = _clean(body.get("errorMessage"), body.get("errorCode")) or "the service gave no message"
            return ErrorBody(message, _code(body.get("errorCode")), None, trace)
        if "message" in body:
            return ErrorBody(
                _clean(body["message"]) or "the service gave no message", _code(body.get("code")), None, trace
            )
    text = redact_start(content[:_TEXT_BYTES].decode("utf-8", "replace").strip(), _TEXT_LIMIT)
    return ErrorBody(text or "the answer has no body")


def _code(value: Any) -> int | str | None:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    if isinstance(value, int):
        return value
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else _clean(value)


def retry_after_seconds(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds asked for by `Retry-After`, given as seconds or as an HTTP date; None without one."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:  # "-0000": in UTC, of unknown origin
        moment = moment.replace(tzinfo=UTC)
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
        solution = "Check iam_url." if phase == "token" else "Check base_url and the dialect."
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


def no_answer(exc: httpx.HTTPError, phase: Phase, host: str, job_id: str | None = None) -> QuantumRuntimeError:
    """Turn a request without an answer into an error that says whether it may have been accepted."""
    text = redact(str(exc)) or type(exc).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ServiceUnavailable(
            f"the certificate of {host} is not trusted: {text}",
            solution="Set ca_file of the credentials block to your organisation's CA bundle.",
            advice=NEVER,
        )
    sent = not isinstance(exc, _NOT_SENT)
    return ServiceUnavailable(
        f"no answer from {host}: {text}" if sent else f"cannot reach {host}: {text}",
        advice=lost_answer(phase, sent=sent),
        job_id=job_id,
        sent=sent,
    )


def unreadable_create(reply: Reply, error: QuantumRuntimeError) -> QuantumRuntimeError:
    """A create that was accepted with an answer nobody can read: as good as a lost answer."""
    return ServiceUnavailable(
        f"it was accepted, but the answer cannot be read: {error.message}",
        status=reply.status,
        advice=SEARCH_FIRST,
        sent=True,
    )
