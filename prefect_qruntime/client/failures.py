"""The one table that decides: phase × HTTP status × code → error type and retry advice.

Everything that asks "may I send this again?" reads this module: the transport, the submission, the
waiting and, through the advice an error carries, Prefect's task retries. The published failure
table in the docs is this one in words.

Facts: the status codes of IBM's OpenAPI document, the code list of the old error registry and
its present-day texts; where those are silent, money decides (no repeat).
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
    ResultNotReady,
    RetryAdvice,
    ServiceUnavailable,
    SessionClosed,
    UsageLimitReached,
    after,
)
from prefect_qruntime.models import Job, JobStatus

__all__ = ["CREATE_PAUSE", "Phase", "Verdict", "job_error", "judge", "lost_answer", "retryable_reason"]

Phase = Literal["token", "read", "submit", "open", "wait", "fetch", "change"]
"""What is being done: `submit` and `open` create something that costs money; `change` is idempotent."""

CREATE_PAUSE = 12.0
"""Seconds between creates where a 429 names no time: the service allows five a minute per user."""

_GATEWAY = frozenset({500, 502, 503, 504, 520, 521, 522, 523, 524})
_CREATES = ("submit", "open")
# Failed jobs whose cause lies with the service (E2 of the error registry): a new job may succeed.
_RETRYABLE_REASONS = frozenset({1000, 1006, 1008, 1010, 1011, 5203, 9701, 9707, 9999})
_RAN_TOO_LONG = frozenset({1305})
_SESSION_CLOSED = frozenset({1217, 4001})
_LIMIT_REACHED = frozenset({4317})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which error an answer is, and whether the same request may go out again."""

    error: type[QuantumRuntimeError]
    advice: RetryAdvice


def _as_int(code: int | str | None) -> int | None:
    try:
        return int(code) if code is not None else None
    except ValueError:
        return None


def judge(phase: Phase, status: int, code: int | str | None = None, retry_after: float | None = None) -> Verdict:
    """Judge an HTTP answer that is not a success.

    Args:
        phase: What the request was for.
        status: HTTP status.
        code: The service's own code, if the body had one.
        retry_after: Seconds the service asked to wait.

    Returns:
        The error type and the advice.
    """
    number = _as_int(code)
    if phase == "token":
        return _judge_token(status, retry_after)
    if status == 429 or (number == 1202 and status < 500):
        pause = retry_after if retry_after is not None else (CREATE_PAUSE if phase in _CREATES else None)
        return Verdict(RateLimited, after(pause) if pause is not None else SAME_REQUEST)
    # The service gives code 1200 with a 403 too, and there it means the right, not the token.
    if status == 401 or (number in (1200, 1201) and status != 403):
        return Verdict(AuthenticationError, NEVER)
    if status in _GATEWAY or status >= 500:
        if phase in _CREATES:
            return Verdict(ServiceUnavailable, SEARCH_FIRST)
        if status not in _GATEWAY:  # 501 and the like: asking again changes nothing
            return Verdict(ServiceUnavailable, NEVER)
        return Verdict(ServiceUnavailable, after(retry_after) if retry_after else SAME_REQUEST)
    if number in _SESSION_CLOSED:
        return Verdict(SessionClosed, NEVER)
    if status == 403 or number == 1352:
        return Verdict(PermissionDenied, NEVER)
    if status == 404:
        return Verdict(NotFound, NEVER)
    if (status == 409 and phase == "submit") or number in _LIMIT_REACHED:
        return Verdict(UsageLimitReached, NEVER)
    if status == 204 and phase == "fetch":
        return Verdict(ResultNotReady, SAME_REQUEST)
    if status == 408:
        return Verdict(ServiceUnavailable, SEARCH_FIRST if phase in _CREATES else SAME_REQUEST)
    if status in (400, 413, 422) and phase in _CREATES:
        return Verdict(InvalidInput, NEVER)
    return Verdict(QuantumRuntimeError, NEVER)


def _judge_token(status: int, retry_after: float | None) -> Verdict:
    if status == 429:
        return Verdict(RateLimited, after(retry_after) if retry_after is not None else SAME_REQUEST)
    if status in _GATEWAY or status == 408:
        return Verdict(ServiceUnavailable, after(retry_after) if retry_after is not None else SAME_REQUEST)
    return Verdict(AuthenticationError, NEVER)


def lost_answer(phase: Phase, *, sent: bool) -> RetryAdvice:
    """Advice when no answer came.

    Args:
        phase: What the request was for.
        sent: Whether any of it may have reached the service. A refused connection means no.
    """
    return SEARCH_FIRST if sent and phase in _CREATES else SAME_REQUEST


def retryable_reason(reason_code: int | str | None) -> bool:
    """Whether a failed job's reason code lies with the service, so that a new job may succeed."""
    return _as_int(reason_code) in _RETRYABLE_REASONS


def job_error(job: Job) -> QuantumRuntimeError | None:
    """The error a finished job means, or None for a completed or unfinished one."""
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
