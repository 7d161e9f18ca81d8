"""Cancelling many waits at once, cancelling that fails, and what the run page tells of it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, runtime
from prefect.states import Cancelling

import prefect_qruntime as qr
from prefect_qruntime.cancellation import CancellationWork, cancel_jobs_of
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import PermissionDenied
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.suspend.watcher import run_watch
from tests.flows.test_suspend import block as block, deployed, detached, waits
from tests.support.flow_runs import BACKEND, FLIP, STAY, events, ran, records, requests, start, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server


def bought(credentials: Any, number: int) -> tuple[str, list[str]]:
    """A finished flow run that left so many jobs in the queue."""

    @flow
    def leaves() -> list[str]:
        return [qr.submit_job(credentials, [FLIP], backend=BACKEND).id for _ in range(number)]

    flow_run, state = ran(leaves)
    return str(flow_run.id), asyncio.run(state.aresult())


def test_waits_that_are_cancelled_together_cancel_each_job_once(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()
    flow_run_id, jobs = bought(credentials, 4)

    async def twenty_at_once() -> list[list[qr.Job]]:
        client = credentials.get_client()
        return await asyncio.gather(*(cancel_jobs_of(client, flow_run_id, [jobs[n % 4]]) for n in range(20)))

    for done in network_loop().run(twenty_at_once()):
        assert {job.id for job in done} == set(jobs)
        assert all(job.status is qr.JobStatus.CANCELLED for job in done)
    assert requests(sandbox, "POST", "/jobs/*/cancel") == 4
    assert len(events(f"qruntime.job.{jobs[0]}", last="qruntime.job.cancelled")) == 2
    assert not network_loop().state(CancellationWork).batches


def test_a_job_that_the_service_does_not_know_yet_is_cancelled_too(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()
    flow_run_id, jobs = bought(credentials, 1)
    sandbox.control.add_fault("POST", "/jobs/*/cancel", status=404)
    done = network_loop().run(cancel_jobs_of(credentials.get_client(), flow_run_id, jobs))
    assert [job.status for job in done] == [qr.JobStatus.CANCELLED]


def test_a_job_that_cannot_be_cancelled_holds_up_no_other_and_is_told_of(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()
    flow_run_id, jobs = bought(credentials, 3)
    sandbox.control.add_fault("POST", f"/jobs/{jobs[1]}/cancel", status=403, times=None)
    with pytest.raises(PermissionDenied):
        network_loop().run(cancel_jobs_of(credentials.get_client(), flow_run_id, jobs))
    assert [sandbox.control.job(job)["status"] for job in jobs] == ["Cancelled", "Queued", "Cancelled"]


def test_a_watcher_tries_again_to_cancel_what_it_could_not(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(waits, credentials_block=block)
    start(waits, flow_run)
    asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))
    sandbox.control.add_fault("POST", "/jobs/*/cancel", status=403, times=None)
    assert run_watch([block], once=True).cancelled == 0
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]
    sandbox.control.clear_faults()
    assert run_watch([block], once=True).cancelled == 1
    assert [job["status"] for job in sandbox.control.jobs()] == ["Cancelled"]


def test_a_detached_job_is_left_alone(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(detached, credentials_block=block)
    start(detached, flow_run)
    asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))
    assert run_watch([block], once=True).cancelled == 1
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]


def test_a_job_cancelled_at_the_deadline_is_told_of(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()

    @flow
    def one() -> Any:
        job = qr.submit_job(credentials, [STAY], backend=BACKEND)
        return qr.wait_for_completion.with_options(retries=0)(credentials, job, timeout=0.3, on_timeout="cancel")

    flow_run, state = ran(one)
    with pytest.raises(qr.JobTimeout) as caught:
        asyncio.run(state.aresult())
    job_id = str(caught.value.job_id)
    assert events(f"qruntime.job.{job_id}", last="qruntime.job.cancelled")
    (record,) = records("job", flow_run.id)
    assert record.meta["state"] == "Cancelled"
    assert until(lambda: records("job", flow_run.id)[0].meta.get("usage_final") == "true")


def test_the_end_of_a_job_is_told_once_a_flow_run_and_stays_on_its_page(sandbox: Sandbox, credentials: Any) -> None:
    seen: list[str | None] = []

    @flow(retries=1)
    def again() -> None:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND)
        seen.extend(record.meta.get("state") for record in records("job", UUID(runtime.flow_run.id)))
        qr.wait_for_completion(credentials, job)
        qr.wait_for_completion(credentials, job)
        if len(seen) == 1:
            raise RuntimeError("something downstream broke")

    ran(again)
    assert seen == ["submitted", "Completed"]
    (job,) = sandbox.control.jobs()
    resource = f"qruntime.job.{job['id']}"
    names = [event["event"].rpartition(".")[2] for event in events(resource, last="qruntime.job.attached")]
    assert [name for name in names if name != "running"] == ["submitted", "completed", "attached"]
