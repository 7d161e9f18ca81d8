"""The failure table: phase × HTTP status × code → error type and advice."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from prefect_qruntime.client.failures import (
    CREATES,
    RULES,
    Owner,
    Phase,
    is_refusal,
    job_error,
    judge,
    lost_answer,
    retryable_reason,
)
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    JobCancelled,
    JobFailed,
    JobRanTooLong,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    RateLimited,
    ServiceUnavailable,
    SessionClosed,
    UsageLimitReached,
)
from prefect_qruntime.models import Job, JobStatus

UP = ServiceUnavailable
OWN: list[tuple[str, int, int | str | None, float | None, type[QuantumRuntimeError], str]] = [
    # IAM
    ("token", 400, "BXNIM0415E", None, AuthenticationError, "never"),
    ("token", 401, "BXNIM0102E", None, AuthenticationError, "never"),
    ("token", 429, None, None, RateLimited, "same-request"),
    ("token", 429, None, 7.0, RateLimited, "after 7 s"),
    ("token", 503, "BXNIM0101E", 3.0, UP, "after 3 s"),
    # The service is out of order: reads and idempotent changes go out again, creates do not.
    *[(phase, status, None, None, UP, "same-request") for phase in ("read", "wait") for status in (500, 501, 503)],
    *[("fetch", status, None, None, UP, "same-request") for status in (503, 520, 525, 530)],
    *[("change", status, None, None, UP, "same-request") for status in (500, 507, 524)],
    *[("submit", status, None, None, UP, "search-first") for status in (500, 501, 502, 503, 504, 520, 524, 599)],
    *[("open", status, None, None, UP, "search-first") for status in (500, 502, 503, 504, 522)],
    ("read", 503, None, 2.0, UP, "after 2 s"),
    ("read", 503, None, 0.0, UP, "same-request"),
    ("submit", 503, None, 2.0, UP, "search-first"),
    # Rate limit: not accepted, so even creates may go out again.
    ("submit", 429, 1202, None, RateLimited, "after 12 s"),
    ("open", 429, None, None, RateLimited, "after 12 s"),
    ("submit", 429, None, 0.5, RateLimited, "after 0.5 s"),
    ("submit", 429, None, 0.0, RateLimited, "after 0 s"),
    ("read", 429, None, None, RateLimited, "same-request"),
    ("wait", 429, None, 30.0, RateLimited, "after 30 s"),
    ("submit", 400, 1202, None, RateLimited, "after 12 s"),
    ("submit", 400, "1202", None, RateLimited, "after 12 s"),
    # Who may
    ("read", 401, 1201, None, AuthenticationError, "never"),
    ("submit", 401, None, None, AuthenticationError, "never"),
    ("wait", 400, 1201, None, AuthenticationError, "never"),
    ("read", 403, None, None, PermissionDenied, "never"),
    ("read", 403, 1200, None, PermissionDenied, "never"),
    ("submit", 403, None, None, PermissionDenied, "never"),
    ("open", 400, 1352, None, PermissionDenied, "never"),
    ("open", 400, "1352", None, PermissionDenied, "never"),
    # What is not there, or not any more
    ("wait", 404, 1291, None, NotFound, "never"),
    ("read", 404, "not_found", None, NotFound, "never"),
    ("submit", 404, None, None, NotFound, "never"),
    ("fetch", 404, None, None, NotFound, "never"),
    ("submit", 400, 1217, None, SessionClosed, "never"),
    ("submit", 403, 1217, None, SessionClosed, "never"),
    ("submit", 404, 1217, None, SessionClosed, "never"),
    ("submit", 409, 4001, None, SessionClosed, "never"),
    # Money
    ("submit", 409, None, None, UsageLimitReached, "never"),
    ("submit", 400, 4317, None, UsageLimitReached, "never"),
    ("change", 409, None, None, QuantumRuntimeError, "never"),
    ("open", 409, None, None, QuantumRuntimeError, "never"),
    # Input
    ("submit", 400, 1208, None, InvalidInput, "never"),
    ("submit", 400, 1204, None, InvalidInput, "never"),
    ("submit", 413, None, None, InvalidInput, "never"),
    ("submit", 422, None, None, InvalidInput, "never"),
    ("open", 400, None, None, InvalidInput, "never"),
    ("read", 400, None, None, QuantumRuntimeError, "never"),
    ("wait", 400, 1208, None, QuantumRuntimeError, "never"),
    # The rest
    ("submit", 405, None, None, QuantumRuntimeError, "never"),
    ("read", 418, "teapot", None, QuantumRuntimeError, "never"),
]


def test_the_table_is_worth_the_name() -> None:
    assert len(OWN) >= 60
    assert len({row[:4] for row in OWN}) == len(OWN)
    assert {row[0] for row in OWN} == set(get_args(Phase))


@pytest.mark.parametrize(("phase", "status", "code", "asked", "error", "advice"), OWN)
def test_in_the_services_own_words(
    phase: Any, status: int, code: Any, asked: float | None, error: type, advice: str
) -> None:
    verdict = judge(phase, status, code, asked)
    assert (verdict.error, str(verdict.advice)) == (error, advice)


@pytest.mark.parametrize("code", [None, 1000, 1202, 1201, 1291, "not_found", "BXNIM0415E"])
@pytest.mark.parametrize("phase", get_args(Phase))
def test_what_is_not_the_services_own_is_an_outage_whatever_it_says(phase: Any, code: Any) -> None:
    for status in (*range(100, 429), *range(430, 1000)):
        verdict = judge(phase, status, code, owner="other")
        if (phase, status) == ("submit", 413):  # about the request, whoever says it; a job is searched for as well
            assert (verdict.error, str(verdict.advice)) == (InvalidInput, "search-first")
            continue
        assert verdict.error is ServiceUnavailable
        assert str(verdict.advice) == ("search-first" if phase in CREATES else "same-request"), status
    assert judge(phase, 429, code, owner="other").error is RateLimited


@pytest.mark.parametrize("code", [None, 1000, 1202, 1201, "not_found"])
@pytest.mark.parametrize("phase", ["submit", "open"])
def test_no_answer_lets_a_create_be_repeated_but_a_refusal_for_pace(phase: Any, code: Any) -> None:
    for status in range(400, 600):
        advice = judge(phase, status, code).advice
        assert advice.may_repeat == (status == 429 or (code == 1202 and status < 500)), status
        assert (advice.kind == "search-first") == (status >= 500), status


def test_every_rule_decides_something() -> None:
    deciding = set()
    codes = [None, *sorted(set().union(*(rule.codes or () for rule in RULES)))]
    for phase in get_args(Phase):
        for owner in get_args(Owner):
            for status in (200, 302, 400, 401, 403, 404, 405, 409, 413, 422, 429, 500, 530):
                for code in codes:
                    deciding.add(next(n for n, rule in enumerate(RULES) if rule.fits(phase, owner, status, code)))
    assert deciding == set(range(len(RULES)))


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (PermissionDenied("x"), True),
        (NotFound("x"), True),
        (AuthenticationError("x", status=401), True),
        (AuthenticationError("wrong key", status=400), False),
        (ServiceUnavailable("x", status=404), False),
        (ValueError("x"), False),
    ],
)
def test_refusals(error: Exception, refusal: bool) -> None:
    assert is_refusal(error) is refusal


@pytest.mark.parametrize("phase", get_args(Phase))
def test_lost_answers(phase: Any) -> None:
    assert lost_answer(phase, sent=False).kind == "same-request"
    assert lost_answer(phase, sent=True).kind == ("search-first" if phase in ("submit", "open") else "same-request")


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        (1000, True),
        ("1006", True),
        (9999, True),
        (5203, True),
        (9707, True),
        (None, False),
        (1305, False),
        (7001, False),
        ("x", False),
        (1517, False),
        ("", False),
        (1500, False),
    ],
)
def test_retryable_reasons(code: Any, retryable: bool) -> None:
    assert retryable_reason(code) is retryable


def job(status: JobStatus | None, **fields: Any) -> Job:
    return Job(id="d1", status=status, url="https://host/d1", **fields)


@pytest.mark.parametrize(
    ("given", "error", "retryable"),
    [
        (job(JobStatus.COMPLETED), None, None),
        (job(JobStatus.QUEUED), None, None),
        (job(JobStatus.RUNNING), None, None),
        (job(None, raw_status="Paused-By-Magic"), None, None),
        (job(JobStatus.COMPLETED, reason_code=1305), None, None),
        (job(JobStatus.FAILED), JobFailed, False),
        (job(JobStatus.FAILED, reason_code=1006), JobFailed, True),
        (job(JobStatus.FAILED, reason_code="9701"), JobFailed, True),
        (job(JobStatus.FAILED, reason_code=7001), JobFailed, False),
        (job(JobStatus.FAILED, reason_code=1305), JobRanTooLong, False),
        (job(JobStatus.CANCELLED), JobCancelled, None),
        (job(JobStatus.CANCELLED, reason_code=1305), JobRanTooLong, False),
        (job(JobStatus.CANCELLED, reason_code="1305"), JobRanTooLong, False),
        (job(JobStatus.CANCELLED, ran_too_long=True), JobRanTooLong, False),
        (job(JobStatus.CANCELLED, reason_code=1000), JobCancelled, None),
    ],
)
def test_job_error(given: Job, error: type | None, retryable: bool | None) -> None:
    found = job_error(given)
    assert (None if found is None else type(found)) is error
    if found is not None:
        assert found.job_id == "d1"
        assert found.job_url == "https://host/d1"
        assert found.code == given.reason_code
        if retryable is not None:
            assert found.retryable is retryable


def test_job_error_carries_what_the_service_said() -> None:
    found = job_error(
        job(JobStatus.FAILED, reason="boom", reason_code=1000, reason_solution="wait", raw_status="Failed")
    )
    assert found is not None
    assert "boom" in str(found)
    assert "wait" in str(found)
    assert found.raw_status == "Failed"
