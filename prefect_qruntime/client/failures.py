"""Decide whose an answer is, and what a failure means: phase × owner × HTTP status × code → error type and advice.

Everything that asks "may I send this again?" reads this module: the transport, the submission, the waiting and,
through the advice an error carries, Prefect's task retries. The first rule that fits decides; `docs/failures.md` shows
the same rules in words, in this order (`tools/failure_table.py` writes it). Pure: no clock and no network.

Facts: the status codes of IBM's OpenAPI document, the code list of the old error registry and its present-day texts.
If those are silent, money decides: a read is repeated, a create is not.

Proxies, gateways, load balancers and login pages answer in the service's place, with any status and any body. Such an
answer says nothing about a job, a session or a key. An answer is the service's own only if its status is one that the
service itself gives, and its body has the service's form:

- a success: the model that belongs to the request (a job with the id that was asked for, a list of jobs, ...);
- a refusal: the error container `{"errors": [{"code": ..., "message": ...}], "trace": ...}` of both dialects, or the
  single `{"error": {"code": ..., "message": ...}}` of the oldest legacy hosts;
- from IAM: a usable token, or `{"errorCode": "BXNIM...", "errorMessage": ...}`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import orjson

from prefect_qruntime.errors import (
    NEVER,
    SAME_REQUEST,
    SEARCH_FIRST,
    AuthenticationError,
    InvalidInput,
    JobCancelled,
    JobFailed,
    JobRanTooLong,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    RateLimited,
    RetryAdvice,
    ServiceUnavailable,
    SessionClosed,
    UsageLimitReached,
    after,
)
from prefect_qruntime.models import Job, JobStatus

__all__ = [
    "CREATES",
    "CREATE_PAUSE",
    "MOST_LEVELS",
    "RULES",
    "WHOLE",
    "Decode",
    "Owner",
    "Phase",
    "Question",
    "Rule",
    "Verdict",
    "check_levels",
    "is_page",
    "is_refusal",
    "job_error",
    "judge",
    "lost_answer",
    "read_json",
    "read_text",
    "retryable_reason",
    "whose",
]


WHOLE = (200, 203)
"""The statuses of a whole result: a proxy that passes it on may make 203 of 200. Another 2xx is a part or a note."""

MOST_LEVELS = 200
"""Most lists and objects inside each other in an answer: the service nests a dozen.

What is nested deeper can be read, but neither shown nor stored: Python's `str` and `pickle` and pydantic end at a few
hundred levels, with errors that nothing expects.
"""

_MOST_MENDED = 1_000_000  # bytes of a body that is not JSON and read nevertheless, which takes longer
_BOM = b"\xef\xbb\xbf"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Possessive, as a row of comments could be split in exponentially many ways otherwise.
_PAGE = re.compile(
    rb"\s*+(?:<!--(?:(?!-->).)*+-->\s*+)*+<(?:!doctype|html|head|body|\?xml|title)\b", re.IGNORECASE | re.DOTALL
)
_PAGE_HEAD = 4096
_HTTP_STATUS = re.compile(r"-[0-9]+|0*[0-9]{1,3}")
# Statuses of intermediaries: the service documents none of them, and what it means by a 5xx is an outage as well.
_IN_BETWEEN = frozenset({407, 408, 425, 499})

Phase = Literal["token", "read", "submit", "open", "wait", "fetch", "change"]
"""What a request is for: `submit` and `open` create something that costs money; `change` is idempotent."""

Owner = Literal["service", "other"]
"""Who gave an answer: the service (IAM, for a token) itself, or anything in between."""

Decode = Callable[[], Any]
"""Reads a body as JSON; raises `orjson.JSONDecodeError` if it is none."""

CREATE_PAUSE = 12.0
"""Seconds between creates if a 429 names no time: the service allows five a minute per user."""

CREATES: frozenset[Phase] = frozenset({"submit", "open"})
_TOKEN: frozenset[Phase] = frozenset({"token"})
_SUBMIT: frozenset[Phase] = frozenset({"submit"})
_REPEATABLE: frozenset[Phase] = frozenset({"token", "read", "wait", "fetch", "change"})
_ALL: frozenset[Phase] = CREATES | _REPEATABLE
_NOT_TOKEN = _ALL - _TOKEN

# Failed jobs whose cause lies with the service (E2 of the error registry): a new job may succeed.
_RETRYABLE_REASONS = frozenset({1000, 1006, 1008, 1010, 1011, 5203, 9701, 9707, 9999})
_RAN_TOO_LONG = frozenset({1305})


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked.

    Attributes:
        phase: What the request is for.
        method: HTTP method.
        path: Below the base URL, without the query.
        size: Bytes of its body.
    """

    phase: Phase
    method: str = "GET"
    path: str = ""
    size: int = 0


def read_text(content: bytes) -> bytes:
    """The body without a byte order mark in front."""
    return content[3:] if content[:3] == _BOM else content


def check_levels(value: Any, body: bytes | bytearray | memoryview | str) -> None:
    """Refuse a decoded value with more than `MOST_LEVELS` lists and objects inside each other.

    Args:
        value: The value.
        body: What it was decoded from; most have too few brackets to be searched.

    Raises:
        orjson.JSONDecodeError: It has more.
    """
    if isinstance(body, str):
        brackets = body.count("[") + body.count("{")
    elif isinstance(body, memoryview):  # it cannot be searched without a copy
        brackets = len(body)
    else:
        brackets = body.count(b"[") + body.count(b"{")
    if brackets <= MOST_LEVELS:
        return
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(MOST_LEVELS):
        held = list(chain.from_iterable(one.values() if isinstance(one, dict) else one for one in level))
        # The types of all first, as long lists of numbers hold none of these.
        if {list, dict}.isdisjoint(map(type, held)):
            return
        level = [one for one in held if isinstance(one, list | dict)]
    raise orjson.JSONDecodeError(f"nested more than {MOST_LEVELS} levels deep", "", 0)


def read_json(content: bytes) -> Any:
    """The body as JSON, with or without a byte order mark.

    A text of it that was cut inside a letter, or a number that is none, does not make the rest unreadable.

    Raises:
        orjson.JSONDecodeError: It is not JSON, or nested too deeply.
    """
    text = read_text(content)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        if len(text) > _MOST_MENDED or text.lstrip()[:1] not in (b"{", b"["):
            raise
        value = _read_leniently(text)
    check_levels(value, content)
    return value


def _read_leniently(text: bytes) -> Any:
    """Read what encoders write though it is not JSON: halves of letters, control characters, NaN and infinity."""
    try:
        value = json.loads(
            text.decode(errors="replace"), strict=False, parse_constant=lambda _: None, parse_float=_finite
        )
        # Halves of letters become question marks here.
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        raise orjson.JSONDecodeError("not JSON", "", 0) from None


def _finite(number: str) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None


def is_page(content: bytes) -> bool:
    """Whether a body is an HTML or XML page: neither a model, nor the text of a failed job."""
    return _PAGE.match(read_text(content[:_PAGE_HEAD])) is not None


def whose(question: Question, status: int, content: bytes, decode: Decode | None = None) -> Owner:
    """Decide whether the service (or IAM, for a token) gave this answer itself.

    Args:
        question: What was asked.
        status: HTTP status.
        content: The body.
        decode: Decodes the body, where the caller keeps what that gives.

    Returns:
        `service` for an answer of its own, else `other`.

    Example:
        ```python
        from prefect_qruntime.client.failures import Question, whose

        question = Question("wait", "GET", "/jobs/d1")
        assert whose(question, 200, b'{"id": "d1", "state": {"status": "Queued"}}') == "service"
        assert whose(question, 404, b"default backend - 404") == "other"
        ```
    """
    decode = decode or (lambda: read_json(content))
    if 200 <= status < 300:
        fits = _fits_model(question, status, content, decode)
    elif 400 <= status < 600 and status not in _IN_BETWEEN:
        fits = _fits_error(question, _object(decode))
    else:
        fits = False
    return "service" if fits else "other"


# ---- refusals ------------------------------------------------------------------------------------


def _fits_error(question: Question, body: dict[str, Any] | None) -> bool:
    if body is None:
        return False
    if question.phase == "token":
        code = body.get("errorCode")
        return isinstance(code, str) and code.upper().startswith("BXNIM")
    errors = body.get("errors")
    if isinstance(errors, list):
        return bool(errors) and isinstance(errors[0], dict) and _is_error(errors[0])
    single = body.get("error")
    return isinstance(single, dict) and _is_error(single)


def _is_error(item: dict[str, Any]) -> bool:
    # A number below 1000 is an HTTP status, by which gateways name their own errors; the service's codes are
    # numbers of four digits, or words.
    code, message = item.get("code"), item.get("message")
    if isinstance(code, bool) or not isinstance(code, int | str) or not isinstance(message, str | None):
        return False
    text = str(code)
    return text != "" and _HTTP_STATUS.fullmatch(text) is None


# ---- successes -----------------------------------------------------------------------------------


def _fits_model(question: Question, status: int, content: bytes, decode: Decode) -> bool:
    body = read_text(content).strip()
    if question.phase in CREATES:
        return _created(_object(decode))
    if question.phase == "token":
        return status == 200 and _token(_object(decode))
    if question.phase == "change":
        return not body or _object(decode) is not None
    if question.path.endswith("/logs"):
        return not is_page(body)
    if question.phase == "fetch":
        return _result(status, body)
    found = _object(decode)
    if found is None:
        return False
    for pattern, fits in _MODELS:
        match = pattern.fullmatch(question.path)
        if match is not None:
            return fits(found, match)
    return bool(found) and "errors" not in found


def _object(decode: Decode) -> dict[str, Any] | None:
    try:
        body = decode()
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _created(body: dict[str, Any] | None) -> bool:
    value = None if body is None else body.get("id")
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _token(body: dict[str, Any] | None) -> bool:
    if body is None:
        return False
    value, life = body.get("access_token"), body.get("expires_in", 3600)
    usable = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value and value != ""
    return usable and isinstance(life, int | float) and not isinstance(life, bool) and life > 0


def _result(status: int, body: bytes) -> bool:
    # Only the beginning of a result is examined: it may be large, and that of a failed job is plain text.
    if not body:
        return True
    if status not in WHOLE or is_page(body) or body in (b"null", b"[]", b"{}"):
        return False
    # An error container or another model, small as they are, is no result.
    found = _object(lambda: read_json(body)) if len(body) < _PAGE_HEAD else None
    return found is None or "errors" not in found


def _is_job(body: dict[str, Any], match: re.Match[str]) -> bool:
    state = body.get("state")
    said = (state.get("status") if isinstance(state, dict) else None) or body.get("status")
    return isinstance(said, str) and said != "" and body.get("id") in (match["id"], None, "")


def _has_list(*names: str) -> Callable[[Mapping[str, Any], re.Match[str]], bool]:
    return lambda body, match: any(isinstance(body.get(name), list) for name in names)


_USAGE = frozenset({"usage_consumed_seconds", "usage_limit_seconds", "instance_id", "plan_id"})
_MODELS: tuple[tuple[re.Pattern[str], Callable[[dict[str, Any], re.Match[str]], bool]], ...] = tuple(
    (re.compile(path), fits)
    for path, fits in (
        (r"/jobs", _has_list("jobs")),
        (r"/jobs/(?P<id>[^/]+)", _is_job),
        (r"/sessions/(?P<id>[^/]+)", lambda body, match: body.get("id") == match["id"]),
        (r"/workloads", _has_list("workloads")),
        (r"/backends", _has_list("devices", "backends")),
        (r"/versions", _has_list("versions")),
        # All their fields are optional.
        (
            r"/jobs/[^/]+/metrics|/instances/configuration|/backends/[^/]+/properties",
            lambda body, match: "errors" not in body,
        ),
        (r"/instances/usage", lambda body, match: not _USAGE.isdisjoint(body)),
    )
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which error an answer is, and whether the same request may go out again."""

    error: type[QuantumRuntimeError]
    advice: RetryAdvice


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
        phases: What was being done.
        owner: Who answered; None for any.
        statuses: HTTP statuses, as inclusive ranges.
        error: What the answer means.
        advice: `never`; `again` (after the time that the answer names, if any); `pace` (as `again`, for creates after
            12 s at least if no time is named); `search` (the request may have been accepted: search first).
        cause: The row in words, for the documentation.
        codes: The service's own codes; None for any.
    """

    phases: frozenset[Phase]
    owner: Owner | None
    statuses: tuple[tuple[int, int], ...]
    error: type[QuantumRuntimeError]
    advice: Literal["never", "again", "pace", "search"]
    cause: str
    codes: frozenset[int] | None = None

    def fits(self, phase: Phase, owner: Owner, status: int, code: int | None) -> bool:
        """Whether the row is about this answer."""
        return (
            phase in self.phases
            and self.owner in (None, owner)
            and any(first <= status <= last for first, last in self.statuses)
            and (self.codes is None or code in self.codes)
        )


def _is(*statuses: int) -> tuple[tuple[int, int], ...]:
    return tuple((status, status) for status in statuses)


_ANY = ((100, 999),)
_4XX = ((400, 499),)
_5XX = ((500, 999),)

RULES: tuple[Rule, ...] = (
    # Not accepted, according to either side: even a create may go out again.
    Rule(_ALL, None, _is(429), RateLimited, "pace", "HTTP 429: slower"),
    Rule(_NOT_TOKEN, "service", _4XX, RateLimited, "pace", "code 1202: slower", frozenset({1202})),
    # Outages. A success of another form, a page, a redirect: not the service, or a broken one.
    Rule(CREATES, "other", ((200, 299),), ServiceUnavailable, "search", "a 2xx that cannot be read: accepted"),
    # Repeated after a search it would be refused again, and an upload may be large.
    Rule(_SUBMIT, "other", _is(413), InvalidInput, "search", "HTTP 413: too large"),
    Rule(CREATES, "other", _ANY, ServiceUnavailable, "search", "any answer that is not the service's own"),
    Rule(CREATES, "service", _5XX, ServiceUnavailable, "search", "HTTP 5xx"),
    Rule(_REPEATABLE, "other", _ANY, ServiceUnavailable, "again", "any answer that is not the service's own"),
    Rule(_REPEATABLE, "service", _5XX, ServiceUnavailable, "again", "HTTP 5xx"),
    # In the service's own words.
    Rule(_TOKEN, "service", _ANY, AuthenticationError, "never", "IAM's own refusal (code BXNIM...)"),
    Rule(_ALL, "service", _is(401), AuthenticationError, "never", "HTTP 401 with a fresh token"),
    Rule(_ALL, "service", _4XX, SessionClosed, "never", "codes 1217, 4001: closed session", frozenset({1217, 4001})),
    # With a 403 the codes 1200 and 1201 mean the right, not the token.
    Rule(_ALL, "service", _is(403), PermissionDenied, "never", "HTTP 403"),
    Rule(_ALL, "service", _4XX, AuthenticationError, "never", "codes 1200, 1201", frozenset({1200, 1201})),
    Rule(_ALL, "service", _4XX, PermissionDenied, "never", "code 1352: no sessions on this plan", frozenset({1352})),
    Rule(_ALL, "service", _is(404), NotFound, "never", "HTTP 404"),
    Rule(_ALL, "service", _4XX, UsageLimitReached, "never", "code 4317: usage limit", frozenset({4317})),
    Rule(_SUBMIT, "service", _is(409), UsageLimitReached, "never", "HTTP 409: usage limit"),
    Rule(CREATES, "service", _is(400, 413, 422), InvalidInput, "never", "HTTP 400, 413, 422"),
    Rule(_ALL, "service", _ANY, QuantumRuntimeError, "never", "any other refusal"),
)


def _as_int(code: int | str | None) -> int | None:
    try:
        return int(code) if code is not None else None
    except ValueError:
        return None


def judge(
    phase: Phase,
    status: int,
    code: int | str | None = None,
    retry_after: float | None = None,
    *,
    owner: Owner = "service",
) -> Verdict:
    """Judge an HTTP answer that is not a success.

    Args:
        phase: What the request was for.
        status: HTTP status.
        code: The service's own code, if the body had one.
        retry_after: Seconds the service asked to wait.
        owner: Who gave the answer.

    Returns:
        The error type and the advice.
    """
    number = _as_int(code) if owner == "service" else None
    rule = next(rule for rule in RULES if rule.fits(phase, owner, status, number))
    return Verdict(rule.error, _advice(rule, phase, retry_after))


def _advice(rule: Rule, phase: Phase, asked: float | None) -> RetryAdvice:
    if rule.advice == "never":
        return NEVER
    if rule.advice == "search":
        return SEARCH_FIRST
    if rule.advice == "pace":
        pause = asked if asked is not None else (CREATE_PAUSE if phase in CREATES else None)
        return after(pause) if pause is not None else SAME_REQUEST
    return after(asked) if asked else SAME_REQUEST


def is_refusal(error: BaseException) -> bool:
    """Whether the service itself refused to show something: HTTP 401, 403 or 404.

    About a job that was seen before this must repeat for a while until it is believed: a service that restarts, or
    loses its database for a moment, says the same.
    """
    if isinstance(error, AuthenticationError):
        return error.status == 401
    return isinstance(error, PermissionDenied | NotFound)


def lost_answer(phase: Phase, *, sent: bool) -> RetryAdvice:
    """Return the advice for a request without an answer.

    Args:
        phase: What the request was for.
        sent: Whether any of it may have reached the service. A refused connection means no.
    """
    return SEARCH_FIRST if sent and phase in CREATES else SAME_REQUEST


def retryable_reason(reason_code: int | str | None) -> bool:
    """Whether a failed job's reason code blames the service, so that a new job may succeed."""
    return _as_int(reason_code) in _RETRYABLE_REASONS


def job_error(job: Job) -> QuantumRuntimeError | None:
    """The error for a finished job, or None for a completed or unfinished one."""
    if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
        return None
    fields: dict[str, Any] = {
        "code": job.reason_code,
        "reason": job.reason,
        "solution": job.reason_solution,
        "job_id": job.id,
        "session_id": job.session_id,
        "job_url": job.url,
        "raw_status": job.raw_status,
        "usage_seconds": job.usage_seconds,
    }
    number = _as_int(job.reason_code)
    if job.ran_too_long or number in _RAN_TOO_LONG:
        fields["solution"] = job.reason_solution or "Raise max_execution_time or give the job less to do."
        return JobRanTooLong(f"job {job.id} reached its QPU time limit", retryable=False, **fields)
    if job.status is JobStatus.FAILED:
        retryable = retryable_reason(number)
        hint = " (the service's own fault; a new job may succeed)" if retryable else ""
        return JobFailed(f"job {job.id} failed{hint}", retryable=retryable, **fields)
    return JobCancelled(f"job {job.id} was cancelled", **fields)
