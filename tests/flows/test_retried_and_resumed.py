"""A flow run that was retried and is resumed later: only a retry buys anew, and only what failed before it."""

from __future__ import annotations

import pytest
from prefect import flow

import prefect_qruntime as qr
from prefect_qruntime import run_context
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.submission import submission_memory
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.suspend.watcher import run_watch
from tests.flows.test_suspend import block as block, deployed, done, history
from tests.support.flow_runs import BACKEND, FLIP, noted, run, start, state_of

pytestmark = pytest.mark.server


@flow(retries=1, **qr.hooks.cancel)
def waits_and_retries(credentials_block: str) -> dict[str, int]:
    credentials = qr.load_credentials(credentials_block)
    job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=20)
    qr.suspend_until_done(credentials, job)
    return qr.fetch_results(credentials, job).counts()


def test_a_resume_after_a_retry_buys_nothing_for_the_job_that_failed_meanwhile(sandbox: Sandbox, block: str) -> None:
    for _ in range(3):
        sandbox.control.script_job(status="Failed", reason="the fridge is warm", reason_code=1234)
    flow_run = deployed(waits_and_retries, credentials_block=block)
    assert start(waits_and_retries, flow_run).is_paused()
    done(sandbox)
    assert run_watch([block], once=True).resumed == 1
    # The first job failed, so the flow is retried: a second job, and suspended again.
    assert start(waits_and_retries, flow_run).is_paused()
    assert "AwaitingRetry" in history(flow_run)
    assert len(sandbox.control.jobs()) == 2
    done(sandbox)
    assert run_watch([block], once=True).resumed == 1
    end = start(waits_and_retries, flow_run)
    assert [job["status"] for job in sandbox.control.jobs()] == ["Failed"] * 2
    with pytest.raises(qr.JobFailed, match="fridge"):
        run(end.aresult())
    assert state_of(flow_run).is_failed()


@flow
def submits_for_the_slot(credentials_block: str) -> str:
    credentials = qr.load_credentials(credentials_block)
    job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=20, submission_key=credentials_block)
    return str(job.id)


@flow(**qr.hooks.cancel)
def waits_for_the_slot(credentials_block: str) -> dict[str, int]:
    credentials = qr.load_credentials(credentials_block)
    job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=20, submission_key=credentials_block)
    qr.suspend_until_done(credentials, job)
    return qr.fetch_results(credentials, job).counts()


async def forget() -> None:
    """What this process knows of its submissions, as another process would not."""
    submission_memory().forget()
    for known in (run_context._had, run_context._runs, run_context._touched):
        known.clear()


@pytest.mark.parametrize("again_in", ["the same process", "another process", "another process, with the first's page"])
def test_a_resume_buys_nothing_for_another_runs_job_that_failed_meanwhile(
    sandbox: Sandbox, block: str, again_in: str
) -> None:
    sandbox.control.script_job(status="Failed", reason="the fridge is warm", reason_code=1234)
    theirs = submits_for_the_slot(block)
    if "page" in again_in:
        noted()
    flow_run = deployed(waits_for_the_slot, credentials_block=block)
    assert start(waits_for_the_slot, flow_run).is_paused()
    done(sandbox)
    assert run_watch([block], once=True).resumed == 1
    noted()
    if "another" in again_in:
        network_loop().run(forget())
    end = start(waits_for_the_slot, flow_run)
    with pytest.raises(qr.JobFailed, match="fridge"):
        run(end.aresult())
    assert [job["id"] for job in sandbox.control.jobs()] == [theirs]
    # A later run wants the slot's work done.
    assert submits_for_the_slot(block) != theirs


def test_a_job_that_fails_while_a_flow_has_it_is_the_answer_to_an_equal_call(sandbox: Sandbox, block: str) -> None:
    sandbox.control.script_job(status="Failed", reason="the fridge is warm", reason_code=1234)
    theirs = submits_for_the_slot(block)

    @flow
    def both() -> list[str]:
        before = submits_for_the_slot.fn(block)
        done(sandbox)
        return [before, submits_for_the_slot.fn(block)]

    assert both() == [theirs, theirs]
    assert submits_for_the_slot(block) != theirs
