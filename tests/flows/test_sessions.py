"""Sessions of flows: always closed, dropped or drained as the end of the block demands, opened once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, runtime, unmapped
from prefect.futures import wait
from prefect.states import Cancelling

import prefect_qruntime as qr
from prefect_qruntime import hooks, sessions
from prefect_qruntime.client import sessions as client_sessions
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.service import Service
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.tasks import session_notes
from tests.support.flow_runs import BACKEND, FLIP, STAY, events, ran, records, requests, run, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server


def only_session(sandbox: Sandbox) -> dict[str, Any]:
    (session,) = sandbox.control.sessions()
    return session


def test_left_normally_the_session_is_drained_and_closed(sandbox: Sandbox, dialect: str) -> None:
    sandbox.control.set_times(queue_time=0.3, run_time=0.2)
    credentials = sandbox.credentials(dialect)

    @flow
    def two_jobs() -> list[str]:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            return [qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session).id for _ in range(2)]

    flow_run, state = ran(two_jobs)
    jobs = run(state.aresult())
    assert {sandbox.control.wait_job(job)["status"] for job in jobs} == {"Completed"}, "queued jobs must still run"
    session = until(lambda: next((s for s in sandbox.control.sessions() if s["state"] == "closed"), None))
    assert session is not None
    assert session["jobs"] == jobs
    (record,) = records("session", flow_run.id)
    assert record.meta["session"] == session["id"]
    assert record.meta["max_ttl"] == "300"
    assert record.meta["flow_run"] == str(flow_run.id)


def test_opening_does_not_wait_until_the_first_record_is_dropped(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, opened, dropped = session_notes.drop_record, asyncio.Event(), []

    async def late(artifact_id: UUID) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(opened.wait(), 30)
        await drop(artifact_id)
        dropped.append(artifact_id)

    monkeypatch.setattr(session_notes, "drop_record", late)
    credentials = sandbox.credentials()

    @flow
    def opens() -> tuple[str | None, int]:
        session = qr.open_session(credentials, BACKEND, mode="batch", max_ttl=300)
        at_once = len(dropped)
        network_loop().loop.call_soon_threadsafe(opened.set)
        return qr.close_session(credentials, session).id, at_once

    flow_run, state = ran(opens)
    session_id, at_once = run(state.aresult())
    assert at_once == 0
    assert len(dropped) == 1
    assert [record.meta["session"] for record in records("session", flow_run.id)] == [session_id]


def test_waited_for_the_session_closes_at_once(sandbox: Sandbox, dialect: str) -> None:
    credentials = sandbox.credentials(dialect)

    @flow
    def one() -> dict[str, int]:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            return qr.run_job(credentials, [FLIP], backend=BACKEND, session=session, shots=4).counts()

    flow_run, state = ran(one)
    assert run(state.aresult()) == {"1": 4}
    session = only_session(sandbox)
    assert session["state"] == "closed"
    (record,) = records("session", flow_run.id)
    assert record.meta["state"] == "closed"
    kinds = [event["event"] for event in events(f"qruntime.session.{session['id']}", 2)]
    assert kinds == ["qruntime.session.opened", "qruntime.session.closed"]


def test_left_by_an_error_queued_jobs_are_dropped(sandbox: Sandbox, dialect: str) -> None:
    sandbox.control.hold()
    credentials = sandbox.credentials(dialect)

    @flow
    async def breaks() -> None:
        async with qr.aruntime_session(credentials, BACKEND, max_ttl=300) as session:
            await qr.asubmit_job(credentials, [FLIP], backend=BACKEND, session=session)
            raise ArithmeticError("mine")

    _, state = ran(breaks)
    with pytest.raises(ArithmeticError, match="mine"):
        run(state.aresult())
    assert only_session(sandbox)["state"] == "closed"
    assert sandbox.control.jobs()[0]["status"] in ("Cancelled", "Failed")


def test_left_by_an_outage_queued_jobs_still_run(sandbox: Sandbox, dialect: str) -> None:
    sandbox.control.hold()
    credentials = sandbox.credentials(dialect)

    @flow
    def away() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
            raise qr.ServiceUnavailable("no answer for an hour")

    _, state = ran(away)
    assert state.is_failed()
    session = only_session(sandbox)
    assert session["accepting_jobs"] is False
    (job,) = session["jobs"]
    assert sandbox.control.job(job)["status"] == "Queued"
    sandbox.control.release()
    assert sandbox.control.wait_job(job)["status"] == "Completed"


def test_an_attached_job_names_the_session_it_is_in(sandbox: Sandbox, dialect: str) -> None:
    credentials = sandbox.credentials(dialect)
    tries: list[int] = []

    @flow(retries=1)
    def unlucky() -> tuple[bool, str | None, str | None]:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            job = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
            done = qr.wait_for_completion(credentials, job)
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("the first attempt fails after the job")
        return job.attached, job.session.id if job.session else None, done.session_id

    _, state = ran(unlucky)
    attached, told, real = run(state.aresult())
    assert attached
    assert told == real
    assert real is not None


def test_a_session_without_a_job_leaves_nothing_open(sandbox: Sandbox, dialect: str) -> None:
    credentials = sandbox.credentials(dialect)

    @flow
    def idle() -> None:
        with qr.runtime_session(credentials, BACKEND):
            pass

    flow_run, state = ran(idle)
    assert state.is_completed()
    assert sandbox.control.open_sessions() == []
    assert [record.meta["state"] for record in records("session", flow_run.id)] == ["closed"]


def test_a_close_that_fails_does_not_hide_the_error_of_the_block(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.add_fault("DELETE", "/sessions/*/close", status=403, times=None)

    @flow
    def breaks() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300):
            raise ArithmeticError("mine")

    _, state = ran(breaks)
    with pytest.raises(ArithmeticError, match="mine"):
        run(state.aresult())


@pytest.mark.parametrize("way", ["submit", "map", "gather"])
def test_five_first_jobs_at_once_open_one_session(sandbox: Sandbox, way: str) -> None:
    credentials = sandbox.credentials("legacy")
    circuits = [FLIP, STAY, FLIP, FLIP, STAY]
    # Late enough for a second first job to overtake, were it let through.
    sandbox.control.add_fault("POST", "/jobs", delay=0.3)

    def started(session: Any) -> Any:
        if way == "map":
            return qr.submit_job.map(unmapped(credentials), circuits, backend=BACKEND, session=unmapped(session))
        return [qr.submit_job.submit(credentials, [one], backend=BACKEND, session=session) for one in circuits]

    @flow
    def sync_flow() -> list[Any]:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            assert session.id is None
            futures = started(session)
            wait(futures)
            return [future.result() for future in futures]

    @flow
    async def async_flow() -> Any:
        async with qr.aruntime_session(credentials, BACKEND, max_ttl=300) as session:
            assert session.id is None
            return await asyncio.gather(
                *(qr.asubmit_job(credentials, [one], backend=BACKEND, session=session) for one in circuits)
            )

    jobs = run(async_flow()) if way == "gather" else sync_flow()  # type: ignore[arg-type]
    session = only_session(sandbox)
    assert session["id"] in session["jobs"], "the session has the name of its first job"
    assert len(session["jobs"]) == 5
    assert {job.session.id for job in jobs} == {session["id"]}
    assert until(lambda: sandbox.control.open_sessions() == [])


def test_a_first_job_that_is_refused_lets_the_next_one_open_the_session(sandbox: Sandbox) -> None:
    credentials = sandbox.credentials("legacy")
    sandbox.control.add_fault("POST", "/jobs", status=400)

    @flow
    def two() -> Any:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            first = qr.submit_job.submit(credentials, [FLIP], backend=BACKEND, session=session)
            wait([first])
            assert first.state.is_failed()
            return qr.submit_job(credentials, [STAY], backend=BACKEND, session=session)

    job = two()
    assert only_session(sandbox)["jobs"] == [job.id]


def test_a_retried_flow_submits_further_jobs_after_attaching(sandbox: Sandbox, dialect: str) -> None:
    """The first try closed its session while its job was running; the second try needs another one."""
    credentials = sandbox.credentials(dialect)
    sandbox.control.set_times(run_time=8.0, backend=BACKEND)
    tries: list[str] = []

    @flow(retries=1)
    def two() -> list[dict[str, int]]:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            job = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session, shots=3)
            tries.append(job.id)
            if len(tries) == 1:
                assert until(lambda: sandbox.control.job(job.id)["status"] == "Running")
                raise RuntimeError("something downstream broke")
            sandbox.control.set_times(run_time=0.05, backend=BACKEND)
            other = qr.submit_job(credentials, [STAY], backend=BACKEND, session=session, shots=3)
            sandbox.control.finish(job.id)
            for one in (job, other):
                qr.wait_for_completion(credentials, one)
            return [qr.fetch_results(credentials, one).counts() for one in (job, other)]

    assert two() == [{"1": 3}, {"0": 3}]
    assert tries[0] == tries[1], "the running job must be attached to"
    assert len(sandbox.control.jobs()) == 2
    assert sandbox.control.open_sessions() == []


def test_a_refused_session_says_so_and_leaves_no_note_that_something_is_open(
    sandbox: Sandbox, credentials: Any
) -> None:
    sandbox.control.set_option("allow_dedicated", False)

    @flow
    def dedicated() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300):
            raise AssertionError("not reached")

    flow_run, state = ran(dedicated)
    with pytest.raises(qr.PermissionDenied, match="1352"):
        run(state.aresult())
    assert [record.meta["state"] for record in records("session", flow_run.id)] == ["closed"]
    assert requests(sandbox, "POST", "/sessions") == 1


def test_sessions_handed_on_by_id(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def one() -> Any:
        session = qr.open_session(credentials, BACKEND, max_ttl=300)
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session.id)
        qr.wait_for_completion(credentials, job)
        qr.close_session(credentials, str(session.id))
        with pytest.raises(qr.SessionClosed):
            qr.submit_job(credentials, [STAY], backend=BACKEND, session=session)
        return qr.close_session(credentials, session)

    assert one().is_closed
    assert len(sandbox.control.jobs()) == 1


WAYS_OUT = {
    "hooks.detach": (hooks.detach, "Queued"),
    "hooks.cancel": (hooks.cancel, "Cancelled"),
}


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("left_by", ["a submission", "an error", "an outage", "a submission of a subflow"])
def test_of_a_cancelled_flow_run_the_policy_decides_however_the_block_is_left(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, way: str, left_by: str
) -> None:
    """A submission fails in a flow run that is being cancelled, with each policy."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS", "0.01")
    sandbox.control.hold()
    policy, status = WAYS_OUT[way]

    @flow
    def within(session: Any) -> None:
        qr.submit_job(credentials, [STAY], backend=BACKEND, session=session)

    @flow(**policy)
    def cancelled() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
            asked(lambda client: client.set_flow_run_state(UUID(runtime.flow_run.id), Cancelling()))
            if left_by == "an error":
                raise ArithmeticError("mine")
            if left_by == "an outage":
                raise qr.ServiceUnavailable("no answer for an hour")
            if left_by == "a submission":
                qr.submit_job(credentials, [STAY], backend=BACKEND, session=session)
            within(session)

    ran(cancelled)
    session = only_session(sandbox)
    assert [job["status"] for job in sandbox.control.jobs()] == [status]
    assert session["state"] == ("closed" if status == "Cancelled" else "open")
    assert session["accepting_jobs"] is False


def test_a_time_limit_of_a_task_leaves_queued_jobs_alone(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()

    @flow
    def impatient() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            job = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
            qr.wait_for_completion.with_options(timeout_seconds=0.5, retries=0)(credentials, job)

    _, state = ran(impatient)
    assert state.is_failed()
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]
    assert only_session(sandbox)["accepting_jobs"] is False


@pytest.mark.parametrize("drain", [True, False])
def test_a_session_that_is_left_while_its_first_job_is_sent_is_closed_all_the_same(
    sandbox: Sandbox, drain: bool
) -> None:
    sandbox.control.hold()
    credentials = sandbox.credentials("legacy")
    sent = threading.Event()
    post = Service.post_job

    async def late(self: Any, *args: Any) -> Any:
        ref = await post(self, *args)
        sent.set()
        await asyncio.to_thread(closed.wait, 60)
        return ref

    closed = threading.Event()

    @flow
    def leaves() -> tuple[Any, Any, Any]:
        session = qr.open_session(credentials, BACKEND, max_ttl=300)
        first = qr.submit_job.submit(credentials, [FLIP], backend=BACKEND, session=session)
        assert sent.wait(60)
        left = qr.close_session(credentials, session, drain=drain)
        closed.set()
        first.wait()
        after = qr.submit_job(credentials, [STAY], backend=BACKEND, session=session, return_state=True)
        return left, first.result(), after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "post_job", late)
        flow_run, state = ran(leaves)
    left, job, after = run(state.aresult())
    assert not left.is_closed
    assert after.is_failed()
    session = only_session(sandbox)
    assert session["jobs"] == [job.id]
    assert session["accepting_jobs"] is False
    assert (sandbox.control.job(job.id)["status"] == "Queued") is drain
    (record,) = records("session", flow_run.id)
    assert record.meta["session"] == session["id"]


def test_no_job_opens_a_session_again_that_was_closed(sandbox: Sandbox, dialect: str) -> None:
    credentials = sandbox.credentials(dialect)

    @flow
    def late() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            pass
        qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)

    _, state = ran(late)
    with pytest.raises(qr.SessionClosed):
        run(state.aresult())
    assert sandbox.control.open_sessions() == []
    assert sandbox.control.jobs() == []


@pytest.mark.parametrize("lost_before", [False, True])
def test_a_first_job_that_a_proxy_refuses_leaves_no_doubt_unless_an_earlier_answer_was_lost(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, lost_before: bool
) -> None:
    """Before: the session's record stayed open, and the log said that the session and a job may live on."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "1")
    credentials = sandbox.credentials("legacy")
    network_loop().run(credentials.get_client().jobs(limit=1))  # so that it is no 401 that is lost

    @flow
    def refused() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            if lost_before:
                sandbox.control.add_fault("POST", "/jobs", drop="before")
            sandbox.control.add_fault("POST", "/jobs", status=413, body="<html>nginx</html>", times=None)
            qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)

    flow_run, state = ran(refused)
    with pytest.raises(qr.SubmissionUncertain if lost_before else qr.InvalidInput):
        run(state.aresult())
    (record,) = records("session", flow_run.id)
    assert (record.meta["state"] == "closed") is not lost_before
    assert ("was never opened" in caplog.text) is not lost_before
    assert ("It is not known whether the first job" in caplog.text) is lost_before
    assert "ended before the service answered" not in caplog.text
    assert sandbox.control.jobs() == []


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", ["flow", "script"])
def test_a_session_that_a_lost_first_job_opened_is_closed_or_not_called_closed(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture, kind: str, listed: bool, again: bool
) -> None:
    sandbox.control.hold()
    credentials = sandbox.credentials("legacy")
    network_loop().run(credentials.get_client().jobs(limit=1))  # so that it is no 401 that is lost

    def loses() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            sandbox.control.add_fault("POST", "/jobs", drop="after")
            searches = sandbox.control.add_fault("GET", "/jobs", status=403, times=None)
            assert searches
            lost = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session, return_state=True)
            if listed:
                sandbox.control.clear_faults()
            if again:  # it opens another session
                qr.submit_job(credentials, [STAY], backend=BACKEND, session=session)
            run(lost.aresult())

    if kind == "flow":
        flow_run, state = ran(flow(loses))
        with pytest.raises(qr.SubmissionUncertain):
            run(state.aresult())
        left = [record.meta for record in records("session", flow_run.id)]
    else:
        with pytest.raises(qr.SubmissionUncertain):
            loses()
        left = [dict(note.meta) for note in network_loop().run(session_notes.session_notes())]
        left = [meta for meta in left if meta.get("base_url") == credentials.get_client().connection.base_url]
    stopped = [session["accepting_jobs"] is False for session in sandbox.control.sessions()]
    assert len(stopped) == 1 + again
    if listed:
        assert all(stopped)
        return
    assert not any(meta["state"] == "closed" for meta in left)
    assert "was never opened" not in caplog.text
    assert "may still be open" in caplog.text


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()], ids=repr
)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_stopped_while_it_closes_the_session_is_closed_nevertheless(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, stop: BaseException, kind: str
) -> None:
    def no_task(*_: Any, **__: Any) -> Any:
        raise stop

    async def no_async_task(*_: Any, **__: Any) -> Any:
        raise stop

    monkeypatch.setattr(sessions, "close_session", no_task)
    monkeypatch.setattr(sessions, "aclose_session", no_async_task)

    def in_script() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)

    async def in_async_script() -> None:
        async with qr.aruntime_session(credentials, BACKEND, max_ttl=300) as session:
            await qr.asubmit_job(credentials, [FLIP], backend=BACKEND, session=session)

    async def caught() -> BaseException | None:  # inside, as a loop itself reacts to some of these
        try:
            await in_async_script()
        except BaseException as error:
            return error
        return None

    sandbox.control.hold()
    if kind == "sync":
        with pytest.raises(type(stop)):
            in_script()
    else:
        assert run(caught()) is stop
    assert only_session(sandbox)["accepting_jobs"] is False
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]


@pytest.mark.parametrize(
    ("moment", "stop"),
    [
        ("recorded", TimeoutError("Prefect's API is slow")),
        ("handed over", KeyboardInterrupt()),
        ("handed over", asyncio.CancelledError()),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_stopped_when_it_is_open_and_the_block_has_not_begun_the_session_is_closed(
    sandbox: Sandbox,
    credentials: Any,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    stop: BaseException,
    kind: str,
) -> None:
    opens, aopens = qr.open_session, qr.aopen_session

    def opened(*given: Any, **options: Any) -> Any:
        opens(*given, **options)
        raise stop

    async def aopened(*given: Any, **options: Any) -> Any:
        await aopens(*given, **options)
        raise stop

    def record_fails(event: str, *_: Any, **__: Any) -> Any:
        if event == "opened":
            raise stop

    if moment == "recorded":
        monkeypatch.setattr("prefect_qruntime.tasks.sessions.notifications.session_event", record_fails)
    else:
        monkeypatch.setattr(sessions, "open_session", opened)
        monkeypatch.setattr(sessions, "aopen_session", aopened)

    async def caught() -> BaseException | None:
        try:
            async with qr.aruntime_session(credentials, BACKEND, max_ttl=300):
                raise AssertionError("the block began")
        except BaseException as error:
            return error

    if kind == "async":
        assert isinstance(run(caught()), type(stop))
    else:
        with pytest.raises(type(stop)), qr.runtime_session(credentials, BACKEND, max_ttl=300):
            raise AssertionError("the block began")
    assert only_session(sandbox)["accepting_jobs"] is False
    assert sandbox.control.open_sessions() == []
    if moment == "recorded":
        with pytest.raises(type(stop)):
            (run(qr.aopen_session(credentials, BACKEND)) if kind == "async" else qr.open_session(credentials, BACKEND))
        assert len(sandbox.control.sessions()) == 2
        assert sandbox.control.open_sessions() == []


def test_a_forked_process_does_not_open_the_session_of_its_parent(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent would call it never opened, and leave it open."""
    credentials = qr.QuantumRuntimeCredentials(**sandbox.connection("legacy"))
    with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
        with monkeypatch.context() as child:
            child.setattr("prefect_qruntime.client.network_loop._current", None)  # as after a fork
            with pytest.raises(qr.InvalidInput, match="opened in another process"):
                qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
            network_loop().close()
        assert sandbox.control.jobs() == []
        qr.run_job(credentials, [FLIP], backend=BACKEND, session=session, shots=3)
    assert sandbox.control.open_sessions() == []


def test_stopped_twice_it_says_that_the_session_may_be_open(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sessions, "close_session", stopped)
    monkeypatch.setattr(sessions, "close", stopped)
    with pytest.raises(KeyboardInterrupt), qr.runtime_session(credentials, BACKEND, max_ttl=300):
        pass
    assert "may still be open and charging" in caplog.text


@pytest.mark.parametrize("status", [400, 403, 409])
@pytest.mark.parametrize("drain", [True, False])
def test_a_session_that_the_service_closed_before_is_no_error(
    sandbox: Sandbox, credentials: Any, status: int, drain: bool
) -> None:
    """A service may refuse to close what is closed, at its limit or by someone else."""
    session = qr.open_session(credentials, BACKEND, max_ttl=300)
    for method in ("PATCH", "DELETE"):
        sandbox.control.add_fault(method, "/sessions/*", status=status, times=None)
    with pytest.raises(qr.QuantumRuntimeError):
        network_loop().run(credentials.get_client().close_session(str(session.id), drain=drain))
    sandbox.control.clear_faults()
    network_loop().run(credentials.get_client().drop_session(str(session.id)))
    for method in ("PATCH", "DELETE"):
        sandbox.control.add_fault(method, "/sessions/*", status=status, times=None)
    assert qr.close_session(credentials, session, drain=drain).is_closed


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_retries_given_to_an_opening_whose_answer_was_lost_open_no_second_session(
    sandbox: Sandbox, credentials: Any, kind: str
) -> None:
    sandbox.control.add_fault("POST", "/sessions", drop="after")
    sandbox.control.add_fault("GET", "/workloads*", status=403, times=None)
    task: Any = qr.open_session if kind == "sync" else qr.aopen_session
    task = task.with_options(retries=3, retry_delay_seconds=0)

    @flow
    def opens() -> None:
        opened = task(credentials, BACKEND)
        if asyncio.iscoroutine(opened):
            asyncio.run(opened)

    _, state = ran(opens)
    assert state.is_failed()
    assert len(sandbox.control.sessions()) == 1


@pytest.fixture(scope="module")
def other_instance() -> Iterator[Sandbox]:
    with Sandbox() as other:
        yield other


@pytest.mark.parametrize("kind", ["flow", "script"])
def test_what_another_instance_does_not_know_is_not_called_closed(
    sandbox: Sandbox, other_instance: Sandbox, dialect: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Before: closed by another instance's credentials, it was called closed, recorded so, and never swept."""
    monkeypatch.setattr(client_sessions, "close_session", partial(client_sessions.close_session, patience=0.0))
    credentials = sandbox.credentials(dialect)

    def closes() -> tuple[qr.SessionRef, qr.SessionRef]:
        session = qr.open_session(credentials, BACKEND, max_ttl=300)
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
        assert job.session is not None
        bound = session.model_copy(update={"id": job.session.id})
        qr.wait_for_completion(credentials, job)
        for named in (bound, str(bound.id)):
            with pytest.raises(qr.NotFound, match="may still be open"):
                qr.close_session(other_instance.credentials(dialect), named)
        with pytest.raises(qr.NotFound, match="knows no session"):
            qr.close_session(credentials, "no-such-session")
        assert only_session(sandbox)["state"] != "closed"
        sandbox.control.add_fault("*", "/sessions/*", status=404, times=None)
        gone = qr.close_session(credentials, bound)
        sandbox.control.clear_faults()
        return bound, gone

    bound, gone = flow(closes)() if kind == "flow" else closes()
    assert gone.is_closed
    assert gone.id == bound.id
    kinds = [event["event"] for event in events(f"qruntime.session.{bound.id}", 2)]
    assert kinds.count("qruntime.session.closed") == 1


@pytest.mark.parametrize("saved", ["with the new key", "with the old key", "for another instance"])
def test_a_key_that_is_replaced_while_a_session_is_open(sandbox: Sandbox, saved: str) -> None:
    """The session is closed with the key that the saved block has by then, if the block leads to its instance."""
    credentials = sandbox.credentials()
    credentials.save("replaced", overwrite=True)

    @flow
    def opens() -> None:
        with qr.runtime_session(qr.load_credentials("replaced"), BACKEND, max_ttl=300) as session:
            qr.submit_job(qr.load_credentials("replaced"), [FLIP], backend=BACKEND, session=session)
            sandbox.control.replace_key()
            if saved == "with the new key":
                sandbox.credentials().save("replaced", overwrite=True)
            elif saved == "for another instance":
                other = {**sandbox.connection(), "crn": credentials.crn.removesuffix("::") + "-other::"}
                qr.QuantumRuntimeCredentials(**other).save("replaced", overwrite=True)

    _, state = ran(opens)
    if saved == "with the new key":
        assert state.is_completed()
        assert sandbox.control.open_sessions() == []
    else:
        with pytest.raises(qr.AuthenticationError):
            run(state.aresult())
        assert len(sandbox.control.open_sessions()) == 1


@pytest.mark.parametrize("backend", ["", "\ud800", "a b", "../x"])
def test_a_sessions_backend_is_checked_before_anything_is_recorded(
    credentials: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_qruntime.tasks.sessions._open", None)
    with pytest.raises(qr.InvalidInput, match="backend: not a backend name"):
        qr.open_session.fn(credentials, backend)
