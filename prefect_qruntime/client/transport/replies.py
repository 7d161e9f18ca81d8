"""Turn answers into replies or typed errors: all error forms, Retry-After, JSON.

An answer that passes `accepted` is the service's own and fits the request.
"""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import httpx
import orjson

from prefect_qruntime.client.failures import (
    CREATES,
    Owner,
    Phase,
    Question,
    is_page,
    judge,
    lost_answer,
    read_json,
    read_text,
    whose,
)
from prefect_qruntime.client.parsing import read_code
from prefect_qruntime.errors import NEVER, SEARCH_FIRST, InvalidInput, QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.redact import plain_text, redact_start

__all__ = [
    "ErrorBody",
    "Reply",
    "accepted",
    "error_for",
    "no_answer",
    "parse_error",
    "refuses_token",
    "retry_after_seconds",
    "unreadable_create",
]

_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_TEXT_LIMIT = 500
_MESSAGE_LIMIT = 2000
_MARK_LIMIT = 100  # of a trace id
_TEXT_BYTES = 40_000  # of a body that is shown in part
_BLANK_BYTES = 1 << 20  # of white space that may stand before that
_CHECK_PROXY = "If this lasts, check `proxy` of the credentials block, or HTTPS_PROXY if that is empty."
# None of these can have reached the service.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, without anything of httpx in it. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)  # it may hold a token, and tracebacks may show it
    _decoded: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)  # of one value, once read

    @classmethod
    def of(cls, answer: httpx.Response, content: bytes) -> Reply:
        """Take what is needed out of httpx's response."""
        return cls(answer.status_code, dict(answer.headers), content)

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ServiceUnavailable: The body is not JSON: cut short, or from a gateway in between. It says
                nothing about the job.
        """
        try:
            return self._decode()
        except orjson.JSONDecodeError:
            pass  # raised out here, as that error holds the whole text, which may be a token's
        shown = _beginning(self.content)[:200]
        raise ServiceUnavailable(f"the answer is not JSON: {shown!r}", status=self.status)

    def object(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            ServiceUnavailable: The body is something else.
        """
        body = self.json()
        if not isinstance(body, dict):
            raise ServiceUnavailable("the answer is not a JSON object", status=self.status)
        return body

    def _decode(self) -> Any:
        if not self._decoded:
            self._decoded.append(read_json(self.content))
        return self._decoded[0]

    def is_from(self, question: Question) -> Owner:
        """Whose answer it is."""
        return whose(question, self.status, self.content, self._decode)

    @property
    def text(self) -> str:
        """The body as text."""
        return read_text(self.content).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The contents of an error body of any form."""

    message: str
    code: int | str | None = None
    solution: str | None = None
    trace: str | None = None


def _clean(*values: Any, limit: int = _MESSAGE_LIMIT) -> str | None:
    """The first value given, as text without secrets and of limited length."""
    text = next((str(value) for value in values if value not in (None, "")), None)
    return None if text is None else plain_text(redact_start(text, limit))


def parse_error(content: bytes) -> ErrorBody:
    """Parse an error body.

    Understands the API's `errors` list (codes as int or text), the older single `error` object, IAM's
    `errorCode`/`errorMessage`, a bare `message`, and plain text or HTML of a gateway (kept, truncated).
    """
    try:
        body = read_json(content) if content else None
    except orjson.JSONDecodeError:
        body = None
    found = _error_in(body) if isinstance(body, dict) else None
    if found is not None:
        return found
    text = _beginning(content)[:_TEXT_LIMIT]
    return ErrorBody(text or "the answer has no body")


def _beginning(content: bytes) -> str:
    """The beginning of a body, masked before anything is cut off that could go through a secret.

    Without NULs, between which the letters of UTF-16 stand.
    """
    head = content[:_BLANK_BYTES]  # a body may have 64 MB
    begin = len(head) - len(read_text(head).lstrip())
    bare = content[begin : begin + _TEXT_BYTES].replace(b"\0", b"")
    return redact_start(bare.decode("utf-8", "replace"), 10 * _TEXT_LIMIT).strip()


def _error_in(body: dict[str, Any]) -> ErrorBody | None:
    errors = body.get("errors")
    item = errors[0] if isinstance(errors, list) and errors else body.get("error")
    solution, trace = None, _clean(body.get("trace"), body.get("trace_id"), limit=_MARK_LIMIT)
    if isinstance(item, dict):
        more, solution = _clean(item.get("more_info")), _clean(item.get("solution"))
        if more and more.startswith("http"):
            solution = f"{solution} See {more}" if solution else f"See {more}"
        message, code = _clean(item.get("message"), item.get("code")), item.get("code")
    elif isinstance(item, str):
        message, code = _clean(item), body.get("code")
    elif "errorMessage" in body or "errorCode" in body:  # IAM
        context = body.get("context")
        if isinstance(context, dict):
            trace = trace or _clean(context.get("requestId"), limit=_MARK_LIMIT)
        message, code = _clean(body.get("errorMessage"), body.get("errorCode")), body.get("errorCode")
    elif "message" in body:
        message, code = _clean(body["message"]), body.get("code")
    else:
        return None
    return ErrorBody(message or "the service gave no message", read_code(code), solution, trace)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds asked for by `Retry-After`, given as seconds or as an HTTP date; None without one.

    A date is measured against the answer's own `Date`: the local clock may be wrong. Without that it says nothing.
    """
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        moment, sent = _http_date(value), _http_date(headers.get("date", ""))
        return None if moment is None or sent is None else max(0.0, moment - sent)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _http_date(text: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:  # "-0000": in UTC, of unknown origin
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


_WHAT = {
    "token": "the token request was refused",
    "read": "the request was refused",
    "submit": "the submission was refused",
    "open": "the session was not opened",
    "wait": "the job's state could not be read",
    "fetch": "the results could not be read",
    "change": "the change was refused",
}


def accepted(
    reply: Reply,
    question: Question,
    *,
    accept: tuple[int, ...] = (),
    job_id: str | None = None,
    job_url: str | None = None,
) -> Reply:
    """The reply, if it is the service's own and a success.

    Args:
        reply: The answer.
        question: What was asked.
        accept: Refusals to return as well, if they are the service's own.
        job_id: For the error.
        job_url: For the error.

    Raises:
        QuantumRuntimeError: Typed by the failure table.
    """
    own = reply.is_from(question) == "service"
    if own and (200 <= reply.status < 300 or reply.status in accept):
        return reply
    raise error_for(reply, question, job_id=job_id, job_url=job_url)


def refuses_token(reply: Reply, question: Question) -> bool:
    """Whether the request may go out again with a fresh token.

    A read may in any case. A create may only if the service itself refused it, which means that it was not accepted.
    """
    if reply.status != 401:
        return False
    return question.phase not in CREATES or reply.is_from(question) == "service"


def error_for(
    reply: Reply, question: Question, *, job_id: str | None = None, job_url: str | None = None
) -> QuantumRuntimeError:
    """Turn an unsuccessful answer into the typed error of the failure table."""
    phase = question.phase
    owner = reply.is_from(question)
    body = parse_error(reply.content) if owner == "service" else ErrorBody(_foreign(reply, phase))
    verdict = judge(phase, reply.status, body.code, retry_after_seconds(reply.headers), owner=owner)
    message = f"{_WHAT[phase]}: {body.message}" if owner == "service" else body.message
    solution = body.solution
    details: dict[str, Any] = {} if owner == "service" else {"foreign": True}
    if verdict.advice == SEARCH_FIRST:
        details["sent"] = True
    if phase in CREATES and 200 <= reply.status < 300:
        details["accepted"] = True
        message = f"it was accepted, but the answer cannot be read: {body.message}"
    if phase == "token" and owner == "service" and body.code == "BXNIM0415E":
        message = "API key not found."
        solution = "Check `api_key` of the credentials block; create a new key in IBM Cloud under Manage > Access."
    elif reply.status == 407:
        solution = _CHECK_PROXY
    elif owner == "other" and verdict.error is InvalidInput:
        solution = (
            f"The request is {question.size:,} bytes long: raise the limit of the proxy or gateway in between, or give "
            "the job fewer or smaller circuits."
        )
    elif owner == "other" and reply.status < 500:
        address = "iam_url" if phase == "token" else "base_url"
        solution = f"If this lasts, check `{address}`, and the proxy, VPN or firewall in between."
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
        **details,
    )


_ASKED = {
    "token": "the token request",
    "read": "the request",
    "submit": "the submission",
    "open": "the request for a session",
    "wait": "the request for the job's state",
    "fetch": "the request for the results",
    "change": "the change",
}


def _foreign(reply: Reply, phase: Phase) -> str:
    """Build the error for an answer that is not the service's own, with what it looks like."""
    text = _beginning(reply.content)
    if 300 <= reply.status < 400:
        seen = "redirects elsewhere, which is not followed"
    elif not text:
        seen = "has no body"
    elif is_page(reply.content):
        title = _TITLE.search(text)
        seen = f"is a page titled {title[1].strip()[:100]!r}" if title else f"is a page: {text[:100]!r}"
    else:
        seen = f"reads {text[:200]!r}"
    return f"something in between answered {_ASKED[phase]} instead of the service (HTTP {reply.status}): it {seen}."


def no_answer(
    exc: httpx.HTTPError, phase: Phase, host: str, job_id: str | None = None, *, trusted: bool = False
) -> QuantumRuntimeError:
    """Build the error for a request without an answer, which says whether it may have been accepted.

    Args:
        exc: What came in place of the answer.
        phase: What the request was for.
        host: Where it went.
        job_id: For the error.
        trusted: Whether the host has answered before. A certificate that is not trusted now is an outage then.
    """
    text = redact_start(str(exc), _TEXT_LIMIT) or type(exc).__name__  # it may quote what a server sent
    sent = not isinstance(exc, _NOT_SENT)
    if not sent and "CERTIFICATE_VERIFY_FAILED" in text:
        return ServiceUnavailable(
            f"the certificate of {host} is not trusted: {text}",
            solution="Set ca_file of the credentials block to your organisation's CA bundle.",
            advice=lost_answer(phase, sent=False) if trusted else NEVER,
            job_id=job_id,
            sent=False,
            untrusted=True,
        )
    here = isinstance(exc, httpx.LocalProtocolError) and "Illegal header value" in text
    if here or isinstance(exc, httpx.UnsupportedProtocol):
        return ServiceUnavailable(
            f"the request to {host} cannot be made: {text}",
            solution="Check the fields of the credentials block for whitespace and other unexpected characters.",
            advice=NEVER,
            job_id=job_id,
            sent=False,
        )
    return ServiceUnavailable(
        f"no answer from {host}: {text}" if sent else f"cannot reach {host}: {text}",
        solution=_CHECK_PROXY if isinstance(exc, httpx.ProxyError) else None,
        advice=lost_answer(phase, sent=sent),
        job_id=job_id,
        sent=sent,
    )


def unreadable_create(reply: Reply, error: QuantumRuntimeError) -> QuantumRuntimeError:
    """Describe a create that was accepted with an unreadable answer: it must be searched for, and never sent again."""
    return ServiceUnavailable(
        f"it was accepted, but the answer cannot be read: {error.message}",
        status=reply.status,
        advice=SEARCH_FIRST,
        sent=True,
        accepted=True,
    )
