"""Tasks of one job: submit, wait, fetch, cancel. Each is a task run of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect_qruntime import arguments, work
from prefect_qruntime.arguments import JobLike, SessionLike
from prefect_qruntime.budget import BudgetLike, as_budget
from prefect_qruntime.client.following import OnTimeout, Stream
from prefect_qruntime.client.home import home
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.models import Backend, Job, JobRef
from prefect_qruntime.submit_task import numbered
from prefect_qruntime.tasks.kinds import once, repeatable

__all__ = [
    "acancel_job",
    "afetch_results",
    "asubmit_job",
    "await_for_completion",
    "cancel_job",
    "fetch_results",
    "submit_job",
    "wait_for_completion",
]


@numbered
@once("submit job", "submit {program_id} → {backend}")
def submit_job(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    *,
    backend: str | Backend,
    program_id: str = "sampler",
    session: SessionLike | None = None,
    shots: int | None = None,
    options: Any = None,
    params: dict[str, Any] | None = None,
    tags: Iterable[str] = (),
    max_execution_time: int | None = None,
    private: bool = False,
    submission_key: str | None = None,
    check_isa: bool = False,
    transpile: bool = False,
    budget: BudgetLike | None = None,
    call_index: int | None = None,
    replaces: JobRef | None = None,
) -> JobRef:
    """Buy one job, or attach to the one this very call bought before. Creates at most one job.

    Run again (flow retry, restart after a crash, resume), it finds its job by the submission key
    that it left as a tag: a live one is attached to, a completed one too, and a failed or cancelled
    one is bought anew only when the flow was retried. Two equal calls in one flow run are two jobs.

    Args:
        credentials: The credentials block.
        pubs: PUBs: OpenQASM 2/3 text, or `(circuit, parameters, shots)` for the sampler,
            `(circuit, observables, parameters, precision)` for the estimator.
        backend: A backend or its name.
        program_id: `sampler`, `estimator`, or with `params` any other.
        session: Session or batch to run in.
        shots: Shots for PUBs that name none.
        options: Options of the primitive.
        params: Raw payload of any program, in place of `pubs`.
        tags: At most six tags of your own, each of at most 86 characters.
        max_execution_time: QPU seconds the job may use, 1 to 10800.
        private: Hide the input; the result can then be read once.
        submission_key: Identity of this purchase across flow runs, for instance deployment and
            scheduled time; it replaces flow run and call order.
        check_isa: Compare the circuits with the backend's configuration before anything is bought.
        transpile: Transpile the circuits for the backend (needs `[qiskit]`). Never done unasked.
        budget: A `Budget` or the name of a saved one, checked before anything is bought. In `.map` pass
            `unmapped(budget)`, or the name.
        call_index: Which of several equal calls this is; set by the library for mapped calls.
        replaces: The failed job of this same submission that a new one is wanted for: the next generation of its
            key is bought, or attached to if it was bought before. Set by `run_job(resubmit=…)`.

    Returns:
        The job's handle.

    Raises:
        InvalidInput: A field is wrong; it is named and nothing was sent.
        UsageLimitReached: The instance has no QPU time left.
        BudgetExhausted: The budget has no room for the job; nothing was sent.
        SubmissionUncertain: It cannot be told whether a job was bought; nothing more was sent.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import QuantumRuntimeCredentials, fetch_results, submit_job, wait_for_completion

        @flow
        def one_job(credentials_block: str, circuit: str, backend: str) -> dict[str, int]:
            credentials = QuantumRuntimeCredentials.load(credentials_block)
            job = submit_job(credentials, [circuit], backend=backend, shots=1000)
            wait_for_completion(credentials, job)
            return fetch_results(credentials, job).counts()
        ```
    """
    paying = as_budget(budget)
    configuration = home().run(arguments.configuration(credentials, backend, needed=check_isa or transpile))
    plan = arguments.plan(
        pubs,
        configuration=configuration,
        check_isa=check_isa,
        transpile=transpile,
        backend=backend,
        program_id=program_id,
        shots=shots,
        options=options,
        params=params,
        tags=tags,
        max_execution_time=max_execution_time,
        private=private,
    )
    where = arguments.as_session(session)
    return home().run(work.submit(credentials, plan, where, submission_key, call_index, paying, replaces))


@numbered
@once("submit job", "submit {program_id} → {backend}")
async def asubmit_job(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    *,
    backend: str | Backend,
    program_id: str = "sampler",
    session: SessionLike | None = None,
    shots: int | None = None,
    options: Any = None,
    params: dict[str, Any] | None = None,
    tags: Iterable[str] = (),
    max_execution_time: int | None = None,
    private: bool = False,
    submission_key: str | None = None,
    check_isa: bool = False,
    transpile: bool = False,
    budget: BudgetLike | None = None,
    call_index: int | None = None,
    replaces: JobRef | None = None,
) -> JobRef:
    """As `submit_job`, for async flows."""
    paying = as_budget(budget)
    configuration = await home().arun(arguments.configuration(credentials, backend, needed=check_isa or transpile))
    plan = arguments.plan(
        pubs,
        configuration=configuration,
        check_isa=check_isa,
        transpile=transpile,
        backend=backend,
        program_id=program_id,
        shots=shots,
        options=options,
        params=params,
        tags=tags,
        max_execution_time=max_execution_time,
        private=private,
    )
    where = arguments.as_session(session)
    return await home().arun(work.submit(credentials, plan, where, submission_key, call_index, paying, replaces))


@repeatable("wait for completion", "wait for {job}")
def wait_for_completion(
    credentials: QuantumRuntimeCredentials,
    job: JobLike,
    *,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
) -> Job:
    """Wait until the service says that the job completed. Never submits; survives outages.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.
        timeout: Seconds for the whole wait, retries included; None for no limit.
        queue_timeout: Seconds until the job runs; None for no limit.
        on_timeout: `leave` lets the job live on, `cancel` cancels it.
        stream: `auto` uses a websocket where the dialect has one, `always` tries one anywhere,
            `never` polls only. In every case the job's state comes from `GET /jobs/{id}`.

    Returns:
        The completed job.

    Raises:
        JobFailed: The job failed; `retryable` tells whether a new one may succeed.
        JobRanTooLong: It reached its QPU time limit.
        JobCancelled: It was cancelled.
        JobTimeout: A limit of this wait passed; the error says how to attach again.
        NotFound: No such job in this instance.
    """
    return home().run(work.wait(credentials, arguments.as_job(job), timeout, queue_timeout, on_timeout, stream))


@repeatable("wait for completion", "wait for {job}")
async def await_for_completion(
    credentials: QuantumRuntimeCredentials,
    job: JobLike,
    *,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
) -> Job:
    """As `wait_for_completion`, for async flows."""
    return await home().arun(work.wait(credentials, arguments.as_job(job), timeout, queue_timeout, on_timeout, stream))


@repeatable("fetch results", "fetch {job}")
def fetch_results(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobResult:
    """Fetch a finished job's result; reads only.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.

    Returns:
        The result: `counts`, `expectation_values`, `quasi_dists` and more.

    Raises:
        JobFailed: The job failed; carries the service's text.
        ResultNotReady: The job is not over.
        NotFound: No such job, or a private result that was read before.
    """
    return home().run(work.fetch(credentials, arguments.as_job(job)))


@repeatable("fetch results", "fetch {job}")
async def afetch_results(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobResult:
    """As `fetch_results`, for async flows."""
    return await home().arun(work.fetch(credentials, arguments.as_job(job)))


@repeatable("cancel job", "cancel {job}")
def cancel_job(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """Cancel a job. One that is over already is left as it is and is no error.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.

    Returns:
        The job as the service shows it afterwards.
    """
    return home().run(work.cancel(credentials, arguments.as_job(job)))


@repeatable("cancel job", "cancel {job}")
async def acancel_job(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """As `cancel_job`, for async flows."""
    return await home().arun(work.cancel(credentials, arguments.as_job(job)))
