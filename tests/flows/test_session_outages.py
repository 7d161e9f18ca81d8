"""A session left because of an outage: its queued jobs live on, a retry attaches, and closing hides no other error."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient

import prefect_qruntime as qr
from prefect_qruntime import sessions
from prefect_qruntime.client.session_core import says_nothing_about_jobs
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, posts, ran, run, until

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

OUTAGES = [
    qr.ServiceUnavailable("no answer"),
    qr.RateLimited("slow down"),
    qr.SubmissionUncertain("lost"),
    qr.ResultNotReady("later"),
    qr.JobTimeout("our own deadline"),
    qr.QuantumRuntimeError("an answer of no kind that is known", status=499),
    qr.AuthenticationError("the key is unknown", status=400, code="BXNIM0415E"),
    ExceptionGroup("gathered", [ValueError("mine"), qr.ServiceUnavailable("no answer")]),
]
ENDS = [
    ValueError("mine"),
    qr.NotFound("the service knows no such job", status=404, code=1291),
    qr.PermissionDenied("no right", status=403, code=1200),
    qr.NotFound("what was read before cannot be read again", status=204),
    qr.JobFailed("the job failed"),
    qr.JobCancelled("it was cancelled"),
    qr.InvalidInput("wrong", field="shots"),
    qr.JobTimeout("cancelled with its wait", cancelled=True),
    ExceptionGroup("gathered", [ValueError("mine"), qr.JobFailed("the job failed")]),
]


def chained(error: Exception) -> Exception:
    try:
        raise KeyError("mine") from error
    except KeyError as wrapped:
        return wrapped


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_an_outage_says_nothing_about_jobs(error: Exception) -> None:
    assert says_nothing_about_jobs(error)
    assert says_nothing_about_jobs(chained(error))


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_the_flows_own_errors_and_the_services_word_do(error: Exception) -> None:
    assert not says_nothing_about_jobs(error)
    assert not says_nothing_about_jobs(chained(error))


@pytest.mark.parametrize("status", [503, 530])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_after_an_outage_the_queued_job_lives_on_and_a_retry_attaches_to_it(
    sandbox: Sandbox, dialect: str, status: int, kind: str
) -> None:
    credentials = sandbox.credentials(dialect)
    sandbox.control.hold()
    failed: list[str] = []

    def outage() -> None:
        """What a wait raises after its patience, without the minutes of it."""
        if not failed:
            failed.append(sandbox.control.jobs()[0]["id"])
            raise qr.ServiceUnavailable(f"HTTP {status} until the deadline", status=status)
        assert sandbox.control.job(failed[0])["status"] == "Queued", "the outage dropped the queued job"
        sandbox.control.release()

    @flow(retries=1, retry_delay_seconds=0)
    def sync_flow() -> dict[str, int]:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            job = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session, shots=5)
            outage()
            qr.wait_for_completion(credentials, job)
            return qr.fetch_results(credentials, job).counts()

    @flow(retries=1, retry_delay_seconds=0)
    async def async_flow() -> dict[str, int]:
        async with qr.aruntime_session(credentials, BACKEND, max_ttl=300) as session:
            job = await qr.asubmit_job(credentials, [FLIP], backend=BACKEND, session=session, shots=5)
            outage()
            await qr.await_for_completion(credentials, job)
            return (await qr.afetch_results(credentials, job)).counts()

    _, state = ran(sync_flow if kind == "sync" else async_flow)
    assert run(state.aresult()) == {"1": 5}
    assert [job["status"] for job in sandbox.control.jobs()] == ["Completed"]
    assert posts(sandbox) == 1
    assert until(lambda: sandbox.control.open_sessions() == [])


class Broken(Exception):
    """What Prefect, a library or a disk may raise."""


@pytest.mark.parametrize("error", [Broken("a bug"), OSError("disk"), qr.PermissionDenied("no right"), TimeoutError()])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_close_that_fails_in_any_way_hides_nothing_and_is_reported(
    sandbox: Sandbox,
    credentials: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    kind: str,
) -> None:
    async def close(self: Any, session_id: str, *, drain: bool) -> Any:
        raise error

    @flow
    def sync_flow() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300):
            raise ArithmeticError("mine")

    @flow
    async def async_flow() -> None:
        async with qr.aruntime_session(credentials, BACKEND, max_ttl=300):
            raise ArithmeticError("mine")

    with monkeypatch.context() as patch:
        patch.setattr("prefect_qruntime.client.QuantumRuntimeClient.close_session", close)
        _, state = ran(sync_flow if kind == "sync" else async_flow)
    with pytest.raises(ArithmeticError, match="mine"):
        run(state.aresult())
    (session,) = sandbox.control.open_sessions()
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR and session["id"] in r.getMessage()]
    assert any("could not be closed" in line and "sweep" in line for line in said), said


@pytest.mark.parametrize("fails", [False, True])
def test_prefect_failing_at_the_close_leaves_no_session_open_and_no_result_lost(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def no_task(*_: Any, **__: Any) -> Any:
        raise Broken("HTTP 500 of Prefect's API")

    monkeypatch.setattr(sessions, "close_session", no_task)

    @flow
    def one() -> dict[str, int]:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            counts = qr.run_job(credentials, [FLIP], backend=BACKEND, session=session, shots=5).counts()
            if fails:
                raise ArithmeticError("mine")
            return counts

    _, state = ran(one)
    if fails:
        with pytest.raises(ArithmeticError, match="mine"):
            run(state.aresult())
    else:
        assert run(state.aresult()) == {"1": 5}
    assert sandbox.control.open_sessions() == []


def test_prefects_api_away_at_the_close(sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes about a closed session are lost, not the closing."""

    async def away(*_: Any, **__: Any) -> Any:
        raise OSError("connection refused")

    @flow
    def one() -> dict[str, int]:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            counts = qr.run_job(credentials, [FLIP], backend=BACKEND, session=session, shots=5).counts()
            monkeypatch.setattr(PrefectClient, "update_artifact", away)
            monkeypatch.setattr(PrefectClient, "create_artifact", away)
            monkeypatch.setattr(PrefectClient, "read_artifacts", away)
            return counts

    _, state = ran(one)
    monkeypatch.undo()
    assert run(state.aresult()) == {"1": 5}
    assert sandbox.control.open_sessions() == []
