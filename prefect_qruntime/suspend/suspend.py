"""Hand a wait over to a watcher: release the worker until the job is over, or leave the job to the watcher.

`prefect-qruntime watch` (or the flow `watch_jobs`) follows what is handed over here.
"""

from __future__ import annotations

import logging
from uuid import UUID

from prefect.context import FlowRunContext, TaskRunContext
from prefect.flow_runs import asuspend_flow_run, suspend_flow_run

from prefect_qruntime.cancellation import policy
from prefect_qruntime.client.failures import job_error
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import QuantumRuntimeCredentials, block_name
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.prefect_api import current_flow_run_id
from prefect_qruntime.suspend import waits
from prefect_qruntime.suspend.resume import emit_end
from prefect_qruntime.tasks.arguments import JobLike, as_job
from prefect_qruntime.tasks.wait import await_for_completion, wait_for_completion

__all__ = ["aleave_to_watcher", "asuspend_until_done", "leave_to_watcher", "suspend_until_done"]


def suspend_until_done(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """Release the worker until the job is over; for waits of hours and days. Costs nothing.

    Call it in the flow, not in a task. A job that is over is returned at once. Else the flow run is suspended
    and its process ends; `prefect-qruntime watch` resumes it when the job is over. Then Prefect runs the flow
    **from the top**: `submit_job` attaches to its job, other code runs again. A session that the flow has open
    takes no more jobs and closes after those in it.

    A flow run that cannot be suspended (without a deployment, a subflow, a credentials block that is not
    saved) waits in its process, with a warning.

    Args:
        credentials: A credentials block, saved under a name, by which the watcher loads it.
        job: The job, or its id.

    Returns:
        The completed job, as the service shows it.

    Raises:
        InvalidInput: Called inside a task.
        JobFailed: The job failed; `JobCancelled`: it was cancelled; `JobRanTooLong`: it hit its time limit.
        NotFound: The service does not know the job.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import fetch_results, hooks, load_credentials, submit_job, suspend_until_done

        @flow(**hooks.cancel)
        def overnight(credentials_block: str, circuit: str, backend: str) -> dict[str, int]:
            credentials = load_credentials(credentials_block)
            job = submit_job(credentials, [circuit], backend=backend)
            suspend_until_done(credentials, job)
            return fetch_results(credentials, job).counts()
        ```
    """
    ref = _checked(job)
    while not (obstacle := _obstacle(credentials)):
        done = network_loop().run(_end(credentials, ref))
        if done is not None:
            return done
        key = network_loop().run(_note(credentials, ref))
        suspend_flow_run(key=key, _sync=True)  # type: ignore[call-overload]
    _warn(obstacle)
    return wait_for_completion.fn(credentials, ref)


async def asuspend_until_done(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """As `suspend_until_done`, for async flows."""
    ref = _checked(job)
    while not (obstacle := _obstacle(credentials)):
        done = await network_loop().arun(_end(credentials, ref))
        if done is not None:
            return done
        key = await network_loop().arun(_note(credentials, ref))
        await asuspend_flow_run(key=key)
    _warn(obstacle)
    return await await_for_completion.fn(credentials, ref)


def leave_to_watcher(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobRef:
    """Let the watcher report the job's end by an event, and continue without waiting. Costs nothing.

    The watcher emits `qruntime.job.completed`, `.failed` or `.cancelled` with the label
    `qruntime.left-to-watcher: true` and, in the payload, `job_id` and `credentials_block`: enough for an
    automation to start a deployment that collects the result.

    Args:
        credentials: A credentials block, saved under a name, by which the watcher loads it.
        job: The job, or its id.

    Returns:
        The job's handle.

    Raises:
        InvalidInput: The block is not saved.
    """
    return network_loop().run(_leave(credentials, as_job(job)))


async def aleave_to_watcher(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobRef:
    """As `leave_to_watcher`, for async flows."""
    return await network_loop().arun(_leave(credentials, as_job(job)))


def _checked(job: JobLike) -> JobRef:
    if TaskRunContext.get() is not None:
        raise InvalidInput("suspend_until_done belongs in the flow: Prefect cannot suspend a task run", field="job")
    return as_job(job)


def _obstacle(credentials: QuantumRuntimeCredentials) -> str:
    """Why the flow run cannot be suspended; empty if it can."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return "there is no flow run to suspend"
    if context.flow_run.deployment_id is None:
        return "a flow run without a deployment cannot be resumed"
    if context.flow_run.parent_task_run_id is not None:
        return "Prefect cannot suspend a subflow"
    if block_name(credentials) is None:
        return "the credentials block is not saved, so the watcher could not load it"
    return ""


def _warn(obstacle: str) -> None:
    text = f"The flow run is not suspended: {obstacle}. It waits for the job in this process."
    notifications.log_to_run(text, level=logging.WARNING)


def _flow_run_id() -> UUID:
    context = FlowRunContext.get()
    assert context is not None  # noqa: S101  # _obstacle has checked it
    assert context.flow_run is not None  # noqa: S101
    return context.flow_run.id


async def _end(credentials: QuantumRuntimeCredentials, ref: JobRef) -> Job | None:
    """The job's present state if it is over; None if the flow run may be suspended (again)."""
    try:
        job = await credentials.get_client().look(ref.id)
    except QuantumRuntimeError as error:
        if not error.is_outage:
            raise
        notifications.log_to_run(f"No answer about job {ref.id} for now: {error}", level=logging.WARNING)
        return None
    if not job.is_terminal:
        return None
    notifications.log_to_run(f"job {job.id} is over (state {job.raw_status!r})")
    emit_end(job, flow_run_id=str(_flow_run_id()), block=block_name(credentials))  # only once, even with a watcher
    await notifications.job_ended(job, [])
    failure = job_error(job)
    if failure is not None:
        raise failure
    return job


async def _note(credentials: QuantumRuntimeCredentials, ref: JobRef) -> str:
    """Record the wait and return the key to suspend with."""
    flow_run_id, block = _flow_run_id(), block_name(credentials)
    key = waits.pause_key(ref.id, await waits.used_keys(flow_run_id))
    await waits.note_suspended(ref.id, block=block or "", flow_run_id=flow_run_id, key=key, policy=policy())
    notifications.log_to_run(
        f"releasing the worker until job {ref.id} is over; `prefect-qruntime watch` resumes this flow run"
    )
    return key


async def _leave(credentials: QuantumRuntimeCredentials, ref: JobRef) -> JobRef:
    block = block_name(credentials)
    if block is None:
        raise InvalidInput("must be a saved block: the watcher loads it by name", field="credentials")
    await waits.note_left(ref.id, block=block, flow_run_id=current_flow_run_id())
    notifications.log_to_run(f"job {ref.id} is left to the watcher, which reports its end by an event")
    return ref
