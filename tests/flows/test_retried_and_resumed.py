"""A flow run that was retried and is resumed later: only a retry buys anew, and only what failed before it."""

from __future__ import annotations

import pytest
from prefect import flow

import prefect_qruntime as qr
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.suspend.watcher import run_watch
from tests.flows.test_suspend import block as block, deployed, done, history
from tests.support.flow_runs import BACKEND, FLIP, run, start, state_of

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
