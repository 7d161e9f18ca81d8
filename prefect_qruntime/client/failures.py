"""Decide what a failure means: phase × owner of the answer × HTTP status × code → error type and retry advice.

Everything that asks "may I send this again?" reads this module: the transport, the submission, the waiting and,
through the advice an error carries, Prefect's task retries. The first rule that fits decides; `docs/failures.md` shows
the same rules in words, in this order (`tools/failure_table.py` writes it). `answers` decides whose an answer is.

Facts: the status codes of IBM's OpenAPI document, the code list of the old error registry and its present-day texts.
If those are silent, money decides: a read is repeated, a create is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
    "RULES",
    "Owner",
    "Phase",
    "Rule",
    "Verdict",
    "is_refusal",
    "job_error",
    "judge",
    "lost_answer",
    "retryable_reason",
]

Phase = Literal["token", "read", "submit", "open", "wait", "fetch", "change"]
"""What a request is for: `submit` and `open` create something that costs money; `change` is idempotent."""

Owner = Literal["service", "other"]
"""Who gave an answer: the service (IAM, for a token) itself, or anything in between."""

CREATE_PAUSE = 12.0
"""Seconds between creates if a 429 names no time: the service allows five a minute per user."""

CREATES: frozenset[Phase] = frozenset({"submit", "open"})
_TOKEN: frozenset[Phase] = frozenset({"token"})
_REPEATABLE: frozenset[Phase] = frozenset({"token", "read", "wait", "fetch", "change"})
_ALL: frozenset[Phase] = CREATES | _REPEATABLE
_NOT_TOKEN = _ALL - _TOKEN

# Failed jobs whose cause lies with the service (E2 of the error registry): a new job may succeed.
_RETRYABLE_REASONS = frozenset({1000, 1006, 1008, 1010, 1011, 5203, 9701, 9707, 9999})
_RAN_TOO_LONG = frozenset({1305})


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
    Rule(frozenset({"submit"}), "service", _is(409), UsageLimitReached, "never", "HTTP 409: usage limit"),
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
