"""What a type checker knows of the public names; never run, but checked by mypy (`make types`).

`assert_type` fails where a name has become `Any`. A `type: ignore` stands where something must be an error: mypy
reports an ignore that nothing needs any more.
"""

from __future__ import annotations

from typing import assert_type

from prefect import State
from prefect.futures import PrefectFuture, PrefectFutureList

import prefect_qruntime as qr
from prefect_qruntime import (
    Backend,
    Budget,
    InstanceReport,
    Job,
    JobRef,
    JobResult,
    QuantumRuntimeClient,
    QuantumRuntimeCredentials,
    QuantumRuntimeJob,
    QuantumRuntimeJobRun,
    QuantumRuntimeSettings,
    SessionRef,
    Usage,
)

CIRCUIT = "OPENQASM 3.0; qubit[1] q; bit[1] c; c = measure q;"


def tasks() -> None:
    """Each task as a flow calls it."""
    credentials = qr.load_credentials("ibm")
    assert_type(credentials, QuantumRuntimeCredentials)
    assert_type(credentials.get_client(), QuantumRuntimeClient)
    assert_type(qr.authenticate(credentials), InstanceReport)
    assert_type(qr.list_backends(credentials), list[Backend])
    backend = qr.select_backend(credentials)
    assert_type(backend, Backend)
    assert_type(qr.get_usage(credentials), Usage)
    job = qr.submit_job(credentials, [CIRCUIT], backend=backend, shots=10, budget=Budget(max_jobs_per_run=1))
    assert_type(job, JobRef)
    assert_type(qr.wait_for_completion(credentials, job, timeout=60.0), Job)
    assert_type(qr.fetch_results(credentials, job), JobResult)
    assert_type(qr.fetch_results(credentials, job).counts(), dict[str, int])
    assert_type(qr.cancel_job(credentials, job), Job)
    assert_type(qr.suspend_until_done(credentials, job), Job)
    session = qr.open_session(credentials, backend=backend)
    assert_type(session, SessionRef)
    with qr.runtime_session(credentials, backend="b") as opened:
        assert_type(opened, SessionRef)
    assert_type(qr.run_job(credentials, [CIRCUIT], backend="b", resubmit=1), JobResult)


def forms_of_a_call(credentials: QuantumRuntimeCredentials) -> None:
    """A task as Prefect lets it be called besides."""
    future = qr.submit_job.submit(credentials, [CIRCUIT], backend="b")
    assert_type(future, PrefectFuture[JobRef])
    assert_type(future.result(), JobRef)
    assert_type(qr.submit_job.map(credentials, [[CIRCUIT]], backend="b"), PrefectFutureList[JobRef])
    assert_type(qr.wait_for_completion(credentials, "d1", return_state=True), State[Job])


async def twins() -> None:
    """The same in async flows."""
    credentials = await qr.aload_credentials("ibm")
    assert_type(credentials, QuantumRuntimeCredentials)
    assert_type(await qr.aauthenticate(credentials), InstanceReport)
    assert_type(await qr.alist_backends(credentials), list[Backend])
    assert_type(await qr.aselect_backend(credentials), Backend)
    assert_type(await qr.aget_usage(credentials), Usage)
    cost = await qr.aestimate_cost(credentials, [CIRCUIT], backend="b", shots=10)
    assert_type(cost, qr.CostEstimate)
    await qr.arequire_approval(cost, above=10)
    job = await qr.asubmit_job(credentials, [CIRCUIT], backend="b", shots=10)
    assert_type(job, JobRef)
    assert_type(await qr.await_for_completion(credentials, job), Job)
    assert_type(await qr.afetch_results(credentials, job), JobResult)
    assert_type(await qr.acancel_job(credentials, job), Job)
    assert_type(await qr.asuspend_until_done(credentials, job), Job)
    assert_type(await qr.aopen_session(credentials, backend="b"), SessionRef)
    async with qr.aruntime_session(credentials, backend="b") as opened:
        assert_type(opened, SessionRef)
    assert_type(await qr.arun_job(credentials, [CIRCUIT], backend="b"), JobResult)


async def job_block(credentials: QuantumRuntimeCredentials) -> None:
    """The job block and what it triggers."""
    block = QuantumRuntimeJob(credentials=credentials, backend="b", pubs=[CIRCUIT])
    assert_type(block, QuantumRuntimeJob)
    assert_type(block.shots, int | None)
    run = await block.trigger()
    assert_type(run, QuantumRuntimeJobRun)
    assert_type(run.job, JobRef)
    assert_type(await run.fetch_result(), JobResult)
    assert_type(await run.cancel(), Job)
    block.no_such_method()  # type: ignore[attr-defined]
    run.no_such_method()  # type: ignore[attr-defined]


async def what_is_wrong(credentials: QuantumRuntimeCredentials, settings: QuantumRuntimeSettings) -> None:
    """Every line here must be an error."""
    qr.submit_job(credentials, [CIRCUIT], backend="b", shotz=10)  # type: ignore[call-overload]
    qr.submit_job(credentials, [CIRCUIT], backend="b", shots="many")  # type: ignore[call-overload]
    qr.submit_job(credentials, [CIRCUIT])  # type: ignore[call-overload]
    qr.submit_job(credentials, [CIRCUIT], backend="b", call_index=1)  # type: ignore[call-overload]
    qr.submit_job(credentials, [CIRCUIT], backend="b", replaces=None)  # type: ignore[call-overload]
    await qr.asubmit_job(credentials, [CIRCUIT], backend="b", shotz=10)  # type: ignore[call-overload]
    qr.wait_for_completion(credentials, "d1", timout=3)  # type: ignore[call-overload]
    await qr.await_for_completion(credentials, "d1", on_timeout="kill")  # type: ignore[call-overload]
    qr.run_job(credentials, [CIRCUIT], backend="b", shotz=10)  # type: ignore[call-arg]
    await qr.arun_job(credentials, [CIRCUIT], backend="b", shotz=10)  # type: ignore[call-arg]
    QuantumRuntimeJobRun(credentials, JobRef(id="d1"), timout=3)  # type: ignore[call-arg]
    settings.no_such_setting  # type: ignore[attr-defined]  # noqa: B018
    qr.no_such_name()  # type: ignore[attr-defined]
