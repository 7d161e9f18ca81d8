"""The sweep: what finished flow runs left behind is closed or reported, everything else left alone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Running
from prefect.task_worker import TaskWorker

import prefect_qruntime as qr
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.credentials import none_saved, saved_blocks
from prefect_qruntime.observability.artifacts import upsert
from prefect_qruntime.operations import instance_sweep, job_listing as qr_listing
from prefect_qruntime.operations.instance_sweep import InstanceSweeper
from prefect_qruntime.operations.session_listing import list_sessions
from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.run_context import current_run, process_facts
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.tasks.session_notes import SessionNote
from tests.support.command_line import command, exit_code
from tests.support.flow_runs import BACKEND, FLIP, STAY, ran, records, requests, run, until
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer, forget_sessions

pytestmark = pytest.mark.server
BLOCK = "sweep"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def control(sandbox: Sandbox, prefect_server: PrefectServer) -> Iterator[Any]:
    forget_sessions(prefect_server.home)
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
    sandbox.control.hold()
    yield sandbox.control
    sandbox.control.release()


@flow
def left_open(jobs: int = 1, key: str | None = None) -> Any:
    """Open a session and forget it."""
    credentials = qr.load_credentials(BLOCK)
    session = qr.open_session(credentials, BACKEND, max_ttl=600)
    for _ in range(jobs):
        qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session, submission_key=key)
    return session


def put(flow_run_id: Any, state: Any) -> None:
    asked(lambda client: client.set_flow_run_state(flow_run_id, state, force=True))


def left(final: Any, **parameters: Any) -> tuple[Any, Any]:
    """A flow run that left its session open and ended so; returns the run and the session."""
    flow_run, state = ran(left_open, **parameters)
    put(flow_run.id, final)
    return flow_run, run(state.aresult())


@flow
def contains() -> Any:
    """Leave a session open in a subflow, which has no process of its own."""
    return left_open()


@pytest.mark.parametrize("gone", [True, False])
@pytest.mark.parametrize("outer", [left_open, contains], ids=["flow", "subflow"])
def test_the_session_of_a_killed_run_that_stays_running_is_drained_once_its_process_is_gone(
    control: Any, outer: Any, gone: bool
) -> None:
    flow_run, state = ran(outer)
    session: Any = run(state.aresult())
    facts = process_facts()
    if gone:
        child = subprocess.Popen([sys.executable, "-c", "pass"])
        child.wait()
        facts = {**facts, "pid": str(child.pid), "started": "1"}
    put(flow_run.id, Running())
    asked(lambda client: client.update_flow_run(flow_run.id, infrastructure_pid=facts["pid"]))
    (job,) = control.jobs()
    network_loop().run(upsert("job", job["id"], "", facts))

    report = run_sweep([BLOCK], cancel_jobs=True)
    assert [(run.id, run.is_certain) for run in report.stalled] == ([(str(flow_run.id), True)] if gone else [])
    assert [entry.id for entry in report.sessions] == ([session.id] if gone else [])
    assert control.session(session.id)["accepting_jobs"] is not gone
    assert control.job(job["id"])["status"] == "Queued"
    put(flow_run.id, Completed())


def test_a_run_that_is_resumed_while_the_sweep_lists_jobs_keeps_its_session(
    control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run, state = ran(left_open)
    session: Any = run(state.aresult())
    (job,) = control.jobs()
    put(flow_run.id, Running())
    asked(lambda client: client.update_flow_run(flow_run.id, infrastructure_pid="1"))
    network_loop().run(upsert("job", job["id"], "", {**process_facts(), "pid": "1", "started": "1"}))
    listed = InstanceSweeper._jobs

    async def resumed(self: InstanceSweeper) -> Any:
        await asyncio.to_thread(put, flow_run.id, Running(message="in another process"))
        return await listed(self)

    monkeypatch.setattr(InstanceSweeper, "_jobs", resumed)
    assert run_sweep([BLOCK]).sessions == []
    assert control.session(session.id)["accepting_jobs"] is True
    put(flow_run.id, Completed())


@pytest.mark.parametrize(("final", "job"), [(Completed, "Cancelled"), (Failed, "Cancelled"), (Crashed, "Queued")])
def test_a_session_left_open_is_closed_and_a_crashed_runs_jobs_live_on(control: Any, final: Any, job: str) -> None:
    flow_run, session = left(final())
    dry = run_sweep([BLOCK], dry_run=True)
    assert [entry.id for entry in dry.sessions] == [session.id]
    assert dry.sessions[0].action.startswith("would be")
    assert [entry["state"] for entry in control.open_sessions()] != []

    report = run_sweep([BLOCK])
    assert [(entry.id, entry.flow_run, entry.block) for entry in report.sessions] == [
        (session.id, str(flow_run.id), BLOCK)
    ]
    assert report.problems == []
    assert control.session(session.id)["accepting_jobs"] is False
    assert control.jobs()[0]["status"] == job
    if final is Crashed:
        control.release()
        control.wait_job(control.jobs()[0]["id"])
    run_sweep([BLOCK])
    assert control.open_sessions() == []
    assert run_sweep([BLOCK]).sessions == []
    assert [record.meta["state"] for record in records("session", flow_run.id)] == ["closed"]


def test_a_running_flow_run_is_left_alone(control: Any) -> None:
    _, session = left(Running())
    report = run_sweep([BLOCK], cancel_jobs=True)
    assert (report.sessions, report.jobs, report.problems) == ([], [], [])
    assert control.session(session.id)["accepting_jobs"] is True
    assert control.jobs()[0]["status"] == "Queued"


def test_sessions_of_others_are_left_alone(control: Any, sandbox: Sandbox) -> None:
    client = sandbox.credentials().get_client()
    foreign = client.run(client.open_session(BACKEND, mode="dedicated", max_ttl=600))
    left(Completed())
    report = run_sweep([BLOCK])
    assert foreign.id not in [entry.id for entry in report.sessions]
    assert [entry["id"] for entry in control.open_sessions()] == [foreign.id]


def never_noted(final: Any = Crashed, *, opens: bool = True) -> tuple[Any, Any]:
    """A process that died between opening a session and noting its id, or before it opened one."""
    from prefect_qruntime.tasks.sessions import note_session

    opened = []

    @flow
    def dies() -> None:
        credentials = qr.load_credentials(BLOCK)
        client = credentials.get_client()

        async def note_only() -> None:
            where = await current_run()
            wanted = qr.SessionRef(backend=BACKEND, max_ttl=600, token=uuid4().hex[:16])
            await note_session(credentials, wanted.token, wanted, where, new=True)

        network_loop().run(note_only())
        if opens:
            opened.append(client.run(client.open_session(BACKEND, mode="dedicated", max_ttl=600)))

    flow_run, _ = ran(dies)
    put(flow_run.id, final())
    return flow_run, opened[0] if opens else None


def test_a_session_whose_id_was_never_noted(control: Any, sandbox: Sandbox) -> None:
    flow_run, session = never_noted()
    report = run_sweep([BLOCK])
    assert [(entry.id, entry.flow_run) for entry in report.sessions] == [(session.id, str(flow_run.id))]
    assert control.open_sessions() == []


def test_looking_for_a_session_never_noted_spares_those_of_running_flows(control: Any, sandbox: Sandbox) -> None:
    _, lost = never_noted()
    _, running = left(Running(), jobs=0)
    report = run_sweep([BLOCK])
    assert running.id not in [entry.id for entry in report.sessions]
    assert control.session(running.id)["accepting_jobs"] is True
    assert [entry.id for entry in report.sessions] == [lost.id]


@pytest.mark.parametrize("opens", [(True, True), (True, True, True), (True, False), (False, True, True)], ids=str)
def test_of_equal_sessions_that_were_never_noted_all_are_closed(control: Any, opens: tuple[bool, ...]) -> None:
    """Which of them is whose cannot be told and need not be: all of their processes are gone."""
    sessions = [never_noted((Crashed, Failed)[n % 2], opens=does)[1] for n, does in enumerate(opens)]
    report = run_sweep([BLOCK])
    assert sorted(entry.id for entry in report.sessions) == sorted(one.id for one in sessions if one is not None)
    assert (control.open_sessions(), report.problems) == ([], [])
    assert run_sweep([BLOCK]).is_clean


@pytest.mark.parametrize("other", ["a stranger", "a flow run that is just opening it"])
def test_when_a_session_may_be_anothers_none_is_closed(control: Any, sandbox: Sandbox, other: str) -> None:
    never_noted()
    if other == "a stranger":
        client = sandbox.credentials().get_client()
        client.run(client.open_session(BACKEND, mode="dedicated", max_ttl=600))
    else:
        alive, _ = never_noted(Running)
    report = run_sweep([BLOCK])
    assert (report.sessions, report.is_clean) == ([], False)
    assert len(control.open_sessions()) == 2
    (problem,) = report.problems
    assert all(session["id"] in problem for session in control.open_sessions())
    # So that the tests after this one find nothing.
    if other == "a stranger":
        client.run(client.close_session(control.open_sessions()[0]["id"], drain=False))
    else:
        put(alive.id, Crashed())
    run_sweep([BLOCK])
    assert control.open_sessions() == []


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("tags", [(), (f"qr-flow:{uuid4()}",)], ids=["no flow run", "a flow run elsewhere"])
def test_a_session_with_jobs_of_others_is_not_taken_for_one_never_noted(
    control: Any, sandbox: Sandbox, tags: tuple[str, ...], opens: bool
) -> None:
    """Equal to what the dead process wanted, opened at that time, and the first job in it is still queued."""
    _, lost = never_noted(Completed, opens=opens)
    client = sandbox.credentials().get_client()
    session = client.run(client.open_session(BACKEND, mode="dedicated", max_ttl=600))
    spec = make_spec([FLIP], backend=BACKEND)
    client.run(client.submit(Intent(spec=spec, key_tag=lambda generation: "by-hand", tags=tags, session=session)))
    report = run_sweep([BLOCK])
    assert ([entry.id for entry in report.sessions], report.problems) == ([lost.id] if opens else [], [])
    assert [entry["id"] for entry in control.open_sessions()] == [session.id]
    assert control.jobs()[0]["status"] == "Queued"


def test_a_legacy_session_that_never_opened_does_not_stop_the_sweep(control: Any, sandbox: Sandbox) -> None:
    qr.QuantumRuntimeCredentials(**sandbox.connection("legacy")).save(BLOCK, overwrite=True)
    sandbox.control.add_fault("GET", "/workloads*", status=404, times=None)  # legacy hosts have no such list
    left(Completed(), jobs=0)
    left(Completed(), jobs=1)
    report = run_sweep([BLOCK])
    assert report.problems == []
    assert len(report.sessions) == 1
    assert control.open_sessions() == []


def test_a_session_shared_with_a_running_flow_is_left_alone(control: Any, sandbox: Sandbox) -> None:
    _, session = left(Running())

    @flow
    def guest() -> None:
        qr.submit_job(qr.load_credentials(BLOCK), [STAY], backend=BACKEND, session=session)

    guest()
    report = run_sweep([BLOCK])
    assert report.sessions == []
    assert control.session(session.id)["accepting_jobs"] is True


@pytest.mark.parametrize("gone", [False, True], ids=["its process lives", "its process is gone"])
def test_what_a_deferred_task_opens_and_submits_is_its_own_while_the_task_runs(
    monkeypatch: pytest.MonkeyPatch, control: Any, gone: bool
) -> None:
    deferred, opened, swept = list[Any](), list[Any](), list[list[str]]()

    @task
    def later(block: str) -> None:
        credentials = qr.load_credentials(block)
        opened.append(qr.open_session(credentials, BACKEND, max_ttl=600))
        opened.append(qr.submit_job(credentials, [FLIP], backend=BACKEND, session=opened[0]))
        swept.append(found_by_a_sweep())

    def found_by_a_sweep() -> list[str]:
        report = run_sweep([BLOCK], cancel_jobs=True)
        return [entry.id for entry in (*report.sessions, *report.jobs)]

    @flow
    def defers() -> None:
        deferred.append(later.delay(BLOCK).task_run_id)

    async def work() -> None:
        await TaskWorker(later).execute_task_run(task_run)

    if gone:
        monkeypatch.setattr("prefect_qruntime.observability.artifacts.process_is_gone", lambda _: True)
    ran(defers)
    task_run = asked(lambda client: client.read_task_run(deferred[0]))
    asyncio.run(work())
    if not gone:
        assert swept == [[]], "the flow run is over, and the task it deferred goes on"
        swept.append(until(found_by_a_sweep))  # Prefect learns in the background that the task run is over
    assert swept[-1] == [one.id for one in opened]
    assert control.session(opened[0].id)["accepting_jobs"] is False
    assert control.job(opened[1].id)["status"] == "Cancelled"


def test_a_session_with_jobs_of_others_is_left_alone(control: Any, sandbox: Sandbox) -> None:
    """Opened by hand, used by hand and by a flow: it is not the flow's."""
    client = sandbox.credentials().get_client()
    session = client.run(client.open_session(BACKEND, mode="dedicated", max_ttl=600))
    spec = make_spec([FLIP], backend=BACKEND)
    client.run(client.submit(Intent(spec=spec, key_tag=lambda generation: "by-hand", session=session)))

    @flow
    def guest() -> None:
        qr.submit_job(qr.load_credentials(BLOCK), [STAY], backend=BACKEND, session=session.id)

    guest()
    assert run_sweep([BLOCK]).sessions == []
    assert control.session(session.id)["accepting_jobs"] is True


def test_a_session_known_only_by_its_jobs_tags_is_closed(control: Any, sandbox: Sandbox) -> None:
    """Opened outside any flow, so that no record of it exists."""
    client = sandbox.credentials().get_client()
    session = client.run(client.open_session(BACKEND, mode="dedicated", max_ttl=600))

    @flow
    def guest() -> None:
        qr.submit_job(qr.load_credentials(BLOCK), [STAY], backend=BACKEND, session=session.id)

    guest()
    assert [entry.id for entry in run_sweep([BLOCK]).sessions] == [session.id]
    assert control.open_sessions() == []


@flow
def job_left(key: str | None = None) -> Any:
    return qr.submit_job(qr.load_credentials(BLOCK), [FLIP], backend=BACKEND, submission_key=key)


def test_live_jobs_are_reported_and_cancelled_only_on_demand(control: Any) -> None:
    flow_run, state = ran(job_left)
    job = run(state.aresult())
    crashed, crashed_state = ran(job_left)
    put(crashed.id, Crashed())
    kept = run(crashed_state.aresult())

    report = run_sweep([BLOCK])
    assert {(entry.id, entry.flow_run, entry.action) for entry in report.jobs} == {
        (job.id, str(flow_run.id), "left alone"),
        (kept.id, str(crashed.id), "left alone"),
    }
    assert {entry.url for entry in report.jobs} == {job.url, kept.url}
    dry = run_sweep([BLOCK], dry_run=True, cancel_jobs=True)
    assert {entry.id: entry.action for entry in dry.jobs}[job.id] == "would be cancelled"
    assert {entry["status"] for entry in control.jobs()} == {"Queued"}

    run_sweep([BLOCK], cancel_jobs=True)
    assert control.job(job.id)["status"] == "Cancelled"
    assert control.job(kept.id)["status"] == "Queued", "a crashed run may come back for its job"


@pytest.mark.parametrize(
    ("state", "on_cancel", "attached"),
    [
        (Cancelled, "cancel", None),
        (Cancelling, "cancel", None),
        (Cancelled, "detach", None),
        (Completed, "cancel", None),
        (Cancelled, "cancel", Cancelled),
        (Cancelled, "cancel", Completed),
        (Completed, "cancel", Cancelled),
    ],
)
def test_a_cancel_that_no_process_heard_of_cancels_the_jobs_by_the_policy_of_their_flow(
    control: Any, monkeypatch: pytest.MonkeyPatch, state: Any, on_cancel: str, attached: Any
) -> None:
    monkeypatch.setattr(instance_sweep, "_CANCELLING", timedelta())
    hook = job_left.with_options(**(qr.hooks.cancel if on_cancel == "cancel" else qr.hooks.detach))
    flow_run, ended = ran(hook, key=f"unheard-{uuid4()}" if attached else None)
    if attached is not None:
        another, _ = ran(hook, **flow_run.parameters)
        put(another.id, attached())
    job: Any = run(ended.aresult())
    put(flow_run.id, state())  # as Prefect does without a process, or if the worker died
    wanted = on_cancel == "cancel" and Completed not in (state, attached)

    assert [entry.action for entry in run_sweep([BLOCK], dry_run=True).jobs] == [
        "would be cancelled" if wanted else "left alone"
    ]
    report = run_sweep([BLOCK])
    assert [(entry.id, entry.action) for entry in report.jobs] == [(job.id, "cancelled" if wanted else "left alone")]
    assert control.job(job.id)["status"] == ("Cancelled" if wanted else "Queued")
    put(flow_run.id, Completed())


@pytest.mark.parametrize("first", ["cancel", "detach"])
@pytest.mark.parametrize("second", ["cancel", "detach"])
def test_a_job_of_two_cancelled_runs_is_cancelled_if_one_of_them_would_have_done_it(
    control: Any, first: str, second: str
) -> None:
    """Whichever of them submitted it: each one's hook would have gone by its own policy."""
    key, runs = f"two-{uuid4()}", []
    for one in (first, second, second):  # the second one attaches again when it is repeated
        flow_run, _ = ran(job_left.with_options(**getattr(qr.hooks, one)), key=key)
        runs.append(flow_run.id)
    for flow_run_id in runs:
        put(flow_run_id, Cancelled())
    wanted = "cancel" in (first, second)
    assert [entry.action for entry in run_sweep([BLOCK]).jobs] == ["cancelled" if wanted else "left alone"]
    assert [job["status"] for job in control.jobs()] == ["Cancelled" if wanted else "Queued"]
    for flow_run_id in runs:
        put(flow_run_id, Completed())


@pytest.mark.parametrize("second", [Running, Completed])
def test_a_job_that_one_of_many_runs_may_still_want_is_left_alone(control: Any, second: Any) -> None:
    """Its page names the run that attached last, and its tag the one that submitted it."""
    key = f"many-{uuid4()}"
    runs = [ran(job_left.with_options(**qr.hooks.cancel), key=key)[0].id for _ in range(4)]
    for flow_run_id, state in zip(runs, (Cancelled, second, Cancelled, Cancelled), strict=True):
        put(flow_run_id, state())
    run_sweep([BLOCK])
    assert [job["status"] for job in control.jobs()] == ["Queued"]
    put(runs[1], Cancelled())
    run_sweep([BLOCK])
    assert [job["status"] for job in control.jobs()] == ["Cancelled"]
    for flow_run_id in runs:
        put(flow_run_id, Completed())


@pytest.mark.parametrize("cancelled", range(3))
def test_the_hook_of_each_of_many_runs_cancels_their_job(control: Any, cancelled: int) -> None:
    """Also of one whose process is gone, and that neither submitted the job nor attached to it last."""
    key = f"many-{uuid4()}"
    runs = [ran(job_left, key=key)[0] for _ in range(3)]
    qr.hooks.on_cancellation(job_left, runs[cancelled], Cancelled())
    assert [job["status"] for job in control.jobs()] == ["Cancelled"]


def test_a_detached_job_of_a_subflow_that_did_not_wait_for_its_task_is_left_alone(control: Any) -> None:
    """Prefect soon shows such a task none of the flows around its own, so that their hooks are not known."""
    control.add_fault("POST", "/jobs", delay=2)

    @flow
    def inner() -> None:
        qr.submit_job.submit(qr.load_credentials(BLOCK), [FLIP], backend=BACKEND)

    @flow(**qr.hooks.detach)
    def outer() -> None:
        inner()

    flow_run, _ = ran(outer)
    put(flow_run.id, Cancelled())
    assert [entry.action for entry in run_sweep([BLOCK]).jobs] == ["left alone"]
    assert [entry["status"] for entry in control.jobs()] == ["Queued"]


def test_a_job_that_a_running_flow_attached_to_is_not_cancelled(control: Any) -> None:
    _, state = ran(job_left, key="sweep-slot")
    job = run(state.aresult())
    second, state = ran(job_left, key="sweep-slot")
    assert run(state.aresult()).id == job.id
    put(second.id, Running())
    report = run_sweep([BLOCK], cancel_jobs=True)
    assert control.job(job.id)["status"] == "Queued"
    assert report.jobs == []


def test_a_dry_run_changes_nothing(control: Any, sandbox: Sandbox) -> None:
    left(Completed(), jobs=2)
    control.clear_journal()
    report = run_sweep([BLOCK], dry_run=True, cancel_jobs=True)
    assert (report.dry_run, len(report.sessions), len(report.jobs)) == (True, 1, 2)
    assert {entry["method"] for entry in control.journal() if entry["path"] != "/identity/token"} == {"GET"}
    assert len(run_sweep([BLOCK], dry_run=True).sessions) == 1


def test_one_instance_that_cannot_be_swept_does_not_stop_the_others(control: Any, sandbox: Sandbox) -> None:
    wrong = {**sandbox.connection(), "api_key": "not-the-key-0123456789"}
    qr.QuantumRuntimeCredentials(**wrong).save("a-broken-one", overwrite=True)
    left(Completed())
    report = run_sweep(["a-broken-one", "no-such-block", BLOCK])
    assert len(report.sessions) == 1
    assert [problem.split(":")[0] for problem in report.problems] == ["a-broken-one", "no-such-block"]
    assert "not-the-key" not in report.model_dump_json()


def spoil(block: str, **data: Any) -> None:
    """Save a value that the block's class refuses, as a form of an older version may have done."""

    async def write(client: PrefectClient) -> None:
        slug = qr.QuantumRuntimeCredentials.get_block_type_slug()
        document = await client.read_block_document_by_name(block, slug)
        await client.update_block_document(document.id, BlockDocumentUpdate(data=data))

    asked(write)


@pytest.mark.parametrize("field", [{"request_timeout": -1}, {"crn": "not-a-crn"}, {"dialect": "latin"}])
def test_a_block_with_a_wrong_field_does_not_stop_the_others(control: Any, sandbox: Sandbox, field: Any) -> None:
    qr.QuantumRuntimeCredentials(**sandbox.connection()).save("a-spoiled-one", overwrite=True)
    spoil("a-spoiled-one", **field)
    left(Completed())
    with pytest.raises(qr.InvalidInput, match=rf"'a-spoiled-one' has a wrong field.*{next(iter(field))}") as caught:
        qr.load_credentials("a-spoiled-one")
    assert sandbox.connection()["api_key"] not in "".join(traceback.format_exception(caught.value))
    report = run_sweep(["a-spoiled-one", BLOCK])
    assert len(report.sessions) == 1
    listed = qr_listing.list_jobs(["a-spoiled-one", BLOCK])
    assert len(listed.jobs) == 1
    for problems in (report.problems, listed.problems):
        assert [problem.split(":")[0] for problem in problems] == ["a-spoiled-one"]


def test_a_session_whose_flow_run_was_deleted_is_closed(control: Any) -> None:
    flow_run, session = left(Running())
    asked(lambda client: client.delete_flow_run(flow_run.id))
    report = run_sweep([BLOCK])
    assert [(entry.id, entry.flow_run, entry.flow_state) for entry in report.sessions] == [
        (session.id, str(flow_run.id), "Deleted")
    ]
    assert control.session(session.id)["accepting_jobs"] is False
    assert control.jobs()[0]["status"] == "Queued"


def test_a_flow_run_of_another_prefect_server_is_not_judged(control: Any, sandbox: Sandbox) -> None:
    """Only the tag of a job names it; no record is here."""
    client = sandbox.credentials().get_client()
    session = client.run(client.open_session(BACKEND, mode="dedicated", max_ttl=600))
    spec = make_spec([FLIP], backend=BACKEND)
    tag = f"qr-flow:{uuid4()}"
    client.run(client.submit(Intent(spec=spec, key_tag=lambda generation: "elsewhere", tags=(tag,), session=session)))
    assert run_sweep([BLOCK], cancel_jobs=True).sessions == []
    assert control.session(session.id)["accepting_jobs"] is True


def test_a_session_that_cannot_be_closed_does_not_stop_the_others(control: Any, sandbox: Sandbox) -> None:
    _, first = left(Completed())
    _, second = left(Completed())
    sandbox.control.add_fault("DELETE", f"/sessions/{first.id}/close", status=403, times=None)
    report = run_sweep([BLOCK])
    actions = {entry.id: entry.action for entry in report.sessions}
    assert actions[first.id].startswith("could not be closed")
    assert actions[second.id] == "closed"
    assert not report.is_clean
    sandbox.control.clear_faults()
    assert run_sweep([BLOCK], cancel_jobs=True).is_clean
    assert control.open_sessions() == []


@pytest.mark.parametrize("ended", [False, True])
def test_a_job_that_was_queued_for_days_is_swept_too(
    control: Any, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    flow_run, state = ran(job_left)
    job = run(state.aresult())
    put(flow_run.id, Crashed())
    monkeypatch.setattr("prefect_qruntime.operations.instance_sweep.LOOK_BACK", timedelta(0))  # so old is the job
    if ended:
        control.release()
        control.wait_job(job.id)
    assert [entry.id for entry in run_sweep([BLOCK]).jobs] == ([] if ended else [job.id])
    (record,) = records("job", flow_run.id)
    assert (record.is_over, record.meta.get("usage_final")) == ((True, "true") if ended else (False, None))


def test_the_command_line(control: Any, sandbox: Sandbox, prefect_server: Any, capsys: Any) -> None:
    _, session = left(Completed())
    done = command(prefect_server.env, "sweep", "--block", BLOCK, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [entry["id"] for entry in report["sessions"]] == [session.id]
    assert control.open_sessions() == []
    assert requests(sandbox, "DELETE", "/sessions/*/close") == 1

    def sweep(*arguments: str) -> object:
        return exit_code("sweep", "--block", *arguments)

    assert sweep("no-such-block") == 2
    assert "'no-such-block'" in capsys.readouterr().err
    left(Completed())
    assert sweep(BLOCK, "--dry-run") == 1, "something is left"
    assert sweep(BLOCK, "--cancel-jobs") == 0, "all of it was dealt with"
    _, state = ran(job_left)
    assert sweep(BLOCK) == 1, "a job goes on"
    assert sweep(BLOCK, "--cancel-jobs") == 0
    assert control.job(run(state.aresult()).id)["status"] == "Cancelled"


@pytest.mark.parametrize("save", ["renamed", "unsaved", "two"])
def test_a_session_is_found_by_its_instance_whatever_its_block_is_called(
    control: Any, sandbox: Sandbox, save: str
) -> None:
    credentials = qr.QuantumRuntimeCredentials(**sandbox.connection("cloud"))
    if save != "unsaved":
        credentials.save("sweep-old-name", overwrite=True)

    @flow
    def opens() -> Any:
        return qr.open_session(credentials, BACKEND, max_ttl=600)

    flow_run, state = ran(opens)
    session = run(state.aresult())
    if save == "renamed":
        qr.QuantumRuntimeCredentials.delete("sweep-old-name")
    put(flow_run.id, Completed())
    (listed,) = [one for one in list_sessions([BLOCK]).sessions if one.id == session.id]
    assert listed.flow_run_id == str(flow_run.id)
    report = run_sweep([BLOCK])
    assert ([entry.id for entry in report.sessions], report.problems) == ([session.id], [])
    assert control.open_sessions() == []
    if save == "two":
        qr.QuantumRuntimeCredentials.delete("sweep-old-name")


USERS = {"own": 0, "other": 1}


@pytest.mark.parametrize("saved", ["own other", "other own", "other"])
@pytest.mark.parametrize("opener", ["flow run", "process"])
def test_that_another_user_s_key_does_not_see_a_session_is_not_its_end(
    control: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, opener: str, saved: str
) -> None:
    """Both users' blocks lead to one instance; they are swept in the order of their names."""
    monkeypatch.setattr(SessionNote, "is_gone", True)
    names = {who: f"sweep-{place}-{who}" for place, who in enumerate(saved.split())}
    names.setdefault("own", "sweep-own")
    blocks = {}
    for who, name in names.items():
        key, crn = sandbox.instances[USERS[who]]
        blocks[who] = qr.QuantumRuntimeCredentials(**{**sandbox.connection("cloud"), "api_key": key, "crn": crn})
        blocks[who].save(name, overwrite=True)

    @flow
    def opens() -> Any:
        return qr.open_session(blocks["own"], BACKEND, max_ttl=600)

    session = run(ran(opens)[1].aresult()) if opener == "flow run" else qr.open_session.fn(blocks["own"], BACKEND)
    if saved == "other":
        qr.QuantumRuntimeCredentials.delete(names["own"])
    swept = [name for who, name in sorted(names.items(), key=lambda item: item[1]) if who in saved.split()]
    reports = [run_sweep(swept) for _ in range(2)]
    if saved == "other":
        assert [one["id"] for one in control.open_sessions()] == [session.id]
        assert [[session.id in problem for problem in report.problems] for report in reports] == [[True]] * 2
        blocks["own"].save(names["own"], overwrite=True)
        reports = [run_sweep([names["own"], *swept])]
    assert control.open_sessions() == []
    assert ([entry.id for entry in reports[0].sessions], reports[0].problems) == ([session.id], [])
    for name in names.values():
        qr.QuantumRuntimeCredentials.delete(name)


def test_a_session_that_no_block_leads_to_is_a_problem(control: Any, sandbox: Sandbox) -> None:
    flow_run, session = left(Completed(), jobs=0)
    for name in network_loop().run(saved_blocks()):  # those of other tests lead to the same sandbox
        qr.QuantumRuntimeCredentials.delete(name)
    report = run_sweep()
    assert not report.is_clean
    (problem,) = [one for one in report.problems if session.id in one]
    assert f"flow run {flow_run.id}" in problem
    assert sandbox.crn in problem
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK)
    assert session.id in [entry.id for entry in run_sweep().sessions]


def test_without_a_block_flow_runs_and_locks_are_looked_at(control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_run, _ = left(Completed(), jobs=1)
    (job,) = control.jobs()
    put(flow_run.id, Running())
    asked(lambda client: client.update_flow_run(flow_run.id, infrastructure_pid="1"))
    network_loop().run(upsert("job", job["id"], "", {**process_facts(), "pid": "1", "started": "1"}))
    freed = list[bool]()

    async def free() -> list[Any]:
        freed.append(True)
        return []

    monkeypatch.setattr("prefect_qruntime.operations.sweep.free_stuck_locks", free)
    for name in network_loop().run(saved_blocks()):  # those of other tests lead to the same sandbox
        qr.QuantumRuntimeCredentials.delete(name)
    report = run_sweep()
    assert str(flow_run.id) in [one.id for one in report.stalled if one.is_certain]
    assert (freed, report.blocks, report.is_clean) == ([True], [], False)
    assert report.problems[0] == str(none_saved())
    put(flow_run.id, Completed())


@pytest.mark.parametrize("path", ["/jobs", "/workloads", "session"])
def test_a_list_of_sessions_shows_what_can_be_read(control: Any, sandbox: Sandbox, path: str) -> None:
    sessions = [left(Running(), jobs=0)[1] for _ in range(2)]
    where = f"/sessions/{sessions[0].id}" if path == "session" else path
    control.add_fault("GET", where, status=403, times=None)
    found = list_sessions([BLOCK])
    control.clear_faults()
    assert {one.id for one in found.sessions} == {one.id for one in sessions[path == "session" :]}
    (problem,) = found.problems
    assert problem.startswith(f"{BLOCK}: session {sessions[0].id}" if path == "session" else f"{BLOCK}: the ")
