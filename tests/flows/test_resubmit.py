"""`resubmit=`: another job only after the service said that one failed by its own fault, and never more than asked."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import flow, task

from prefect_qruntime import (
    InvalidInput,
    JobFailed,
    JobRef,
    QuantumRuntimeCredentials,
    arun_job,
    run_job,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.tasks.submit import submit_numbered
from tests.support.flow_runs import BACKEND, FLIP, requests, run

pytestmark = pytest.mark.server

THEIRS, OURS = 9999, 1517  # reason codes: the service's own fault, a bad circuit


def keys(sandbox: Sandbox) -> set[str]:
    return {tag for job in sandbox.control.jobs() for tag in job["tags"] if tag.startswith("qr-key:")}


@pytest.mark.parametrize("twin", ["sync", "async"])
def test_a_failure_of_the_service_is_bought_anew(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, twin: str
) -> None:
    sandbox.control.script_job(reason_code=THEIRS, times=2)

    @flow
    def sync() -> dict[str, int]:
        return run_job(credentials, [FLIP], backend=BACKEND, shots=5, resubmit=2).counts()

    @flow
    async def asynchronous() -> dict[str, int]:
        return (await arun_job(credentials, [FLIP], backend=BACKEND, shots=5, resubmit=2)).counts()

    assert (sync() if twin == "sync" else run(asynchronous())) == {"1": 5}
    assert [job["status"] for job in sandbox.control.jobs()] == ["Failed", "Failed", "Completed"]
    assert len(keys(sandbox)) == 3


def test_no_more_often_than_asked_and_not_at_all_unasked(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    sandbox.control.script_job(reason_code=THEIRS, times=10)

    @flow
    def asked(resubmit: int) -> Any:
        return run_job(credentials, [FLIP], backend=BACKEND, resubmit=resubmit)

    for resubmit in (0, 1):
        with pytest.raises(JobFailed):
            asked(resubmit)
        assert len(sandbox.control.jobs()) == 1 + 2 * resubmit


@pytest.mark.parametrize("reason", [OURS, 1305, None])
def test_a_failure_of_ours_is_final(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, reason: int | None
) -> None:
    sandbox.control.script_job(reason_code=reason)

    @flow
    def one() -> Any:
        return run_job(credentials, [FLIP], backend=BACKEND, resubmit=3)

    with pytest.raises(JobFailed):
        one()
    assert len(sandbox.control.jobs()) == 1


@pytest.mark.parametrize(("reason", "jobs"), [(THEIRS, 2), (1305, 1)], ids=["failed", "ran too long"])
@pytest.mark.parametrize("key", [None, "tonight"])
def test_the_retry_of_a_flow_submits_again_what_failed_but_not_what_ran_too_long(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, key: str | None, reason: int, jobs: int
) -> None:
    sandbox.control.script_job(reason_code=reason, times=2)

    @flow(retries=1)
    def twice() -> Any:
        return run_job(credentials, [FLIP], backend=BACKEND, shots=5, submission_key=key and f"{key}-{reason}")

    with pytest.raises(JobFailed):
        twice()
    assert len(sandbox.control.jobs()) == jobs


@pytest.mark.parametrize("key", [None, "tonight"])
def test_a_flow_that_is_retried_attaches_to_each_of_them(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, key: str | None
) -> None:
    sandbox.control.script_job(reason_code=THEIRS)
    tries = []

    @flow(retries=1)
    def twice() -> list[dict[str, int]]:
        # Two equal calls: the second is an intent of its own, and is not taken for a resubmission of the first.
        more = {"submission_key": key} if key else {}
        found = [run_job(credentials, [FLIP], backend=BACKEND, shots=5, resubmit=1, **more).counts() for _ in range(2)]
        if not tries:
            tries.append(1)
            raise RuntimeError("after both")
        return found

    assert twice() == [{"1": 5}, {"1": 5}]
    assert sorted(job["status"] for job in sandbox.control.jobs()) == ["Completed"] * (1 if key else 2) + ["Failed"]
    assert requests(sandbox, "POST", "/jobs") == (2 if key else 3)


def test_a_lost_answer_to_the_second_purchase_buys_no_third(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    sandbox.control.script_job(reason_code=THEIRS)

    @flow
    def one() -> dict[str, int]:
        sandbox.control.add_fault("POST", "/jobs", drop="after", skip=1)
        return run_job(credentials, [FLIP], backend=BACKEND, shots=5, resubmit=1).counts()

    assert one() == {"1": 5}
    assert [job["status"] for job in sandbox.control.jobs()] == ["Failed", "Completed"]


def test_nothing_is_bought_on_a_guess(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    @flow
    def other() -> Any:
        job = submit_job(credentials, [FLIP], backend=BACKEND, shots=5)
        wait_for_completion(credentials, job)
        return submit_numbered(credentials, [FLIP], backend=BACKEND, shots=6, replaces=job)

    with pytest.raises(InvalidInput) as caught:
        other()
    assert caught.value.field == "replaces"
    assert len(sandbox.control.jobs()) == 1

    @flow
    def unknown() -> Any:
        return submit_numbered(credentials, [FLIP], backend=BACKEND, replaces=JobRef(id="d1"))

    with pytest.raises(InvalidInput):
        unknown()
    assert len(sandbox.control.jobs()) == 1


@pytest.mark.parametrize("resubmit", [-1, 11, 1.0, True, "2"])
def test_what_is_no_number_of_resubmissions(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, resubmit: Any
) -> None:
    with pytest.raises(InvalidInput) as caught:
        run_job(credentials, [FLIP], backend=BACKEND, resubmit=resubmit)
    assert caught.value.field == "resubmit"
    assert sandbox.control.journal() == []


@pytest.mark.parametrize("around", ["flow", "task", "nothing"])
def test_each_of_equal_calls_resubmits_its_own_job(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, around: str
) -> None:
    """Also in a task outside flows, as a task worker runs it."""

    def calls() -> list[str]:
        jobs = []
        for _ in range(2):
            sandbox.control.script_job(reason_code=THEIRS)
            jobs.append(run_job(credentials, [FLIP], backend=BACKEND, shots=5, resubmit=1).job_id)
        return jobs

    found = {"flow": flow, "task": task, "nothing": lambda body: body}[around](calls)()
    ended = {job["id"]: job["status"] for job in sandbox.control.jobs()}
    assert list(ended.values()) == ["Failed", "Completed"] * 2
    assert [ended[job] for job in found] == ["Completed"] * 2
    assert len(set(found)) == 2
