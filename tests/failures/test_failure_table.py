"""The published failure table, row by row, over real sockets: what is raised, how many POSTs, how many jobs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.failures import job_error
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    JobCancelled,
    JobFailed,
    JobRanTooLong,
    JobTimeout,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    RateLimited,
    ServiceUnavailable,
    SessionClosed,
    SubmissionUncertain,
    UsageLimitReached,
)
from prefect_qruntime.sandbox import Sandbox
from tests.support.odd_answers import PAGE

CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
_numbers = itertools.count()  # a process remembers its keys, so each row has its own
PHASES = ("token", "read", "wait", "fetch", "change", "submit", "open")
QUICK = RetryDeadlines(
    token=1.5, read=1.5, wait=0.3, fetch=1.5, change=1.5, submit=1.5, open=1.5, first_pause=0.05, longest_pause=0.2
)
# Where all must end well, no limit that a busy machine passes.
CALM = RetryDeadlines(**dict.fromkeys(PHASES, 120.0), first_pause=0.05, longest_pause=0.2)
LONG = Deadlines(total=120.0, unseen=120.0, refused=120.0)
PACE = PollIntervals(queued=0.05, lively=0.05, streamed=0.1, outage=0.05)
Inject = Callable[[Any], Any]


@dataclass(frozen=True)
class Row:
    """One row: what goes wrong, and what must come of it.

    Attributes:
        name: Phase and cause.
        inject: Sets it up on the sandbox's control.
        error: What is raised, or None for a good end.
        text: Part of the error's text.
        posts: How many `POST /jobs` the service saw.
        jobs: How many jobs exist afterwards.
        advice: The error's retry advice.
        wait: Limits of the wait, if it must not end well.
    """

    name: str
    inject: Inject
    error: type[QuantumRuntimeError] | None = None
    text: str = ""
    posts: int = 1
    jobs: int = 1
    advice: str | None = None
    wait: Deadlines = field(default_factory=lambda: Deadlines(total=8.0, unseen=3.0, refused=3.0))


def fault(method: str | None, path: str, **what: Any) -> Inject:
    return lambda control: control.add_fault(method, path, **what)


def ending(**what: Any) -> Inject:
    return lambda control: control.script_job(**what)


def body(code: int | str, message: str, **more: str) -> dict[str, Any]:
    return {"errors": [{"code": code, "message": message, **more}], "trace": "trace-1"}


GATEWAY = (500, 502, 503, 504, 520, 521, 522, 523, 524)
ROWS: list[Row] = [Row("no fault", lambda control: None)]
# token: nothing is bought before there is one
ROWS += [
    Row(f"token {status} once", fault("POST", "/identity/token", status=status))
    for status in (500, 502, 503, 504, 520, 429)
]
ROWS += [
    Row("token lost answer once", fault("POST", "/identity/token", drop="after")),
    Row("token refused connection", fault("POST", "/identity/token", drop="before")),
    Row(
        "token unknown key",
        fault(
            "POST",
            "/identity/token",
            status=400,
            body={"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."},
            times=None,
        ),
        AuthenticationError,
        "API key not found",
        posts=0,
        jobs=0,
        advice="never",
    ),
    Row(
        "token 503 for ever",
        fault("POST", "/identity/token", status=503, times=None),
        ServiceUnavailable,
        "token",
        posts=0,
        jobs=0,
        advice="same-request",
    ),
]
# submit: an answer that may hide a job is looked for, one that cannot is sent again
ROWS += [
    Row(f"submit {status}, accepted", fault("POST", "/jobs", status=status, after_handler=True), posts=1)
    for status in GATEWAY
]
ROWS += [Row(f"submit {status}, not accepted", fault("POST", "/jobs", status=status), posts=2) for status in GATEWAY]
ROWS += [
    Row("submit answer lost", fault("POST", "/jobs", drop="after"), posts=1),
    Row("submit connection cut before", fault("POST", "/jobs", drop="before"), posts=2),
    Row("submit answer cut in half", fault("POST", "/jobs", drop="middle"), posts=1),
    Row(
        "submit lost for ever, never accepted",
        fault("POST", "/jobs", status=503, times=None),
        SubmissionUncertain,
        "answers were lost",
        posts=3,
        jobs=0,
        advice="search-first",
    ),
    Row(
        "submit lost and the list fails",
        lambda c: (c.add_fault("POST", "/jobs", drop="after"), c.add_fault("GET", "/jobs", status=503, times=None)),
        SubmissionUncertain,
        "searching for it failed",
        posts=1,
        jobs=1,
        advice="search-first",
    ),
    Row("submit 413 of a proxy, accepted", fault("POST", "/jobs", status=413, body=PAGE, after_handler=True), posts=1),
    Row(
        "submit 413 of a proxy",  # before: sent three times, then `SubmissionUncertain`
        fault("POST", "/jobs", status=413, body=PAGE, times=None),
        InvalidInput,
        "bytes long",
        posts=1,
        jobs=0,
        advice="never",
    ),
    Row("submit 429 with Retry-After", fault("POST", "/jobs", status=429, retry_after=0.2), posts=2),
    Row("submit 429 twice", fault("POST", "/jobs", status=429, retry_after=0.1, times=2), posts=3),
    Row(
        "submit 429 for longer than our patience",
        fault("POST", "/jobs", status=429, retry_after=60, times=None),
        RateLimited,
        "refused",
        posts=1,
        jobs=0,
        advice="after 60 s",
    ),
    Row(
        "submit 429 without Retry-After",
        fault("POST", "/jobs", status=429, times=None),
        RateLimited,
        "refused",
        posts=1,
        jobs=0,
        advice="after 12 s",
    ),
    Row("submit 401 once", fault("POST", "/jobs", status=401), posts=2),
    Row(
        "submit 401 twice",
        fault("POST", "/jobs", status=401, times=None),
        AuthenticationError,
        "refused",
        posts=2,
        jobs=0,
        advice="never",
    ),
]
REFUSED: list[tuple[str, int, Any, type[QuantumRuntimeError], str]] = [
    ("validation", 400, body(1208, "bad params"), InvalidInput, "bad params"),
    ("too many tags", 400, body(1204, "too many tags", solution="Use fewer."), InvalidInput, "Use fewer."),
    ("tag too long", 400, body("1205", "tag too long"), InvalidInput, "tag too long"),
    ("too large", 413, body(1208, "too large"), InvalidInput, "too large"),
    ("unprocessable", 422, body(1208, "no such option"), InvalidInput, "no such option"),
    ("plan without sessions", 400, body(1352, "not authorised"), PermissionDenied, "batch"),
    ("forbidden", 403, body(1200 + 3, "no access"), PermissionDenied, "no access"),
    ("unknown backend", 404, body("not_found", "device not found"), NotFound, "device not found"),
    ("usage limit", 409, body(4317, "quota used up"), UsageLimitReached, "quota used up"),
    ("usage limit with another code", 409, body("conflict", "no"), UsageLimitReached, "HTTP 409"),
    ("closed session", 400, body(1217, "session closed"), SessionClosed, "session closed"),
    ("old error form", 400, {"error": {"code": 1208, "message": "old form"}}, InvalidInput, "old form"),
    ("trace", 400, body(1208, "x"), InvalidInput, "trace trace-1"),
]
ROWS += [
    Row(
        f"submit refused: {name}",
        fault("POST", "/jobs", status=status, body=said, times=None),
        error,
        text,
        1,
        0,
        "never",
    )
    for name, status, said, error, text in REFUSED
]
# wait: a transport error says nothing about the job
ROWS += [
    Row(f"wait {status} three times", fault("GET", "/jobs/*", status=status, times=3))
    for status in (500, 502, 503, 504, 429)
]
ROWS += [
    Row("wait connection cut", fault("GET", "/jobs/*", drop="before", times=3)),
    Row("wait answer lost", fault("GET", "/jobs/*", drop="after", times=3)),
    Row("wait answer cut in half", fault("GET", "/jobs/*", drop="middle", times=2)),
    Row("wait 401 once", fault("GET", "/jobs/*", status=401)),
    Row("wait 404 right after the create", fault("GET", "/jobs/*", status=404, times=2)),
    Row(
        "wait 404 for ever",
        fault("GET", "/jobs/*", status=404, body=body(1291, "Job not found."), times=None),
        NotFound,
        "Job not found.",
        wait=Deadlines(total=8.0, unseen=0.3, refused=0.3),
    ),
    Row(
        "wait 403 for ever",
        fault("GET", "/jobs/*", status=403, times=None),
        PermissionDenied,
        "state could not be read",
        wait=Deadlines(total=8.0, refused=0.3, unseen=0.3),
    ),
    Row("wait 403 for a moment", fault("GET", "/jobs/*", status=403, skip=1, times=3)),
    Row("wait 401 for a moment", fault("GET", "/jobs/*", status=401, skip=1, times=4)),
    Row(
        "wait token outage",
        lambda c: (c.add_fault("POST", "/identity/token", status=503, times=2, skip=1), c.revoke_tokens()),
    ),
    Row("list lag", lambda c: (c.set_option("list_lag", 0.3), c.add_fault("POST", "/jobs", drop="after"))),
    Row("get lag", lambda c: c.set_option("get_lag", 0.5)),
    Row(
        "wait deadline",
        lambda c: c.hold(),
        JobTimeout,
        "lives on",
        wait=Deadlines(total=0.5),
    ),
    Row("wait queue deadline", lambda c: c.hold(), JobTimeout, "queue_timeout", wait=Deadlines(queue=0.5)),
    Row(
        "wait unknown status",
        ending(status="Paused-By-Magic"),
        JobTimeout,
        "Paused-By-Magic",
        wait=Deadlines(total=1.5),
    ),
]
# the job's own end
ROWS += [
    Row(
        f"job failed {code}",
        ending(status="Failed", reason="broken", reason_code=code),
        JobFailed,
        word,
        advice="never",
    )
    for code, word in ((1000, "new job may succeed"), (9999, "new job may succeed"), (1517, "broken"), (7001, "broken"))
]
ROWS += [
    Row("job cancelled", ending(status="Cancelled", reason="by somebody"), JobCancelled, "was cancelled"),
    Row("job ran too long", ending(status="Ran too long"), JobRanTooLong, "max_execution_time"),
]
# fetch
ROWS += [
    Row(f"fetch {status} twice", fault("GET", "/jobs/*/results", status=status, times=2)) for status in (502, 503, 429)
]
ROWS += [
    Row("fetch answer lost", fault("GET", "/jobs/*/results", drop="after")),
    Row("fetch 204 at first", lambda c: c.set_option("results_lag", 0.5)),
    Row("fetch 401 once", fault("GET", "/jobs/*/results", status=401)),
    Row("fetch no JSON", fault("GET", "/jobs/*/results", status=200, body="oops")),
    Row("fetch 403 for a moment", fault("GET", "/jobs/*/results", status=403, times=2)),
    Row(
        "fetch page for ever",
        fault("GET", "/jobs/*/results", status=403, body="<html>no</html>", times=None),
        ServiceUnavailable,
        "in between",
        advice="same-request",
    ),
]


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.02, "run_time": 0.02}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(sandbox: Sandbox, row: Row, dialect: str) -> None:
    patience, deadlines = (CALM, LONG) if row.error is None else (QUICK, row.wait)
    client = QuantumRuntimeClient(Connection(**sandbox.connection(dialect), request_timeout=5.0), patience=patience)
    row.inject(sandbox.control)
    key = f"qr-key:{next(_numbers):032d}"

    async def story() -> Any:
        spec = make_spec([CIRCUIT], backend="sandbox_ideal", shots=10)
        ref = await client.submit(Intent(spec, key_tag=lambda generation: key, grace=0.4))
        job = await client.wait(ref.id, deadlines=deadlines, pace=PACE)
        error = job_error(job)
        if error is not None:
            raise error
        return await client.result(ref, grace=120.0 if row.error is None else 2.0)

    if row.error is None:
        assert client.run(story()).counts() == {"1": 10}
    else:
        with pytest.raises(row.error) as caught:
            client.run(story())
        assert type(caught.value) is row.error
        assert row.text in str(caught.value)
        if row.advice is not None:
            assert str(caught.value.advice) == row.advice
        assert sandbox.api_key not in repr(caught.value.fields)
    posts = [entry for entry in sandbox.control.journal("POST") if entry["path"] == "/jobs"]
    assert (len(posts), len(sandbox.control.jobs())) == (row.posts, row.jobs)


def test_the_table_is_long_enough() -> None:
    assert len(ROWS) >= 60
