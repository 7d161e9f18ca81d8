"""Suspend until done: what happens in the flow, and what a watcher does about it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from prefect import Flow, flow, suspend_flow_run, task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, FlowRun
from prefect.events.clients import PrefectEventsClient
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling, Crashed, Pending, Running, Scheduled

import prefect_qruntime as qr
from flows.watch_jobs import watch_jobs
from prefect_qruntime.cli.operations import watch
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.credentials import none_saved, saved_blocks
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability.artifacts import Record
from prefect_qruntime.observability.progress import PageTurn
from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.prefect_api import api
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.suspend.alarms import InstanceWatch
from prefect_qruntime.suspend.suspend import claimed, reconcile
from prefect_qruntime.suspend.waits import Wait, job_of, notes, pause_key
from prefect_qruntime.suspend.watcher import _Watcher, arun_watch, run_watch
from tests.support.flow_runs import BACKEND, FLIP, events, ran, records, run, start, state_of, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server


@pytest.fixture
def block(sandbox: Sandbox) -> str:
    """A saved block of its own name, so that a watcher looks after this test's flow runs only."""
    name = f"suspend-{uuid4().hex[:8]}"
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud"), application=name).save(name)
    sandbox.control.hold()
    return name


def deployed(what: Flow[..., Any], *, limit: int | None = None, collision: Any = None, **parameters: Any) -> FlowRun:
    """A run of a deployment of a flow, which `start` runs in this process instead of a worker's."""
    options = None if collision is None else ConcurrencyOptions(collision_strategy=collision)

    async def create(client: PrefectClient) -> FlowRun:
        deployment = await client.create_deployment(
            await client.create_flow(what),
            "tests",
            parameter_openapi_schema={"type": "object", "properties": {}},
            concurrency_limit=limit,
            concurrency_options=options,
        )
        return await client.create_flow_run_from_deployment(deployment, parameters=parameters, state=Scheduled())

    return asked(create)


def history(flow_run: FlowRun) -> list[str | None]:
    return [state.name for state in asked(lambda client: client.read_flow_run_states(flow_run.id))]


def done(sandbox: Sandbox) -> None:
    """Let all jobs run to their ends."""
    for job in sandbox.control.jobs():
        sandbox.control.finish(job["id"])


@flow
def leaves(credentials_block: str, jobs: int = 1, shots: int | None = None) -> str:
    """Leaves jobs to the watcher; returns the last one's id."""
    credentials = qr.load_credentials(credentials_block)
    for _ in range(jobs):
        job = qr.leave_to_watcher(credentials, qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=shots))
    return job.id


@flow(**qr.hooks.cancel)
def waits(credentials_block: str) -> dict[str, int]:
    credentials = qr.load_credentials(credentials_block)
    job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=20)
    qr.suspend_until_done(credentials, job)
    return qr.fetch_results(credentials, job).counts()


@flow(**qr.hooks.detach)
def detached(credentials_block: str) -> None:
    credentials = qr.load_credentials(credentials_block)
    qr.suspend_until_done(credentials, qr.submit_job(credentials, [FLIP], backend=BACKEND))


@flow(**qr.hooks.cancel)
async def waits_twice(credentials_block: str) -> int:
    credentials = await qr.aload_credentials(credentials_block)
    shots = 0
    async with qr.aruntime_session(credentials, BACKEND, max_ttl=300) as session:
        for wanted in (10, 30):
            job = await qr.asubmit_job(credentials, [FLIP], backend=BACKEND, session=session, shots=wanted)
            await qr.asuspend_until_done(credentials, job)
            shots += (await qr.afetch_results(credentials, job)).counts()["1"]
    return shots


def test_keys() -> None:
    assert pause_key("d-1_x") == "job-d-1_x"
    used = {pause_key("d1")}
    used.add(pause_key("d1", used))
    assert pause_key("d1", used) == "job-d1#3"
    assert [job_of(key) for key in (*sorted(used), "mine", None)] == ["d1", "d1", None, None]


def test_a_suspended_flow_run_ends_its_wait_once(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(waits, credentials_block=block)
    assert start(waits, flow_run).name == "Suspended"
    assert run_watch([block], once=True).resumed == 0
    assert state_of(flow_run).name == "Suspended"

    done(sandbox)
    assert run_watch([block], once=True).model_dump() == {
        "followed": 1, "resumed": 1, "told": 0, "cancelled": 0, "problems": []
    }  # fmt: skip
    assert run_watch([block], once=True).followed == 0
    end = start(waits, flow_run)
    assert run(end.aresult()) == {"1": 20}
    assert history(flow_run) == ["Scheduled", "Running", "Suspended", "Resuming", "Running", "Completed"]
    (job,) = sandbox.control.jobs()
    # The resumed flow run tells of the end too, under the same id: Prefect keeps one.
    words = [event["event"] for event in events(f"qruntime.job.{job['id']}", 3)]
    assert words == ["qruntime.job.submitted", "qruntime.job.completed", "qruntime.job.attached"]
    (record,) = records("job", flow_run.id)
    assert record.meta["state"] == "Completed"
    assert run_watch([block], once=True).cancelled == 0
    assert network_loop().run(notes(flow_run_ids=[flow_run.id])) == []


def test_one_wait_after_the_other_in_a_session(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(waits_twice, credentials_block=block)
    for _ in range(2):
        assert start(waits_twice, flow_run).name == "Suspended"
        # Suspended, it pays for no open session.
        assert [session["accepting_jobs"] for session in sandbox.control.open_sessions()] in ([False], [])
        done(sandbox)
        assert run_watch([block], once=True).resumed == 1
    assert run(start(waits_twice, flow_run).aresult()) == 40
    assert len(sandbox.control.jobs()) == 2
    assert sandbox.control.open_sessions() == []


def test_resumed_too_early_it_is_suspended_again(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(waits, credentials_block=block)
    for number in range(3):
        state = start(waits, flow_run)
        (job,) = sandbox.control.jobs()
        assert state.name == "Suspended"
        assert state.state_details.pause_key == pause_key(job["id"]) + ("" if number == 0 else f"#{number + 1}")
        if number < 2:
            asked(lambda client: client.resume_flow_run(flow_run.id))
    done(sandbox)
    assert run_watch([block], once=True).resumed == 1
    assert start(waits, flow_run).is_completed()


def test_resumed_by_somebody_else_the_note_goes_too(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(waits, credentials_block=block)
    start(waits, flow_run)
    done(sandbox)
    asked(lambda client: client.resume_flow_run(flow_run.id))
    assert start(waits, flow_run).is_completed()
    assert len(network_loop().run(notes(flow_run_ids=[flow_run.id]))) == 1
    assert run_watch([block], once=True).resumed == 0
    assert network_loop().run(notes(flow_run_ids=[flow_run.id])) == []
    (job,) = sandbox.control.jobs()
    assert events(f"qruntime.job.{job['id']}", 3, last="qruntime.job.completed")


def test_the_note_of_a_crashed_flow_run_that_runs_again_stays(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(waits, credentials_block=block)
    start(waits, flow_run)
    (wait,) = network_loop().run(notes(flow_run_ids=[flow_run.id]))
    for state, left in ((Running(), 1), (Crashed(), 0)):
        asked(lambda client, state=state: client.set_flow_run_state(flow_run.id, state, force=True))
        assert not network_loop().run(reconcile(wait))
        assert len(network_loop().run(notes(flow_run_ids=[flow_run.id]))) == left, state


def two_jobs(**policy: Any) -> Flow[..., Any]:
    @flow(**policy)
    def made(credentials_block: str) -> None:
        credentials = qr.load_credentials(credentials_block)
        first, _ = (qr.submit_job(credentials, [FLIP], backend=BACKEND) for _ in range(2))
        qr.suspend_until_done(credentials, first)
        suspend_flow_run()

    return made


@pytest.mark.parametrize("policy", ["cancel", "detach"])
@pytest.mark.parametrize("when", ["resumed", "resumed by a person", "suspended for something else"])
def test_cancelled_without_a_process_after_the_wait_the_policy_decides(
    sandbox: Sandbox, block: str, when: str, policy: str
) -> None:
    what = two_jobs(**getattr(qr.hooks, policy))
    flow_run = deployed(what, credentials_block=block)
    start(what, flow_run)
    first, second = (job["id"] for job in sandbox.control.jobs())
    sandbox.control.finish(first)
    if when == "resumed by a person":
        asked(lambda client: client.resume_flow_run(flow_run.id))
        assert run_watch([block], once=True).resumed == 0
    else:
        assert run_watch([block], once=True).resumed == 1
    if when == "suspended for something else":
        assert start(what, flow_run).name == "Suspended"
        assert run_watch([block], once=True).resumed == 0
    asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))
    assert state_of(flow_run).name == "Cancelled"
    assert sandbox.control.job(second)["status"] == "Queued"
    assert run_watch([block], once=True).cancelled == 1
    assert sandbox.control.job(second)["status"] == ("Cancelled" if policy == "cancel" else "Queued")
    assert run_watch([block], once=True).cancelled == 0
    assert network_loop().run(notes(flow_run_ids=[flow_run.id])) == []


@pytest.mark.parametrize("final", ["resumed", "crashed"])
def test_the_jobs_of_a_run_that_its_deployment_drops_are_not_cancelled(
    sandbox: Sandbox, block: str, final: str
) -> None:
    """Prefect itself cancels a run that is resumed or retried beside another one (`CANCEL_NEW`); no person did."""
    what = two_jobs(**qr.hooks.cancel)
    flow_run = deployed(what, credentials_block=block)
    start(what, flow_run)
    first, second = (job["id"] for job in sandbox.control.jobs())
    options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    limited = DeploymentUpdate(concurrency_limit=1, concurrency_options=options)
    asked(lambda client: client.update_deployment(flow_run.deployment_id, limited))
    other = asked(lambda client: client.create_flow_run_from_deployment(flow_run.deployment_id, state=Scheduled()))
    asked(lambda client: client.set_flow_run_state(other.id, Pending()))
    sandbox.control.finish(first)
    if final == "resumed":
        assert run_watch([block], once=True).resumed == 1
    else:
        asked(lambda client: client.set_flow_run_state(flow_run.id, Crashed(), force=True))
        asked(lambda client: client.set_flow_run_state(flow_run.id, Scheduled(), force=True))
    asked(lambda client: client.set_flow_run_state(flow_run.id, Pending()))
    assert state_of(flow_run).name == "Cancelled", "Prefect dropped it"

    assert run_watch([block], once=True).cancelled == 0
    for cancel_jobs in (False, True):
        report = run_sweep([block], cancel_jobs=cancel_jobs)
        assert [(one.id, one.flow_state, one.action) for one in report.jobs] == [(second, "Dropped", "left alone")]
    assert sandbox.control.job(second)["status"] == "Queued"

    asked(lambda client: client.set_flow_run_state(other.id, Crashed()))
    asked(lambda client: client.set_flow_run_state(flow_run.id, Scheduled(), force=True))
    assert start(what, flow_run).name == "Suspended"
    assert [job["id"] for job in sandbox.control.jobs()] == [first, second], "it attached"
    asked(lambda client: client.delete_flow_run(flow_run.id))


def suspends_twice() -> Flow[..., Any]:
    @flow(**qr.hooks.cancel)
    def made(credentials_block: str) -> None:
        credentials = qr.load_credentials(credentials_block)
        for job in [qr.submit_job(credentials, [FLIP], backend=BACKEND) for _ in range(2)]:
            qr.suspend_until_done(credentials, job)

    return made


def test_a_flow_run_that_is_suspended_again_has_one_note_and_is_cancelled_once(sandbox: Sandbox, block: str) -> None:
    what = suspends_twice()
    flow_run = deployed(what, credentials_block=block)
    start(what, flow_run)
    first, second = (job["id"] for job in sandbox.control.jobs())
    sandbox.control.finish(first)
    assert run_watch([block], once=True).resumed == 1
    assert start(what, flow_run).name == "Suspended"
    assert run_watch([block], once=True).followed == 1
    assert [wait.job_id for wait in network_loop().run(notes(flow_run_ids=[flow_run.id]))] == [second]
    asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))
    assert run_watch([block], once=True).cancelled == 1
    assert sandbox.control.job(second)["status"] == "Cancelled"
    assert network_loop().run(notes(flow_run_ids=[flow_run.id])) == []


@pytest.mark.parametrize(("what", "left"), [(waits, "Cancelled"), (detached, "Queued")], ids=["cancel", "detach"])
def test_cancelled_while_suspended_the_policy_decides(
    sandbox: Sandbox, block: str, what: Flow[..., Any], left: str
) -> None:
    flow_run = deployed(what, credentials_block=block)
    start(what, flow_run)
    asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))
    assert state_of(flow_run).name == "Cancelled"
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]
    assert run_watch([block], once=True).cancelled == 1
    assert [job["status"] for job in sandbox.control.jobs()] == [left]
    assert run_watch([block], once=True).cancelled == 0


def test_a_failed_job_fails_the_flow_run_that_waited(sandbox: Sandbox, block: str) -> None:
    sandbox.control.script_job(status="Failed", reason="the fridge is warm", reason_code=1234)
    flow_run = deployed(waits, credentials_block=block)
    start(waits, flow_run)
    done(sandbox)
    assert run_watch([block], once=True).resumed == 1
    end = start(waits, flow_run)
    with pytest.raises(qr.JobFailed, match="fridge"):
        run(end.aresult())
    assert len(sandbox.control.jobs()) == 1


@flow
def follows(credentials_block: str, job_id: str) -> None:
    qr.suspend_until_done(qr.load_credentials(credentials_block), job_id)


def test_for_a_job_that_the_service_does_not_know_no_flow_run_is_suspended(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(follows, credentials_block=block, job_id="d0000000000000000000")
    with pytest.raises(qr.NotFound):
        run(start(follows, flow_run).aresult())


def test_a_job_that_is_deleted_meanwhile_ends_the_wait_after_a_while(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = qr.submit_job.fn(qr.load_credentials(block), [FLIP], backend=BACKEND)
    flow_run = deployed(follows, credentials_block=block, job_id=job.id)
    assert start(follows, flow_run).name == "Suspended"
    done(sandbox)
    client = qr.load_credentials(block).get_client()
    client.run(client.delete_job(job.id))
    monkeypatch.setattr("prefect_qruntime.suspend.watcher._PATIENCE", Deadlines(unseen=0.0, refused=0.0))
    assert run_watch([block], once=True).resumed == 1
    client._poller()._known.clear()  # what is resumed is another process
    with pytest.raises(qr.NotFound):
        run(start(follows, flow_run).aresult())


@pytest.mark.parametrize("status", [403, 404])
def test_one_refusal_ends_no_wait(sandbox: Sandbox, block: str, status: int) -> None:
    """A service that restarts says for a moment that it knows no job, or no user."""
    flow_run = deployed(waits, credentials_block=block)
    sandbox.control.add_fault("GET", "/jobs/*", status=status)
    assert start(waits, flow_run).name == "Suspended"
    done(sandbox)
    sandbox.control.add_fault("GET", "/jobs/*", status=status)
    assert run_watch([block], once=True).model_dump(include={"resumed", "problems"}) == {"resumed": 1, "problems": []}
    sandbox.control.add_fault("GET", "/jobs/*", status=status)
    assert run(start(waits, flow_run).aresult()) == {"1": 20}


@pytest.mark.parametrize("over", [False, True])
def test_a_flow_run_that_is_deleted_while_suspended_is_followed_no_more(
    sandbox: Sandbox, block: str, caplog: pytest.LogCaptureFixture, over: bool
) -> None:
    flow_run, kept = deployed(waits, credentials_block=block), deployed(waits, credentials_block=block)
    for one in (flow_run, kept):
        start(waits, one)

    async def follow() -> list[Any]:
        watcher = _Watcher([block], once=False)
        await watcher.look()
        await asyncio.to_thread(asked, lambda client: client.delete_flow_run(flow_run.id))
        if over:
            await asyncio.to_thread(done, sandbox)
            await asyncio.sleep(0.5)
        watcher._all_at = 0.0  # two minutes later
        await watcher.look()
        await watcher.stop()
        return [entry.wait.flow_run_id for entry in watcher._followed.values()]

    followed = network_loop().run(follow())
    asked(lambda client: client.delete_flow_run(kept.id))  # no watcher of another test is to find it
    assert flow_run.id not in followed
    assert over or followed == [kept.id]
    assert network_loop().run(notes(flow_run_ids=[flow_run.id])) == []
    assert f"Flow run {flow_run.id} was deleted while it waited" in caplog.text
    assert {job["status"] for job in sandbox.control.jobs()} == {"Completed" if over else "Queued"}


def test_the_command_and_the_flow(sandbox: Sandbox, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    flow_runs = [deployed(waits, credentials_block=block) for _ in range(2)]
    start(waits, flow_runs[0])
    done(sandbox)
    assert watch(block=[block], once=True, json=True) == 0
    assert orjson.loads(capsys.readouterr().out)["resumed"] == 1
    start(waits, flow_runs[1])
    done(sandbox)
    assert watch_jobs([block], minutes=None).resumed == 1


def test_one_watcher_claims_a_flow_run(sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_run = deployed(waits, credentials_block=block)
    start(waits, flow_run)
    key = state_of(flow_run).state_details.pause_key
    assert key is not None

    async def claim(fail: bool = False) -> bool:
        async with claimed(flow_run.id, key) as mine:
            if fail:
                raise ConnectionError
        return mine

    async def all_at_once() -> list[bool]:
        return list(await asyncio.gather(*(claim() for _ in range(8))))

    with pytest.raises(ConnectionError):
        network_loop().run(claim(fail=True))  # given back
    assert sum(network_loop().run(all_at_once())) == 1
    done(sandbox)
    assert run_watch([block], once=True).resumed == 0, "another one is at it"
    monkeypatch.setattr(
        "prefect_qruntime.suspend.suspend.STALE", timedelta(seconds=-3600)
    )  # any claim is of a dead one
    assert run_watch([block], once=True).resumed == 1, "it died over it"


def test_a_claim_taken_over_is_not_taken_over_again(sandbox: Sandbox, block: str) -> None:
    # Both found the claim of a dead watcher; the second must not remove what the first one made in its place.
    flow_run = deployed(waits, credentials_block=block)
    start(waits, flow_run)
    key = state_of(flow_run).state_details.pause_key
    assert key is not None

    both_have_read = asyncio.Barrier(2)

    class Api:
        """Prefect's, but who reads the claims goes on when the other has read them too."""

        def __init__(self, client: PrefectClient) -> None:
            self.create_flow_run_input = client.create_flow_run_input
            self.read_flow_run_input = client.read_flow_run_input
            self.delete_flow_run_input = client.delete_flow_run_input
            self._client = client

        async def filter_flow_run_input(self, *args: Any, **options: Any) -> Any:
            found = await self._client.filter_flow_run_input(*args, **options)
            await both_have_read.wait()
            return found

    async def paired() -> Any:
        return Api(await api())

    async def claim() -> bool:
        async with claimed(flow_run.id, key) as mine:
            return mine

    async def two_at_once() -> list[bool]:
        return list(await asyncio.gather(claim(), claim()))

    assert network_loop().run(claim()), "the one that dies over it"
    with pytest.MonkeyPatch.context() as patch:
        # Any claim is one of a dead watcher: the server's date is a second behind, on a busy machine more.
        patch.setattr("prefect_qruntime.suspend.suspend.STALE", timedelta(seconds=-3600))
        patch.setattr("prefect_qruntime.suspend.suspend.api", paired)
        assert sorted(network_loop().run(two_at_once())) == [False, True]
    assert not network_loop().run(claim()), "the new claim holds"
    asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))


def test_without_a_deployment_it_waits_here(sandbox: Sandbox, block: str, caplog: pytest.LogCaptureFixture) -> None:
    sandbox.control.release()
    flow_run, state = ran(waits, block)
    assert run(state.aresult()) == {"1": 20}
    assert history(flow_run).count("Running") == 1
    assert "without a deployment cannot be resumed. It waits for the job in this process" in caplog.text


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("collision", [None, *ConcurrencyLimitStrategy])
def test_a_run_that_its_deployment_would_drop_when_it_is_resumed_waits_here(
    sandbox: Sandbox, block: str, caplog: pytest.LogCaptureFixture, limit: int | None, collision: Any
) -> None:
    """A suspended run holds no slot of its deployment. Before: it was cancelled when it was resumed beside another."""
    drops = limit is not None and collision is ConcurrencyLimitStrategy.CANCEL_NEW
    flow_run = deployed(waits, limit=limit, collision=collision, credentials_block=block)
    if drops:
        sandbox.control.release()
    state = start(waits, flow_run)
    assert (state.name, "waits for the job in this process" in caplog.text) == (
        ("Completed", True) if drops else ("Suspended", False)
    )
    asked(lambda client: client.delete_flow_run(flow_run.id))


def test_a_run_whose_deployment_is_deleted_waits_here(
    sandbox: Sandbox, block: str, caplog: pytest.LogCaptureFixture
) -> None:
    @flow
    def outlives_its_deployment(credentials_block: str) -> None:
        asked(lambda client: client.delete_deployment(flow_run.deployment_id))
        waits.fn(credentials_block)

    flow_run = deployed(outlives_its_deployment, credentials_block=block)
    sandbox.control.release()
    assert start(outlives_its_deployment, flow_run).name == "Completed"
    assert "its deployment was deleted" in caplog.text


def refusal(status: int) -> PrefectHTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1/api/deployments/1")
    return PrefectHTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (refusal(403), "Suspended"),
        (refusal(503), "Completed"),
        (httpx.ConnectError("connection refused"), "Completed"),
        (TimeoutError(), "Completed"),
    ],
    ids=["refused", "failing", "away", "silent"],
)
def test_a_deployment_that_cannot_be_read_fails_no_run(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch, error: Exception, ends: str
) -> None:
    """The job is submitted by then. A key that may not read deployments suspends; in an outage that would fail."""

    async def read(client: PrefectClient, deployment_id: UUID) -> None:
        raise error

    flow_run = deployed(waits, credentials_block=block)
    monkeypatch.setattr(PrefectClient, "read_deployment", read)
    if ends == "Completed":
        sandbox.control.release()
    assert start(waits, flow_run).name == ends
    asked(lambda client: client.delete_flow_run(flow_run.id))


def test_a_block_that_is_not_saved_makes_it_wait_here(
    sandbox: Sandbox, credentials: qr.QuantumRuntimeCredentials, caplog: pytest.LogCaptureFixture
) -> None:
    @flow
    def unsaved() -> str:
        return qr.suspend_until_done(credentials, qr.submit_job(credentials, [FLIP], backend=BACKEND)).raw_status

    assert run(start(unsaved, deployed(unsaved)).aresult()) == "Completed"
    assert "the credentials block is not saved" in caplog.text
    with pytest.raises(qr.InvalidInput, match="saved") as refused:
        qr.leave_to_watcher(credentials, "d1")
    assert refused.value.field == "credentials"


def test_a_task_cannot_be_suspended(sandbox: Sandbox, credentials: qr.QuantumRuntimeCredentials) -> None:
    @task
    def inside() -> None:
        qr.suspend_until_done(credentials, "d1")

    @flow
    def outside() -> None:
        inside()

    with pytest.raises(qr.InvalidInput, match="belongs in the flow"):
        outside()
    assert sandbox.control.journal() == []


def test_what_others_suspended_stays_suspended(sandbox: Sandbox, block: str) -> None:
    @flow
    def theirs(credentials_block: str) -> None:
        credentials = qr.load_credentials(credentials_block)
        qr.submit_job(credentials, [FLIP], backend=BACKEND)
        suspend_flow_run(key="ask me")

    flow_run = deployed(theirs, credentials_block=block)
    assert start(theirs, flow_run).name == "Suspended"
    done(sandbox)
    assert run_watch(once=True).resumed == 0
    assert state_of(flow_run).name == "Suspended"


def test_one_block_that_is_gone_holds_up_nobody_else(sandbox: Sandbox, block: str) -> None:
    gone = f"{block}-gone"
    key, crn = sandbox.instances[2]
    qr.QuantumRuntimeCredentials(**{**sandbox.connection("cloud"), "api_key": key, "crn": crn}).save(gone)
    runs = {name: deployed(waits, credentials_block=name) for name in (gone, block)}
    for flow_run in runs.values():
        start(waits, flow_run)
    done(sandbox)
    qr.QuantumRuntimeCredentials.delete(gone)
    report = run_watch([gone, block], once=True)
    assert (report.followed, report.resumed) == (2, 1)
    assert [gone in problem for problem in report.problems] == [True]
    assert state_of(runs[block]).name == "Resuming"
    asked(lambda client: client.set_flow_run_state(runs[gone].id, Cancelling()))


def test_a_job_left_is_told_of_once(sandbox: Sandbox, block: str) -> None:
    flow_run, state = ran(leaves, block)
    job_id = run(state.aresult())
    assert run_watch([block], once=True).told == 0
    done(sandbox)
    assert [run_watch([block], once=True).told for _ in range(2)] == [1, 0]
    told = events(f"qruntime.job.{job_id}", 2)
    assert [event["event"] for event in told] == ["qruntime.job.submitted", "qruntime.job.completed"]
    assert told[1]["resource"]["qruntime.left-to-watcher"] == "true"
    assert told[1]["related"][0]["prefect.resource.id"] == f"prefect.flow-run.{flow_run.id}"
    assert (told[1]["payload"]["job_id"], told[1]["payload"]["credentials_block"]) == (job_id, block)


@pytest.mark.parametrize("every", [0, 60])
@pytest.mark.parametrize("hangs", [True, False])
def test_an_instance_that_hangs_for_as_long_as_the_watch_is_a_problem(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch, hangs: bool, every: int
) -> None:
    """Before: a watch that ended before the requests did reported no problem."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_WATCH_INSTANCE_SECONDS", str(every))
    _, state = ran(leaves, block)
    job_id = run(state.aresult())
    # If all have answered, it ends at once.
    monkeypatch.setattr("prefect_qruntime.suspend.watcher._LAST", 0.2 if hangs else 300.0)
    if hangs:
        sandbox.control.add_fault("GET", "*", delay=300, times=None)
    problems = run_watch([block], interval=0.2, duration=0.5).problems
    assert any(f"job {job_id}" in one and "no answer" in one for one in problems) == hangs
    assert any("first check had not ended" in one for one in problems) == (hangs and every > 0)
    assert bool(problems) == hangs


@pytest.mark.parametrize("what", [leaves, waits, "cancelled"], ids=lambda what: getattr(what, "name", what))
@pytest.mark.parametrize("since", ["edited", "deleted"])
def test_a_job_is_followed_by_the_block_that_leads_to_it(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch, since: str, what: Any
) -> None:
    """That another instance knows no such job is not its end."""
    flow_run = deployed(leaves if what is leaves else waits, credentials_block=block)
    start(leaves if what is leaves else waits, flow_run)
    (job,) = sandbox.control.jobs()
    if what == "cancelled":
        asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))
    else:
        sandbox.control.finish(job["id"])
    key, crn = sandbox.instances[2]
    other = qr.QuantumRuntimeCredentials(**{**sandbox.connection("cloud"), "api_key": key, "crn": crn})
    if since == "edited":
        other.save(block, overwrite=True)
    else:
        qr.QuantumRuntimeCredentials.delete(block)
    monkeypatch.setattr("prefect_qruntime.suspend.watcher._PATIENCE", Deadlines(unseen=0.0, refused=0.0))
    for name in network_loop().run(saved_blocks()):  # those of other tests lead to the same sandbox
        if name != block:
            qr.QuantumRuntimeCredentials.delete(name)
    report = run_watch([block], once=True)
    assert (report.resumed, report.told, report.cancelled) == (0, 0, 0)
    assert [block in problem for problem in report.problems] == [True]

    anew = f"{block}-anew"
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(anew)
    report = run_watch([block], once=True)
    assert (report.resumed, report.told, report.cancelled) == (what is waits, what is leaves, what == "cancelled")
    assert report.problems == []
    if what == "cancelled":
        assert sandbox.control.job(job["id"])["status"] == "Cancelled"
    else:
        told = events(f"qruntime.job.{job['id']}", last="qruntime.job.completed")[-1]
        assert told["payload"]["credentials_block"] == anew, "what collects the result loads this block"


ODD = [
    {"status": 404, "body": "default backend - 404"},
    {"status": 403, "body": "<html>Just a moment...</html>"},
    {"status": 530, "body": "error code: 1033"},
    {"status": 503},
    {"status": 200, "body": "null"},
    {"status": 499, "body": ""},
]


@pytest.mark.parametrize("fault", ODD, ids=lambda fault: f"{fault['status']}")
def test_an_odd_answer_while_a_watcher_follows_loses_no_end(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    monkeypatch.setattr("prefect_qruntime.suspend.watcher._AGAIN", 0.3)
    monkeypatch.setattr("prefect_qruntime.suspend.watcher._PATIENCE", Deadlines(unseen=0.0, refused=0.0))

    _, state = ran(leaves, block, shots=7)
    job_id = run(state.aresult())
    suspended = deployed(waits, credentials_block=block)
    assert start(waits, suspended).name == "Suspended"

    async def meanwhile() -> Any:
        sandbox.control.clear_journal()
        sandbox.control.add_fault("GET", "/jobs*", times=4, **fault)
        watching = asyncio.create_task(arun_watch([block], interval=0.2, duration=60))
        # The fault meets the watcher while nothing is over yet.
        assert await asyncio.to_thread(until, lambda: not sandbox.control.faults() or _met(sandbox) >= 4, 40)
        done(sandbox)
        resumed = await asyncio.to_thread(until, lambda: state_of(suspended).name == "Resuming", 40)
        ended = await asyncio.to_thread(events, f"qruntime.job.{job_id}", 2)
        watching.cancel()
        (report,) = await asyncio.gather(watching, return_exceptions=True)
        return resumed, ended, report

    resumed, _, _ = run(meanwhile())
    assert resumed
    run_watch([block], once=True)  # takes up what a stop in the middle may have left
    assert run(start(waits, suspended).aresult()) is not None
    assert [event["event"] for event in events(f"qruntime.job.{job_id}", 2)].count("qruntime.job.completed") == 1


def _met(sandbox: Sandbox) -> int:
    return len([entry for entry in sandbox.control.journal("GET", "/jobs*") if entry["status"] != 401])


def test_a_job_whose_event_did_not_get_out_is_told_of_again(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = ran(leaves, block)
    done(sandbox)

    async def refused(client: PrefectEventsClient) -> None:
        raise ConnectionRefusedError("no websocket")

    with monkeypatch.context() as patch:
        patch.setattr(PrefectEventsClient, "_reconnect", refused)
        for _ in range(2):
            report = run_watch([block], once=True)
            assert report.told == 0
            assert "no websocket" in report.problems[0]
    assert [run_watch([block], once=True).told for _ in range(2)] == [1, 0]
    told = events(f"qruntime.job.{run(state.aresult())}", last="qruntime.job.completed")
    assert [event["event"] for event in told].count("qruntime.job.completed") == 1, "one id, one event"


async def test_a_job_that_ends_while_the_notes_are_read_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = _Watcher(None, once=False)
    wait = Wait(job_id="d1", block="ibm", flow_run_id=None, key=None, policy="detach", note=uuid4())

    async def read() -> list[Wait]:
        watcher._followed.pop(wait.note, None)
        return [wait]

    monkeypatch.setattr("prefect_qruntime.suspend.waits.notes", read)
    for followed in (1, 1, 2):  # the third time it was left again
        await watcher._left_jobs()
        assert watcher.report().followed == followed


async def test_a_block_that_leads_to_another_instance_now_has_another_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of the instance before are not shown as those of this one."""
    crns, looked = ["11aa", "11aa", "33cc"], list[InstanceWatch]()

    async def load(name: str) -> Any:
        crn = f"crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:{crns[len(looked)]}-22bb::"
        return qr.QuantumRuntimeCredentials(api_key="a-key-of-a-test-0123", crn=crn)

    async def look(self: InstanceWatch, client: Any) -> None:
        looked.append(self)

    monkeypatch.setattr("prefect_qruntime.credentials.aload_credentials", load)
    monkeypatch.setattr(InstanceWatch, "look", look)
    watcher = _Watcher(["ibm"], once=False)
    for _ in crns:
        await watcher._look_after_instances()
    assert looked[0] is looked[1] is not looked[2]


@pytest.mark.parametrize("broken", ["a", "b", None])
async def test_an_instance_is_looked_after_with_each_key_that_is_saved(
    monkeypatch: pytest.MonkeyPatch, broken: str | None
) -> None:
    """One user's key does not see the sessions of another, and a block may be wrong or its key revoked."""
    keys = {"a": "1", "b": "2", "c": "2", "d": "1"}  # c is another name of b, d leads elsewhere
    looked = list[tuple[str, set[str]]]()

    async def load(name: str) -> Any:
        if name == broken:
            raise qr.errors.InvalidInput("a wrong field", field="crn")
        crn = f"crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:{'33cc' if name == 'd' else '11aa'}-22bb::"
        return qr.QuantumRuntimeCredentials(api_key=f"a-key-of-a-test-012{keys[name]}", crn=crn)

    async def look(self: InstanceWatch, *clients: Any) -> None:
        looked.append((self._block, {client.connection.api_key[-1] for client in clients}))
        if self._block != "d":
            raise qr.errors.AuthenticationError("all revoked")

    monkeypatch.setattr("prefect_qruntime.credentials.aload_credentials", load)
    monkeypatch.setattr(InstanceWatch, "look", look)
    await _Watcher(keys, once=False)._look_after_instances()
    first = "b" if broken == "a" else "a"
    assert looked == [(first, {"a": {"2"}, "b": {"1", "2"}, None: {"1", "2"}}[broken]), ("d", {"1"})]


@pytest.mark.timeout(60)
async def test_an_instance_that_does_not_answer_holds_up_the_check_of_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = asyncio.Event()

    async def load(name: str) -> Any:
        crn = f"crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:{name}-22bb::"
        return qr.QuantumRuntimeCredentials(api_key="a-key-of-a-test-0123", crn=crn)

    async def look(self: InstanceWatch, client: Any) -> None:
        if self._block == "11aa":
            await read.wait()
            raise TimeoutError
        read.set()

    monkeypatch.setattr("prefect_qruntime.credentials.aload_credentials", load)
    monkeypatch.setattr(InstanceWatch, "look", look)
    with caplog.at_level("WARNING", "prefect_qruntime"):
        await _Watcher(["11aa", "33cc"], once=False)._look_after_instances()
    assert [one.getMessage() for one in caplog.records] == [
        "Not watched: The instance of 11aa could not be checked: it does not answer."
    ]


@pytest.mark.timeout(60)
async def test_an_instance_that_does_not_answer_holds_up_no_later_check_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked, answers, thrice = list[str](), asyncio.Event(), asyncio.Event()

    async def load(name: str) -> Any:
        crn = f"crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:{name}-22bb::"
        return qr.QuantumRuntimeCredentials(api_key="a-key-of-a-test-0123", crn=crn)

    async def look(self: InstanceWatch, client: Any) -> None:
        looked.append(self._block)
        if looked.count("33cc") == 3:
            thrice.set()
        if self._block == "11aa":
            await answers.wait()
            raise TimeoutError

    monkeypatch.setattr("prefect_qruntime.credentials.aload_credentials", load)
    monkeypatch.setattr(InstanceWatch, "look", look)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_WATCH_INSTANCE_SECONDS", "0.01")
    watcher = _Watcher(["11aa", "33cc"], once=False)
    while not thrice.is_set():
        watcher._look_at_instances()
        await asyncio.sleep(0.02)
    assert looked.count("11aa") == 1, "no second check beside the first one"
    answers.set()
    await asyncio.gather(*watcher._looking)
    assert watcher.report().problems == ["The instance of 11aa could not be checked: it does not answer."]
    await watcher.stop()


@pytest.mark.parametrize("once", [False, True])
async def test_a_watcher_that_has_nothing_to_watch_says_so(monkeypatch: pytest.MonkeyPatch, once: bool) -> None:
    async def none() -> list[str]:
        return []

    monkeypatch.setattr("prefect_qruntime.credentials.saved_blocks", none)
    watcher = _Watcher(None, once=once)
    await watcher._look_after_instances()
    assert watcher.report().problems == [str(none_saved())]


@pytest.mark.parametrize("how", [{"once": True}, {"duration": 1.0, "interval": 0.2}])
def test_a_block_that_is_not_there_is_a_problem(sandbox: Sandbox, block: str, how: Any) -> None:
    problems = run_watch([f"{block}-gone"], **how).problems
    assert [f"{block}-gone could not be checked" in problem for problem in problems] == [True]


async def test_an_instance_is_a_problem_until_it_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [qr.errors.AuthenticationError("all revoked"), TimeoutError()]

    async def load(name: str) -> Any:
        crn = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
        return qr.QuantumRuntimeCredentials(api_key="a-key-of-a-test-0123", crn=crn)

    async def look(self: InstanceWatch, client: Any) -> None:
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr("prefect_qruntime.credentials.aload_credentials", load)
    monkeypatch.setattr(InstanceWatch, "look", look)
    watcher, wanted = _Watcher(["ibm"], once=False), [["all revoked."], ["it does not answer."], []]
    for reasons in wanted:
        await watcher._look_after_instances()
        told = [f"The instance of ibm could not be checked: {reason}" for reason in reasons]
        assert watcher.report().problems == told


async def test_an_instance_that_does_not_answer_holds_up_no_job_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async def search(wait: Wait) -> Any:
        await (asyncio.Event().wait() if wait.block == "silent" else asyncio.sleep(0))
        return wait.block, None

    monkeypatch.setattr("prefect_qruntime.suspend.suspend.client_for", search)
    watcher = _Watcher(None, once=True)
    silent, other = (Wait("d1", name, None, None, "detach", uuid4(), name) for name in ("silent", "other"))
    searching = asyncio.create_task(watcher._client_for(silent))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await watcher._client_for(other) == ("other", None)
    searching.cancel()


async def test_many_left_jobs_do_not_each_try_a_prefect_that_takes_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher, tries = _Watcher(None, once=True), []

    async def refuses(job: Job, **_: Any) -> None:
        tries.append(job.id)
        await asyncio.sleep(0.01)
        raise ConnectionRefusedError("no websocket")

    monkeypatch.setattr("prefect_qruntime.observability.notifications.left_job_ended", refuses)
    jobs = [Job(id=f"d{number}", status=JobStatus.COMPLETED) for number in range(9)]
    ends = await asyncio.gather(*(watcher._report_left(job, None, "ibm") for job in jobs), return_exceptions=True)
    assert all(isinstance(one, OSError) for one in ends)
    assert len(tries) == 2
    watcher._no_events_until = 0.0  # half a minute later
    with pytest.raises(ConnectionRefusedError):
        await watcher._report_left(jobs[0], None, "ibm")


def test_a_prefect_that_takes_no_events_holds_up_no_suspended_flow_run(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, _ = ran(leaves, block, jobs=2)
    done(sandbox)
    suspended = deployed(waits, credentials_block=block)
    start(waits, suspended)
    hanging = []

    async def hangs(*_: Any, **__: Any) -> None:
        hanging.append(True)
        await asyncio.sleep(3600)

    monkeypatch.setattr("prefect_qruntime.observability.notifications.deliver", hangs)

    async def meanwhile() -> bool:
        watching = asyncio.create_task(arun_watch([block], interval=0.2, duration=120))
        assert await asyncio.to_thread(until, lambda: len(hanging) == 2)
        await asyncio.to_thread(done, sandbox)
        resumed = await asyncio.to_thread(until, lambda: state_of(suspended).name == "Resuming", 30.0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        return resumed

    assert run(meanwhile())
    assert {record.meta["state"].lower() for record in records("job", left.id)} == {"completed"}


def test_a_watcher_that_stays_sees_new_flow_runs_and_the_ends(sandbox: Sandbox, block: str) -> None:
    first = deployed(waits, credentials_block=block)
    start(waits, first)

    async def meanwhile() -> Any:
        watching = asyncio.create_task(arun_watch([block], interval=0.2, duration=60))
        second = await asyncio.to_thread(deployed, waits, credentials_block=block)
        await asyncio.to_thread(start, waits, second)
        sandbox.control.release()
        for flow_run in (first, second):
            name = await asyncio.to_thread(until, lambda run=flow_run: state_of(run).name == "Resuming")
            assert name, flow_run.id
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        return second

    second = run(meanwhile())
    assert history(first).count("Resuming") == history(second).count("Resuming") == 1


def test_the_page_of_a_suspended_flow_run_s_job_moves_until_the_job_is_over(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_qruntime.suspend.watcher._BETWEEN_PAGES", 0.1)
    monkeypatch.setattr("prefect_qruntime.suspend.watcher.PageTurn", partial(PageTurn, least=0.0))
    flow_run = deployed(waits, credentials_block=block)
    start(waits, flow_run)

    def page() -> Record:
        return records("job", flow_run.id)[0]

    async def meanwhile() -> None:
        watching = asyncio.create_task(arun_watch([block], interval=0.2, duration=600))
        await asyncio.to_thread(until, lambda: page().meta.get("now", "").startswith("queued"))
        assert "| now | queued" in page().text
        assert page().meta["block"] == block
        done(sandbox)
        await asyncio.to_thread(until, lambda: state_of(flow_run).name == "Resuming")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    run(meanwhile())
    assert start(waits, flow_run).is_completed()
    assert page().meta["state"] == "Completed"
    assert "| now |" not in page().text
