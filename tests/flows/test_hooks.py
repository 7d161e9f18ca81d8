"""The hooks as Prefect calls them: by keywords, in a process that knows nothing of the flow run but its id."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.states import Running
from prefect.task_worker import TaskWorker

import prefect_qruntime as qr
from prefect_qruntime import hooks
from prefect_qruntime.cancellation import policy
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.run_context import runs_around
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, STAY, events, ran, records, run, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = "hooks"

FRESH_PROCESS = """
import asyncio, logging, sys
from uuid import UUID
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect_qruntime import hooks

async def read(flow_run_id):
    async with get_client() as client:
        return await client.read_flow_run(flow_run_id)

@flow
def stand_in(): ...

logging.basicConfig(level=logging.INFO)
flow_run = asyncio.run(read(UUID(sys.argv[2])))
getattr(hooks, sys.argv[1])(flow=stand_in, flow_run=flow_run, state=flow_run.state)
"""


@pytest.fixture
def control(sandbox: Sandbox, dialect: str) -> Any:
    qr.QuantumRuntimeCredentials(**sandbox.connection(dialect)).save(BLOCK, overwrite=True)
    sandbox.control.hold()
    return sandbox.control


@pytest.fixture
def cloud(sandbox: Sandbox) -> Any:
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
    sandbox.control.hold()
    return sandbox.control


@flow
def busy(key: str | None = None) -> Any:
    """Two jobs in a session, one alone; then the process is as good as gone."""
    credentials = qr.load_credentials(BLOCK)
    session = qr.open_session(credentials, BACKEND, max_ttl=600)
    for circuit in (FLIP, STAY):
        job = qr.submit_job(credentials, [circuit], backend=BACKEND, session=session)
        session = job.session or session
    qr.submit_job(credentials, [FLIP], backend=BACKEND, submission_key=key)
    return session.id


@flow
def parent() -> Any:
    return busy()


def call(server: Any, hook: str, flow_run_id: Any) -> str:
    """Run a hook in a process of its own; returns what it logged."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, hook, str(flow_run_id)],
        env=server.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def statuses(control: Any, flow_run_id: Any) -> list[str]:
    return [job["status"] for job in control.jobs(tag=f"qr-flow:{flow_run_id}")]


def test_cancel_in_a_fresh_process_cancels_this_flow_runs_jobs_and_drops_its_session(
    control: Any, prefect_server: Any
) -> None:
    flow_run, state = ran(busy)
    other, other_state = ran(busy)
    call(prefect_server, "on_cancellation", flow_run.id)
    assert statuses(control, flow_run.id) == ["Cancelled"] * 3
    assert statuses(control, other.id) == ["Queued"] * 3
    assert [session["id"] for session in control.open_sessions()] == [run(other_state.aresult())]
    last = events(f"qruntime.session.{run(state.aresult())}", last="qruntime.session.closed")[-1]
    assert last["event"] == "qruntime.session.closed"
    assert last["related"][0]["prefect.resource.id"] == f"prefect.flow-run.{flow_run.id}"

    job = control.jobs(tag=f"qr-flow:{flow_run.id}")[0]["id"]
    assert events(f"qruntime.job.{job}", last="qruntime.job.cancelled")[-1]["event"] == "qruntime.job.cancelled"
    assert {record.meta["state"] for record in records("job", flow_run.id)} == {"Cancelled"}

    cancels = len(control.journal("POST", "/jobs/*/cancel"))
    hooks.on_cancellation(flow=busy, flow_run=flow_run, state=state)
    assert len(control.journal("POST", "/jobs/*/cancel")) == cancels == 3, "a second call finds nothing to do"


@pytest.mark.parametrize("drained", [True, False])
def test_a_session_that_its_flow_has_drained_is_not_drained_again_by_a_hook(cloud: Any, drained: bool) -> None:
    """Which may have no block that leads to it, and would call it open."""

    @flow
    def drains() -> None:
        credentials = qr.load_credentials(BLOCK)
        session = qr.open_session(credentials, BACKEND, max_ttl=600)
        qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
        if drained:
            qr.close_session(credentials, session)

    flow_run, state = ran(drains)
    hooks.on_crashed(flow=drains, flow_run=flow_run, state=state)
    assert len(cloud.journal("PATCH", "/sessions/*")) == 1
    assert statuses(cloud, flow_run.id) == ["Queued"]
    hooks.on_cancellation(flow=drains, flow_run=flow_run, state=state)
    assert cloud.open_sessions() == [], "its queued job is dropped"


@pytest.mark.parametrize("hook", ["on_cancellation_detach", "on_crashed"])
def test_detached_and_crashed_jobs_live_on_and_the_session_drains(cloud: Any, prefect_server: Any, hook: str) -> None:
    flow_run, state = ran(busy)
    call(prefect_server, hook, flow_run.id)
    assert statuses(cloud, flow_run.id) == ["Queued"] * 3
    assert cloud.session(run(state.aresult()))["accepting_jobs"] is False
    assert cloud.journal("POST", "/jobs/*/cancel") == []
    cloud.release()
    assert {cloud.wait_job(job["id"])["status"] for job in cloud.jobs()} == {"Completed"}


def test_a_crash_leaves_the_session_of_a_deferred_task_to_the_task_that_runs(cloud: Any) -> None:
    deferred, is_open = list[Any](), list[bool]()

    @task
    def later(block: str) -> None:
        credentials = qr.load_credentials(block)
        session = qr.open_session(credentials, BACKEND, max_ttl=600)
        flow_run: Any = asked(lambda client: client.read_flow_run(deferred[0].flow_run_id))
        for hook in (hooks.on_crashed, hooks.on_cancellation_detach, hooks.on_cancellation):
            hook(flow=parent, flow_run=flow_run, state=flow_run.state)
            read = network_loop().run(credentials.get_client().session(str(session.id)))
            is_open.append(not read.ref().is_closed)

    @flow
    def defers() -> None:
        deferred.append(later.delay(BLOCK))

    async def work() -> None:
        await TaskWorker(later).execute_task_run(deferred[0])

    ran(defers)
    deferred[:] = [asked(lambda client: client.read_task_run(deferred[0].task_run_id))]
    asyncio.run(work())
    assert is_open == [True, True, False], "Cancel cancels"


def test_a_cancelled_parent_reaches_the_jobs_of_its_subflow(cloud: Any, sandbox: Sandbox) -> None:
    flow_run, state = ran(parent)
    hooks.on_cancellation(flow=parent, flow_run=flow_run, state=state)
    assert statuses(cloud, flow_run.id) == ["Cancelled"] * 3
    assert cloud.open_sessions() == []


def test_jobs_that_the_services_list_does_not_show_yet_are_cancelled_too(cloud: Any, sandbox: Sandbox) -> None:
    sandbox.control.set_option("list_lag", 60.0)
    flow_run, state = ran(busy)
    hooks.on_cancellation(flow=busy, flow_run=flow_run, state=state)
    assert statuses(cloud, flow_run.id) == ["Cancelled"] * 3


def test_a_job_attached_to_by_an_explicit_key_is_cancelled_with_the_run_that_attached_last(cloud: Any) -> None:
    first, _ = ran(busy, key="hooks-slot")
    second, state = ran(busy, key="hooks-slot")
    shared = cloud.jobs(tag=f"qr-flow:{first.id}")[-1]
    assert len(cloud.jobs()) == 5, "the third job is shared"
    hooks.on_cancellation(flow=busy, flow_run=second, state=state)
    assert cloud.job(shared["id"])["status"] == "Cancelled"
    assert statuses(cloud, first.id) == ["Queued", "Queued", "Cancelled"]


@pytest.mark.parametrize("cancelled", [0, 1])
@pytest.mark.parametrize("hook", [hooks.on_cancellation, hooks.on_cancellation_detach])
def test_cancelling_one_of_two_runs_cancels_their_job_unless_it_is_detached(
    cloud: Any, sandbox: Sandbox, cancelled: int, hook: Any
) -> None:
    """The submitter and the one that attached are alike, and the other one still runs."""
    runs = [ran(busy, key=f"hooks-both-{cancelled}-{hook.__name__}") for _ in range(2)]
    for flow_run, _ in runs:
        asked(lambda client, flow_run=flow_run: client.set_flow_run_state(flow_run.id, Running(), force=True))
    shared = cloud.jobs(tag=f"qr-flow:{runs[0][0].id}")[-1]
    hook(flow=busy, flow_run=runs[cancelled][0], state=runs[cancelled][1])
    assert (cloud.job(shared["id"])["status"] == "Cancelled") is (hook is hooks.on_cancellation)


def test_a_block_that_is_gone_does_not_keep_the_others_from_being_cleaned_up(
    cloud: Any, sandbox: Sandbox, caplog: Any
) -> None:
    flow_run, state = ran(busy)
    named = flow_run.model_copy(update={"parameters": {"credentials_block": "a-block-that-is-gone"}})
    hooks.on_cancellation(flow=busy, flow_run=named, state=state)
    assert statuses(cloud, flow_run.id) == ["Cancelled"] * 3
    assert "a-block-that-is-gone" in caplog.text


def test_a_list_that_fails_does_not_keep_the_session_open(cloud: Any, sandbox: Sandbox) -> None:
    flow_run, state = ran(busy)
    sandbox.control.add_fault("GET", "/jobs", status=403, times=None)
    hooks.on_cancellation(flow=busy, flow_run=flow_run, state=state)
    assert sandbox.control.open_sessions() == []


def test_prefect_takes_the_hooks_and_flows_show_their_policy() -> None:
    # Prefect 3.8 loses partials and methods as cancellation hooks.
    for kind in (hooks.cancel, hooks.detach):
        assert all(inspect.isfunction(hook) for hook in [*kind["on_cancellation"], *kind["on_crashed"]])

    @flow(**hooks.cancel)
    def cancels() -> str:
        return policy()

    @flow(**hooks.detach)
    def detaches() -> str:
        return policy()

    assert (cancels(), detaches()) == ("cancel", "detach")


def test_without_hooks_the_settings_say_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert policy() == "cancel"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ON_CANCEL", "detach")
    assert policy() == "detach"


@pytest.mark.parametrize("setting", ["cancel", "detach"])
@pytest.mark.parametrize("outer", ["cancel", "detach", None])
@pytest.mark.parametrize("inner", ["cancel", "detach", None])
def test_a_subflow_without_a_hook_follows_the_flow_around_it(
    monkeypatch: pytest.MonkeyPatch, inner: str | None, outer: str | None, setting: str
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ON_CANCEL", setting)

    def of(name: str | None) -> Any:
        return {} if name is None else getattr(hooks, name)

    @task
    def asks() -> str:
        return policy()

    @flow(**of(inner))
    def within() -> list[str]:
        return [policy(), asks(), asks.submit().result()]

    @flow
    def between() -> list[str]:
        return within()

    @flow(**of(outer))
    def around() -> list[str]:
        return between()

    assert around() == [inner or outer or setting] * 3


@pytest.mark.parametrize("outer", ["cancel", "detach"])
def test_the_tasks_of_a_subflow_that_did_not_wait_for_them_keep_to_the_policy_around_it(
    monkeypatch: pytest.MonkeyPatch, outer: str
) -> None:
    """Prefect shows them none of the flows around when the subflow's function has returned."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ON_CANCEL", "cancel" if outer == "detach" else "detach")
    began, told = threading.Event(), list[str]()

    def taken_apart() -> bool:
        return len(runs_around()[0]) == 1

    @task
    def asks() -> None:
        told.append(policy())
        began.set()
        until(taken_apart)
        told.append(policy())

    @task
    def asks_late() -> None:
        until(taken_apart)
        told.append(policy())

    @flow
    def within() -> None:
        asks.submit()
        assert began.wait(90)
        asks_late.submit()

    @flow(**getattr(hooks, outer))
    def around() -> None:
        within()

    around()
    assert told == [outer] * 3


@pytest.mark.parametrize("since", ["edited", "deleted", "edited and saved anew", "renamed"])
def test_a_session_is_closed_by_the_block_that_leads_to_it_or_not_at_all(
    cloud: Any, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, since: str
) -> None:
    """An instance that does not know a session says so, and that is not taken for its end."""
    flow_run, state = ran(busy)
    session = run(state.aresult())
    found = since in ("edited and saved anew", "renamed")
    if found:
        qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("hooks-anew", overwrite=True)
    if since.startswith("edited"):
        elsewhere = {**sandbox.connection("cloud"), "crn": sandbox.crn.replace("us-east", "eu-de")}
        qr.QuantumRuntimeCredentials(**elsewhere).save(BLOCK, overwrite=True)
    else:
        qr.QuantumRuntimeCredentials.delete(BLOCK)
    hooks.on_cancellation(flow=busy, flow_run=flow_run, state=state)
    if found:
        qr.QuantumRuntimeCredentials.delete("hooks-anew")
    assert (cloud.open_sessions() == []) is found
    assert (f"Session {session} of flow run {flow_run.id} stays open" in caplog.text) is not found
    told = [event["event"] for event in events(f"qruntime.session.{session}", 1 + found)]
    assert ("qruntime.session.closed" in told) is found
    if found:
        assert statuses(cloud, flow_run.id) == ["Cancelled"] * 3


@flow
def sessionless() -> str:
    return qr.submit_job(qr.load_credentials(BLOCK), [FLIP], backend=BACKEND).id


def user(sandbox: Sandbox, number: int) -> qr.QuantumRuntimeCredentials:
    """Two users of the first instance, and one of a second."""
    key, crn = sandbox.instances[number]
    return qr.QuantumRuntimeCredentials(**{**sandbox.connection("cloud"), "api_key": key, "crn": crn})


@pytest.mark.parametrize("also", [(), (1,), (0,), (1, 0), (0, 1), (2, 0)], ids=str)
@pytest.mark.parametrize("since", ["edited", "deleted"])
def test_a_job_is_cancelled_by_a_block_that_leads_to_it_and_whose_key_sees_it(
    cloud: Any, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, since: str, also: tuple[int, ...]
) -> None:
    flow_run, state = ran(sessionless)
    names = [f"hooks-{place}-of-user" for place, _ in enumerate(also)]
    for name, number in zip(names, also, strict=True):
        user(sandbox, number).save(name, overwrite=True)
    if since == "edited":
        user(sandbox, 2).save(BLOCK, overwrite=True)
    else:
        qr.QuantumRuntimeCredentials.delete(BLOCK)
    hooks.on_cancellation(flow=sessionless, flow_run=flow_run, state=state)
    for name in names:
        qr.QuantumRuntimeCredentials.delete(name)
    found = 0 in also
    assert statuses(cloud, flow_run.id) == ["Cancelled" if found else "Queued"]
    assert (f"Job {run(state.aresult())} of flow run {flow_run.id} lives on" in caplog.text) is not found
    assert len(cloud.journal("POST", "/jobs/*/cancel")) == found, "no other instance is asked to cancel it"


def test_of_many_jobs_of_a_block_that_is_gone_one_is_read_before_they_are_cancelled(
    cloud: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of a hook may have seconds left."""

    @flow
    def several() -> None:
        for _ in range(4):
            qr.submit_job(qr.load_credentials(BLOCK), [FLIP], backend=BACKEND)

    read, job_of = list[str](), hooks._job

    async def counted(job_id: str, client: Any) -> Any:
        read.append(job_id)
        return await job_of(job_id, client)

    monkeypatch.setattr(hooks, "_job", counted)
    flow_run, state = ran(several)
    user(sandbox, 0).save("hooks-renamed", overwrite=True)
    qr.QuantumRuntimeCredentials.delete(BLOCK)
    hooks.on_cancellation(flow=several, flow_run=flow_run, state=state)
    qr.QuantumRuntimeCredentials.delete("hooks-renamed")
    assert statuses(cloud, flow_run.id) == ["Cancelled"] * 4
    assert len(read) == 1
