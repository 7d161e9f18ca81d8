"""One intent, at most one paid job: repeated, mapped, gathered, keyed, in subflows and in other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, unmapped
from prefect.filesystems import LocalFileSystem

from prefect_qruntime import (
    JobFailed,
    JobRef,
    NotFound,
    QuantumRuntimeCredentials,
    QuantumRuntimeError,
    afetch_results,
    asubmit_job,
    await_for_completion,
    fetch_results,
    result_storage,
    run_job,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.submission import submission_memory
from prefect_qruntime.sandbox import Sandbox
from tests.support.circuits import qaoa
from tests.support.flow_runs import posts, until
from tests.support.random_circuits import executor_params
from tests.support.scenario import forget_submissions

pytestmark = pytest.mark.server
CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
OTHER = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; h q[0]; c = measure q;'
BACKEND = "sandbox_ideal"


def keys(sandbox: Sandbox) -> list[str]:
    return [tag for job in sandbox.control.jobs() for tag in job["tags"] if tag.startswith("qr-key:")]


def failing_once(action: Callable[[], Any]) -> Any:
    """A flow that fails after its action the first time and is retried by Prefect."""
    tries: list[int] = []

    @flow(retries=1)
    def unlucky() -> Any:
        got = action()
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")
        return got

    return unlucky()


def test_a_retried_flow_attaches_to_its_live_job(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    sandbox.control.hold()
    job = failing_once(lambda: submit_job(credentials, [CIRCUIT], backend=BACKEND))
    assert job.attached
    assert posts(sandbox) == 1


@pytest.mark.parametrize("form", ["PUBs as QPY", "PUBs as text", "a raw program"])
def test_a_retried_flow_that_builds_its_executor_circuits_again_attaches(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, form: str
) -> None:
    sandbox.control.hold()
    sent: list[str] = []

    def submit() -> Any:
        network_loop().run(_forget())  # as a process that was started again
        circuit = qaoa()  # with new parameters of the same names, which QPY writes otherwise
        if form == "a raw program":
            given: dict[str, Any] = {"params": executor_params(circuit), "program_id": "executor"}
        else:
            circuit_form = "qpy" if form == "PUBs as QPY" else "openqasm3"
            given = {"pubs": [(circuit, [0.1, 0.2])], "route": "executor", "circuit_form": circuit_form}
        sent.append(str(given))
        return submit_job(credentials, backend=BACKEND, **given)

    job = failing_once(submit)
    assert job.attached
    assert job.certain
    assert posts(sandbox) == 1
    if form == "a raw program":
        assert sent[0] != sent[1], "or nothing was to be recognised"


async def _forget() -> None:
    submission_memory().forget()


def test_a_retried_flow_attaches_to_its_completed_job(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    counts = failing_once(lambda: run_job(credentials, [CIRCUIT], backend=BACKEND, shots=5).counts())
    assert counts == {"1": 5}
    assert posts(sandbox) == 1


def test_a_retried_flow_buys_a_failed_job_anew(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    sandbox.control.script_job(status="Failed", reason="broken", reason_code=1000)

    @flow(retries=1)
    def one() -> dict[str, int]:
        return run_job(credentials, [CIRCUIT], backend=BACKEND, shots=5).counts()

    assert one() == {"1": 5}
    assert posts(sandbox) == 2
    assert len(set(keys(sandbox))) == 2, "the second generation needs a key of its own"


def test_a_failed_job_is_not_bought_again_by_itself(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    sandbox.control.script_job(status="Failed", reason="broken", reason_code=1000)

    @flow
    def one() -> None:
        run_job(credentials, [CIRCUIT], backend=BACKEND)

    with pytest.raises(JobFailed):
        one()
    assert posts(sandbox) == 1


def test_a_retry_of_wait_or_fetch_never_submits(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    sandbox.control.add_fault("GET", "/jobs/*/results", status=501)

    @flow
    def one() -> dict[str, int]:
        job = submit_job(credentials, [CIRCUIT], backend=BACKEND, shots=5)
        wait_for_completion(credentials, job)
        again = fetch_results.with_options(retries=1, retry_delay_seconds=0, retry_condition_fn=always)
        return again(credentials, job).counts()

    assert one() == {"1": 5}
    assert posts(sandbox) == 1


async def always(task: Any, task_run: Any, state: Any) -> bool:
    """Retry whatever the error says."""
    return True


def test_a_task_retry_of_submit_attaches(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    # Lost for ever: the first try of the task ends uncertain, the second one looks first.
    sandbox.control.add_fault("POST", "/jobs", drop="after")
    sandbox.control.add_fault("GET", "/jobs", status=501)

    @flow
    def one() -> Any:
        again = submit_job.with_options(retries=1, retry_delay_seconds=0, retry_condition_fn=always)
        return again(credentials, [CIRCUIT], backend=BACKEND)

    assert one().attached
    assert posts(sandbox) == 1


def two_in_a_loop(credentials: QuantumRuntimeCredentials) -> Any:
    return [submit_job(credentials, [CIRCUIT], backend=BACKEND) for _ in range(2)]


def two_submitted(credentials: QuantumRuntimeCredentials) -> Any:
    futures = [submit_job.submit(credentials, [CIRCUIT], backend=BACKEND) for _ in range(2)]
    return [future.result() for future in futures]


def two_mapped(credentials: QuantumRuntimeCredentials) -> Any:
    return submit_job.map(unmapped(credentials), [CIRCUIT, CIRCUIT], backend=BACKEND).result()


def two_in_subflows(credentials: QuantumRuntimeCredentials) -> Any:
    @flow
    def inner() -> Any:
        return submit_job.submit(credentials, [CIRCUIT], backend=BACKEND).result()

    return [inner(), inner()]


@pytest.mark.parametrize("way", [two_in_a_loop, two_submitted, two_mapped, two_in_subflows])
def test_two_wanted_equal_calls_are_two_jobs_and_stay_two_when_repeated(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, way: Callable[[Any], Any]
) -> None:
    jobs = failing_once(lambda: way(credentials))
    assert len({job.id for job in jobs}) == 2
    assert all(job.attached for job in jobs)
    assert posts(sandbox) == 2


def test_calls_made_in_different_ways_do_not_collapse(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    @flow
    def mixed() -> list[str]:
        jobs = [*two_in_a_loop(credentials), *two_submitted(credentials), *two_mapped(credentials)]
        return [job.id for job in jobs]

    assert len(set(mixed())) == 6


def test_gathered_calls_are_two_jobs(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    tries: list[int] = []

    @flow(retries=1)
    async def two() -> Any:
        jobs = await asyncio.gather(*(asubmit_job(credentials, [CIRCUIT], backend=BACKEND) for _ in range(2)))
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")
        return jobs

    jobs: Any = asyncio.run(two())  # type: ignore[arg-type]
    assert len({job.id for job in jobs}) == 2
    assert posts(sandbox) == 2


def test_a_subflow_that_fails_and_is_run_again_by_its_parent_attaches(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    tries: list[int] = []

    @flow
    def inner() -> str:
        job = submit_job(credentials, [CIRCUIT], backend=BACKEND)
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("the subflow broke")
        return job.id

    @flow(retries=1)
    def outer() -> str:
        return inner()

    assert outer() == sandbox.control.jobs()[0]["id"]
    assert posts(sandbox) == 1


@pytest.mark.parametrize("in_subflow", [False, True])
def test_a_job_noted_before_its_process_died_is_found_however_late_it_is_listed(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, monkeypatch: pytest.MonkeyPatch, in_subflow: bool
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "0.2")
    sandbox.control.set_option("list_lag", 3600.0)
    tries: list[int] = []

    def work() -> list[str]:
        jobs = [submit_job(credentials, [CIRCUIT], backend=BACKEND).id for _ in range(2)]
        tries.append(1)
        if len(tries) == 1:
            forget_submissions()  # as a process that was killed here
            raise RuntimeError("the process is gone")
        return jobs

    inner = flow(work, name="inner") if in_subflow else work

    @flow(retries=1)
    def outer() -> list[str]:
        return inner()

    assert sorted(outer()) == sorted(job["id"] for job in sandbox.control.jobs())
    assert posts(sandbox) == 2


def test_an_explicit_key_spans_flow_runs_and_payloads_stay_apart(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    @flow
    def slot(circuit: str) -> Any:
        return submit_job(credentials, [circuit], backend=BACKEND, submission_key="nightly/2026-11-23T03:00")

    first, second, other = slot(CIRCUIT), slot(CIRCUIT), slot(OTHER)
    assert first.id == second.id
    assert (first.attached, second.attached) == (False, True)
    assert other.id != first.id
    assert posts(sandbox) == 2


def test_an_explicit_key_buys_a_failed_job_anew_only_in_another_run(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    sandbox.control.script_job(status="Failed", reason="broken", reason_code=1000)

    @flow
    def twice() -> list[str]:
        ids = []
        for _ in range(2):
            job = submit_job(credentials, [CIRCUIT], backend=BACKEND, submission_key="slot-2")
            with pytest.raises(JobFailed):
                wait_for_completion(credentials, job)
            ids.append(job.id)
        return ids

    @flow
    def later() -> str:
        return str(submit_job(credentials, [CIRCUIT], backend=BACKEND, submission_key="slot-2").id)

    ids = twice()
    assert ids[0] == ids[1]
    assert later() not in ids
    assert posts(sandbox) == 2


def test_a_rerun_that_meets_another_least_busy_backend_still_attaches(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    backends = iter(["sandbox_ideal", "sandbox_noisy"])
    job = failing_once(lambda: submit_job(credentials, [CIRCUIT], backend=next(backends)))
    assert job.attached
    assert job.backend == "sandbox_ideal"
    assert posts(sandbox) == 1


@pytest.mark.parametrize("named_by", ["handle", "id", "handle by hand", "job"])
def test_a_private_result_is_stored_before_it_is_handed_on(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, named_by: str
) -> None:
    @flow
    def one() -> list[dict[str, int]]:
        job = submit_job(credentials, [CIRCUIT], backend=BACKEND, shots=5, private=True)
        done = wait_for_completion(credentials, job)
        named = {"handle": job, "id": job.id, "handle by hand": JobRef(id=job.id), "job": done}[named_by]
        return [fetch_results(credentials, named).counts(), fetch_results(credentials, job.id).counts()]

    assert one() == [{"1": 5}, {"1": 5}]
    reads = [entry for entry in sandbox.control.journal("GET") if entry["path"].endswith("/results")]
    assert len(reads) == 1


@pytest.mark.parametrize("outside", [False, True], ids=["in a flow", "outside"])
def test_the_only_copy_outlives_the_caller_that_is_cancelled_while_it_arrives(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, outside: bool
) -> None:
    async def interrupted() -> dict[str, int]:
        job = await asubmit_job(credentials, [CIRCUIT], backend=BACKEND, shots=5, private=True)
        await await_for_completion(credentials, job)
        # The service has handed it out, and its answer is on its way.
        sandbox.control.add_fault("GET", "/jobs/*/results", delay=2.0)
        fetching = asyncio.create_task(afetch_results(credentials, job))
        assert await asyncio.to_thread(until, lambda: not sandbox.control.faults())
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        return (await afetch_results(credentials, job)).counts()

    assert asyncio.run(interrupted() if outside else flow(interrupted)()) == {"1": 5}
    reads = [entry for entry in sandbox.control.journal("GET") if entry["path"].endswith("/results")]
    assert len(reads) == 1


def test_all_who_fetch_a_private_result_at_once_get_it(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Any] = []
    read_private = result_storage.read_private

    async def read_late(crn: str, job_id: str) -> Any:
        looked.append(await read_private(crn, job_id) if looked else None)
        return looked[-1]

    @flow
    def one() -> list[dict[str, int]]:
        job = submit_job(credentials, [CIRCUIT], backend=BACKEND, shots=5, private=True)
        wait_for_completion(credentials, job)
        fetching = [fetch_results.submit(credentials, same) for same in (job, job.id, job)]
        found = [each.result().counts() for each in fetching]
        # A second process: the first one stores the result after this one has looked for it.
        monkeypatch.setattr(result_storage, "read_private", read_late)
        sandbox.control.add_fault("GET", "/jobs/*/results", status=404)
        return [*found, fetch_results(credentials, job).counts()]

    assert one() == [{"1": 5}] * 4
    assert len(looked) == 2
    reads = [entry["status"] for entry in sandbox.control.journal("GET") if entry["path"].endswith("/results")]
    assert reads == [200, 404]


def test_a_stored_private_result_is_for_its_own_instance(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    crn = credentials.crn.replace("::", "x::")
    another = credentials.model_copy(update={"crn": crn})

    @flow
    def one() -> list[Any]:
        job = submit_job(credentials, [CIRCUIT], backend=BACKEND, shots=5, private=True)
        wait_for_completion(credentials, job)
        mine = fetch_results(credentials, job).counts()
        theirs = fetch_results(another, JobRef(id=job.id, private=True), return_state=True)
        return [mine, theirs.result(raise_on_failure=False)]

    mine, theirs = one()
    assert mine == {"1": 5}
    assert isinstance(theirs, QuantumRuntimeError)


@pytest.mark.parametrize("trouble", ["cut", "not a record", "gone", "out of reach"])
def test_a_stored_copy_that_cannot_be_read_is_named_with_the_reason(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, tmp_path: Path, trouble: str
) -> None:
    """Before: only that the result was read before, also while the result storage was out of reach."""
    storage = LocalFileSystem(basepath=str(tmp_path / "storage"))
    storage.save("stored-copies", overwrite=True)

    @flow(result_storage=storage)
    def first() -> list[str]:
        job = submit_job(credentials, [CIRCUIT], backend=BACKEND, shots=5, private=True)
        wait_for_completion(credentials, job)
        fetch_results(credentials, job)
        return [job.id]

    @flow(result_storage=storage)
    def again(job_id: str) -> list[Any]:
        return [fetch_results(credentials, job_id, return_state=True).result(raise_on_failure=False)]

    (job_id,) = first()
    (stored,) = (tmp_path / "storage").glob("qruntime-private-*")
    content = stored.read_bytes()
    stored.unlink()
    if trouble == "out of reach":
        stored.mkdir()
    elif trouble != "gone":
        stored.write_bytes(content[:-40] if trouble == "cut" else b"SECRET-CONTENT")
    (error,) = again(job_id)
    assert isinstance(error, NotFound)
    assert "read before" in error.message
    assert stored.name in error.message
    assert str(stored.parent) in error.message
    assert ("does not exist" in error.message) is (trouble == "gone")
    assert "SECRET-CONTENT" not in str(error)
    assert error.advice.kind == "never"
