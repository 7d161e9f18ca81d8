"""Wait until a job is over: the tasks and what they do."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prefect.context import TaskRunContext

from prefect_qruntime.cancellation import cancels_jobs, ends_with_flow_run, polls_for_cancellation
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.failures import job_error
from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.client.waiting.follow import OnTimeout, Stream
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput, JobTimeout, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.events import Observation, queue_and_run_seconds
from prefect_qruntime.observability.traces import trace_job, trace_states
from prefect_qruntime.settings import current_settings
from prefect_qruntime.tasks.arguments import JobLike, as_job
from prefect_qruntime.tasks.decorators import blocking, in_flow, repeats

__all__ = ["await_for_completion", "wait_for_completion"]

_QUEUE_AGE = 60.0  # seconds for which the length of a queue is news enough


@in_flow
@repeats("wait for completion", "wait for {job}")
@ends_with_flow_run
async def await_for_completion(
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
    ref = as_job(job)
    if on_timeout not in ("leave", "cancel"):
        raise InvalidInput("must be 'leave' or 'cancel'", field="on_timeout")
    if stream not in ("auto", "always", "never"):
        raise InvalidInput("must be 'auto', 'always' or 'never'", field="stream")
    settings = current_settings()
    deadlines = Deadlines(total=timeout, queue=queue_timeout, outage=settings.outage_patience_seconds).check()
    deadlines = Deadlines(total=_time_left(timeout), queue=queue_timeout, outage=deadlines.outage)
    client = credentials.get_client()
    history: list[Observation] = []
    last: list[Job] = []

    async def on_change(seen: Job, waited: float) -> None:
        if seen.status is not JobStatus.QUEUED:
            client.look_at_calibration(seen)
        history.append(Observation(seen.status, seen.raw_status.lower(), waited, datetime.now(UTC)))
        last[:] = [seen]
        notifications.job_changed(seen, waited)

    reminder = asyncio.create_task(_remind(client, ref.id, last, settings.progress_seconds))
    try:
        async with cancels_jobs(client, [ref.id]), polls_for_cancellation(client, ref.id):
            done = await client.wait(
                ref.id,
                deadlines=deadlines,
                on_timeout=on_timeout,
                stream=stream,
                in_session=ref.session is not None,
                on_change=on_change,
            )
    except JobTimeout as late:
        if late.fields.get("cancelled"):
            await _report_cancelled(client, ref.id)
        raise
    finally:
        reminder.cancel()
    client.note_times(done.id, *queue_and_run_seconds(done, history))
    notifications.job_over(done, history, calibration=client.look_at_calibration(done))
    trace_job(done)
    trace_states(done, history)
    notifications.follow_usage(client, done)
    error = job_error(done)
    if error is not None:
        raise error
    return done


wait_for_completion = blocking(await_for_completion)
"""As `await_for_completion`, for sync flows."""


def _time_left(timeout: float | None) -> float | None:
    """What a retried wait has left of its total time: a retry does not start the clock again."""
    context = TaskRunContext.get()
    if timeout is None or context is None or (context.task_run.run_count or 0) <= 1:
        return timeout
    began = context.task_run.start_time
    if began is None:
        return timeout
    return max(0.001, timeout - (datetime.now(UTC) - began).total_seconds())


async def _report_cancelled(client: QuantumRuntimeClient, job_id: str) -> None:
    with contextlib.suppress(QuantumRuntimeError):  # it is cancelled all the same; the sweep completes its page
        cancelled = await client.job(job_id)
        await notifications.job_cancelled(cancelled)
        notifications.follow_usage(client, cancelled)


async def _remind(client: QuantumRuntimeClient, job_id: str, last: list[Job], every: float) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(every)
        waited = time.monotonic() - started
        if last:
            queued, backend = last[0].status is JobStatus.QUEUED, last[0].backend
            queue = await queue_length(client, backend) if queued and backend else None
            notifications.job_still(last[0], waited, queue)
        else:
            notifications.log_to_run(f"job {job_id}: the service has not told its state after {waited:.0f} s")


@dataclass(slots=True)
class _Queues:
    """Lengths of backends' queues as this process asked for them last, and when."""

    known: dict[tuple[str, str], tuple[float, int | None]] = field(default_factory=dict)
    asking: SingleFlight[int | None] = field(default_factory=SingleFlight)


async def queue_length(client: QuantumRuntimeClient, backend: str) -> int | None:
    """Jobs in a backend's queue, asked once a minute for all waits of this process; None if it is not told."""
    queues, which = network_loop().state(_Queues), (client.connection.crn, backend)
    asked, length = queues.known.get(which, (-math.inf, None))
    if time.monotonic() - asked > _QUEUE_AGE:
        asked = time.monotonic()
        length = await queues.asking.join(lambda: _ask_queue(client, backend), *which)
        queues.known[which] = asked, length
    return length


async def _ask_queue(client: QuantumRuntimeClient, backend: str) -> int | None:
    try:
        length: Any = (await client.backend_status(backend)).get("length_queue")
    except QuantumRuntimeError:
        return None
    return length if type(length) is int else None
